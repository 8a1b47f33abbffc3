//! Counts the engine's failures, so that no keeper declares a worker lost because of an outage. Also logs each
//! outage.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::outage::OutageLog;
use crate::backend::{OwnerId, StorageError};
use crate::printable::Chain;
use crate::telemetry::{EngineCall, timed};

/// The number of failure counters. The owners of one bucket share a counter.
const BUCKETS: usize = 64;
/// An answer that takes longer counts as a failure, because a worker that renews its lease may have to wait equally
/// long.
const PROMPT: Duration = Duration::from_secs(1);

/// Counts the engine's failures: errors, late answers, and missing answers.
///
/// The records of one owner live on one server. A failure for one owner says nothing about an owner on another server, so
/// failures are counted by owner.
#[derive(Debug)]
pub(super) struct Answers {
    hasher: RandomState,
    by_owner: Box<[AtomicU64]>,
    /// Failures that concern every owner: failed calls without an owner, and late wakeups of the keeper.
    of_all_owners: AtomicU64,
    /// The time limit of one call of the engine. It is longer than the limit of a call of the store, so it ends only
    /// calls of background tasks, on an engine without a time limit of its own.
    limit: Duration,
    outages: OutageLog,
}

/// The failure counters of one owner at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Failures {
    of_owner: u64,
    of_all_owners: u64,
}

impl Answers {
    pub(super) fn new(call_timeout: Duration) -> Self {
        Self {
            hasher: RandomState::new(),
            by_owner: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect(),
            of_all_owners: AtomicU64::new(0),
            limit: call_timeout + PROMPT,
            outages: OutageLog::default(),
        }
    }

    fn counter(&self, owner: Option<&OwnerId>) -> &AtomicU64 {
        owner.map_or(&self.of_all_owners, |owner| {
            &self.by_owner[self.hasher.hash_one(owner) as usize % BUCKETS]
        })
    }

    /// Returns the failure counters of an owner. If they change during an observation of one of the owner's leases,
    /// the observation is void.
    pub(super) fn failures(&self, owner: &OwnerId) -> Failures {
        Failures {
            of_owner: self.counter(Some(owner)).load(Ordering::Acquire),
            of_all_owners: self.of_all_owners.load(Ordering::Acquire),
        }
    }

    /// Counts a late wakeup of the keeper: a failure that concerns every owner.
    pub(super) fn count_late_wakeup(&self) {
        self.of_all_owners.fetch_add(1, Ordering::AcqRel);
    }

    /// Waits for the answer to a read. Counts a failure if the read fails, if its answer is late, or if the caller
    /// drops the call after the answer was due.
    pub(super) async fn count<T>(
        &self,
        call: EngineCall,
        owner: Option<&OwnerId>,
        read: impl Future<Output = Result<T, StorageError>>,
    ) -> Result<T, StorageError> {
        self.count_call(owner, timed(call, read), CallKind::Read).await
    }

    /// Waits for a page or a part. A late answer does not count as a failure: pages and parts may be megabytes on a slow
    /// network, and they travel on another connection than lease renewals.
    pub(super) async fn count_large<T>(
        &self,
        call: EngineCall,
        owner: Option<&OwnerId>,
        read: impl Future<Output = Result<T, StorageError>>,
    ) -> Result<T, StorageError> {
        self.count_call(owner, timed(call, read), CallKind::LargeRead).await
    }

    /// Waits for the answer to a write. Without an answer, the engine may have applied the write or not.
    pub(super) async fn count_write<T>(
        &self,
        call: EngineCall,
        owner: Option<&OwnerId>,
        write: impl Future<Output = Result<T, StorageError>>,
    ) -> Result<T, StorageError> {
        self.count_call(owner, timed(call, write), CallKind::Write).await
    }

    async fn count_call<T>(
        &self,
        owner: Option<&OwnerId>,
        call: impl Future<Output = Result<T, StorageError>>,
        kind: CallKind,
    ) -> Result<T, StorageError> {
        let mut pending = PendingCall {
            answers: self,
            counter: self.counter(owner),
            started: Instant::now(),
            kind,
            outcome: None,
        };
        let no_answer = |_| Err(self.no_answer(kind == CallKind::Write));
        let answer = timeout(self.limit, call).await.unwrap_or_else(no_answer);
        match &answer {
            Err(error) if is_failure(error) => {
                self.outages.record_failure(&Chain(error));
                pending.outcome = Some(Outcome::Failed);
            }
            // The engine is out of memory: it answers, but rejects every write.
            Err(error @ StorageError::CapacityExceeded { quota: None, .. }) => {
                self.outages.record_failure(&Chain(error));
                pending.outcome = Some(Outcome::Answered);
            }
            _ => {
                self.outages.record_success();
                pending.outcome = Some(Outcome::Answered);
            }
        }
        answer
    }

    fn no_answer(&self, is_write: bool) -> StorageError {
        StorageError::Unavailable {
            address: "the storage engine".to_owned(),
            reason: format!(
                "no answer within {:?}; check that its server is running and reachable",
                self.limit
            ),
            outcome_unknown: is_write,
            source: None,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum CallKind {
    Read,
    LargeRead,
    Write,
}

struct PendingCall<'a> {
    answers: &'a Answers,
    counter: &'a AtomicU64,
    started: Instant,
    kind: CallKind,
    /// `None` until the call ends. It stays `None` if the caller drops the call.
    outcome: Option<Outcome>,
}

#[derive(PartialEq, Eq)]
enum Outcome {
    Answered,
    Failed,
}

impl Drop for PendingCall<'_> {
    fn drop(&mut self) {
        let took = self.started.elapsed();
        let is_late = took > PROMPT && self.kind != CallKind::LargeRead;
        if self.outcome == Some(Outcome::Failed) || is_late {
            self.counter.fetch_add(1, Ordering::AcqRel);
        }
        if self.outcome.is_none() && is_late {
            let error = format_args!("the caller gave up a call that had no answer after {took:?}");
            self.answers.outages.record_failure(&error);
        }
    }
}

/// Returns whether the engine failed to answer. A conflict is an answer.
fn is_failure(error: &StorageError) -> bool {
    matches!(
        error,
        StorageError::Unavailable { .. }
            | StorageError::TooFewReplicas { .. }
            | StorageError::Denied { .. }
            | StorageError::Backend { .. }
    )
}

//! Which of the engine's answers failed, so that nobody is declared lost across an outage, and the log says that there is one.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::health::Health;
use crate::backend::{OwnerId, StorageError};
use crate::printable::Chain;

/// Into how many buckets the owners are spread. The owners of a bucket share their failures.
const BUCKETS: usize = 64;
/// An answer that takes longer counts as missing: whoever waited for it could not renew a lease either.
const PROMPT: Duration = Duration::from_secs(1);

/// Counts the answers of the engine that failed or did not come. An owner's records are on one server, so a failure of
/// one owner says nothing about the records of those whose server is another.
#[derive(Debug)]
pub(super) struct Answers {
    hasher: RandomState,
    failed: Box<[AtomicU64]>,
    /// Of calls that concern no owner, and gaps in the own ticking.
    disturbed: AtomicU64,
    /// How long an answer may take: longer than any call of the store, for the background tasks. Engines have shorter limits
    /// of their own; one may have none.
    limit: Duration,
    health: Health,
}

/// How many failures there were at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Failures(u64, u64);

impl Answers {
    pub(super) fn new(limit: Duration) -> Self {
        let failed = (0..BUCKETS).map(|_| AtomicU64::new(0)).collect();
        Self {
            hasher: RandomState::new(),
            failed,
            disturbed: AtomicU64::new(0),
            limit: limit + PROMPT,
            health: Health::default(),
        }
    }

    fn of(&self, owner: Option<&OwnerId>) -> &AtomicU64 {
        owner.map_or(&self.disturbed, |owner| &self.failed[self.hasher.hash_one(owner) as usize % BUCKETS])
    }

    /// What counts against an observation of this owner's record.
    pub(super) fn failures(&self, owner: &OwnerId) -> Failures {
        Failures(self.of(Some(owner)).load(Ordering::Acquire), self.disturbed.load(Ordering::Acquire))
    }

    /// Counts something that concerns every owner.
    pub(super) fn disturb(&self) {
        self.disturbed.fetch_add(1, Ordering::AcqRel);
    }

    /// Waits for the answer to a read, and counts it if it fails, comes late, or is given up late.
    pub(super) async fn count<T>(
        &self,
        owner: Option<&OwnerId>,
        read: impl Future<Output = Result<T, StorageError>>,
    ) -> Result<T, StorageError> {
        self.count_call(owner, read, Asked::Read).await
    }

    /// The same for pages and parts. They may be megabytes on a slow network, and travel apart from the calls that renew a
    /// lease: that one comes late, or is given up, says nothing about those.
    pub(super) async fn count_large<T>(
        &self,
        owner: Option<&OwnerId>,
        read: impl Future<Output = Result<T, StorageError>>,
    ) -> Result<T, StorageError> {
        self.count_call(owner, read, Asked::LargeRead).await
    }

    /// The same for a write, which may have been applied if its answer does not come.
    pub(super) async fn count_write<T>(
        &self,
        owner: Option<&OwnerId>,
        write: impl Future<Output = Result<T, StorageError>>,
    ) -> Result<T, StorageError> {
        self.count_call(owner, write, Asked::Write).await
    }

    async fn count_call<T>(
        &self,
        owner: Option<&OwnerId>,
        call: impl Future<Output = Result<T, StorageError>>,
        asked: Asked,
    ) -> Result<T, StorageError> {
        let (failed, begun) = (self.of(owner), Instant::now());
        let mut under_way = Call { answers: self, failed, begun, asked, answer: None };
        let no_answer = |_| Err(self.no_answer(asked == Asked::Write));
        let answer = timeout(self.limit, call).await.unwrap_or_else(no_answer);
        match &answer {
            Err(error) if is_failure(error) => {
                self.health.failed(&Chain(error));
                under_way.answer = Some(Answer::Failed);
            }
            // It answers, and takes no writes of anybody.
            Err(error @ StorageError::CapacityExceeded { quota: None, .. }) => {
                self.health.failed(&Chain(error));
                under_way.answer = Some(Answer::Good);
            }
            _ => {
                self.health.succeeded();
                under_way.answer = Some(Answer::Good);
            }
        }
        answer
    }

    fn no_answer(&self, is_write: bool) -> StorageError {
        StorageError::Unavailable {
            address: "the storage engine".to_owned(),
            reason: format!("no answer within {:?}; check that its server answers", self.limit),
            outcome_unknown: is_write,
            source: None,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Asked {
    Read,
    LargeRead,
    Write,
}

struct Call<'a> {
    answers: &'a Answers,
    failed: &'a AtomicU64,
    begun: Instant,
    asked: Asked,
    /// `None` if the caller gave up.
    answer: Option<Answer>,
}

#[derive(PartialEq, Eq)]
enum Answer {
    Good,
    Failed,
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let took = self.begun.elapsed();
        let is_late = took > PROMPT && self.asked != Asked::LargeRead;
        if self.answer == Some(Answer::Failed) || is_late {
            self.failed.fetch_add(1, Ordering::AcqRel);
        }
        if self.answer.is_none() && is_late {
            self.answers.health.failed(&format_args!("a call was given up without an answer after {took:?}"));
        }
    }
}

/// Whether the engine did not answer the question. A conflict is an answer.
pub(super) fn is_failure(error: &StorageError) -> bool {
    matches!(
        error,
        StorageError::Unavailable { .. }
            | StorageError::TooFewReplicas { .. }
            | StorageError::Denied { .. }
            | StorageError::Backend { .. }
    )
}

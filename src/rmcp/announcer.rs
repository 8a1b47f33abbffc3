//! The background task of a manager that announces the worker to operators. It never delays the work of the manager.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{Instrument, Span};

use super::count::Count;
use super::running_mark::RunningMark;
use super::runtime::{Runtime, SHUTDOWN_CALL_LIMIT};
use super::shutdown::ShutdownSignal;
use crate::backend::Agenda;
use crate::printable::Chain;
use crate::store::{Announcement, TaskError};

/// When a worker first announces itself. By then it has usually registered all its operations, and a process that lives shorter costs
/// the engine nothing.
const FIRST_AFTER: Duration = Duration::from_secs(1);

/// How long the removal of the record may take when the runs have used up the time of a shutdown.
const LATE_REMOVAL: Duration = Duration::from_millis(500);

/// What a manager shares with its announcer.
pub(super) struct Announcing {
    is_running: Arc<AtomicBool>,
    operations: Arc<Mutex<BTreeSet<String>>>,
    /// How many claimed tasks the manager runs at once.
    capacity: usize,
    /// Tells this manager from others on the same store.
    id: String,
    /// Held by the announcer until it has removed its record.
    record: Count,
    /// Closed when the manager is dropped.
    alive: watch::Sender<()>,
}

impl Announcing {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            is_running: Arc::default(),
            operations: Arc::default(),
            capacity,
            id: uuid::Uuid::new_v4().to_string(),
            record: Count::default(),
            alive: watch::Sender::default(),
        }
    }

    /// Waits until the record is removed. The runtime of the announcer may no longer run, so the wait has a limit.
    pub(super) async fn removed(&self, shutdown: &ShutdownSignal) {
        tokio::select! {
            () = self.record.is_zero() => {}
            () = removal_limit(shutdown) => {}
        }
    }

    /// Adds an operation that the worker runs.
    pub(super) fn add(&self, operation: &str) {
        lock(&self.operations).insert(operation.to_owned());
    }
}

fn lock(operations: &Mutex<BTreeSet<String>>) -> MutexGuard<'_, BTreeSet<String>> {
    // No code panics while it holds this lock.
    operations.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts the announcer unless it runs, there is no Tokio runtime yet, or a shutdown has begun.
pub(super) fn ensure_running<B: Agenda>(runtime: &Runtime<B>) {
    let announcing = &runtime.announcing;
    if announcing.is_running.load(Ordering::Acquire) || runtime.shutdown.has_begun() {
        return;
    }
    let Ok(tokio) = Handle::try_current() else { return };
    if announcing.is_running.swap(true, Ordering::AcqRel) {
        return;
    }
    let mark = RunningMark(Arc::clone(&announcing.is_running));
    let announcement = match runtime.store.announcement(&announcing.id) {
        Ok(announcement) => announcement,
        Err(error) => {
            return tracing::warn!(error = %Chain(&error), "this worker cannot announce itself to operators");
        }
    };
    let announcer = Announcer {
        announcement,
        operations: Arc::clone(&announcing.operations),
        capacity: announcing.capacity,
        shutdown: runtime.shutdown.signal(),
        alive: announcing.alive.subscribe(),
        runs: runtime.runs.subscribe(),
        has_failed: false,
    };
    let counted = announcing.record.add();
    let run = async move {
        let (_mark, _counted) = (mark, counted);
        announcer.run().await;
    };
    // Not in the span of the caller, which would then stay open for as long as the announcer runs.
    tokio.spawn(run);
}

/// Returns the span of one call, which begins a trace of its own.
fn span() -> Span {
    tracing::debug_span!(parent: None, "announce")
}

/// Waits until the removal of the record has taken too long for a shutdown.
async fn removal_limit(shutdown: &ShutdownSignal) {
    shutdown.limit_elapsed(SHUTDOWN_CALL_LIMIT).await;
    sleep(LATE_REMOVAL).await;
}

struct Announcer<B> {
    announcement: Announcement<B>,
    operations: Arc<Mutex<BTreeSet<String>>>,
    capacity: usize,
    shutdown: ShutdownSignal,
    alive: watch::Receiver<()>,
    runs: watch::Receiver<usize>,
    /// The last write has failed, and the log has a line about it.
    has_failed: bool,
}

impl<B: Agenda> Announcer<B> {
    async fn run(mut self) {
        if self.ends_within(FIRST_AFTER).await {
            return;
        }
        loop {
            self.announce().await;
            if self.ends_within(self.announcement.period()).await {
                return self.remove().await;
            }
        }
    }

    /// Waits for this time. Returns `true` as soon as the worker has ended.
    async fn ends_within(&mut self, pause: Duration) -> bool {
        tokio::select! {
            () = sleep(pause) => false,
            () = self.ended() => true,
        }
    }

    /// Waits until a shutdown has begun or the manager was dropped, and the worker runs nothing any more.
    async fn ended(&mut self) {
        tokio::select! {
            _ = self.shutdown.begun() => {}
            // The manager sends nothing, so this is its drop.
            _ = self.alive.changed() => {}
        }
        // An error means that the manager and its last run are gone.
        let _ = self.runs.wait_for(|running| *running == 0).await;
    }

    async fn announce(&mut self) {
        let operations = lock(&self.operations).iter().cloned().collect();
        let shutdown = self.shutdown.clone();
        // A write is not dropped halfway, except when the process is about to end: it could overtake the removal.
        let written = tokio::select! {
            written = self.announcement.write(operations, self.capacity).instrument(span()) => written,
            () = shutdown.limit_elapsed(SHUTDOWN_CALL_LIMIT) => return,
        };
        self.note(written.as_ref());
    }

    /// Logs the first of several failures. The store logs the outages of the engine.
    fn note(&mut self, written: Result<&(), &TaskError>) {
        match written {
            Ok(()) => self.has_failed = false,
            Err(error) if self.has_failed || error.is_retryable() => {
                tracing::debug!(error = %Chain(error), "this worker could not announce itself to operators yet");
            }
            Err(error) => {
                self.has_failed = true;
                tracing::warn!(error = %Chain(error), "this worker cannot announce itself to operators; it tries again");
            }
        }
    }

    /// Removes the record. A shutdown that has taken long already waits only briefly.
    async fn remove(self) {
        let Self { announcement, shutdown, .. } = self;
        tokio::select! {
            biased;
            removed = announcement.remove().instrument(span()) => if let Err(error) = removed {
                tracing::debug!(error = %Chain(&error), "the record of this worker could not be removed; it expires");
            },
            () = removal_limit(&shutdown) => tracing::debug!("the record of this worker could not be removed in time; it expires"),
        }
    }
}

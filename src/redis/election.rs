//! Follows the elections of the sentinels.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use redis::RedisResult;
use redis::aio::MultiplexedConnection;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::dialer::Dialer;
use super::epochs::Epochs;
use super::sentinel::{Candidate, OnPush, Sentinels};
use crate::backend::engine::on_drop;
use crate::printable::Chain;

/// How often the backend compares its master with the master that the sentinels report.
const COMPARED_EVERY: Duration = Duration::from_secs(1);
/// The shortest pause between two comparisons.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);

/// The latest election that is known, and the task that watches for the next one.
pub(super) struct Election {
    sentinels: Sentinels,
    /// Connects to the servers that the sentinels report.
    dialer: Dialer,
    epochs: Arc<Epochs>,
    /// An epoch, and the master that its connections lead to.
    elected: Mutex<Option<(u64, Candidate)>>,
    /// Receives a notification when the master may be deposed.
    suspected: Arc<Notify>,
    /// Whether the background task that follows the elections runs.
    is_watched: AtomicBool,
}

impl Election {
    pub(super) fn new(sentinels: Sentinels, dialer: Dialer, epochs: Arc<Epochs>) -> Self {
        Self {
            sentinels,
            dialer,
            epochs,
            elected: Mutex::default(),
            suspected: Arc::default(),
            is_watched: AtomicBool::new(false),
        }
    }

    /// Connects to the elected master. `epoch` is the epoch in which the attempt began. Returns the connection, the
    /// address of the server, and whether other connections of the epoch lead to another server.
    pub(super) async fn dial_master(
        self: &Arc<Self>,
        epoch: u64,
        response_timeout: Option<Duration>,
        on_push: OnPush,
    ) -> RedisResult<(MultiplexedConnection, String, bool)> {
        let (connection, master) = self.sentinels.dial(&self.dialer, response_timeout, on_push).await?;
        let address = master.to_string();
        let is_another_server = self.record(epoch, master);
        self.keep_watching();
        Ok((connection, address, is_another_server))
    }

    /// Records the master of a connection of this epoch. Returns whether other connections of the epoch lead to another
    /// server.
    fn record(&self, epoch: u64, master: Candidate) -> bool {
        let mut elected = self.elected();
        let is_another = elected.as_ref().is_some_and(|(of, known)| *of == epoch && !known.is_at(&master));
        if elected.as_ref().is_none_or(|(of, _)| *of <= epoch) {
            // The connection may be the first of the next epoch.
            let is_first = is_another || self.epochs.has_broken(epoch);
            *elected = Some((epoch + u64::from(is_first), master));
        }
        is_another
    }

    /// Locks the latest election. No code panics while it holds the lock, so the data behind a poisoned lock is
    /// consistent.
    fn elected(&self) -> MutexGuard<'_, Option<(u64, Candidate)>> {
        self.elected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the background task compare the master, as soon as possible, with the master that the sentinels report.
    pub(super) fn suspect(&self) {
        self.suspected.notify_one();
    }

    pub(super) fn master_name(&self) -> &str {
        self.sentinels.master_name()
    }

    /// Starts the task that compares the masters, unless it runs.
    fn keep_watching(self: &Arc<Self>) {
        let Ok(runtime) = Handle::try_current() else { return };
        if self.is_watched.swap(true, Ordering::SeqCst) {
            return;
        }
        let (this, suspected) = (Arc::downgrade(self), Arc::clone(&self.suspected));
        // Runs when the task ends for any reason, also when its runtime shuts down.
        let ended = on_drop({
            let election = Arc::downgrade(self);
            move || {
                if let Some(election) = election.upgrade() {
                    election.is_watched.store(false, Ordering::SeqCst);
                }
            }
        });
        runtime.spawn(async move {
            let _ended = ended;
            watch(this, suspected).await;
        });
    }

    /// Ends the epoch if the sentinels have elected another master.
    async fn compare(&self) {
        let elected = self.elected().clone();
        let Some((epoch, master)) = elected.filter(|(epoch, _)| self.epochs.is_current(*epoch)) else {
            return;
        };
        match timeout(self.dialer.limit, self.sentinels.successor(&master, &self.dialer)).await {
            Ok(Ok(Some(successor))) => {
                tracing::warn!(
                    master = self.master_name(),
                    from = %master,
                    to = %successor,
                    "the sentinels have elected another master; the backend reconnects to it"
                );
                self.epochs.end(epoch);
            }
            Ok(Ok(None)) => {}
            Ok(Err(error)) => {
                tracing::debug!(error = %Chain(&error), "asking the sentinels for the master failed");
            }
            Err(_) => tracing::debug!("the sentinels did not answer within the connect timeout"),
        }
    }
}

/// Compares the master of the connections with the master that the sentinels report: once a second, and at once when
/// `suspected` receives a notification. Ends when the backend is dropped. A deposed master still answers, because it
/// may not know that it is deposed.
async fn watch(election: Weak<Election>, suspected: Arc<Notify>) {
    loop {
        // A timeout means that no call suspects the master.
        let _ = timeout(COMPARED_EVERY, suspected.notified()).await;
        let Some(election) = election.upgrade() else { return };
        election.compare().await;
        drop(election);
        sleep(SHORTEST_PAUSE).await;
    }
}

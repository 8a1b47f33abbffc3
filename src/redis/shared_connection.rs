//! A connection to one master that many calls share, and that is re-created when it breaks.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{ErrorKind, PushKind, RedisError, RedisResult};
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::connector::OpenConnection;
use super::master::Master;
use crate::telemetry;

/// The delay before an attempt to connect, by the number of attempts that failed in a row. The last value repeats.
const DELAYS_MS: [u64; 6] = [0, 10, 30, 70, 150, 250];

/// A connection that breaks sooner, and served no call, counts as a failed attempt.
const SHORTEST_LIFE: Duration = Duration::from_secs(1);

/// The outcome of an attempt to connect: `None` while the attempt is under way.
type Outcome = Option<RedisResult<Arc<Established>>>;

/// A connection that many calls share. The first call opens it.
///
/// When it breaks, the backend reconnects at once. If that fails, the next call reconnects after a delay.
pub(super) struct SharedConnection {
    master: Arc<Master>,
    state: RwLock<State>,
}

struct State {
    established: Option<Arc<Established>>,
    is_broken: bool,
    /// The number of the latest attempt to connect.
    attempt: u64,
    /// How many attempts in a row failed. The latest one counts as failed until it has succeeded.
    failures: usize,
    outcome: watch::Receiver<Outcome>,
}

/// A connection that an attempt established.
pub(super) struct Established {
    /// The number of the attempt.
    attempt: u64,
    since: Instant,
    /// The epoch of the master that the connection belongs to.
    pub(super) epoch: u64,
    pub(super) connection: MultiplexedConnection,
    pub(super) address: String,
    /// The runtime of the task that receives the replies.
    pub(super) runtime: Handle,
    /// Whether a call had a reply over it.
    has_served: AtomicBool,
}

impl SharedConnection {
    pub(super) fn new(master: Arc<Master>) -> Self {
        // The channel has no sender, so no attempt is under way.
        let outcome = watch::channel(None).1;
        let state = State { established: None, is_broken: false, attempt: 0, failures: 0, outcome };
        Self { master, state: RwLock::new(state) }
    }

    pub(super) fn master(&self) -> &Arc<Master> {
        &self.master
    }

    /// Locks the state. No code panics while it holds the lock, so the data behind a poisoned lock is consistent.
    fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the connection if it works.
    pub(super) fn working(&self) -> Option<Arc<Established>> {
        self.state().working(&self.master).cloned()
    }

    /// Returns the epoch of the connection if it works.
    pub(super) fn working_epoch(&self) -> Option<u64> {
        self.state().working(&self.master).map(|working| working.epoch)
    }

    /// Returns the connection if it works. Otherwise waits for a new one.
    ///
    /// # Cancellation safety
    /// Dropping the future does not end the attempt to connect. Other calls may wait for it.
    pub(super) async fn get(self: &Arc<Self>) -> RedisResult<Arc<Established>> {
        match self.working() {
            Some(working) => Ok(working),
            // Boxed, because it is rare and would enlarge the future of every call.
            None => Box::pin(self.wait()).await,
        }
    }

    async fn wait(self: &Arc<Self>) -> RedisResult<Arc<Established>> {
        let outcome = {
            let mut state = self.state_mut();
            if let Some(working) = state.working(&self.master) {
                return Ok(Arc::clone(working));
            }
            self.start_attempt(&mut state);
            state.outcome.clone()
        };
        established_by(outcome).await
    }

    /// Reconnects, and waits for the new connection.
    pub(super) async fn reconnect(self: &Arc<Self>) -> RedisResult<Arc<Established>> {
        let outcome = {
            let mut state = self.state_mut();
            self.start_attempt(&mut state);
            state.outcome.clone()
        };
        established_by(outcome).await
    }

    /// Replaces a connection that does not answer, unless another one has replaced it. Calls use the old connection until the
    /// new one has answered, because the server may only be slow for a while.
    pub(super) async fn replace(self: &Arc<Self>, silent: &Established) -> RedisResult<()> {
        let outcome = {
            let mut state = self.state_mut();
            if state.working(&self.master).is_some_and(|working| working.attempt != silent.attempt) {
                return Ok(());
            }
            self.master.epochs().report_broken(silent.epoch);
            self.start_attempt(&mut state);
            state.outcome.clone()
        };
        established_by(outcome).await.map(drop)
    }

    /// Reconnects if this reply shows that the connection is broken.
    pub(super) fn observe<T>(self: &Arc<Self>, established: &Established, reply: &RedisResult<T>) {
        match reply {
            // The flag is written only once, because calls on several cores share it.
            Ok(_) if established.has_served.load(Ordering::Relaxed) => {}
            Ok(_) => established.has_served.store(true, Ordering::Relaxed),
            Err(error) if error.is_io_error() || error.is_unrecoverable_error() => {
                self.report_broken(established);
            }
            Err(_) => {}
        }
    }

    /// Reconnects at once, because a call found this connection broken. Does nothing if another call was first.
    pub(super) fn report_broken(self: &Arc<Self>, established: &Established) {
        self.master.epochs().report_broken(established.epoch);
        let mut state = self.state_mut();
        if state.is_at(established.attempt) && !state.is_broken {
            state.is_broken = true;
            self.start_attempt(&mut state);
        }
    }

    /// Handles the end of the connection that this attempt established. If it was short-lived, the next call reconnects.
    fn closed(self: &Arc<Self>, attempt: u64) {
        let mut state = self.state_mut();
        let closed = state.established.clone().filter(|established| established.attempt == attempt);
        let Some(closed) = closed else { return };
        self.master.epochs().report_broken(closed.epoch);
        state.is_broken = true;
        if closed.since.elapsed() >= SHORTEST_LIFE {
            self.start_attempt(&mut state);
        }
    }

    /// Starts an attempt to connect, unless one is under way.
    fn start_attempt(self: &Arc<Self>, state: &mut State) {
        self.master.epochs().generation().grow();
        if state.is_connecting() {
            return;
        }
        // There is no runtime if the connection closes because its runtime shuts down.
        let Ok(runtime) = Handle::try_current() else { return };
        if state.has_succeeded() {
            state.failures = 0;
        }
        let delay = DELAYS_MS[state.failures.min(DELAYS_MS.len() - 1)];
        let (report, outcome) = watch::channel(None);
        state.attempt += 1;
        state.failures += 1;
        state.outcome = outcome;
        let (this, attempt) = (Arc::clone(self), state.attempt);
        runtime.spawn(async move {
            tokio::time::sleep(Duration::from_millis(delay)).await;
            // An error means that no call waits any more.
            let _ = report.send(Some(this.establish(attempt).await));
        });
    }

    async fn establish(self: &Arc<Self>, attempt: u64) -> RedisResult<Arc<Established>> {
        // With RESP3, a connection reports that it was closed before a call detects it.
        let (this, closed) = (Arc::downgrade(self), Arc::new(AtomicBool::new(false)));
        let is_closed = Arc::clone(&closed);
        let opened = self.master.open(None, move |push| {
            if push.kind == PushKind::Disconnection {
                is_closed.store(true, Ordering::SeqCst);
                if let Some(shared) = this.upgrade() {
                    shared.closed(attempt);
                }
            }
        });
        let OpenConnection { connection, address, epoch } = opened.await?;
        let mut state = self.state_mut();
        let (since, has_served) = (Instant::now(), AtomicBool::new(false));
        let runtime = Handle::current();
        let established =
            Arc::new(Established { attempt, since, epoch, connection, address, runtime, has_served });
        if state.established.replace(Arc::clone(&established)).is_some() {
            telemetry::reconnected();
        }
        // It may have been closed before it was stored.
        state.is_broken = closed.load(Ordering::SeqCst);
        if state.is_broken {
            self.master.epochs().report_broken(epoch);
        }
        Ok(established)
    }
}

impl State {
    /// Returns the connection for calls, unless it is known to be broken or void.
    fn working(&self, master: &Master) -> Option<&Arc<Established>> {
        let is_void = |established: &Established| !master.epochs().is_current(established.epoch);
        self.established.as_ref().filter(|established| !self.is_broken && !is_void(established))
    }

    fn is_at(&self, attempt: u64) -> bool {
        self.established.as_ref().is_some_and(|established| established.attempt == attempt)
    }

    fn is_connecting(&self) -> bool {
        // Without a sender, the runtime of the attempt was shut down.
        self.outcome.borrow().is_none() && self.outcome.has_changed().is_ok()
    }

    /// Returns whether the latest attempt established a connection that worked.
    fn has_succeeded(&self) -> bool {
        self.established.as_ref().is_some_and(|established| {
            established.attempt == self.attempt
                && (established.since.elapsed() >= SHORTEST_LIFE
                    || established.has_served.load(Ordering::Relaxed))
        })
    }
}

/// Waits for the outcome of an attempt.
async fn established_by(mut outcome: watch::Receiver<Outcome>) -> RedisResult<Arc<Established>> {
    let established = match outcome.wait_for(Option::is_some).await {
        Ok(outcome) => outcome.clone(),
        Err(_) => None,
    };
    established.unwrap_or_else(|| Err(runtime_shut_down()))
}

fn runtime_shut_down() -> RedisError {
    let reason =
        "the task that connects ended early: its runtime was shut down, or the credentials callback panicked";
    (ErrorKind::Client, reason).into()
}

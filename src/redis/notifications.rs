//! Detects which Pub/Sub commands carry notifications.
//!
//! Publishers and subscribers in all processes must use the same commands. Each process probes the server in the same way: a
//! script publishes a message, and a subscriber receives it. The process probes again after it has reconnected, because the
//! server may have another version by then.

mod pubsub_probe;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use redis::{PushKind, RedisResult, Value};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};

use super::connector::Connector;
use super::error::{ProbeError, probe_error};
use crate::printable::Chain;
use crate::scripts::Pubsub;
pub(super) use pubsub_probe::{ProbeOutcome, PubsubProbe, confirms};

/// The pause before the next probe, after one without a result.
const PAUSE: Duration = Duration::from_millis(100);

/// The Pub/Sub commands that one master supports, probed once an epoch.
pub(super) struct PubsubDetection {
    connector: Arc<Connector>,
    probe: PubsubProbe,
    /// The latest result and its epoch: 0 before the first probe, then as [`encode`] returns it.
    latest: AtomicU64,
    /// One more than the last epoch in which the probes exceeded their time limit.
    overdue: AtomicU64,
    /// Whether the probes of the latest task have ended. The sender is dropped when they have, or when their runtime shuts
    /// down.
    is_done: Mutex<watch::Receiver<bool>>,
}

impl PubsubDetection {
    pub(super) fn new(connector: Arc<Connector>, probe: PubsubProbe) -> Self {
        let is_done = Mutex::new(watch::channel(true).1);
        Self { connector, probe, latest: AtomicU64::new(0), overdue: AtomicU64::new(0), is_done }
    }

    /// Returns the result of this epoch, if there is one: the commands, or `None` if the server delivers no messages.
    pub(super) fn result(&self, epoch: u64) -> Option<Option<Pubsub>> {
        let latest = self.latest.load(Ordering::SeqCst);
        (latest >> 2 == epoch + 1).then(|| decode(latest))
    }

    /// Returns what the backend assumes while there is no result: the last result or, before the first one, the
    /// commands of current servers.
    fn assumed(&self) -> Option<Pubsub> {
        match self.latest.load(Ordering::SeqCst) {
            0 => Some(Pubsub::Sharded),
            latest => decode(latest),
        }
    }

    /// Returns the commands for this master; `None` if it delivers no messages.
    ///
    /// The first call of an epoch starts probes over a new connection, and other calls wait for them: a subscriber
    /// would miss a message that a publisher sent with commands of another kind. No call waits once the probes of the
    /// epoch have exceeded their time limit.
    ///
    /// # Cancellation safety
    /// Dropping the future does not end the probes. They may take longer than a call, and other calls may wait for them.
    pub(super) async fn detect(self: &Arc<Self>) -> Option<Pubsub> {
        let epochs = self.connector.epochs();
        // The runtime of earlier probes may have shut down. If this one shuts down as well, there are no probes.
        for _ in 0..2 {
            let Some(mut is_done) = self.start() else { break };
            if self.overdue.load(Ordering::SeqCst) == epochs.current() + 1
                || is_done.wait_for(|done| *done).await.is_ok()
            {
                break;
            }
        }
        self.result(epochs.current()).unwrap_or_else(|| self.assumed())
    }

    /// Starts probes, unless the result is known or probes are under way.
    fn start(self: &Arc<Self>) -> Option<watch::Receiver<bool>> {
        let mut latest = self.is_done.lock().unwrap_or_else(PoisonError::into_inner);
        if self.result(self.connector.epochs().current()).is_some() {
            return None;
        }
        let is_under_way = !*latest.borrow() && latest.has_changed().is_ok();
        if !is_under_way {
            let runtime = Handle::try_current().ok()?;
            let (done, is_done) = watch::channel(false);
            let this = Arc::clone(self);
            *latest = is_done;
            runtime.spawn(async move {
                this.probe_until_known().await;
                done.send_replace(true);
            });
        }
        Some(latest.clone())
    }

    /// Probes until there is a result, for at most twice the connect timeout.
    async fn probe_until_known(&self) {
        let epochs = self.connector.epochs();
        let until = Instant::now() + 2 * self.connector.limit();
        while self.result(epochs.current()).is_none() {
            match timeout_at(until, self.probe()).await {
                Ok(Ok(_)) => return,
                Ok(Err(error)) => {
                    tracing::debug!(error = %Chain(&error), "probing the Pub/Sub commands of the server failed");
                    // In this state the server accepts no writes, so there is nothing to publish.
                    if probe_error(&error) == ProbeError::Temporary {
                        return;
                    }
                }
                Err(_) => tracing::debug!("probing the Pub/Sub commands of the server timed out"),
            }
            if Instant::now() + PAUSE >= until {
                self.overdue.store(epochs.current() + 1, Ordering::SeqCst);
                return;
            }
            sleep(PAUSE).await;
        }
    }

    /// Probes once, and records the result.
    pub(super) async fn probe(&self) -> RedisResult<ProbeOutcome> {
        let (echo, received) = watch::channel(Vec::new());
        let opened = self.connector.open(Some(self.connector.limit()), move |push| {
            if let (PushKind::Message | PushKind::SMessage, [_, Value::BulkString(message)]) =
                (&push.kind, &push.data[..])
            {
                echo.send_modify(|received| received.push(message.clone()));
            }
        });
        let opened = opened.await?;
        let outcome = self.probe.run(&opened.connection, received).await?;
        let before = self.latest.swap(encode(opened.epoch, outcome.pubsub), Ordering::SeqCst);
        if outcome.pubsub.is_none() && (before == 0 || decode(before).is_some()) {
            tracing::warn!(
                address = opened.address,
                "the server delivers no Pub/Sub messages (SPUBLISH and SSUBSCRIBE, or PUBLISH and SUBSCRIBE), so watches \
                 and workers poll; if this is intended, set notifications(false) on the builder of every instance"
            );
        }
        Ok(outcome)
    }
}

/// Encodes a result and its epoch: one more than the epoch, followed by two bits for the result.
fn encode(epoch: u64, pubsub: Option<Pubsub>) -> u64 {
    let result = match pubsub {
        None => 1,
        Some(Pubsub::Sharded) => 2,
        Some(Pubsub::Plain) => 3,
    };
    ((epoch + 1) << 2) | result
}

fn decode(encoded: u64) -> Option<Pubsub> {
    match encoded & 3 {
        2 => Some(Pubsub::Sharded),
        3 => Some(Pubsub::Plain),
        _ => None,
    }
}

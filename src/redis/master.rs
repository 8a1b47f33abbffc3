//! One master: how to connect to it, and how it delivers notifications.

use std::sync::Arc;
use std::time::Duration;

use redis::{PushInfo, RedisResult};

use super::connector::{Connector, OpenConnection};
use super::epochs::Epochs;
use super::notifications::{ProbeOutcome, PubsubDetection, PubsubProbe};
use crate::scripts::Pubsub;

/// A master, shared by all connections to it.
pub(super) struct Master {
    connector: Arc<Connector>,
    /// `None` if notifications are off.
    pubsub: Option<Arc<PubsubDetection>>,
}

impl Master {
    /// Creates a master. `probe`: how to probe the Pub/Sub commands; `None` if notifications are off.
    pub(super) fn new(connector: Connector, probe: Option<PubsubProbe>) -> Self {
        let connector = Arc::new(connector);
        let pubsub = probe.map(|probe| Arc::new(PubsubDetection::new(Arc::clone(&connector), probe)));
        Self { connector, pubsub }
    }

    /// Returns the name of the master: its address, or the name that the sentinels use.
    pub(super) fn name(&self) -> String {
        self.connector.name()
    }

    /// Opens a connection, within the connect timeout.
    pub(super) async fn open(
        &self,
        response_timeout: Option<Duration>,
        on_push: impl Fn(PushInfo) + Send + Sync + 'static,
    ) -> RedisResult<OpenConnection> {
        self.connector.open(response_timeout, on_push).await
    }

    pub(super) fn connector(&self) -> &Connector {
        &self.connector
    }

    pub(super) fn epochs(&self) -> &Epochs {
        self.connector.epochs()
    }

    /// Returns the Pub/Sub commands that the master supports; `None` if notifications are off or it delivers no messages.
    pub(super) async fn pubsub(&self) -> Option<Pubsub> {
        let detection = self.pubsub.as_ref()?;
        match detection.result(self.epochs().current()) {
            Some(result) => result,
            // Boxed, because it is rare and would enlarge the future of every call.
            None => Box::pin(detection.detect()).await,
        }
    }

    /// Returns what [`pubsub`](Self::pubsub) returns, if a probe has a result in this epoch.
    pub(super) fn known_pubsub(&self, epoch: u64) -> Option<Option<Pubsub>> {
        self.pubsub.as_ref()?.result(epoch)
    }

    /// Probes the Pub/Sub commands; `None` if notifications are off.
    pub(super) async fn probe_pubsub(&self) -> RedisResult<Option<ProbeOutcome>> {
        match &self.pubsub {
            Some(detection) => detection.probe().await.map(Some),
            None => Ok(None),
        }
    }
}

//! The connection to a deployment with one master.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use redis::{Cmd, Pipeline, RedisResult, Value};
use tokio::runtime::Handle;

use super::connection::Connection;
use super::in_flight::InFlight;
use super::master::Master;
use super::reply::{
    CommandError, check_replies, check_reply, is_from_replica, lacks_authentication, lacks_replicas,
};
use super::shared_connection::{Established, SharedConnection};
use crate::backend::engine::on_drop;
use crate::scripts::Pubsub;

/// How long a connection may take to answer a probe, after a call over it exceeded its time limit.
const PROBE_LIMIT: Duration = Duration::from_millis(500);

/// A connection to one master. When it stops answering, a new connection that answers replaces it.
#[derive(Clone)]
pub(super) struct MasterConnection {
    shared: Arc<SharedConnection>,
    is_probed: Arc<AtomicBool>,
}

impl MasterConnection {
    /// Creates a connection that the first call opens.
    pub(super) fn new(master: Arc<Master>) -> Self {
        Self { shared: Arc::new(SharedConnection::new(master)), is_probed: Arc::default() }
    }

    pub(super) fn master(&self) -> &Arc<Master> {
        self.shared.master()
    }

    async fn established(&self) -> Result<Arc<Established>, CommandError> {
        self.shared.get().await.map_err(CommandError::NotSent)
    }

    /// Probes the connection, unless a probe is under way, and replaces it if it does not answer.
    pub(super) fn probe(&self) {
        // Without a connection, calls wait for a new one already.
        if self.shared.working().is_some() {
            self.probe_or_connect(|_| ());
        }
    }

    /// Probes the connection, unless a probe is under way, and reconnects if there is none or it does not answer.
    /// `report` receives the outcome, unless the runtime shuts down first.
    pub(super) fn probe_or_connect(&self, report: impl FnOnce(RedisResult<()>) + Send + 'static) {
        let Ok(runtime) = Handle::try_current() else { return };
        if self.is_probed.swap(true, Ordering::SeqCst) {
            return;
        }
        // Runs when the task ends for any reason, also when its runtime shuts down.
        let ended = on_drop({
            let is_probed = Arc::clone(&self.is_probed);
            move || is_probed.store(false, Ordering::SeqCst)
        });
        let this = self.clone();
        runtime.spawn(async move {
            let outcome = this.check().await;
            drop(ended);
            report(outcome);
        });
    }

    async fn check(&self) -> RedisResult<()> {
        let Some(established) = self.shared.working() else {
            return self.shared.reconnect().await.map(drop);
        };
        let mut connection = established.connection.clone();
        let answer = self.master().connector().observe_clock(&mut connection);
        if tokio::time::timeout(PROBE_LIMIT, answer).await.is_ok_and(|clock| clock.is_ok()) {
            return Ok(());
        }
        tracing::debug!(address = established.address, "the connection does not answer; reconnecting");
        self.shared.replace(&established).await
    }

    /// Sends a command and `ASKING` in one pipeline. `ASKING` applies to the next command on the connection, whichever call
    /// sends it.
    #[cfg(feature = "redis-cluster")]
    pub(super) async fn send_asking(
        &self,
        command: &Cmd,
        in_flight: &dyn InFlight,
    ) -> Result<Value, CommandError> {
        let established = self.established().await?;
        if !in_flight.set() {
            return Err(CommandError::given_up());
        }
        let mut asking = Pipeline::with_capacity(2);
        asking.cmd("ASKING").add_command(command.clone());
        let replies = established.connection.clone().send_packed_commands(&asking, 0, asking.len()).await;
        self.shared.observe(&established, &replies);
        let Ok([asked, reply]) = <[_; 2]>::try_from(check_replies(replies)?) else {
            let missing = (redis::ErrorKind::UnexpectedReturnType, "a reply is missing");
            return Err(CommandError::NoReply(missing.into()));
        };
        // If the server refused ASKING as well, that error is the cause.
        if reply.is_ok() { reply } else { asked.and(reply) }
    }
}

#[async_trait]
impl Connection for MasterConnection {
    async fn send(&self, command: &Cmd, _key: &str, in_flight: &dyn InFlight) -> Result<Value, CommandError> {
        let established = self.established().await?;
        if !in_flight.set() {
            return Err(CommandError::given_up());
        }
        let reply = established.connection.clone().send_packed_command(command).await;
        self.shared.observe(&established, &reply);
        if reply.as_ref().is_ok_and(is_from_replica) {
            self.master().epochs().end(established.epoch);
            self.shared.report_broken(&established);
        } else if reply.as_ref().is_ok_and(lacks_authentication) {
            self.shared.report_broken(&established);
        } else if reply.as_ref().is_ok_and(lacks_replicas) {
            self.master().connector().suspect();
        }
        check_reply(reply)
    }

    async fn read_all(
        &self,
        reads: &Pipeline,
        _key: &str,
    ) -> Result<Vec<Result<Value, CommandError>>, CommandError> {
        let established = self.established().await?;
        let replies = established.connection.clone().send_packed_commands(reads, 0, reads.len()).await;
        self.shared.observe(&established, &replies);
        check_replies(replies)
    }

    async fn master_of(&self, _key: &str) -> RedisResult<Arc<Master>> {
        Ok(Arc::clone(self.master()))
    }

    async fn detect_pubsub(&self, _key: &str) -> Result<Option<Pubsub>, CommandError> {
        // The next command travels over this connection, so the commands must be those of its server.
        self.established().await?;
        Ok(self.master().pubsub().await)
    }

    fn known_pubsub(&self, _key: &str) -> Option<Option<Pubsub>> {
        self.master().known_pubsub(self.shared.working_epoch()?)
    }

    fn generation(&self) -> u64 {
        self.master().epochs().generation().get()
    }

    fn runtime(&self) -> Option<Handle> {
        self.shared.working().map(|established| established.runtime.clone())
    }

    fn timed_out(&self, _key: &str) {
        self.probe();
    }
}

//! One node of a cluster, and the connections to it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use redis::{Cmd, ErrorKind, Pipeline, RedisError, RedisResult, Value};
use tokio::runtime::Handle;

use super::address::NodeAddress;
use super::view::View;
use crate::backend::engine::on_drop;
use crate::printable::Chain;
use crate::redis::connection::Connection;
use crate::redis::error::cause;
use crate::redis::in_flight::InFlight;
use crate::redis::master::Master;
use crate::redis::master_connection::MasterConnection;
use crate::redis::reply::CommandError;
use crate::scripts::Pubsub;

/// The delay before the next attempt to reach a lost node: after the first failure, and its maximum.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(1);

/// A node with its connections. It reconnects by itself, and delays only the calls to it.
pub(super) struct Node {
    pub(super) address: NodeAddress,
    pub(super) name: String,
    pub(super) master: Arc<Master>,
    calls: MasterConnection,
    /// For pages and parts.
    bulk: MasterConnection,
    state: Mutex<State>,
}

struct State {
    lost: Option<Lost>,
    /// When the node last replied with its view of the cluster.
    answered: Option<Instant>,
    /// When a redirection last led to the node.
    redirected: Instant,
}

/// The state of a lost node: no connection could be made, or the existing one does not answer and no other could be made.
struct Lost {
    error: RedisError,
    /// When the backend tries again. Calls fail until an attempt has succeeded.
    next_retry: Instant,
    delay: Duration,
    is_retried: bool,
}

impl Node {
    pub(super) fn new(address: NodeAddress, master: Arc<Master>) -> Self {
        let connection = || MasterConnection::new(Arc::clone(&master));
        let state = State { lost: None, answered: None, redirected: Instant::now() };
        let (calls, bulk, name) = (connection(), connection(), address.to_string());
        Self { address, name, calls, bulk, master, state: Mutex::new(state) }
    }

    fn connection(&self, is_bulk: bool) -> &MasterConnection {
        if is_bulk { &self.bulk } else { &self.calls }
    }

    /// Sends a command; with `ASKING` if another node redirected only this command.
    pub(super) async fn send(
        &self,
        is_bulk: bool,
        command: &Cmd,
        is_asking: bool,
        in_flight: &dyn InFlight,
    ) -> Result<Value, CommandError> {
        let connection = self.connection(is_bulk);
        let reply = if is_asking {
            connection.send_asking(command, in_flight).await
        } else {
            connection.send(command, "", in_flight).await
        };
        reply.map_err(|failure| self.record_failure(failure))
    }

    pub(super) async fn read_all(
        &self,
        is_bulk: bool,
        reads: &Pipeline,
    ) -> Result<Vec<Result<Value, CommandError>>, CommandError> {
        let replies = self.connection(is_bulk).read_all(reads, "").await;
        replies.map_err(|failure| self.record_failure(failure))
    }

    /// Returns the Pub/Sub commands that the node supports.
    pub(super) async fn pubsub(&self, is_bulk: bool) -> Result<Option<Pubsub>, CommandError> {
        let pubsub = self.connection(is_bulk).detect_pubsub("").await;
        pubsub.map_err(|failure| self.record_failure(failure))
    }

    /// Returns the runtime that receives the replies of the node; `None` without a connection.
    pub(super) fn runtime(&self, is_bulk: bool) -> Option<Handle> {
        self.connection(is_bulk).runtime()
    }

    /// Marks the node as lost if no connection could be made.
    fn record_failure(&self, failure: CommandError) -> CommandError {
        match failure {
            CommandError::NotSent(error) => {
                self.mark_lost(&error);
                CommandError::Unreachable(self.name.clone(), error)
            }
            other => other,
        }
    }

    /// Asks the node for its view of the cluster.
    pub(super) async fn view(&self) -> Result<View, CommandError> {
        let mut questions = Pipeline::with_capacity(2);
        questions.cmd("CLUSTER").arg("SLOTS");
        questions.cmd("CLUSTER").arg("INFO");
        let replies = self.read_all(false, &questions).await?;
        let missing =
            || CommandError::NoReply((ErrorKind::UnexpectedReturnType, "a reply is missing").into());
        let [slots, info] = <[_; 2]>::try_from(replies).map_err(|_| missing())?;
        let view = View::read(&slots?, info?, &self.address).map_err(CommandError::NoReply)?;
        self.state().answered = Some(Instant::now());
        Ok(view)
    }

    /// Locks the state. No code panics while it holds the lock, so the data behind a poisoned lock is consistent.
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when the node last replied with its view of the cluster.
    pub(super) fn answered(&self) -> Option<Instant> {
        self.state().answered
    }

    pub(super) fn set_redirected(&self) {
        self.state().redirected = Instant::now();
    }

    /// Returns when a redirection last led to the node.
    pub(super) fn redirected(&self) -> Instant {
        self.state().redirected
    }

    /// Returns why no connection to the node could be made; `None` unless the node is lost.
    pub(super) fn lost(&self) -> Option<RedisError> {
        self.state().lost.as_ref().map(|lost| lost.error.clone())
    }

    /// Fails if the node is lost.
    pub(super) fn check_reachable(&self) -> Result<(), CommandError> {
        match self.lost() {
            Some(error) => Err(CommandError::Unreachable(self.name.clone(), error)),
            None => Ok(()),
        }
    }

    fn mark_lost(&self, error: &RedisError) {
        // A failure of the client, such as one of the credentials callback, is not a failure of the node.
        if error.kind() == ErrorKind::Client {
            return;
        }
        let mut state = self.state();
        let lost = match state.lost.take() {
            None => {
                let cause = cause(error.clone());
                tracing::warn!(node = self.name, error = %Chain(&*cause), "the connection to a node of the cluster failed");
                let next_retry = Instant::now() + FIRST_RETRY;
                Lost { error: error.clone(), next_retry, delay: FIRST_RETRY, is_retried: false }
            }
            Some(lost) => Lost { error: error.clone(), ..lost },
        };
        state.lost = Some(lost);
    }

    /// Tries to reach a lost node again, if that is due.
    pub(super) fn retry_if_due(self: &Arc<Self>) {
        {
            let mut state = self.state();
            let Some(lost) = &mut state.lost else { return };
            if lost.is_retried || Instant::now() < lost.next_retry {
                return;
            }
            lost.is_retried = true;
        }
        // Also runs when the runtime shuts down before the attempt ends. The next attempt then runs on another runtime.
        let retried = on_drop({
            let node = Arc::clone(self);
            move || node.schedule_retry()
        });
        let node = Arc::clone(self);
        self.calls.probe_or_connect(move |outcome| {
            node.record_outcome(outcome);
            drop(retried);
        });
    }

    fn schedule_retry(&self) {
        if let Some(lost) = &mut self.state().lost {
            lost.is_retried = false;
            lost.delay = (lost.delay * 2).min(LAST_RETRY);
            lost.next_retry = Instant::now() + lost.delay;
        }
    }

    /// Probes the connection after a call over it exceeded its time limit, and reconnects if it does not answer.
    pub(super) fn probe(self: &Arc<Self>, is_bulk: bool) {
        let node = Arc::clone(self);
        self.connection(is_bulk).probe_or_connect(move |outcome| node.record_outcome(outcome));
    }

    fn record_outcome(&self, outcome: RedisResult<()>) {
        match outcome {
            Ok(()) => {
                if self.state().lost.take().is_some() {
                    tracing::info!(node = self.name, "the backend has reconnected to a node of the cluster");
                }
            }
            Err(error) => self.mark_lost(&error),
        }
    }
}

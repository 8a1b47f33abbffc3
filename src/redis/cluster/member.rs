//! One node of a cluster, and the connections to it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use redis::{Cmd, ErrorKind, Pipeline, RedisError, RedisResult, Value};

use super::layout::{Node, View};
use crate::printable::Chain;
use crate::redis::connection::Connection;
use crate::redis::error::cause;
use crate::redis::master::{Master, MasterConnection};
use crate::redis::reply::{CommandError, InFlight};
use crate::scripts::Pubsub;

/// The delay before the next attempt to reach a lost node: after the first failure, and at most.
const FIRST_LOOK: Duration = Duration::from_millis(100);
const LAST_LOOK: Duration = Duration::from_secs(1);

/// A node with its connections. It reconnects by itself, and delays only the calls to it.
pub(super) struct Member {
    pub(super) node: Node,
    pub(super) name: String,
    pub(super) master: Arc<Master>,
    calls: MasterConnection,
    /// For pages and parts.
    pages: MasterConnection,
    state: Mutex<State>,
}

struct State {
    lost: Option<Lost>,
    /// When it last replied with a layout.
    answered: Option<Instant>,
    /// When a redirection last named it.
    named: Instant,
}

/// The node is lost: no connection could be made, or the existing one does not answer and no other could be made.
struct Lost {
    error: RedisError,
    /// When to try again. Calls fail until that has succeeded.
    next_look: Instant,
    delay: Duration,
    is_looked_at: bool,
}

impl Member {
    pub(super) fn new(node: Node, master: Arc<Master>) -> Self {
        let connection = || MasterConnection::new(Arc::clone(&master));
        let state = State { lost: None, answered: None, named: Instant::now() };
        let (calls, pages, name) = (connection(), connection(), node.to_string());
        Self { node, name, calls, pages, master, state: Mutex::new(state) }
    }

    fn connection(&self, is_bulk: bool) -> &MasterConnection {
        if is_bulk { &self.pages } else { &self.calls }
    }

    /// Sends a command; behind `ASKING` if another node named this one for it alone.
    pub(super) async fn send(
        &self,
        is_bulk: bool,
        command: &Cmd,
        is_asking: bool,
        in_flight: &InFlight,
    ) -> Result<Value, CommandError> {
        let connection = self.connection(is_bulk);
        let reply = if is_asking {
            connection.send_asking(command, in_flight).await
        } else {
            connection.send(command, "", in_flight).await
        };
        reply.map_err(|failure| self.named_in(failure))
    }

    pub(super) async fn read_all(
        &self,
        is_bulk: bool,
        reads: &Pipeline,
    ) -> Result<Vec<Result<Value, CommandError>>, CommandError> {
        self.connection(is_bulk).read_all(reads, "").await.map_err(|failure| self.named_in(failure))
    }

    /// By which commands the node passes on messages.
    pub(super) async fn pubsub(&self, is_bulk: bool) -> Result<Option<Pubsub>, CommandError> {
        self.connection(is_bulk).pubsub("").await.map_err(|failure| self.named_in(failure))
    }

    /// Remembers that the node is lost if no connection could be made.
    fn named_in(&self, failure: CommandError) -> CommandError {
        match failure {
            CommandError::NotSent(error) => {
                self.lose(&error);
                self.unreachable(error)
            }
            other => other,
        }
    }

    pub(super) fn unreachable(&self, error: RedisError) -> CommandError {
        CommandError::Unreachable(self.name.clone(), error)
    }

    /// Asks the node for the layout.
    pub(super) async fn view(&self) -> Result<View, CommandError> {
        let mut questions = Pipeline::with_capacity(2);
        questions.cmd("CLUSTER").arg("SLOTS");
        questions.cmd("CLUSTER").arg("INFO");
        let replies = self.read_all(false, &questions).await?;
        let missing =
            || CommandError::NoReply((ErrorKind::UnexpectedReturnType, "a reply is missing").into());
        let [slots, info] = <[_; 2]>::try_from(replies).map_err(|_| missing())?;
        let view = View::read(&slots?, info?, &self.node).map_err(CommandError::NoReply)?;
        self.state().answered = Some(Instant::now());
        Ok(view)
    }

    /// Nothing panics while it holds the state.
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When it last replied with a layout.
    pub(super) fn answered(&self) -> Option<Instant> {
        self.state().answered
    }

    pub(super) fn set_named(&self) {
        self.state().named = Instant::now();
    }

    pub(super) fn named(&self) -> Instant {
        self.state().named
    }

    /// Why no connection could be made, until one is.
    pub(super) fn lost(&self) -> Option<RedisError> {
        self.state().lost.as_ref().map(|lost| lost.error.clone())
    }

    fn lose(&self, error: &RedisError) {
        // A failure of the client, such as credentials that were not provided, says nothing about the node.
        if error.kind() == ErrorKind::Client {
            return;
        }
        let mut state = self.state();
        let lost = match state.lost.take() {
            None => {
                let cause = cause(error.clone());
                tracing::warn!(node = self.name, error = %Chain(&*cause), "no connection to a node of the cluster");
                let next_look = Instant::now() + FIRST_LOOK;
                Lost { error: error.clone(), next_look, delay: FIRST_LOOK, is_looked_at: false }
            }
            Some(lost) => Lost { error: error.clone(), ..lost },
        };
        state.lost = Some(lost);
    }

    /// Tries to reach a lost node again, if that is due.
    pub(super) fn look_if_due(self: &Arc<Self>) {
        {
            let mut state = self.state();
            let Some(lost) = &mut state.lost else { return };
            if lost.is_looked_at || Instant::now() < lost.next_look {
                return;
            }
            lost.is_looked_at = true;
        }
        // The runtime may end before the attempt does. The next attempt then runs on another one.
        let looked = crate::backend::engine::on_drop({
            let member = Arc::clone(self);
            move || {
                if let Some(lost) = &mut member.state().lost {
                    lost.is_looked_at = false;
                    lost.delay = (lost.delay * 2).min(LAST_LOOK);
                    lost.next_look = Instant::now() + lost.delay;
                }
            }
        });
        let member = Arc::clone(self);
        self.calls.check(move |outcome| {
            member.found(outcome);
            drop(looked);
        });
    }

    /// Probes the connection after a call over it timed out, and reconnects if it does not answer.
    pub(super) fn check(self: &Arc<Self>, is_bulk: bool) {
        let member = Arc::clone(self);
        self.connection(is_bulk).check(move |outcome| member.found(outcome));
    }

    fn found(&self, outcome: RedisResult<()>) {
        match outcome {
            Ok(()) => {
                if self.state().lost.take().is_some() {
                    tracing::info!(node = self.name, "a node of the cluster is reached again");
                }
            }
            Err(error) => self.lose(&error),
        }
    }
}

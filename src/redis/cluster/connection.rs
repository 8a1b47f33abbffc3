//! Sends each command to the master of its slot.

use std::cmp::Reverse;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use redis::{Cmd, ErrorKind, Pipeline, RedisError, RedisResult, ServerErrorKind, Value};
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::address::NodeAddress;
use super::node::Node;
use super::nodes::Nodes;
use super::refresh::{ANSWER_LIMIT, Refresher};
use super::slot::slot;
use crate::redis::connection::{Connection, MasterOfSlots};
use crate::redis::in_flight::{CallInFlight, InFlight};
use crate::redis::master::Master;
use crate::redis::reply::CommandError;
use crate::scripts::Pubsub;

/// The maximum number of nodes that one command is sent to, one after the other.
const MAX_REDIRECTIONS: usize = 8;

/// The connections for calls, or those for pages and parts.
pub(in crate::redis) struct ClusterConnection {
    pub(super) nodes: Arc<Nodes>,
    pub(super) refresher: Arc<Refresher>,
    pub(super) is_bulk: bool,
}

/// The node that a command goes to.
struct Target {
    node: Arc<Node>,
    /// Whether another node redirected only this command, because the slot is being migrated to the node.
    is_asking: bool,
}

impl Target {
    fn master(node: Arc<Node>) -> Self {
        Self { node, is_asking: false }
    }
}

/// What the backend does after a command failed.
enum Verdict {
    /// The caller receives the failure.
    Fail(CommandError),
    /// No node ran the command. The backend sends it to this target.
    Redirect(Target),
    /// No node ran the command, and another master may serve the slot by now. The backend refreshes the slot map.
    Refresh(CommandError),
}

impl ClusterConnection {
    /// Decides what the backend does after a command to this target failed.
    fn judge(&self, slot: u16, target: &Target, failure: CommandError) -> Verdict {
        use ServerErrorKind::{Ask, ClusterDown, MasterDown, Moved, ReadOnly};
        let error = match &failure {
            CommandError::ErrorReply(error) => error,
            // An unreachable node that imports the slot says nothing about the slot's master.
            CommandError::Unreachable(..) if !target.is_asking => return Verdict::Refresh(failure),
            _ => {
                self.refresher.request();
                return Verdict::Fail(failure);
            }
        };
        match error.kind() {
            ErrorKind::Server(Moved | Ask) => match self.follow(slot, &target.node, error) {
                Some(target) => Verdict::Redirect(target),
                None => Verdict::Fail(CommandError::NotSent(malformed(error))),
            },
            ErrorKind::Server(ClusterDown | MasterDown) => Verdict::Refresh(failure),
            ErrorKind::Server(ReadOnly) => {
                self.refresher.request();
                Verdict::Fail(failure)
            }
            _ => Verdict::Fail(failure),
        }
    }

    /// Returns the target that a redirection leads to; `None` if the redirection is malformed.
    fn follow(&self, slot: u16, by: &Node, redirection: &RedisError) -> Option<Target> {
        let detail = redirection.detail().unwrap_or_default();
        let address = NodeAddress::of_redirection(detail, &by.address)?;
        let node = self.nodes.redirected(&address);
        if redirection.kind() == ErrorKind::Server(ServerErrorKind::Ask) {
            return Some(Target { node, is_asking: true });
        }
        self.nodes.set_master(slot, &address);
        self.refresher.request();
        Some(Target::master(node))
    }

    /// Returns the master of a slot. Refreshes the slot map once if the map has no master for the slot.
    async fn master(&self, slot: u16) -> Result<Arc<Node>, CommandError> {
        if let Some(master) = self.nodes.master(slot) {
            return Ok(master);
        }
        self.refresher.refresh().await;
        self.nodes.master(slot).ok_or_else(|| unserved(slot))
    }

    /// Refreshes the slot map, and returns the master of a slot if it has changed.
    async fn new_master(&self, slot: u16, before: &Arc<Node>) -> Option<Arc<Node>> {
        self.refresher.refresh().await;
        self.nodes.master(slot).filter(|master| !Arc::ptr_eq(master, before))
    }

    /// Sends a read to any node that answers. The nodes that answered most recently come first. If a node stays
    /// silent, this method also sends the read to the next one.
    async fn send_to_any(&self, command: &Cmd, in_flight: &dyn InFlight) -> Result<Value, CommandError> {
        let mut nodes = self.nodes.all();
        nodes.sort_by_key(|node| (node.lost().is_some(), Reverse(node.answered())));
        let mut nodes = nodes.into_iter();
        let mut asking = FuturesUnordered::new();
        let mut failure =
            CommandError::NotSent((ErrorKind::ClusterConnectionNotFound, "no node is known").into());
        loop {
            let next = nodes.next();
            let is_last = next.is_none();
            asking.extend(
                next.map(|node| async move { node.send(self.is_bulk, command, false, in_flight).await }),
            );
            let answer = match timeout(ANSWER_LIMIT, asking.next()).await {
                Ok(answer) => answer,
                Err(_) if is_last => asking.next().await,
                Err(_) => continue,
            };
            match answer {
                Some(Err(other)) if !matches!(other, CommandError::ErrorReply(_)) => failure = other,
                Some(reply) => return reply,
                None => return Err(failure),
            }
        }
    }

    /// Sends a pipeline to the master of a slot, and once more if another master has taken over the slot.
    async fn read_all_at_master(
        &self,
        reads: &Pipeline,
        slot: u16,
    ) -> Result<Vec<Result<Value, CommandError>>, CommandError> {
        let mut target = Target::master(self.master(slot).await?);
        let mut may_refresh = true;
        loop {
            target.node.check_reachable()?;
            let failure = match target.node.read_all(self.is_bulk, reads).await {
                Ok(replies) => return Ok(replies),
                Err(failure) => failure,
            };
            match self.judge(slot, &target, failure) {
                Verdict::Refresh(failure) if may_refresh => {
                    may_refresh = false;
                    target = Target::master(self.new_master(slot, &target.node).await.ok_or(failure)?);
                }
                Verdict::Refresh(failure) | Verdict::Fail(failure) => return Err(failure),
                Verdict::Redirect(_) => return Err(unserved(slot)),
            }
        }
    }
}

fn malformed(redirection: &RedisError) -> RedisError {
    let kind = ErrorKind::UnexpectedReturnType;
    (kind, "a node replied with a malformed redirection", reply_of(redirection)).into()
}

fn reply_of(error: &RedisError) -> String {
    format!("{} {}", error.code().unwrap_or_default(), error.detail().unwrap_or_default())
}

fn unserved(slot: u16) -> CommandError {
    let kind = ErrorKind::ClusterConnectionNotFound;
    CommandError::NotSent((kind, "no master serves the slot of the key", slot.to_string()).into())
}

/// Returns whether a node did not run a read of a pipeline, and may have redirected it.
fn is_redirected(reply: &Result<Value, CommandError>) -> bool {
    matches!(reply, Err(CommandError::ErrorReply(error)) if is_redirection(error))
}

fn is_redirection(error: &RedisError) -> bool {
    use ServerErrorKind::{Ask, ClusterDown, MasterDown, Moved};
    matches!(error.kind(), ErrorKind::Server(Ask | ClusterDown | MasterDown | Moved))
}

#[async_trait]
impl Connection for ClusterConnection {
    async fn send(&self, command: &Cmd, key: &str, in_flight: &dyn InFlight) -> Result<Value, CommandError> {
        self.refresher.keep_running();
        if key.is_empty() {
            return self.send_to_any(command, in_flight).await;
        }
        let slot = slot(key);
        let mut may_refresh = self.nodes.master(slot).is_some();
        let mut target = Target::master(self.master(slot).await?);
        for _ in 0..MAX_REDIRECTIONS {
            target.node.check_reachable()?;
            let failure = match target.node.send(self.is_bulk, command, target.is_asking, in_flight).await {
                Ok(value) => return Ok(value),
                Err(failure) => failure,
            };
            target = match self.judge(slot, &target, failure) {
                Verdict::Fail(failure) => return Err(failure),
                Verdict::Redirect(next) => next,
                Verdict::Refresh(failure) => {
                    in_flight.clear();
                    if !may_refresh {
                        return Err(failure);
                    }
                    may_refresh = false;
                    Target::master(self.new_master(slot, &target.node).await.ok_or(failure)?)
                }
            };
            in_flight.clear();
        }
        let kind = ErrorKind::ClusterConnectionNotFound;
        let detail = format!("{MAX_REDIRECTIONS} times");
        Err(CommandError::NotSent((kind, "the nodes redirect the command to each other", detail).into()))
    }

    async fn read_all(
        &self,
        reads: &Pipeline,
        key: &str,
    ) -> Result<Vec<Result<Value, CommandError>>, CommandError> {
        self.refresher.keep_running();
        let mut replies = self.read_all_at_master(reads, slot(key)).await?;
        // While the slot is being migrated, some keys may be on another node. The backend sends each of their
        // reads there separately.
        let again = replies.iter_mut().zip(reads.cmd_iter()).filter(|(reply, _)| is_redirected(reply));
        let again = again.map(|(reply, read)| async move {
            *reply = self.send(read, key, &CallInFlight::default()).await;
        });
        join_all(again).await;
        Ok(replies)
    }

    fn runtime(&self) -> Option<Handle> {
        self.nodes.all().iter().find_map(|node| node.runtime(self.is_bulk))
    }

    fn timed_out(&self, key: &str) {
        if let Some(master) = self.nodes.master(slot(key)) {
            master.probe(self.is_bulk);
        }
        self.refresher.request();
    }

    fn refresh_topology(&self) {
        self.refresher.request();
    }

    fn on_error_reply(&self, error: RedisError) -> RedisError {
        self.refresher.request();
        if !is_redirection(&error) {
            return error;
        }
        // A redirection applies to one command only. The next refresh finds the master of the slot.
        let kind = ErrorKind::ClusterConnectionNotFound;
        (kind, "another node serves the slot", reply_of(&error)).into()
    }

    async fn master_of(&self, key: &str) -> RedisResult<Arc<Master>> {
        self.refresher.keep_running();
        let Ok(node) = self.master(slot(key)).await else {
            let reason = "no master serves the slot of the channel";
            return Err((ErrorKind::ClusterConnectionNotFound, reason).into());
        };
        match node.lost() {
            Some(error) => Err(error),
            None => Ok(Arc::clone(&node.master)),
        }
    }

    async fn detect_pubsub(&self, key: &str) -> Result<Option<Pubsub>, CommandError> {
        self.refresher.keep_running();
        let slot = slot(key);
        let node = self.master(slot).await?;
        node.check_reachable()?;
        match node.pubsub(self.is_bulk).await {
            Err(failure @ CommandError::Unreachable(..)) => {
                let master = self.new_master(slot, &node).await.ok_or(failure)?;
                master.pubsub(self.is_bulk).await
            }
            known => known,
        }
    }

    async fn master_changed(&self, key: &str, master: &Arc<Master>) {
        self.refresher.keep_running();
        let (slot, name) = (slot(key), master.name());
        let mut changes = self.nodes.changes();
        loop {
            if self.nodes.master(slot).is_some_and(|node| node.master.name() != name) {
                return;
            }
            if changes.changed().await.is_err() {
                std::future::pending().await
            }
        }
    }

    async fn masters(&self) -> Result<Vec<MasterOfSlots>, CommandError> {
        self.refresher.keep_running();
        Ok(self.nodes.masters())
    }

    async fn send_to_master(&self, master: &MasterOfSlots, command: &Cmd) -> Result<Value, CommandError> {
        let node = self.nodes.node(&NodeAddress { host: master.host.clone(), port: master.port });
        node.set_redirected();
        node.check_reachable()?;
        node.send(self.is_bulk, command, false, &CallInFlight::default()).await
    }

    fn has_several_masters(&self) -> bool {
        true
    }

    fn generation(&self) -> u64 {
        self.nodes.generation()
    }
}

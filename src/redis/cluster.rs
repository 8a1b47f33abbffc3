//! Connections to a Redis Cluster.
//!
//! A command goes to the node that keeps its slot. The backend asks the nodes for the layout regularly. It follows a
//! redirection at once: a node sends one *instead of* running a command whose slot another node keeps
//! (<https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#redirection-and-resharding>). Each node has
//! connections of its own, so one that is silent or lost delays only the calls to it.

mod layout;
mod member;
mod survey;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use redis::{Cmd, ErrorKind, Pipeline, RedisError, RedisResult, ServerErrorKind, Value};
use tokio::sync::watch;

use super::clock::Clock;
use super::connection::{Connection, MasterOfSlots};
use super::dialer::Dialer;
use super::generation::Generation;
use super::master::{Master, Place};
use super::notifications::Trials;
use super::reply::{CommandError, InFlight};
use layout::{Layout, Node, slot};
use member::Member;
use survey::Surveys;

use crate::backend::StorageError;
use crate::scripts::Pubsub;

/// How many redirections of one command are followed.
const MAX_REDIRECTIONS: usize = 8;
/// How long a node may take to answer a question that any other node can answer.
const QUESTION_LIMIT: Duration = Duration::from_millis(300);

/// The connections for calls, or those for pages and parts.
pub(super) struct ClusterConnection {
    cluster: Arc<Cluster>,
    is_bulk: bool,
}

/// The nodes of a cluster, and which of them keeps which slot.
struct Cluster {
    dialer: Dialer,
    clock: Arc<Clock>,
    /// The generation of all connections and of the layout.
    generation: Arc<Generation>,
    /// Where to try out how each node passes on messages; `None` if notifications are off.
    trials: Option<Trials>,
    /// The nodes that the caller named. They stay known, whoever else joins and leaves.
    seeds: Vec<Node>,
    state: RwLock<State>,
    /// Receives a message whenever another node keeps a slot.
    changes: watch::Sender<()>,
    surveys: Surveys,
}

struct State {
    layout: Layout,
    /// By the place in the layout.
    keepers: Vec<Arc<Member>>,
    members: BTreeMap<Node, Arc<Member>>,
}

/// Where a command goes next.
enum Target {
    Keeper,
    /// The node that another node named as the keeper.
    Moved(Arc<Member>),
    /// The node that a slot is being migrated to, for this command only.
    Ask(Arc<Member>),
}

/// What to do about a failure.
enum Verdict {
    /// The caller gets it.
    Final(CommandError),
    /// No node ran the command, and this is where it belongs.
    Redirected(Target),
    /// No node ran the command, and another one may keep the slot by now.
    LookAgain(CommandError),
}

/// Connects to the cluster of which these are nodes, for calls and for pages. The caller sets the time limit.
///
/// # Errors
/// If no node replies with a layout: the error of one of them, preferably that the user is denied.
pub(super) async fn connect(
    seeds: Vec<(String, u16)>,
    dialer: Dialer,
    clock: Arc<Clock>,
    generation: Arc<Generation>,
    trials: Option<Trials>,
) -> Result<(ClusterConnection, ClusterConnection), StorageError> {
    let seeds = seeds.into_iter().map(|(host, port)| Node { host, port }).collect();
    let (layout, members) = (Layout::unknown(), BTreeMap::new());
    let cluster = Arc::new(Cluster {
        dialer,
        clock,
        generation,
        trials,
        seeds,
        state: RwLock::new(State { layout, keepers: Vec::new(), members }),
        changes: watch::Sender::new(()),
        surveys: Surveys::default(),
    });
    cluster.first_survey().await?;
    cluster.keep_surveying();
    let link = |is_bulk| ClusterConnection { cluster: Arc::clone(&cluster), is_bulk };
    Ok((link(false), link(true)))
}

impl Cluster {
    /// Nothing panics while it holds the state.
    fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The node that keeps a slot, as far as is known.
    fn keeper(&self, slot: u16) -> Option<Arc<Member>> {
        let state = self.state();
        state.layout.place(slot).and_then(|place| state.keepers.get(place)).cloned()
    }

    fn member(&self, node: &Node) -> Arc<Member> {
        self.member_in(&mut self.state_mut(), node)
    }

    fn member_in(&self, state: &mut State, node: &Node) -> Arc<Member> {
        if let Some(member) = state.members.get(node) {
            return Arc::clone(member);
        }
        let place = Place::At(self.dialer.address(&node.host, node.port));
        let (clock, generation) = (Arc::clone(&self.clock), Arc::clone(&self.generation));
        let master =
            Arc::new(Master::new(place, self.dialer.clone(), clock, generation, self.trials.clone()));
        let member = Arc::new(Member::new(node.clone(), master));
        state.members.insert(node.clone(), Arc::clone(&member));
        member
    }

    /// Sends every command by this layout from now on.
    fn follow(&self, state: &mut State, layout: Layout) {
        let is_new = !layout.keeps_as(&state.layout);
        if is_new {
            // Before anything travels to the new keeper.
            self.generation.grow();
            state.keepers = layout.masters.iter().map(|node| self.member_in(state, node)).collect();
        }
        state.layout = layout;
        if is_new {
            self.changes.send_replace(());
        }
    }

    /// Decides what follows from the failure of a member.
    fn judge(
        self: &Arc<Self>,
        slot: u16,
        member: &Member,
        is_asking: bool,
        failure: CommandError,
    ) -> Verdict {
        use ServerErrorKind::{Ask, ClusterDown, MasterDown, Moved, ReadOnly};
        let error = match &failure {
            CommandError::ErrorReply(error) => error,
            // The state of a node that imports the slot says nothing about the slot's master.
            CommandError::Unreachable(..) if !is_asking => return Verdict::LookAgain(failure),
            _ => {
                self.want_survey();
                return Verdict::Final(failure);
            }
        };
        match error.kind() {
            ErrorKind::Server(kind @ (Moved | Ask)) => {
                let Some(node) = Node::of_redirection(error.detail().unwrap_or_default(), &member.node)
                else {
                    return Verdict::Final(CommandError::NotSent(malformed(error)));
                };
                self.generation.grow();
                let named = self.member(&node);
                named.set_named();
                if kind == Ask {
                    return Verdict::Redirected(Target::Ask(named));
                }
                let mut state = self.state_mut();
                let layout = state.layout.corrected(slot, &node);
                self.follow(&mut state, layout);
                drop(state);
                self.want_survey();
                Verdict::Redirected(Target::Moved(named))
            }
            ErrorKind::Server(ClusterDown | MasterDown) => Verdict::LookAgain(failure),
            ErrorKind::Server(ReadOnly) => {
                self.want_survey();
                Verdict::Final(failure)
            }
            _ => Verdict::Final(failure),
        }
    }

    /// Returns the node that keeps a slot, after a survey if none is known.
    async fn found_keeper(self: &Arc<Self>, slot: u16) -> Option<Arc<Member>> {
        match self.keeper(slot) {
            Some(keeper) => Some(keeper),
            None => self.other_keeper(slot, None).await,
        }
    }

    /// Returns the keeper of a slot after one more survey, if it has changed.
    async fn other_keeper(self: &Arc<Self>, slot: u16, before: Option<&Arc<Member>>) -> Option<Arc<Member>> {
        self.survey_again().await;
        let keeper = self.keeper(slot)?;
        before.is_none_or(|before| !Arc::ptr_eq(before, &keeper)).then_some(keeper)
    }
}

fn malformed(error: &RedisError) -> RedisError {
    let said = format!("{} {}", error.code().unwrap_or_default(), error.detail().unwrap_or_default());
    (ErrorKind::UnexpectedReturnType, "a node replied with a malformed redirection", said).into()
}

fn unkept(slot: u16) -> CommandError {
    let kind = ErrorKind::ClusterConnectionNotFound;
    CommandError::NotSent((kind, "no node keeps the key's slot", slot.to_string()).into())
}

/// Whether a read of a pipeline was not run, and a node may have named where it belongs.
fn belongs_elsewhere(reply: &Result<Value, CommandError>) -> bool {
    matches!(reply, Err(CommandError::ErrorReply(error)) if is_elsewhere(error))
}

fn is_elsewhere(error: &RedisError) -> bool {
    use ServerErrorKind::{Ask, ClusterDown, MasterDown, Moved};
    matches!(error.kind(), ErrorKind::Server(Ask | ClusterDown | MasterDown | Moved))
}

impl ClusterConnection {
    /// Sends a read to any node that answers, those first that answered before. A silent one is not waited for before the next
    /// is asked.
    async fn send_to_any(&self, command: &Cmd, in_flight: &InFlight) -> Result<Value, CommandError> {
        let mut members: Vec<Arc<Member>> = self.cluster.state().members.values().cloned().collect();
        members.sort_by_key(|member| (member.lost().is_some(), std::cmp::Reverse(member.answered())));
        let mut members = members.into_iter();
        let mut asking = FuturesUnordered::new();
        let mut failure =
            CommandError::NotSent((ErrorKind::ClusterConnectionNotFound, "no node is known").into());
        loop {
            let next = members.next();
            let is_last = next.is_none();
            asking.extend(
                next.map(|member| async move { member.send(self.is_bulk, command, false, in_flight).await }),
            );
            let answer = match tokio::time::timeout(QUESTION_LIMIT, asking.next()).await {
                Ok(answer) => answer,
                Err(_) if is_last => asking.next().await,
                Err(_) => continue,
            };
            match answer {
                Some(Err(other)) if !matches!(other, CommandError::ErrorReply(_)) => failure = other,
                Some(replied) => return replied,
                None => return Err(failure),
            }
        }
    }
}

#[async_trait]
impl Connection for ClusterConnection {
    async fn send(&self, command: &Cmd, key: &str, in_flight: &InFlight) -> Result<Value, CommandError> {
        let cluster = &self.cluster;
        cluster.keep_surveying();
        if key.is_empty() {
            return self.send_to_any(command, in_flight).await;
        }
        let slot = slot(key);
        let (mut target, mut has_looked) = (Target::Keeper, false);
        for _ in 0..MAX_REDIRECTIONS {
            let (member, is_asking) = match &target {
                Target::Moved(member) => (Arc::clone(member), false),
                Target::Ask(member) => (Arc::clone(member), true),
                Target::Keeper => match cluster.keeper(slot) {
                    Some(keeper) => (keeper, false),
                    None if has_looked => return Err(unkept(slot)),
                    None => {
                        has_looked = true;
                        cluster.survey_again().await;
                        continue;
                    }
                },
            };
            if let Some(error) = member.lost() {
                return Err(member.unreachable(error));
            }
            let failure = match member.send(self.is_bulk, command, is_asking, in_flight).await {
                Ok(value) => return Ok(value),
                Err(failure) => failure,
            };
            match cluster.judge(slot, &member, is_asking, failure) {
                Verdict::Final(failure) => return Err(failure),
                Verdict::Redirected(next) => target = next,
                Verdict::LookAgain(failure) => {
                    in_flight.clear();
                    if has_looked {
                        return Err(failure);
                    }
                    has_looked = true;
                    let Some(keeper) = cluster.other_keeper(slot, Some(&member)).await else {
                        return Err(failure);
                    };
                    target = Target::Moved(keeper);
                }
            }
            in_flight.clear();
        }
        let kind = ErrorKind::ClusterConnectionNotFound;
        let detail = format!("{MAX_REDIRECTIONS} times");
        Err(CommandError::NotSent((kind, "the nodes send the command from one to the other", detail).into()))
    }

    async fn read_all(
        &self,
        reads: &Pipeline,
        key: &str,
    ) -> Result<Vec<Result<Value, CommandError>>, CommandError> {
        let cluster = &self.cluster;
        cluster.keep_surveying();
        let slot = slot(key);
        let keeper = cluster.found_keeper(slot).await;
        let mut keeper = keeper.ok_or_else(|| unkept(slot))?;
        let mut has_looked = false;
        let mut replies = loop {
            if let Some(error) = keeper.lost() {
                return Err(keeper.unreachable(error));
            }
            let failure = match keeper.read_all(self.is_bulk, reads).await {
                Ok(replies) => break replies,
                Err(failure) => failure,
            };
            match cluster.judge(slot, &keeper, false, failure) {
                Verdict::LookAgain(failure) if !has_looked => {
                    has_looked = true;
                    let Some(other) = cluster.other_keeper(slot, Some(&keeper)).await else {
                        return Err(failure);
                    };
                    keeper = other;
                }
                Verdict::LookAgain(failure) | Verdict::Final(failure) => return Err(failure),
                Verdict::Redirected(_) => return Err(unkept(slot)),
            }
        };
        // Some of the keys may be on another node, so each is sent to the node that has it.
        let again = replies.iter_mut().zip(reads.cmd_iter()).filter(|(reply, _)| belongs_elsewhere(reply));
        let again = again.map(|(reply, read)| async move {
            *reply = self.send(read, key, &InFlight::default()).await;
        });
        join_all(again).await;
        Ok(replies)
    }

    fn timed_out(&self, key: &str) {
        if let Some(keeper) = self.cluster.keeper(slot(key)) {
            keeper.check(self.is_bulk);
        }
        self.cluster.want_survey();
    }

    fn refresh_topology(&self) {
        self.cluster.want_survey();
    }

    fn on_error_reply(&self, error: RedisError) -> RedisError {
        self.cluster.want_survey();
        if !is_elsewhere(&error) {
            return error;
        }
        // A redirection counts for one command only. The next survey finds the node that keeps the slot.
        let detail = format!("{} {}", error.code().unwrap_or_default(), error.detail().unwrap_or_default());
        (ErrorKind::ClusterConnectionNotFound, "another node keeps the slot", detail).into()
    }

    async fn master_of(&self, key: &str) -> RedisResult<Arc<Master>> {
        let cluster = &self.cluster;
        cluster.keep_surveying();
        let slot = slot(key);
        let keeper = cluster.found_keeper(slot).await;
        let Some(keeper) = keeper else {
            return Err((ErrorKind::ClusterConnectionNotFound, "no node keeps the channel's slot").into());
        };
        match keeper.lost() {
            Some(error) => Err(error),
            None => Ok(Arc::clone(&keeper.master)),
        }
    }

    async fn pubsub(&self, key: &str) -> Result<Option<Pubsub>, CommandError> {
        let cluster = &self.cluster;
        cluster.keep_surveying();
        let slot = slot(key);
        let keeper = cluster.found_keeper(slot).await;
        let keeper = keeper.ok_or_else(|| unkept(slot))?;
        if let Some(error) = keeper.lost() {
            return Err(keeper.unreachable(error));
        }
        match keeper.pubsub(self.is_bulk).await {
            Err(failure @ CommandError::Unreachable(..)) => {
                match cluster.other_keeper(slot, Some(&keeper)).await {
                    Some(other) => other.pubsub(self.is_bulk).await,
                    None => Err(failure),
                }
            }
            known => known,
        }
    }

    async fn master_changed(&self, key: &str, master: &Arc<Master>) {
        self.cluster.keep_surveying();
        let (slot, name) = (slot(key), master.name());
        let mut changes = self.cluster.changes.subscribe();
        loop {
            if self.cluster.keeper(slot).is_some_and(|keeper| keeper.master.name() != name) {
                return;
            }
            if changes.changed().await.is_err() {
                std::future::pending().await
            }
        }
    }

    async fn masters(&self) -> Result<Vec<MasterOfSlots>, CommandError> {
        self.cluster.keep_surveying();
        let state = self.cluster.state();
        let masters = state.layout.lowest_slots();
        let master =
            |(slot, node): (u16, &Node)| MasterOfSlots { slot, host: node.host.clone(), port: node.port };
        Ok(masters.map(master).collect())
    }

    async fn send_to_master(&self, master: &MasterOfSlots, command: &Cmd) -> Result<Value, CommandError> {
        let member = self.cluster.member(&Node { host: master.host.clone(), port: master.port });
        member.set_named();
        if let Some(error) = member.lost() {
            return Err(member.unreachable(error));
        }
        member.send(self.is_bulk, command, false, &InFlight::default()).await
    }

    fn has_several_masters(&self) -> bool {
        true
    }

    fn generation(&self) -> u64 {
        self.cluster.generation.get()
    }
}

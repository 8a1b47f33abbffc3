//! The way to a Redis Cluster.
//!
//! The redis crate's cluster connection knows which node keeps which slot, and looks after the connections. It is
//! told to send nothing twice, as it would do so even with a write that may have been run. What a node says
//! *instead of* running a command, `MOVED` and `ASK`, is followed here
//! (<https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#redirection-and-resharding>).

use std::collections::HashMap;
use std::convert::Infallible;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{Route, RoutingInfo, SingleNodeRoutingInfo, SlotAddr};
use redis::{Cmd, ErrorKind, Pipeline, PushInfo, PushKind, RedisError, RedisResult, ServerErrorKind, Value};
use tokio::runtime::Handle;
use tokio::sync::Mutex;

use super::clock::Clock;
use super::dialer::Dialer;
use super::link::{Failure, Generation, Link, MasterOfSlots, Sent};
use super::master::{Master, Place};
use super::notifications::Trials;
use crate::scripts::Pubsub;

/// How many redirections of one command are followed.
const MAX_REDIRECTIONS: usize = 8;
/// How long a slot whose master cannot be connected to is left alone. Each look at where it is now holds up the
/// cluster connection, and so everybody, while it tries to connect to that master.
const LEFT_ALONE: Duration = Duration::from_secs(1);
/// How often, how far apart and for how long each time a silent node's slot is looked at after a timeout.
const WATCHES: u32 = 100;
const WATCH_DELAY: Duration = Duration::from_millis(100);
const WATCH_TIMEOUT: Duration = Duration::from_millis(300);

pub(super) struct ClusterLink(Arc<Shared>);

struct Shared {
    cluster: ClusterConnection,
    dialer: Dialer,
    clock: Arc<Clock>,
    masters: std::sync::Mutex<HashMap<Node, Arc<Master>>>,
    trials: Option<Trials>,
    /// By one node for all: the one that keeps the channel of the trials.
    tried: tokio::sync::OnceCell<Arc<Master>>,
    /// Connections to nodes that another one named. The cluster connection may not know them yet, and would
    /// connect anew to all that it was given at first if it were asked for one that it does not know.
    direct: Mutex<HashMap<Node, MultiplexedConnection>>,
    /// Slots whose master could not be connected to, and since when.
    lost: std::sync::Mutex<HashMap<Route, Instant>>,
    /// Whether a silent node is being watched.
    is_watching: AtomicBool,
    /// Of all connections of the client, and of the directions that other nodes gave.
    generation: Arc<Generation>,
}

type Node = (String, u16);

/// Where a command goes next.
enum Target {
    Owner,
    /// The owner by the word of another node.
    Moved(Node),
    /// The node that a slot is being migrated to, for this command only.
    Ask(Node),
}

impl ClusterLink {
    /// The client that connections are made by. `builder` is configured for all but retries. `is_told` says that
    /// connections report that they broke.
    pub(super) fn client(
        builder: ClusterClientBuilder,
        is_told: bool,
        generation: &Arc<Generation>,
    ) -> RedisResult<ClusterClient> {
        let builder = builder.retries(0);
        if !is_told {
            return builder.build();
        }
        let generation = Arc::clone(generation);
        let told = move |push: PushInfo| {
            if push.kind == PushKind::Disconnection {
                generation.grow();
            }
            Ok::<(), Infallible>(())
        };
        builder.push_sender(told).build()
    }

    /// Connects to the cluster. `node` is one of its nodes.
    pub(super) async fn connect(
        client: &ClusterClient,
        dialer: Dialer,
        clock: Arc<Clock>,
        generation: Arc<Generation>,
        trials: Option<Trials>,
    ) -> RedisResult<Self> {
        let cluster = client.get_async_connection().await?;
        Ok(Self(Arc::new(Shared {
            cluster,
            dialer,
            clock,
            masters: std::sync::Mutex::default(),
            trials,
            tried: tokio::sync::OnceCell::new(),
            direct: Mutex::default(),
            lost: std::sync::Mutex::default(),
            is_watching: AtomicBool::new(false),
            generation,
        })))
    }
}

impl Shared {
    /// Sends a command to the node that the cluster connection takes for its owner.
    async fn send_to_owner(self: &Arc<Self>, command: &Cmd, key: &str) -> Result<Value, Failure> {
        let node = RoutingInfo::SingleNode(owner(key));
        let reply = self.cluster.clone().route_command(command.clone(), node).await;
        Failure::judge(Ok(reply.map_err(|error| self.judge(error, key))?))
    }

    /// Judges what the cluster connection gives in place of a reply. It may make an error of what *another* command
    /// was told; only what no command of its own is told is taken for the reply to this one.
    fn judge(self: &Arc<Self>, error: RedisError, key: &str) -> Failure {
        use ServerErrorKind::{Ask, ClusterDown, CrossSlot, MasterDown, Moved, ReadOnly, TryAgain};
        // It may have led to new connections, or to another view of who keeps which slot.
        self.generation.grow();
        if error.is_timeout() {
            self.watch(key);
        }
        match error.kind() {
            ErrorKind::Server(Ask | ClusterDown | CrossSlot | MasterDown | Moved | ReadOnly | TryAgain) => {
                Failure::Replied(error)
            }
            _ => Failure::Unanswered(error),
        }
    }

    /// Sends commands to a node that another one named, and gives the reply to the last.
    async fn send_to(&self, node: &Node, commands: &Pipeline) -> Result<Value, Failure> {
        let mut connection = self.direct(node).await.map_err(Failure::Unsent)?;
        let replies = connection.req_packed_commands(commands, 0, commands.len()).await;
        if replies.is_err() {
            self.generation.grow();
            self.direct.lock().await.remove(node);
        }
        let no_reply = || Failure::Unanswered((ErrorKind::UnexpectedReturnType, "a reply is missing").into());
        Failure::judge_all(replies)?.pop().unwrap_or_else(|| Err(no_reply()))
    }

    async fn direct(&self, node: &Node) -> RedisResult<MultiplexedConnection> {
        if let Some(connection) = self.direct.lock().await.get(node) {
            return Ok(connection.clone());
        }
        let address = self.dialer.address(&node.0, node.1);
        let connection = self.dialer.dial(&address, None, |_| ()).await?;
        self.generation.grow();
        self.direct.lock().await.insert(node.clone(), connection.clone());
        Ok(connection)
    }

    /// Nothing panics while it holds the slots.
    fn lost(&self) -> MutexGuard<'_, HashMap<Route, Instant>> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether to leave this key's slot alone. If not, and it was lost before, this is for one call to find out.
    fn is_left_alone(&self, route: &Route) -> bool {
        match self.lost().get_mut(route) {
            Some(since) if since.elapsed() < LEFT_ALONE => true,
            Some(since) => {
                *since = Instant::now();
                false
            }
            None => false,
        }
    }

    /// A node that hangs closes no connection, so the cluster connection would stay with it when another has
    /// taken over its slots.
    fn watch(self: &Arc<Self>, key: &str) {
        let Ok(runtime) = Handle::try_current() else { return };
        self.generation.grow();
        if self.is_watching.swap(true, Ordering::Relaxed) {
            return;
        }
        let (watch, key) = (Watch(Arc::clone(self)), key.to_owned());
        runtime.spawn(async move {
            for _ in 0..WATCHES {
                if watch.0.has_keeper_that_answers(&key).await {
                    // The cluster connection may know by itself, and each new look holds up everybody.
                    if watch.0.ask(redis::cmd("TIME"), owner(&key)).await.is_none() {
                        watch.0.look_up_again(&key).await;
                    }
                    break;
                }
                tokio::time::sleep(WATCH_DELAY).await;
            }
        });
    }

    /// The node that keeps the key, by the word of any node.
    async fn keeper(&self, key: &str) -> Option<Node> {
        let mut slots = redis::cmd("CLUSTER");
        slots.arg("SLOTS");
        keeper(self.ask(slots, SingleNodeRoutingInfo::Random).await?.ok()?, key)
    }

    /// Whether the node that keeps the key answers. As long as it is the silent one, a new look at the slots would
    /// lead to it again.
    async fn has_keeper_that_answers(&self, key: &str) -> bool {
        let Some(keeper) = self.keeper(key).await else { return false };
        let mut time = Pipeline::with_capacity(1);
        time.cmd("TIME");
        let asked = tokio::time::timeout(WATCH_TIMEOUT, self.send_to(&keeper, &time)).await;
        asked.is_ok_and(|reply| reply.is_ok())
    }

    /// Makes the cluster connection look at the slots again, as it does when a node redirects a command.
    async fn look_up_again(&self, key: &str) {
        self.generation.grow();
        for _ in 0..MAX_REDIRECTIONS {
            let mut exists = redis::cmd("EXISTS");
            exists.arg(key);
            if let Some(Err(error)) = self.ask(exists, SingleNodeRoutingInfo::Random).await
                && error.kind() == ErrorKind::Server(ServerErrorKind::Moved)
            {
                return;
            }
        }
    }

    /// `None` if there is no reply within the time for a watch.
    async fn ask(&self, command: Cmd, node: SingleNodeRoutingInfo) -> Option<RedisResult<Value>> {
        let mut cluster = self.cluster.clone();
        let asked = cluster.route_command(command, RoutingInfo::SingleNode(node));
        Some(tokio::time::timeout(WATCH_TIMEOUT, asked).await.ok()?.and_then(Value::extract_error))
    }
}

/// Ends with the task that watches, whatever ends that.
struct Watch(Arc<Shared>);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.is_watching.store(false, Ordering::Relaxed);
    }
}

#[async_trait]
impl Link for ClusterLink {
    async fn send(&self, command: &Cmd, key: &str, sent: &Sent) -> Result<Value, Failure> {
        sent.mark();
        let route = Route::with_key(key, SlotAddr::Master);
        if self.0.is_left_alone(&route) {
            return Err(unreachable_master(format!("it was not a moment ago ({LEFT_ALONE:?})")));
        }
        let mut target = Target::Owner;
        for _ in 0..MAX_REDIRECTIONS {
            let reply = match &target {
                Target::Owner => self.0.send_to_owner(command, key).await,
                Target::Moved(node) => {
                    let mut alone = Pipeline::with_capacity(1);
                    alone.add_command(command.clone());
                    self.0.send_to(node, &alone).await
                }
                Target::Ask(node) => {
                    // In one go, as the permission is for the connection's next command, whosever it is.
                    let mut asking = Pipeline::with_capacity(2);
                    asking.cmd("ASKING").add_command(command.clone());
                    self.0.send_to(node, &asking).await
                }
            };
            match reply {
                Err(Failure::Unsent(error)) if !matches!(target, Target::Owner) => {
                    self.0.lost().insert(route, Instant::now());
                    return Err(unreachable_master(error.to_string()));
                }
                Err(failure) => match redirected(&failure) {
                    Some(next) => {
                        self.0.generation.grow();
                        target = next;
                    }
                    None => return Err(failure),
                },
                Ok(value) => {
                    self.0.lost().remove(&route);
                    return Ok(value);
                }
            }
        }
        Err(unreachable_master(format!("redirected {MAX_REDIRECTIONS} times")))
    }

    async fn read_all(&self, reads: &Pipeline, key: &str) -> Result<Vec<Result<Value, Failure>>, Failure> {
        let mut cluster = self.0.cluster.clone();
        let replies = cluster.route_pipeline(reads.clone(), 0, reads.len(), owner(key)).await;
        let failure = match replies {
            Ok(values) => return Failure::judge_all(Ok(values)),
            Err(error) => self.0.judge(error, key),
        };
        if redirected(&failure).is_none() {
            return Err(failure);
        }
        // Part of the keys may have moved, so each is asked for where it is.
        let mut values = Vec::with_capacity(reads.len());
        for read in reads.cmd_iter() {
            values.push(self.send(read, key, &Sent::default()).await);
        }
        Ok(values)
    }

    fn timed_out(&self, key: &str) {
        self.0.watch(key);
    }

    fn generation(&self) -> u64 {
        self.0.generation.get()
    }

    async fn masters(&self) -> Result<Vec<MasterOfSlots>, Failure> {
        let mut slots = redis::cmd("CLUSTER");
        slots.arg("SLOTS");
        let any = RoutingInfo::SingleNode(SingleNodeRoutingInfo::Random);
        let slots = Failure::judge(self.0.cluster.clone().route_command(slots, any).await)?;
        let unreadable = || (ErrorKind::UnexpectedReturnType, "the reply is none to CLUSTER SLOTS").into();
        masters(slots).ok_or_else(|| Failure::Unanswered(unreadable()))
    }

    async fn send_to(&self, master: &MasterOfSlots, command: &Cmd) -> Result<Value, Failure> {
        let mut alone = Pipeline::with_capacity(1);
        alone.add_command(command.clone());
        self.0.send_to(&(master.host.clone(), master.port), &alone).await
    }

    async fn pubsub(&self, _key: &str) -> Result<Option<Pubsub>, Failure> {
        let Some(trials) = &self.0.trials else { return Ok(None) };
        let tried = self.0.tried.get_or_try_init(|| self.master_of(&trials.channel));
        Ok(tried.await.map_err(Failure::Unsent)?.pubsub().await)
    }

    async fn master_of(&self, key: &str) -> RedisResult<Arc<Master>> {
        let Some(keeper) = self.0.keeper(key).await else {
            return Err(
                (ErrorKind::ClusterConnectionNotFound, "no node says which one keeps the slot").into()
            );
        };
        let shared = &self.0;
        let mut masters = shared.masters.lock().unwrap_or_else(PoisonError::into_inner);
        let address = shared.dialer.address(&keeper.0, keeper.1);
        let master = masters.entry(keeper).or_insert_with(|| {
            let (clock, generation) = (Arc::clone(&shared.clock), Arc::clone(&shared.generation));
            let (dialer, trials) = (shared.dialer.clone(), shared.trials.clone());
            Arc::new(Master::new(Place::At(address), dialer, clock, generation, trials))
        });
        Ok(Arc::clone(master))
    }
}

fn unreachable_master(detail: String) -> Failure {
    let kind = ErrorKind::ClusterConnectionNotFound;
    Failure::Unsent((kind, "the master of the key's slot cannot be reached", detail).into())
}

/// The ranges of slots with their masters, from the reply of `CLUSTER SLOTS`.
fn ranges(slots: Value) -> Option<Vec<(RangeInclusive<u16>, Node)>> {
    let ranges: Vec<Vec<Value>> = redis::from_redis_value(slots).ok()?;
    let range = |range: Vec<Value>| {
        let [first, last, master] = range.get(..3)?.to_vec().try_into().ok()?;
        let (first, last) = (redis::from_redis_value(first).ok()?, redis::from_redis_value(last).ok()?);
        let master: Vec<Value> = redis::from_redis_value(master).ok()?;
        let [host, port] = master.get(..2)?.to_vec().try_into().ok()?;
        Some((first..=last, (redis::from_redis_value(host).ok()?, redis::from_redis_value(port).ok()?)))
    };
    ranges.into_iter().map(range).collect()
}

/// The master that keeps a key, from the reply of `CLUSTER SLOTS`.
fn keeper(slots: Value, key: &str) -> Option<Node> {
    let wanted = Route::with_key(key, SlotAddr::Master);
    let mut ranges = ranges(slots)?.into_iter();
    let keeps =
        |mut range: RangeInclusive<u16>| range.any(|slot| Route::new(slot, SlotAddr::Master) == wanted);
    ranges.find_map(|(range, master)| keeps(range).then_some(master))
}

/// Each master once, by the lowest slot that it keeps.
fn masters(slots: Value) -> Option<Vec<MasterOfSlots>> {
    let mut ranges = ranges(slots)?;
    ranges.sort_by_key(|(range, _)| *range.start());
    let mut masters: Vec<MasterOfSlots> = Vec::new();
    for (range, (host, port)) in ranges {
        if masters.iter().all(|master| (&master.host, master.port) != (&host, port)) {
            masters.push(MasterOfSlots { slot: *range.start(), host, port });
        }
    }
    Some(masters)
}

/// Where another node says that the command belongs. Either reply says that it was not run.
fn redirected(failure: &Failure) -> Option<Target> {
    let Failure::Replied(error) = failure else { return None };
    let target = match error.kind() {
        ErrorKind::Server(ServerErrorKind::Moved) => Target::Moved,
        ErrorKind::Server(ServerErrorKind::Ask) => Target::Ask,
        _ => return None,
    };
    let (node, _slot) = error.redirect_node()?;
    let (host, port) = node.rsplit_once(':')?;
    Some(target((host.to_owned(), port.parse().ok()?)))
}

fn owner(key: &str) -> SingleNodeRoutingInfo {
    if key.is_empty() {
        return SingleNodeRoutingInfo::RandomPrimary;
    }
    SingleNodeRoutingInfo::SpecificNode(Route::with_key(key, SlotAddr::Master))
}

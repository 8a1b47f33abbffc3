//! The way to a Redis Cluster.
//!
//! The redis crate's cluster connection knows which node keeps which slot, and looks after the connections. It is
//! told to send nothing twice, as it would do so even with a write that may have been run. What a node says
//! *instead of* running a command, `MOVED` and `ASK`, is followed here
//! (<https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#redirection-and-resharding>).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::ClusterClientBuilder;
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{Route, RoutingInfo, SingleNodeRoutingInfo, SlotAddr};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, Pipeline, RedisError,
    RedisResult, ServerErrorKind, Value,
};
use tokio::runtime::Handle;
use tokio::sync::Mutex;

use super::link::{Failure, Link};

/// How many redirections of one command are followed. While a node fails over there are some that lead nowhere.
const MAX_REDIRECTIONS: u32 = 8;
/// How often, how far apart and for how long each time a silent node's slot is looked at after a timeout.
const WATCHES: u32 = 100;
const WATCH_DELAY: Duration = Duration::from_millis(100);
const WATCH_TIMEOUT: Duration = Duration::from_millis(300);
/// How long to wait before a slot's node is looked up again, times the redirections followed.
const LOOK_UP_DELAY: Duration = Duration::from_millis(10);

pub(super) struct ClusterLink {
    cluster: ClusterConnection,
    /// One of the nodes, as configured: how others are connected to.
    node: ConnectionInfo,
    connect_timeout: Duration,
    /// Connections to nodes that own no slot yet, which the cluster connection does not know: they take over
    /// their first one.
    newcomers: Mutex<HashMap<Node, MultiplexedConnection>>,
    /// Whether a silent node is being watched.
    watching: Arc<AtomicBool>,
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
    /// `client` is configured for all but retries. `node` is one of its nodes.
    pub(super) async fn connect(
        client: ClusterClientBuilder,
        node: ConnectionInfo,
        connect_timeout: Duration,
    ) -> RedisResult<Self> {
        let cluster = client.retries(0).build()?.get_async_connection().await?;
        Ok(Self { cluster, node, connect_timeout, newcomers: Mutex::default(), watching: Arc::default() })
    }

    async fn send_to(&self, target: &Target, command: &Cmd, key: &str) -> RedisResult<Value> {
        let mut cluster = self.cluster.clone();
        match target {
            Target::Owner => {
                cluster.route_command(command.clone(), RoutingInfo::SingleNode(owner(key))).await
            }
            Target::Moved(node) => {
                cluster.route_command(command.clone(), RoutingInfo::SingleNode(address(node))).await
            }
            Target::Ask(node) => {
                // In one go, as the permission is for the connection's next command, whosever it is.
                let mut asking = Pipeline::with_capacity(2);
                asking.cmd("ASKING").add_command(command.clone());
                match cluster.route_pipeline(asking.clone(), 0, 2, address(node)).await {
                    Err(error) if is_unknown_node(&error) => {
                        self.ask_newcomer(node, &asking).await.and_then(second)
                    }
                    replies => replies.and_then(second),
                }
            }
        }
    }

    fn judge(&self, reply: RedisResult<Value>, key: &str) -> Result<Value, Failure> {
        if reply.as_ref().is_err_and(RedisError::is_timeout) {
            self.timed_out(key);
        }
        Failure::judge(reply)
    }

    async fn ask_newcomer(&self, node: &Node, asking: &Pipeline) -> RedisResult<Vec<Value>> {
        let known = self.newcomers.lock().await.get(node).cloned();
        let mut connection = match known {
            Some(connection) => connection,
            None => {
                let config = AsyncConnectionConfig::new()
                    .set_connection_timeout(Some(self.connect_timeout))
                    .set_response_timeout(None);
                let client = Client::open(at(&self.node, node))?;
                let connection = client.get_multiplexed_async_connection_with_config(&config).await?;
                self.newcomers.lock().await.insert(node.clone(), connection.clone());
                connection
            }
        };
        let replies = connection.req_packed_commands(asking, 0, 2).await;
        if replies.is_err() {
            self.newcomers.lock().await.remove(node);
        }
        replies
    }
}

#[async_trait]
impl Link for ClusterLink {
    async fn send(&self, command: &Cmd, key: &str) -> Result<Value, Failure> {
        let mut target = Target::Owner;
        for redirections in 1..=MAX_REDIRECTIONS {
            let failure = match self.send_to(&target, command, key).await {
                Err(error) if is_unknown_node(&error) => {
                    // The node is down, or new. What the cluster connection learns meanwhile tells.
                    tokio::time::sleep(LOOK_UP_DELAY * redirections).await;
                    target = Target::Owner;
                    continue;
                }
                reply => match self.judge(reply, key) {
                    Ok(value) => return Ok(value),
                    Err(failure) => failure,
                },
            };
            target = match redirected(&failure) {
                Some(next) => next,
                None => return Err(failure),
            };
        }
        let detail = format!("redirected {MAX_REDIRECTIONS} times, and not to a node that keeps it");
        Err(Failure::Unsent((ErrorKind::ClusterConnectionNotFound, "the slot has no node", detail).into()))
    }

    async fn read_all(&self, reads: &Pipeline, key: &str) -> Result<Vec<Result<Value, Failure>>, Failure> {
        let replies = self.cluster.clone().route_pipeline(reads.clone(), 0, reads.len(), owner(key)).await;
        if replies.as_ref().is_err_and(RedisError::is_timeout) {
            self.timed_out(key);
        }
        match Failure::judge_all(replies) {
            // Part of the keys may have moved, so each is asked for where it is.
            Err(failure) if redirected(&failure).is_some() => {
                let mut values = Vec::with_capacity(reads.len());
                for read in reads.cmd_iter() {
                    values.push(self.send(read, key).await);
                }
                Ok(values)
            }
            replies => replies,
        }
    }

    /// A node that hangs closes no connection, so the cluster connection would stay with it when another has
    /// taken over its slots.
    fn timed_out(&self, key: &str) {
        let Ok(runtime) = Handle::try_current() else { return };
        if self.watching.swap(true, Ordering::Relaxed) {
            return;
        }
        let (cluster, watching, key) = (self.cluster.clone(), Arc::clone(&self.watching), key.to_owned());
        runtime.spawn(async move {
            for _ in 0..WATCHES {
                if has_keeper_that_answers(&cluster, &key).await {
                    look_up_again(&cluster, &key).await;
                    break;
                }
                tokio::time::sleep(WATCH_DELAY).await;
            }
            watching.store(false, Ordering::Relaxed);
        });
    }
}

/// Whether the node that keeps the key, by the word of any node, answers. As long as it is the silent one, a new
/// look at the slots would only hold up everybody.
async fn has_keeper_that_answers(cluster: &ClusterConnection, key: &str) -> bool {
    let mut slots = redis::cmd("CLUSTER");
    slots.arg("SLOTS");
    let Some(Ok(slots)) = ask(cluster, slots, SingleNodeRoutingInfo::Random).await else { return false };
    let Some(keeper) = keeper(slots, key) else { return false };
    match ask(cluster, redis::cmd("TIME"), address(&keeper)).await {
        Some(Ok(_)) => true,
        Some(Err(error)) => is_unknown_node(&error),
        None => false,
    }
}

/// Makes the cluster connection look at the slots again, as it does when a node redirects a command.
async fn look_up_again(cluster: &ClusterConnection, key: &str) {
    for _ in 0..MAX_REDIRECTIONS {
        let mut exists = redis::cmd("EXISTS");
        exists.arg(key);
        if let Some(Err(error)) = ask(cluster, exists, SingleNodeRoutingInfo::Random).await
            && error.kind() == ErrorKind::Server(ServerErrorKind::Moved)
        {
            return;
        }
    }
}

/// `None` if there is no reply within the time for a watch.
async fn ask(
    cluster: &ClusterConnection,
    command: Cmd,
    node: SingleNodeRoutingInfo,
) -> Option<RedisResult<Value>> {
    let mut cluster = cluster.clone();
    let asked = cluster.route_command(command, RoutingInfo::SingleNode(node));
    Some(tokio::time::timeout(WATCH_TIMEOUT, asked).await.ok()?.and_then(Value::extract_error))
}

/// The master that keeps a key, from the reply of `CLUSTER SLOTS`.
fn keeper(slots: Value, key: &str) -> Option<Node> {
    let wanted = Route::with_key(key, SlotAddr::Master);
    let ranges: Vec<Vec<Value>> = redis::from_redis_value(slots).ok()?;
    for range in ranges {
        let [first, last, master] = range.get(..3)?.to_vec().try_into().ok()?;
        let (first, last): (u16, u16) =
            (redis::from_redis_value(first).ok()?, redis::from_redis_value(last).ok()?);
        if (first..=last).any(|slot| Route::new(slot, SlotAddr::Master) == wanted) {
            let master: Vec<Value> = redis::from_redis_value(master).ok()?;
            let [host, port] = master.get(..2)?.to_vec().try_into().ok()?;
            return Some((redis::from_redis_value(host).ok()?, redis::from_redis_value(port).ok()?));
        }
    }
    None
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

/// Whether the cluster connection knows no node at the address that it was told, and so sent nothing.
fn is_unknown_node(error: &RedisError) -> bool {
    // Only then it names the address: the error has the same kind when the connection as a whole is in trouble.
    error.kind() == ErrorKind::ClusterConnectionNotFound && error.detail().is_some()
}

fn owner(key: &str) -> SingleNodeRoutingInfo {
    SingleNodeRoutingInfo::SpecificNode(Route::with_key(key, SlotAddr::Master))
}

fn address((host, port): &Node) -> SingleNodeRoutingInfo {
    SingleNodeRoutingInfo::ByAddress { host: host.clone(), port: *port }
}

/// How to connect to another node.
fn at(node: &ConnectionInfo, (host, port): &Node) -> ConnectionInfo {
    let mut addr = node.addr().clone();
    if let ConnectionAddr::Tcp(its_host, its_port)
    | ConnectionAddr::TcpTls { host: its_host, port: its_port, .. } = &mut addr
    {
        host.clone_into(its_host);
        *its_port = *port;
    }
    node.clone().set_addr(addr)
}

/// The reply to the command after `ASKING`.
fn second(replies: Vec<Value>) -> RedisResult<Value> {
    let no_reply = || (ErrorKind::UnexpectedReturnType, "a pipeline of two has no second reply").into();
    replies.into_iter().nth(1).ok_or_else(no_reply)
}

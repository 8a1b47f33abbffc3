//! Servers that an instance connects to: a single one, a master behind sentinels, or a cluster.

use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use mcp_task_store::{Credentials, RedisBackend, RedisBuilder, StorageError};
use redis::Connection;
use serde::{Deserialize, Serialize};

use super::bus::Buses;
use super::cluster::{Cluster, NODE, eventually, info, start_node};
use super::redis::{Server, any_node, command, connection, masters};
use super::relay::Relay;
use super::sentinel::{MASTER, master_of, start_sentinel};

/// The limits of each instance.
const TIMEOUT: Duration = Duration::from_secs(1);
/// How long a master is silent before sentinels fail it over.
const DOWN_AFTER: Duration = Duration::from_secs(1);
/// Instances connect as `app`. Tests inject faults as `admin`, which no fault affects.
const APP: [&str; 7] = ["--user", "app", "on", ">first", "~*", "&*", "+@all"];
const ADMIN: [&str; 7] = ["--user", "admin", "on", ">admin", "~*", "&*", "+@all"];

/// Connects one more instance.
pub type Connect = Arc<dyn Fn() -> BoxFuture<'static, Result<RedisBackend, StorageError>> + Send + Sync>;

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Topology {
    One,
    /// A master with replicas, behind three sentinels.
    Sentinels {
        replicas: usize,
    },
    /// Three masters with a replica each.
    Cluster,
}

/// The condition under which a write of an instance returns.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Writes {
    AreApplied,
    WaitForAReplica,
}

/// The addresses that an instance connects to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Endpoints {
    pub topology: Topology,
    /// The URLs of the server, the sentinels or the nodes.
    pub urls: Vec<String>,
    pub writes: Writes,
}

impl Endpoints {
    pub fn single(url: String) -> Self {
        Self { topology: Topology::One, urls: vec![url], writes: Writes::AreApplied }
    }

    pub async fn connect(&self, builder: RedisBuilder) -> Result<RedisBackend, StorageError> {
        let replicas = u32::from(self.writes == Writes::WaitForAReplica);
        let builder = builder.wait_for_replicas(replicas, TIMEOUT / 3);
        match self.topology {
            Topology::One => builder.connect(&self.urls[0]).await,
            Topology::Sentinels { .. } => {
                builder.connect_sentinel(&self.urls, &format!("redis://app:first@{MASTER}")).await
            }
            Topology::Cluster => builder.connect_cluster(&self.urls).await,
        }
    }
}

pub struct Deployment {
    pub topology: Topology,
    /// The servers: behind sentinels, the master first; in a cluster, all nodes.
    pub servers: Vec<Server>,
    pub sentinels: Vec<Server>,
    /// The relay in front of the single server.
    pub relay: Option<Relay>,
    /// The relays between the nodes of the cluster, if a test cuts the nodes off from each other.
    pub buses: Option<Buses>,
    /// A listener on the port of a killed server. It accepts connections and does not answer.
    pub silence: Option<TcpListener>,
    /// The password with which instances connect.
    pub password: Arc<Mutex<String>>,
}

impl Deployment {
    /// Starts the servers. Blocks.
    pub fn start(topology: Topology, settings: &[&str], has_buses: bool) -> Self {
        let settings = [&APP, &ADMIN, settings].concat();
        let runtime = tokio::runtime::Handle::current();
        let password = Arc::new(Mutex::new("first".to_owned()));
        let (mut servers, mut sentinels, mut relay, mut buses) = (Vec::new(), Vec::new(), None, None);
        match topology {
            Topology::One => {
                servers.push(Server::start(&settings));
                // A test moves the address of the server to this replica.
                servers.push(replica_of(&servers[0], &settings));
                servers[0].is_replicated();
                relay = Some(runtime.block_on(Relay::start(servers[0].port)));
            }
            Topology::Sentinels { replicas } => {
                servers.push(Server::start(&settings));
                servers.extend((0..replicas).map(|_| replica_of(&servers[0], &settings)).collect::<Vec<_>>());
                let mut master = connection(&admin_url(&servers[0]));
                let all_online = format!("connected_slaves:{replicas}");
                eventually(|| {
                    let info = info(&mut master, "replication");
                    info.contains(&all_online) && info.matches("state=online").count() == replicas
                });
                sentinels = (0..3).map(|_| start_sentinel(servers[0].port, DOWN_AFTER)).collect();
                let known = format!("slaves={replicas},sentinels=3");
                eventually(|| {
                    sentinels.iter().all(|sentinel| {
                        let info = info(&mut sentinel.connection(), "sentinel");
                        info.contains("status=ok") && info.contains(&known)
                    })
                });
            }
            Topology::Cluster if has_buses => {
                let started = Buses::start(6, &settings);
                servers = Cluster::join(started.1, 3).nodes;
                buses = Some(started.0);
            }
            Topology::Cluster => {
                let settings = [&NODE[..], &settings].concat();
                servers = Cluster::join((0..6).map(|_| start_node(&settings)).collect(), 3).nodes;
            }
        }
        Self { topology, servers, sentinels, relay, buses, silence: None, password }
    }

    /// Returns the addresses that instances connect to.
    pub fn endpoints(&self, writes: Writes) -> Endpoints {
        let urls = match self.topology {
            Topology::One => self.relay.iter().map(|relay| app_url(relay.port)).collect(),
            Topology::Sentinels { .. } => self.sentinels.iter().map(Server::url).collect(),
            Topology::Cluster => self.servers.iter().map(|server| app_url(server.port)).collect(),
        };
        Endpoints { topology: self.topology, urls, writes }
    }

    /// Returns a function that connects one more instance, with the current password.
    pub fn connect(&self, writes: Writes) -> Connect {
        let (endpoints, password) = (self.endpoints(writes), Arc::clone(&self.password));
        Arc::new(move || {
            let (endpoints, password) = (endpoints.clone(), Arc::clone(&password));
            let provide = move || {
                let password = password.lock().unwrap().clone();
                async move { Ok::<_, std::convert::Infallible>(Credentials::user("app", password)) }
            };
            let builder = RedisBackend::builder().connect_timeout(TIMEOUT).response_timeout(TIMEOUT);
            Box::pin(async move { endpoints.connect(builder.credentials(provide)).await })
        })
    }

    /// Returns the owners for which instances are compared. Faults affect the server of the first owner. In a cluster,
    /// another master stores the records of the second owner.
    pub fn owners(&self) -> Vec<String> {
        let mut owners = vec!["alice".to_owned()];
        if self.topology == Topology::Cluster {
            let target = self.target();
            let names = (0..100).map(|number| format!("owner-{number}"));
            owners.extend(names.filter(|name| self.master_for(name) != target).take(1));
        }
        owners
    }

    /// Returns the place of the server that stores alice's records.
    pub fn target(&self) -> usize {
        self.master_for("alice")
    }

    /// Returns the place of the server that stores the records of an owner, as the servers report it.
    pub fn master_for(&self, owner: &str) -> usize {
        let mut place = None;
        eventually(|| {
            let port = match self.topology {
                Topology::One => Some(self.servers[0].port),
                Topology::Sentinels { .. } => {
                    self.sentinels.iter().rev().find_map(|sentinel| master_of(&sentinel.url()))
                }
                Topology::Cluster => port_of_master(&self.urls(), owner),
            };
            place = self.servers.iter().position(|server| Some(server.port) == port);
            place.is_some()
        });
        place.unwrap()
    }

    /// Waits until another server has taken over from this one.
    pub fn another_takes_over(&self, server: usize) {
        match self.topology {
            Topology::Cluster => {
                let urls: Vec<String> = self
                    .servers
                    .iter()
                    .enumerate()
                    .filter(|(at, _)| *at != server)
                    .map(|(_, other)| other.url())
                    .collect();
                let (urls, gone) = (urls.join(","), self.servers[server].url());
                let kept = |urls: &str| masters(urls).into_values().any(|url| url == gone);
                eventually(|| !kept(&urls));
            }
            _ => {
                // The first sentinel may hang, so the test asks the last one.
                let sentinel = self.sentinels[2].url();
                eventually(|| {
                    let port = master_of(&sentinel);
                    port.is_some() && port != Some(self.servers[server].port)
                });
            }
        }
    }

    /// Fails the node of the cluster that stores an owner's records over to its replica, without a loss.
    pub fn fail_over(&self, owner: &str) {
        let replica = self.replica_of(self.master_for(owner));
        let mut asked: Option<Instant> = None;
        eventually(|| {
            if self.master_for(owner) == replica && self.is_master(replica) {
                return true;
            }
            // The replica may not have caught up with its master, or may not know that it is a replica.
            if !self.is_master(replica) && asked.is_none_or(|asked| asked.elapsed() > Duration::from_secs(5))
            {
                let failover = redis::cmd("CLUSTER").arg("FAILOVER").query::<()>(&mut self.admin(replica));
                asked = failover.is_ok().then(Instant::now);
            }
            false
        });
    }

    pub fn is_master(&self, node: usize) -> bool {
        let client = redis::Client::open(admin_url(&self.servers[node])).unwrap();
        let Ok(mut connection) = client.get_connection() else { return false };
        let info: Result<String, _> = redis::cmd("INFO").arg("replication").query(&mut connection);
        info.is_ok_and(|info| info.contains("role:master"))
    }

    /// Returns the place of the replica of a node of the cluster.
    pub fn replica_of(&self, node: usize) -> usize {
        let id: String = command(&mut self.admin(node), ["CLUSTER", "MYID"]);
        let mut place = None;
        eventually(|| {
            let nodes: String = command(&mut any_node(&self.servers[node].url()), ["CLUSTER", "NODES"]);
            let line = nodes
                .lines()
                .find(|line| line.contains("slave") && line.contains(&id) && !line.contains("fail"));
            place = line.and_then(|line| {
                let port: u16 = line.split(' ').nth(1)?.split(['@', ':']).nth(1)?.parse().ok()?;
                self.servers.iter().position(|server| server.port == port)
            });
            place.is_some()
        });
        place.unwrap()
    }

    /// Returns the place of the node that stores the records of an owner, as the nodes other than `node` report it.
    pub fn master_reported_by_others(&self, owner: &str, node: usize) -> usize {
        let others = self.servers.iter().enumerate().filter(|(place, _)| *place != node);
        let others: Vec<String> = others.map(|(_, server)| server.url()).collect();
        let mut place = None;
        eventually(|| {
            let port = port_of_master(&others.join(","), owner);
            place = self.servers.iter().position(|server| Some(server.port) == port);
            place.is_some()
        });
        place.unwrap()
    }

    /// Shuts sentinels and replicas out of a server, so that another takes over. Instances and the admin still reach it.
    pub fn shut_out_servers(&self, server: usize) {
        let mut admin = self.admin(server);
        let _: () = command(&mut admin, ["ACL", "SETUSER", "default", "off"]);
        for kind in ["normal", "replica", "pubsub"] {
            let _: i64 = command(&mut admin, ["CLIENT", "KILL", "TYPE", kind, "USER", "default"]);
        }
    }

    /// Returns the URLs of all servers, separated by commas.
    pub fn urls(&self) -> String {
        self.servers.iter().map(Server::url).collect::<Vec<_>>().join(",")
    }

    pub fn admin(&self, server: usize) -> Connection {
        connection(&admin_url(&self.servers[server]))
    }

    /// Runs one command at each server that answers.
    pub fn everywhere(&self, words: &[&str]) {
        for server in &self.servers {
            let client = redis::Client::open(admin_url(server)).unwrap();
            if let Ok(mut connection) = client.get_connection_with_timeout(TIMEOUT) {
                connection.set_read_timeout(Some(TIMEOUT)).unwrap();
                // The fault may be that a server does not answer.
                let _ = redis::cmd(words[0]).arg(&words[1..]).query::<redis::Value>(&mut connection);
            }
        }
    }
}

/// Returns the port of the node that stores the records of an owner, as one of these nodes reports it. For a moment, no
/// node may serve the slot.
fn port_of_master(nodes: &str, owner: &str) -> Option<u16> {
    let slot: u16 = command(&mut any_node(nodes), ["CLUSTER", "KEYSLOT", &format!("{{{owner}}}")]);
    let masters = masters(nodes);
    let (_, url) = masters.range(..=slot).next_back()?;
    url.rsplit(':').next()?.parse().ok()
}

/// Returns the URL with which instances connect, with their first password.
pub fn app_url(port: u16) -> String {
    format!("redis://app:first@127.0.0.1:{port}")
}

/// Returns the URL of a user that no fault affects.
pub fn admin_url(server: &Server) -> String {
    format!("redis://admin:admin@127.0.0.1:{}", server.port)
}

fn replica_of(master: &Server, settings: &[&str]) -> Server {
    let port = master.port.to_string();
    Server::start(&[settings, &["--replicaof", "127.0.0.1", &port]].concat())
}

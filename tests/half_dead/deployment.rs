//! Servers that an instance can be connected to: one, one behind sentinels, a cluster.

use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mcp_task_store::{Credentials, RedisBackend};
use redis::Connection;

use super::comparison::Connect;
use super::relay::Relay;
use super::support::bus::Buses;
use super::support::cluster::{Cluster, NODE, eventually, info, start_node};
use super::support::redis::{Server, connection, free_port};
use super::support::sentinel::{MASTER, master_of};

/// The limits of each instance.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Instances are this user, and faults are done by another, who is never shut out.
const APP: [&str; 7] = ["--user", "app", "on", ">first", "~*", "&*", "+@all"];
const ADMIN: [&str; 7] = ["--user", "admin", "on", ">admin", "~*", "&*", "+@all"];

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Topology {
    One,
    /// A master with so many replicas, behind three sentinels.
    Sentinels {
        replicas: usize,
    },
    /// Three masters with a replica each.
    Cluster,
}

/// How instances connect, beside where to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Writes {
    AreApplied,
    WaitForAReplica,
}

pub struct Deployment {
    pub topology: Topology,
    /// The master first, where sentinels watch one. In a cluster all nodes.
    pub servers: Vec<Server>,
    pub sentinels: Vec<Server>,
    /// In front of the one server.
    pub relay: Option<Relay>,
    /// Between the nodes of the cluster, if they are to be cut off from each other.
    pub buses: Option<Buses>,
    /// In the place of a server that is gone: it accepts and says nothing.
    pub silence: Option<TcpListener>,
    /// What instances present when they connect.
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
                // To which an address moves.
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
                    let told = info(&mut master, "replication");
                    told.contains(&all_online) && told.matches("state=online").count() == replicas
                });
                sentinels = (0..3).map(|_| start_sentinel(servers[0].port)).collect();
                let known = format!("slaves={replicas},sentinels=3");
                eventually(|| {
                    sentinels.iter().all(|sentinel| {
                        let told = info(&mut sentinel.connection(), "sentinel");
                        told.contains("status=ok") && told.contains(&known)
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

    /// Connects one more instance each time.
    pub fn connect(&self, writes: Writes) -> Connect {
        let (topology, password) = (self.topology, Arc::clone(&self.password));
        let urls: Vec<String> = match topology {
            Topology::One => self.relay.iter().map(Relay::url).collect(),
            Topology::Sentinels { .. } => self.sentinels.iter().map(Server::url).collect(),
            Topology::Cluster => self.servers.iter().map(Server::url).collect(),
        };
        Arc::new(move || {
            let (urls, password) = (urls.clone(), Arc::clone(&password));
            let provide = move || {
                let password = password.lock().unwrap().clone();
                async move { Ok::<_, std::convert::Infallible>(Credentials::user("app", password)) }
            };
            let builder = RedisBackend::builder()
                .connect_timeout(TIMEOUT)
                .response_timeout(TIMEOUT)
                .wait_for_replicas(u32::from(writes == Writes::WaitForAReplica), TIMEOUT / 3)
                .credentials(provide);
            Box::pin(async move {
                match topology {
                    Topology::One => builder.connect(&urls[0]).await,
                    Topology::Sentinels { .. } => {
                        builder.connect_sentinel(urls, &format!("redis://{MASTER}")).await
                    }
                    Topology::Cluster => builder.connect_cluster(urls).await,
                }
            })
        })
    }

    /// Owners whose instances are compared: the first is the one that faults are about, and in a cluster the second is on
    /// another master.
    pub fn owners(&self) -> Vec<String> {
        let mut owners = vec!["alice".to_owned()];
        if self.topology == Topology::Cluster {
            let target = self.target();
            let names = (0..100).map(|number| format!("owner-{number}"));
            owners.extend(names.filter(|name| self.keeper(name) != target).take(1));
        }
        owners
    }

    /// The place of the server that keeps alice's records, by the word of the servers.
    pub fn target(&self) -> usize {
        self.keeper("alice")
    }

    fn keeper(&self, owner: &str) -> usize {
        match self.topology {
            Topology::One => 0,
            Topology::Sentinels { .. } => {
                let port = self.sentinels.iter().rev().find_map(|sentinel| master_of(&sentinel.url()));
                self.servers.iter().position(|server| Some(server.port) == port).unwrap()
            }
            Topology::Cluster => {
                let url = super::support::redis::keeper(&self.urls(), &format!("{{{owner}}}"));
                self.servers.iter().position(|server| server.url() == url).unwrap()
            }
        }
    }

    /// All servers with commas in between.
    pub fn urls(&self) -> String {
        self.servers.iter().map(Server::url).collect::<Vec<_>>().join(",")
    }

    pub fn admin(&self, server: usize) -> Connection {
        connection(&admin_url(&self.servers[server]))
    }

    /// Runs one command at each server that is up.
    pub fn everywhere(&self, words: &[&str]) {
        for server in &self.servers {
            let client = redis::Client::open(admin_url(server)).unwrap();
            if let Ok(mut connection) = client.get_connection_with_timeout(TIMEOUT) {
                connection.set_read_timeout(Some(TIMEOUT)).unwrap();
                // One that does not answer is what the fault is about.
                let _ = redis::cmd(words[0]).arg(&words[1..]).query::<redis::Value>(&mut connection);
            }
        }
    }
}

pub fn admin_url(server: &Server) -> String {
    format!("redis://admin:admin@127.0.0.1:{}", server.port)
}

fn replica_of(master: &Server, settings: &[&str]) -> Server {
    let port = master.port.to_string();
    Server::start(&[settings, &["--replicaof", "127.0.0.1", &port]].concat())
}

fn start_sentinel(master: u16) -> Server {
    let configuration = format!(
        "sentinel monitor {MASTER} 127.0.0.1 {master} 2\n\
         sentinel down-after-milliseconds {MASTER} 1000\n\
         sentinel failover-timeout {MASTER} 3000\n"
    );
    (0..5)
        .find_map(|_| Server::start_sentinel_at(free_port(), &configuration))
        .unwrap_or_else(|| panic!("a sentinel does not start"))
}

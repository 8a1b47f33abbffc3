//! Servers that stand by for each other: a cluster, or a master with replicas behind sentinels. What befalls them loses no
//! acknowledged write, or says that it may have.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::sleep;
use std::time::Duration;

use super::log::{Event, Log};
use super::operation::OWNERS;
use crate::support::Random;
use crate::support::cluster::{eventually, info};
use crate::support::deployment::{Deployment, Topology, Way, Writes};
use crate::support::redis::command;
use crate::support::sentinel::master_of;

/// For how long writes are held back, unless they are let go before: for longer than any fault lasts.
const HELD_MS: &str = "120000";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum OfSeveral {
    /// A replica takes over, in good order.
    FailOver,
    /// A slot moves to another master, key by key.
    Migrate,
    /// A node is silent for longer than it takes to replace it.
    Silence,
    /// A master still answers clients, and its messages do not reach the other nodes.
    CutBus,
    /// A master still answers clients, and sentinels and replicas are shut out.
    Depose,
    /// A master is killed, and comes back without its data.
    Kill,
    /// A sentinel is silent.
    SilenceSentinel,
}

use OfSeveral::{CutBus, Depose, FailOver, Kill, Migrate, Silence, SilenceSentinel};

const OF_CLUSTERS: [OfSeveral; 6] = [CutBus, Migrate, FailOver, Silence, Migrate, FailOver];
const OF_SENTINELS: [OfSeveral; 5] = [Depose, Kill, SilenceSentinel, Silence, Depose];

pub struct Several {
    deployment: Mutex<Deployment>,
    topology: Topology,
    log: Arc<Log>,
}

/// How often each fault befell them, and how many of them may have lost what was acknowledged.
pub type Befallen = BTreeMap<OfSeveral, u32>;

impl Several {
    pub fn start(topology: Topology, log: Arc<Log>) -> Self {
        let deployment = Deployment::start(topology, &["--min-replicas-max-lag", "2"], true);
        if matches!(topology, Topology::Sentinels { .. }) {
            deployment.everywhere(&["CONFIG", "SET", "min-replicas-to-write", "1"]);
        }
        Self { deployment: Mutex::new(deployment), topology, log }
    }

    pub fn way(&self) -> Way {
        // In a cluster no write can wait.
        let writes = match self.topology {
            Topology::Cluster => Writes::AreApplied,
            _ => Writes::WaitForAReplica,
        };
        self.deployment.lock().unwrap().way(writes)
    }

    pub fn kinds(&self) -> &'static [OfSeveral] {
        if self.topology == Topology::Cluster { &OF_CLUSTERS } else { &OF_SENTINELS }
    }

    /// Blocks until everything is as before.
    pub fn befall(&self, fault: OfSeveral, random: &mut Random) {
        let mut of = self.deployment.lock().unwrap_or_else(PoisonError::into_inner);
        let some_time = Duration::from_millis(random.below(2_000));
        let owner = format!("owner {}", random.below(OWNERS));
        if fault == SilenceSentinel {
            of.sentinels[0].signal("STOP");
            sleep(Duration::from_secs(1) + some_time);
            of.sentinels[0].signal("CONT");
            return;
        }
        let server = of.keeper(&owner);
        self.log.append(Event::ServerPaused);
        match fault {
            FailOver => {
                of.fail_over(&owner);
                self.log.append(Event::ServerUp);
            }
            Migrate => {
                let masters = (0..of.servers.len()).filter(|&node| node != server && of.is_master(node));
                let others: Vec<usize> = masters.collect();
                let to = others[random.below(others.len() as u64) as usize];
                migrate(&of, &owner, server, to);
                self.log.append(Event::ServerUp);
                return;
            }
            Silence => {
                // A master that resumes applies and acknowledges the writes it was sent meanwhile, before it learns that it
                // was replaced. Those writes are lost. So the test holds writes back until it knows. Behind sentinels,
                // no replica confirms such writes.
                let holds = self.topology == Topology::Cluster;
                if holds {
                    hold_writes(&of, server);
                }
                of.servers[server].signal("STOP");
                of.another_takes_over(server);
                self.log.append(Event::ServerUp);
                sleep(Duration::from_secs(1) + some_time);
                of.servers[server].signal("CONT");
                if holds {
                    is_replica(&of, server);
                    let _: () = command(&mut of.admin(server), ["CLIENT", "UNPAUSE"]);
                }
            }
            CutBus => {
                let id: String = command(&mut of.admin(server), ["CLUSTER", "MYID"]);
                let buses = of.buses.as_ref().expect("the nodes are behind relays");
                buses.cut(&id);
                of.another_takes_over(server);
                self.log.append(Event::ServerUp);
                // What it wrote after its replica had left it is lost.
                let new = of.keeper_without(&owner, server);
                let [old, new] = [(server, "master_repl_offset:"), (new, "second_repl_offset:")]
                    .map(|(server, field)| number(&info(&mut of.admin(server), "replication"), field));
                if old >= new {
                    self.log.append(Event::WritesLost);
                }
                sleep(some_time);
                buses.join();
            }
            Depose => {
                hold_writes(&of, server);
                let mut admin = of.admin(server);
                let _: () = command(&mut admin, ["ACL", "SETUSER", "default", "off"]);
                for kind in ["normal", "replica", "pubsub"] {
                    let _: i64 = command(&mut admin, ["CLIENT", "KILL", "TYPE", kind, "USER", "default"]);
                }
                // It has no replica any more, so it refuses writes from now on.
                let _: () = command(&mut admin, ["CLIENT", "UNPAUSE"]);
                of.another_takes_over(server);
                self.log.append(Event::ServerUp);
                sleep(Duration::from_secs(1) + some_time);
                let _: () = command(&mut admin, ["ACL", "SETUSER", "default", "on"]);
            }
            Kill => {
                of.servers[server].kill();
                of.another_takes_over(server);
                self.log.append(Event::ServerUp);
                sleep(some_time);
                of.servers[server].start_again();
            }
            SilenceSentinel => {}
        }
        is_replica(&of, server);
        if self.topology != Topology::Cluster {
            agree(&of);
        }
    }
}

/// Holds writes back until all replicas have what was written, so that none is lost with this server.
fn hold_writes(of: &Deployment, server: usize) {
    let mut admin = of.admin(server);
    let _: () = command(&mut admin, ["CLIENT", "PAUSE", HELD_MS, "WRITE"]);
    eventually(|| {
        let told = info(&mut admin, "replication");
        let offset = number(&told, "master_repl_offset:");
        let mut replicas = told.lines().filter(|line| line.contains("state=online"));
        replicas.all(|replica| number(replica, "offset=") == offset)
    });
}

/// The number behind a name.
fn number(told: &str, name: &str) -> u64 {
    let behind = told.split(name).nth(1).unwrap_or_else(|| panic!("no {name} in {told}"));
    behind.split(|end: char| !end.is_ascii_digit()).next().unwrap().parse().unwrap()
}

/// Waits until a server follows another one and has its data.
fn is_replica(of: &Deployment, server: usize) {
    eventually(|| {
        // Its connections are cut when it becomes a replica.
        let client = redis::Client::open(crate::support::deployment::admin_url(&of.servers[server])).unwrap();
        let Ok(mut connection) = client.get_connection() else { return false };
        let told: Result<String, _> = redis::cmd("INFO").arg("replication").query(&mut connection);
        told.is_ok_and(|told| told.contains("role:slave") && told.contains("master_link_status:up"))
    });
}

/// Waits until all sentinels name the same master, and it has all its replicas.
fn agree(of: &Deployment) {
    eventually(|| {
        let mut masters = of.sentinels.iter().map(|sentinel| master_of(&sentinel.url()));
        let first = masters.next().flatten();
        if first.is_none() || !masters.all(|other| other == first) {
            return false;
        }
        let Some(server) = of.servers.iter().position(|server| Some(server.port) == first) else {
            return false;
        };
        let told = info(&mut of.admin(server), "replication");
        told.contains("role:master") && told.matches("state=online").count() == of.servers.len() - 1
    });
}

/// Moves the slot of an owner, with its keys.
fn migrate(of: &Deployment, owner: &str, from: usize, to: usize) {
    let (mut at_from, mut at_to) = (of.admin(from), of.admin(to));
    let slot: u16 = command(&mut at_from, ["CLUSTER", "KEYSLOT", &format!("{{{owner}}}")]);
    let (slot, port) = (slot.to_string(), of.servers[to].port.to_string());
    let from_id: String = command(&mut at_from, ["CLUSTER", "MYID"]);
    let to_id: String = command(&mut at_to, ["CLUSTER", "MYID"]);
    let _: () = command(&mut at_to, ["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from_id]);
    let _: () = command(&mut at_from, ["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to_id]);
    loop {
        let keys: Vec<String> = command(&mut at_from, ["CLUSTER", "GETKEYSINSLOT", &slot, "10"]);
        if keys.is_empty() {
            break;
        }
        let move_them = ["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "KEYS"];
        let _: String = command(&mut at_from, move_them.into_iter().chain(keys.iter().map(String::as_str)));
    }
    let _: () = command(&mut at_to, ["CLUSTER", "SETSLOT", &slot, "NODE", &to_id]);
    let _: () = command(&mut at_from, ["CLUSTER", "SETSLOT", &slot, "NODE", &to_id]);
    eventually(|| of.keeper(owner) == to);
}

//! Replicated servers, and their faults: a cluster, or a master with replicas behind sentinels. A fault loses no acknowledged
//! write, or logs that it may have lost some.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::sleep;
use std::time::Duration;

use super::log::{Event, Log};
use super::operation::OWNERS;
use crate::support::Random;
use crate::support::cluster::{eventually, info};
use crate::support::deployment::{Deployment, Endpoints, Topology, Writes};
use crate::support::redis::command;
use crate::support::sentinel::master_of;

/// How long a server holds writes back unless it is replication to continue: longer than any fault lasts.
const HELD_MS: &str = "120000";

/// Makes a master without a replica refuse writes. A restarted server has to receive this again.
const NEEDS_A_REPLICA: [&str; 4] = ["CONFIG", "SET", "min-replicas-to-write", "1"];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ReplicatedFault {
    /// A replica takes over, in an orderly failover.
    FailOver,
    /// A slot moves to another master, key by key.
    Migrate,
    /// A node is silent for longer than it takes to replace it.
    Silence,
    /// A master still answers clients, but its messages do not reach the other nodes.
    CutBus,
    /// A master still answers clients, but sentinels and replicas are shut out.
    Depose,
    /// A master is killed, and restarts without its data.
    Kill,
    /// A sentinel is silent.
    SilenceSentinel,
}

use ReplicatedFault::{CutBus, Depose, FailOver, Kill, Migrate, Silence, SilenceSentinel};

const CLUSTER_FAULTS: [ReplicatedFault; 6] = [CutBus, Migrate, FailOver, Silence, Migrate, FailOver];
const SENTINEL_FAULTS: [ReplicatedFault; 5] = [Depose, Kill, SilenceSentinel, Silence, Depose];

pub struct Replicated {
    deployment: Mutex<Deployment>,
    topology: Topology,
    log: Arc<Log>,
}

/// How many times each fault was injected.
pub type ReplicatedCounts = BTreeMap<ReplicatedFault, u32>;

impl Replicated {
    pub fn start(topology: Topology, log: Arc<Log>) -> Self {
        let deployment = Deployment::start(topology, &["--min-replicas-max-lag", "2"], true);
        if topology != Topology::Cluster {
            deployment.everywhere(&NEEDS_A_REPLICA);
        }
        Self { deployment: Mutex::new(deployment), topology, log }
    }

    pub fn endpoints(&self) -> Endpoints {
        // In a cluster, writes cannot wait for a replica.
        let writes = match self.topology {
            Topology::Cluster => Writes::AreApplied,
            _ => Writes::WaitForAReplica,
        };
        self.deployment.lock().unwrap().endpoints(writes)
    }

    pub fn kinds(&self) -> &'static [ReplicatedFault] {
        if self.topology == Topology::Cluster { &CLUSTER_FAULTS } else { &SENTINEL_FAULTS }
    }

    /// Injects one fault. Blocks until every server is as before.
    pub fn inject(&self, fault: ReplicatedFault, random: &mut Random) {
        let mut deployment = self.deployment.lock().unwrap_or_else(PoisonError::into_inner);
        let lasts = Duration::from_millis(random.below(2_000));
        let owner = format!("owner {}", random.below(OWNERS));
        if fault == SilenceSentinel {
            deployment.sentinels[0].signal("STOP");
            sleep(Duration::from_secs(1) + lasts);
            deployment.sentinels[0].signal("CONT");
            return;
        }
        let server = deployment.master_for(&owner);
        self.log.append(Event::ServerPaused);
        match fault {
            FailOver => {
                deployment.fail_over(&owner);
                self.log.append(Event::ServerUp);
            }
            // The servers keep their roles.
            Migrate => return self.migrate(&deployment, &owner, server, random),
            Silence => self.silence(&deployment, server, lasts),
            CutBus => self.cut_bus(&deployment, &owner, server, lasts),
            Depose => self.depose(&deployment, server, lasts),
            Kill => self.kill(&mut deployment, server, lasts),
            SilenceSentinel => unreachable!("handled above: it concerns no server"),
        }
        wait_until_replica(&deployment, server);
        if self.topology != Topology::Cluster {
            wait_until_sentinels_agree(&deployment);
        }
    }

    /// Waits until another server has taken over from this one.
    fn another_takes_over(&self, deployment: &Deployment, server: usize) {
        deployment.another_takes_over(server);
        self.log.append(Event::ServerUp);
    }

    fn migrate(&self, deployment: &Deployment, owner: &str, from: usize, random: &mut Random) {
        let others: Vec<usize> = (0..deployment.servers.len())
            .filter(|&node| node != from && deployment.is_master(node))
            .collect();
        let to = others[random.below(others.len() as u64) as usize];
        migrate(deployment, owner, from, to);
        self.log.append(Event::ServerUp);
    }

    /// Stops a master until a replica has taken over. A master that resumes applies and acknowledges the writes that it
    /// received while it was stopped, before it learns that another master replaced it. Those writes are lost. So the
    /// test holds writes back until the master knows. Behind sentinels, no replica confirms such writes.
    fn silence(&self, deployment: &Deployment, server: usize, lasts: Duration) {
        let holds = self.topology == Topology::Cluster;
        if holds {
            hold_writes(deployment, server);
        }
        deployment.servers[server].signal("STOP");
        self.another_takes_over(deployment, server);
        sleep(Duration::from_secs(1) + lasts);
        deployment.servers[server].signal("CONT");
        if holds {
            wait_until_replica(deployment, server);
            let _: () = command(&mut deployment.admin(server), ["CLIENT", "UNPAUSE"]);
        }
    }

    fn cut_bus(&self, deployment: &Deployment, owner: &str, server: usize, lasts: Duration) {
        let id: String = command(&mut deployment.admin(server), ["CLUSTER", "MYID"]);
        let buses = deployment.buses.as_ref().expect("the nodes are behind relays");
        buses.cut(&id);
        self.another_takes_over(deployment, server);
        // The writes of the master after the replica had left it are lost.
        let new = deployment.master_reported_by_others(owner, server);
        let [old, new] = [(server, "master_repl_offset:"), (new, "second_repl_offset:")]
            .map(|(server, field)| number(&info(&mut deployment.admin(server), "replication"), field));
        if old >= new {
            self.log.append(Event::WritesLost);
        }
        sleep(lasts);
        buses.join();
    }

    fn depose(&self, deployment: &Deployment, server: usize, lasts: Duration) {
        hold_writes(deployment, server);
        deployment.shut_out_servers(server);
        // The master has no replica any more, so it refuses writes from now on.
        let mut admin = deployment.admin(server);
        let _: () = command(&mut admin, ["CLIENT", "UNPAUSE"]);
        self.another_takes_over(deployment, server);
        sleep(Duration::from_secs(1) + lasts);
        let _: () = command(&mut admin, ["ACL", "SETUSER", "default", "on"]);
    }

    fn kill(&self, deployment: &mut Deployment, server: usize, lasts: Duration) {
        deployment.servers[server].kill();
        self.another_takes_over(deployment, server);
        sleep(lasts);
        deployment.servers[server].start_again();
        if self.topology != Topology::Cluster {
            let _: () = command(&mut deployment.admin(server), NEEDS_A_REPLICA);
        }
    }
}

/// Makes a server hold writes back, and waits until all replicas have the earlier writes, so that no write is lost with
/// this server.
fn hold_writes(deployment: &Deployment, server: usize) {
    let mut admin = deployment.admin(server);
    let _: () = command(&mut admin, ["CLIENT", "PAUSE", HELD_MS, "WRITE"]);
    eventually(|| {
        let replication = info(&mut admin, "replication");
        let offset = number(&replication, "master_repl_offset:");
        let mut replicas = replication.lines().filter(|line| line.contains("state=online"));
        replicas.all(|replica| number(replica, "offset=") == offset)
    });
}

/// Returns the number after a name.
fn number(text: &str, name: &str) -> u64 {
    let after = text.split(name).nth(1).unwrap_or_else(|| panic!("no {name} in {text}"));
    after.split(|end: char| !end.is_ascii_digit()).next().unwrap().parse().unwrap()
}

/// Waits until a server is a replica and has the data of its master.
fn wait_until_replica(deployment: &Deployment, server: usize) {
    eventually(|| {
        // Its connections are cut when it becomes a replica.
        let client =
            redis::Client::open(crate::support::deployment::admin_url(&deployment.servers[server])).unwrap();
        let Ok(mut connection) = client.get_connection() else { return false };
        let replication: Result<String, _> = redis::cmd("INFO").arg("replication").query(&mut connection);
        replication.is_ok_and(|replication| {
            replication.contains("role:slave") && replication.contains("master_link_status:up")
        })
    });
}

/// Waits until all sentinels name the same master, and it has all its replicas.
fn wait_until_sentinels_agree(deployment: &Deployment) {
    eventually(|| {
        let mut masters = deployment.sentinels.iter().map(|sentinel| master_of(&sentinel.url()));
        let first = masters.next().flatten();
        if first.is_none() || !masters.all(|other| other == first) {
            return false;
        }
        let Some(server) = deployment.servers.iter().position(|server| Some(server.port) == first) else {
            return false;
        };
        let replication = info(&mut deployment.admin(server), "replication");
        replication.contains("role:master")
            && replication.matches("state=online").count() == deployment.servers.len() - 1
    });
}

/// Moves the slot of an owner, with its keys.
fn migrate(deployment: &Deployment, owner: &str, from: usize, to: usize) {
    let (mut at_from, mut at_to) = (deployment.admin(from), deployment.admin(to));
    let slot: u16 = command(&mut at_from, ["CLUSTER", "KEYSLOT", &format!("{{{owner}}}")]);
    let (slot, port) = (slot.to_string(), deployment.servers[to].port.to_string());
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
    eventually(|| deployment.master_for(owner) == to);
}

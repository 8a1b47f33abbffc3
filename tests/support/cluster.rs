//! A Redis Cluster of the test's own.

use std::net::TcpListener;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use redis::Connection;

use super::redis::{Server, any_node, command, master_for};

const SLOTS: u16 = 16384;
/// The settings of a node.
pub const NODE: [&str; 6] =
    ["--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf", "--cluster-node-timeout", "1000"];

/// Nodes on loopback: masters that share the slots evenly, and replicas that are assigned to the masters in turn. A
/// replica takes over from a master that is silent for a second.
pub struct Cluster {
    pub nodes: Vec<Server>,
}

impl Cluster {
    pub fn start(masters: usize, replicas: usize) -> Self {
        Self::start_with(masters, replicas, &[])
    }

    /// Starts a cluster with further settings of each node.
    pub fn start_with(masters: usize, replicas: usize, settings: &[&str]) -> Self {
        let settings = [&NODE[..], settings].concat();
        Self::join((0..masters + replicas).map(|_| start_node(&settings)).collect(), masters)
    }

    /// Joins nodes to a cluster. The first ones are its masters.
    pub fn join(nodes: Vec<Server>, masters: usize) -> Self {
        let replicas = nodes.len() - masters;
        let cluster = Self { nodes };
        for (index, node) in cluster.nodes[..masters].iter().enumerate() {
            let share = |index: usize| SLOTS as usize * index / masters;
            let slots: Vec<String> = (share(index)..share(index + 1)).map(|slot| slot.to_string()).collect();
            let mut connection = node.connection();
            let add = ["CLUSTER", "ADDSLOTS"].into_iter().chain(slots.iter().map(String::as_str));
            let _: () = command(&mut connection, add);
            let epoch = (index + 1).to_string();
            let _: () = command(&mut connection, ["CLUSTER", "SET-CONFIG-EPOCH", &epoch]);
        }
        for index in 1..cluster.nodes.len() {
            cluster.meet(index);
        }
        for index in masters..masters + replicas {
            let master: String =
                command(&mut cluster.nodes[(index - masters) % masters].connection(), ["CLUSTER", "MYID"]);
            let mut replica = cluster.nodes[index].connection();
            // The replica must know its master first.
            eventually(|| {
                redis::cmd("CLUSTER").arg(&["REPLICATE", &master]).query::<()>(&mut replica).is_ok()
            });
            eventually(|| info(&mut replica, "replication").contains("master_link_status:up"));
        }
        cluster.settled();
        cluster
    }

    /// Joins a node to the first one.
    fn meet(&self, index: usize) {
        let port = self.nodes[0].port.to_string();
        let _: () = command(&mut self.nodes[index].connection(), ["CLUSTER", "MEET", "127.0.0.1", &port]);
    }

    /// Adds a master without slots. Returns its place among the nodes.
    pub fn add_master(&mut self) -> usize {
        self.nodes.push(start_node(&NODE));
        self.meet(self.nodes.len() - 1);
        self.settled();
        self.nodes.len() - 1
    }

    /// Waits until all nodes agree on the nodes and their slots.
    pub fn settled(&self) {
        let count = self.nodes.len();
        eventually(|| {
            let mut views = self.nodes.iter().map(|node| {
                let mut connection = node.connection();
                let info: String = command(&mut connection, ["CLUSTER", "INFO"]);
                let is_ok = info.contains("cluster_state:ok") && info.contains("cluster_slots_ok:16384");
                let nodes: String = command(&mut connection, ["CLUSTER", "NODES"]);
                let mut owners: Vec<String> = nodes
                    .lines()
                    .filter(|line| !line.contains("fail"))
                    .map(|line| {
                        let words: Vec<&str> = line.split(' ').collect();
                        let role = words[2].replace("myself,", "");
                        format!("{} {role} {} {}", words[0], words[3], words[8..].join(" "))
                    })
                    .collect();
                owners.sort();
                (is_ok && owners.len() == count).then_some(owners)
            });
            let first = views.next().unwrap();
            first.is_some() && views.all(|view| view == first)
        });
    }

    /// Returns all URLs, separated by commas.
    pub fn urls(&self) -> String {
        self.nodes.iter().map(Server::url).collect::<Vec<_>>().join(",")
    }

    /// Returns the URLs of all nodes but one.
    pub fn urls_without(&self, node: usize) -> String {
        let others = self.nodes.iter().enumerate().filter(|(index, _)| *index != node);
        others.map(|(_, node)| node.url()).collect::<Vec<_>>().join(",")
    }

    /// Returns the place of the master that stores a key.
    pub fn master_for(&self, key: &str) -> usize {
        let url = master_for(&self.urls(), key);
        self.nodes.iter().position(|node| node.url() == url).unwrap()
    }

    pub fn slot(&self, key: &str) -> String {
        command::<u16>(&mut any_node(&self.urls()), ["CLUSTER", "KEYSLOT", key]).to_string()
    }

    pub fn id(&self, node: usize) -> String {
        command(&mut self.nodes[node].connection(), ["CLUSTER", "MYID"])
    }

    /// Runs `CLUSTER SETSLOT` at one node.
    pub fn set_slot(&self, node: usize, slot: &str, state: &str, other: usize) {
        let id = self.id(other);
        let _: () = command(&mut self.nodes[node].connection(), ["CLUSTER", "SETSLOT", slot, state, &id]);
    }

    /// Moves one key to another node, as in the middle of a migration of its slot.
    pub fn migrate(&self, from: usize, to: usize, key: &str) {
        let port = self.nodes[to].port.to_string();
        let _: String =
            command(&mut self.nodes[from].connection(), ["MIGRATE", "127.0.0.1", &port, key, "0", "5000"]);
    }
}

/// Starts a thread that waits until a condition is met. The thread returns the time at which it was met.
pub fn moment(mut condition: impl FnMut() -> bool + Send + 'static) -> JoinHandle<Instant> {
    std::thread::spawn(move || {
        eventually(&mut condition);
        Instant::now()
    })
}

/// Waits for a condition, at most a minute.
pub fn eventually(mut condition: impl FnMut() -> bool) {
    for _ in 0..6000 {
        if condition() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("the condition is not met within a minute");
}

pub fn info(connection: &mut Connection, section: &str) -> String {
    command(connection, ["INFO", section])
}

/// Starts a server on a port whose bus port is also free.
pub fn start_node(settings: &[&str]) -> Server {
    (0..20)
        .find_map(|_| Server::start_at(free_bus_port()?, settings, &[]))
        .unwrap_or_else(|| panic!("a node of the cluster does not start"))
}

/// Returns a free port below the ephemeral ports of the system. Its bus port, 10,000 above, is also free.
fn free_bus_port() -> Option<u16> {
    let port = 20_000 + uuid::Uuid::new_v4().as_fields().1 % 2_700;
    let is_free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
    (is_free(port) && is_free(port + 10_000)).then_some(port)
}

//! A master, a replica and three sentinels of the test's own.

use super::cluster::{eventually, info};
use super::redis::{Server, command, connection, free_port};

/// The name that the sentinels have for the master.
pub const MASTER: &str = "mymaster";

/// A master that is silent for half a second is failed over to the replica.
pub struct Watched {
    pub master: Server,
    pub replica: Server,
    pub sentinels: Vec<Server>,
}

impl Watched {
    pub fn start(replica_environment: &[(&str, &str)]) -> Self {
        let master = Server::start(&[]);
        let port = master.port.to_string();
        let replica = Server::start_in(&["--replicaof", "127.0.0.1", &port], replica_environment);
        master.is_replicated();
        let sentinels: Vec<Server> = (0..3).map(|_| start_sentinel(master.port)).collect();
        let watched = Self { master, replica, sentinels };
        // Each has to know the others and the replica before it can fail over.
        eventually(|| {
            watched.sentinels.iter().all(|sentinel| {
                let told = info(&mut sentinel.connection(), "sentinel");
                told.contains("status=ok") && told.contains("slaves=1") && told.contains("sentinels=3")
            })
        });
        watched
    }

    pub fn sentinel_urls(&self) -> Vec<String> {
        self.sentinels.iter().map(Server::url).collect()
    }

    /// Waits until the sentinels have made the replica the master.
    pub fn failed_over(&self) {
        let sentinel = self.sentinels[0].url();
        eventually(|| {
            master_of(&sentinel) == Some(self.replica.port)
                && info(&mut self.replica.connection(), "replication").contains("role:master")
        });
    }
}

/// The port of the master by the word of this sentinel.
pub fn master_of(sentinel: &str) -> Option<u16> {
    let ask = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER];
    let told: Option<(String, u16)> = command(&mut connection(sentinel), ask);
    told.map(|(_, port)| port)
}

fn start_sentinel(master: u16) -> Server {
    let configuration = format!(
        "sentinel monitor {MASTER} 127.0.0.1 {master} 2\n\
         sentinel down-after-milliseconds {MASTER} 500\n\
         sentinel failover-timeout {MASTER} 3000\n"
    );
    (0..5)
        .find_map(|_| Server::start_sentinel_at(free_port(), &configuration))
        .unwrap_or_else(|| panic!("a sentinel does not start"))
}

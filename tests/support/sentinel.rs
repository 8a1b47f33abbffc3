//! A master, a replica and three sentinels of the test's own.

use std::time::Duration;

use super::cluster::{eventually, info};
use super::redis::{Server, command, connection, free_port};

/// The name of the master at the sentinels.
pub const MASTER: &str = "mymaster";

/// How long a master is silent before sentinels fail it over to the replica.
const DOWN_AFTER: Duration = Duration::from_millis(500);

/// A master, its replica and three sentinels.
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
        let sentinels: Vec<Server> = (0..3).map(|_| start_sentinel(master.port, DOWN_AFTER)).collect();
        let watched = Self { master, replica, sentinels };
        // A sentinel must know the others and the replica before it can fail over.
        eventually(|| {
            watched.sentinels.iter().all(|sentinel| {
                let info = info(&mut sentinel.connection(), "sentinel");
                ["status=ok", "slaves=1", "sentinels=3"].iter().all(|field| info.contains(field))
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

/// Returns the port of the master, as this sentinel reports it.
pub fn master_of(sentinel: &str) -> Option<u16> {
    let ask = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER];
    let address: Option<(String, u16)> = command(&mut connection(sentinel), ask);
    address.map(|(_, port)| port)
}

/// Starts a sentinel, which fails the master over after it was silent for this time.
pub fn start_sentinel(master: u16, down_after: Duration) -> Server {
    let configuration = format!(
        "sentinel monitor {MASTER} 127.0.0.1 {master} 2\n\
         sentinel down-after-milliseconds {MASTER} {}\n\
         sentinel failover-timeout {MASTER} 3000\n",
        down_after.as_millis()
    );
    (0..5)
        .find_map(|_| Server::start_sentinel_at(free_port(), &configuration))
        .unwrap_or_else(|| panic!("a sentinel does not start"))
}

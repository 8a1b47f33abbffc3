//! What befalls servers, and how it ends.

use std::net::TcpListener;
use std::time::Duration;

use redis::Value;

use super::comparison::Comparison;
use crate::support::cluster::{eventually, info};
use crate::support::deployment::{Deployment, Topology, Writes, app_url};
use crate::support::redis::command;
use crate::support::relay::Relay;
use crate::support::sentinel::MASTER;

/// How long a fault lasts that ends.
const LASTS: Duration = Duration::from_secs(4);
/// How many failovers there are one after the other.
const FAILOVERS: usize = 10;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    // Of the server that keeps alice's records, on any topology.
    Killed,
    Hangs,
    Paused,
    NoConnectionToSpare,
    OutOfMemory,
    CannotSave,
    Loads,
    PasswordRotated,
    UserSwitchedOff,
    PermissionTaken,
    ChannelsTaken,
    ClosesIdleConnections,

    // Of the way to one server.
    BecomesReplica,
    SilentConnections,
    SilentProxy,
    Garbage,
    Resets,
    MovesAndCallsBreak,
    MovesAndSubscriptionsBreak,

    // Where another server takes over.
    KilledForGood,
    HangsForGood,
    FailedOverByHand,

    // Of sentinels.
    FirstSentinelHangs,
    Deposed,
    DeposedAndRefusesWrites,

    // Of a cluster.
    SilentNode,
    BusCut,
    FailoversAndTheDemotedLeaves,
    UnknownEndpoint,
    MigrationTargetDies,
}

use Fault::*;

impl Fault {
    pub fn settings(self) -> &'static [&'static str] {
        match self {
            Killed => &["--appendonly", "yes", "--appendfsync", "always"],
            Loads => &["--loading-process-events-interval-bytes", "1024"],
            DeposedAndRefusesWrites => &["--min-replicas-to-write", "1", "--min-replicas-max-lag", "2"],
            UnknownEndpoint => &["--cluster-preferred-endpoint-type", "unknown-endpoint"],
            _ => &[],
        }
    }

    /// Does it, and waits until its effect is there. Blocks. Gives what ends it, if it ends.
    fn begin(self, of: &mut Deployment) -> Option<End> {
        let target = of.target();
        let mut admin = of.admin(target);
        let mut set = |name: &str, value: &str| -> () { command(&mut admin, ["CONFIG", "SET", name, value]) };
        let ends = |end: Box<dyn FnOnce(&mut Deployment) + Send>| Some(end);
        match self {
            Killed => {
                of.servers[target].kill();
                ends(Box::new(move |of| of.servers[target].start_again()))
            }
            Hangs => {
                of.servers[target].signal("STOP");
                ends(Box::new(move |of| of.servers[target].signal("CONT")))
            }
            Paused => {
                let millis = LASTS.as_millis().to_string();
                let _: () = command(&mut admin, ["CLIENT", "PAUSE", &millis]);
                ends(Box::new(|_| ()))
            }
            NoConnectionToSpare => {
                set("maxclients", "1");
                let _: i64 = command(&mut admin, ["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
                ends(Box::new(move |_| command(&mut admin, ["CONFIG", "SET", "maxclients", "10000"])))
            }
            OutOfMemory => {
                set("maxmemory", "1");
                ends(Box::new(move |_| command(&mut admin, ["CONFIG", "SET", "maxmemory", "0"])))
            }
            CannotSave => {
                // Stands in the way of the file.
                let obstacle = of.servers[target].folder().join("dump.rdb");
                let _ = std::fs::remove_file(&obstacle);
                std::fs::create_dir(&obstacle).unwrap();
                set("save", "3600 1");
                let _: Value = command(&mut admin, ["BGSAVE"]);
                eventually(|| info(&mut admin, "persistence").contains("rdb_last_bgsave_status:err"));
                ends(Box::new(move |_| {
                    std::fs::remove_dir(&obstacle).unwrap();
                    let _: Value = command(&mut admin, ["BGSAVE"]);
                    eventually(|| info(&mut admin, "persistence").contains("rdb_last_bgsave_status:ok"));
                }))
            }
            Loads => {
                let fill =
                    "for i = 1, 20000 do redis.call('SET', 'fill:{alice}:' .. i, string.rep('x', 100)) end";
                let _: Value = command(&mut admin, ["EVAL", fill, "0"]);
                let _: () = command(&mut admin, ["SAVE"]);
                of.servers[target].kill();
                // Microseconds for each key, until it is started again without that.
                of.servers[target].launch_again_with(&["--key-load-delay", "1000"]);
                ends(Box::new(move |of| {
                    of.servers[target].kill();
                    of.servers[target].start_again();
                }))
            }
            PasswordRotated => {
                "second".clone_into(&mut of.password.lock().unwrap());
                of.everywhere(&["ACL", "SETUSER", "app", "resetpass", ">second"]);
                let with_the_first = redis::Client::open(app_url(of.servers[target].port)).unwrap();
                assert!(with_the_first.get_connection().is_err());
                of.everywhere(&["CLIENT", "KILL", "USER", "app"]);
                None
            }
            UserSwitchedOff => {
                of.everywhere(&["ACL", "SETUSER", "app", "off"]);
                of.everywhere(&["CLIENT", "KILL", "USER", "app"]);
                ends(Box::new(|of| of.everywhere(&["ACL", "SETUSER", "app", "on"])))
            }
            PermissionTaken => {
                of.everywhere(&["ACL", "SETUSER", "app", "-hset"]);
                ends(Box::new(|of| of.everywhere(&["ACL", "SETUSER", "app", "+hset"])))
            }
            ChannelsTaken => {
                of.everywhere(&["ACL", "SETUSER", "app", "resetchannels"]);
                ends(Box::new(|of| of.everywhere(&["ACL", "SETUSER", "app", "allchannels"])))
            }
            ClosesIdleConnections => {
                of.everywhere(&["CONFIG", "SET", "timeout", "1"]);
                None
            }
            BecomesReplica => {
                // Its master is away.
                let _: () = command(&mut admin, ["REPLICAOF", "127.0.0.1", "1"]);
                ends(Box::new(move |_| command(&mut admin, ["REPLICAOF", "NO", "ONE"])))
            }
            SilentConnections => {
                relay(of).silence_connections();
                None
            }
            SilentProxy => {
                relay(of).silence();
                ends(Box::new(|of| relay(of).pass_new_connections()))
            }
            Garbage => {
                relay(of).send_garbage();
                ends(Box::new(|of| relay(of).pass_new_connections()))
            }
            Resets => {
                relay(of).reset();
                ends(Box::new(|of| relay(of).pass_new_connections()))
            }
            MovesAndCallsBreak | MovesAndSubscriptionsBreak => {
                let _: () = command(&mut of.admin(1), ["REPLICAOF", "NO", "ONE"]);
                relay(of).lead_to(of.servers[1].port);
                let broken = if self == MovesAndCallsBreak { "normal" } else { "pubsub" };
                let _: i64 = command(&mut admin, ["CLIENT", "KILL", "USER", "app", "TYPE", broken]);
                None
            }
            KilledForGood | HangsForGood => {
                of.servers[target].signal(if self == KilledForGood { "KILL" } else { "STOP" });
                of.another_takes_over(target);
                None
            }
            FailedOverByHand => {
                match of.topology {
                    Topology::Cluster => {
                        of.fail_over("alice");
                    }
                    _ => {
                        let mut sentinel = of.sentinels[0].connection();
                        let _: () = command(&mut sentinel, ["SENTINEL", "FAILOVER", MASTER]);
                        of.another_takes_over(target);
                    }
                }
                None
            }
            FirstSentinelHangs => {
                of.sentinels[0].signal("STOP");
                of.servers[target].signal("KILL");
                of.another_takes_over(target);
                None
            }
            Deposed | DeposedAndRefusesWrites => {
                // Sentinels and replicas are shut out. Instances are not.
                let _: () = command(&mut admin, ["ACL", "SETUSER", "default", "off"]);
                for kind in ["normal", "replica", "pubsub"] {
                    let _: i64 = command(&mut admin, ["CLIENT", "KILL", "TYPE", kind, "USER", "default"]);
                }
                of.another_takes_over(target);
                None
            }
            SilentNode => {
                of.servers[target].kill();
                let port = of.servers[target].port;
                eventually(|| {
                    of.silence = TcpListener::bind(("127.0.0.1", port)).ok();
                    of.silence.is_some()
                });
                of.another_takes_over(target);
                None
            }
            BusCut => {
                let id: String = command(&mut admin, ["CLUSTER", "MYID"]);
                of.buses.as_ref().unwrap().cut(&id);
                let replica = of.replica_of(target);
                eventually(|| of.is_master(replica));
                None
            }
            FailoversAndTheDemotedLeaves => {
                for _ in 0..FAILOVERS {
                    of.fail_over("alice");
                }
                let demoted = of.replica_of(of.target());
                let other = (0..of.servers.len()).find(|&node| node != of.target() && of.is_master(node));
                let id: String = command(&mut of.admin(other.unwrap()), ["CLUSTER", "MYID"]);
                let _: () = command(&mut of.admin(demoted), ["CLUSTER", "REPLICATE", &id]);
                let _: () = command(&mut of.admin(demoted), ["CLUSTER", "RESET"]);
                None
            }
            UnknownEndpoint => {
                of.fail_over("alice");
                None
            }
            MigrationTargetDies => {
                let other = (0..of.servers.len()).find(|&node| node != target && of.is_master(node)).unwrap();
                let slot: u16 = command(&mut admin, ["CLUSTER", "KEYSLOT", "{alice}"]);
                let (slot, ids) = (
                    slot.to_string(),
                    [target, other].map(|node| command::<String>(&mut of.admin(node), ["CLUSTER", "MYID"])),
                );
                let import = ["CLUSTER", "SETSLOT", &slot, "IMPORTING", &ids[0]];
                let _: () = command(&mut of.admin(other), import);
                let _: () = command(&mut admin, ["CLUSTER", "SETSLOT", &slot, "MIGRATING", &ids[1]]);
                of.servers[other].signal("STOP");
                None
            }
        }
    }

    /// Whether calls fail while it lasts, or until another server has taken over.
    fn is_felt(self) -> bool {
        !matches!(
            self,
            PasswordRotated
                | ClosesIdleConnections
                | MovesAndCallsBreak
                | MovesAndSubscriptionsBreak
                | FailedOverByHand
                | FailoversAndTheDemotedLeaves
                | UnknownEndpoint
                | MigrationTargetDies
        )
    }

    /// Does it to servers of its own, and compares. Says how long the instances took to recover.
    pub async fn is_survived(self, topology: Topology, writes: Writes) -> Result<String, String> {
        let start = move || Deployment::start(topology, self.settings(), self == BusCut);
        let deployment =
            tokio::task::spawn_blocking(start).await.map_err(|panic| format!("at the start: {panic}"))?;
        let owners = tokio::task::block_in_place(|| deployment.owners());
        let comparison = Comparison::start(deployment.connect(writes), &owners).await;
        let comparison = comparison.map_err(|error| format!("before the fault: {error}"))?;
        let failures = comparison.failures();
        let begin = move || {
            let mut deployment = deployment;
            let end = self.begin(&mut deployment);
            (deployment, end)
        };
        let (mut deployment, end) =
            tokio::task::spawn_blocking(begin).await.map_err(|panic| format!("the fault: {panic}"))?;
        if let Some(end) = end {
            comparison.begin_anew();
            tokio::time::sleep(LASTS).await;
            let end = move || {
                end(&mut deployment);
                deployment
            };
            deployment =
                tokio::task::spawn_blocking(end).await.map_err(|panic| format!("its end: {panic}"))?;
        }
        let took = comparison.recovers().await?;
        if self.is_felt() && comparison.failures() == failures {
            return Err("nobody felt it".to_owned());
        }
        let result = comparison.holds().await;
        // Blocks until its servers have ended.
        tokio::task::spawn_blocking(move || drop(deployment)).await.unwrap();
        let (fresh, busy, idle) = (took.fresh, took.busy, took.idle);
        result.map(|()| format!("{fresh:.1?}, {busy:.1?}, {idle:.1?}"))
    }
}

type End = Box<dyn FnOnce(&mut Deployment) + Send>;

fn relay(of: &Deployment) -> &Relay {
    of.relay.as_ref().expect("a relay is in front of one server")
}

//! The faults of servers and connections, how long they last, and how they end.

mod cluster;
mod connection;
mod server;
mod takeover;

use std::time::Duration;

use super::comparison::Comparison;
use crate::support::deployment::{Deployment, Topology, Writes};

/// How long a fault lasts, if it ends.
const LASTS: Duration = Duration::from_secs(4);

/// Ends a fault.
type End = Box<dyn FnOnce(&mut Deployment) + Send>;

fn ends(end: impl FnOnce(&mut Deployment) + Send + 'static) -> Option<End> {
    Some(Box::new(end))
}

/// A fault, named by what happens to the server or the connection.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    // The server that stores alice's records, in any topology.
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

    // The connection to one server.
    BecomesReplica,
    SilentConnections,
    SilentProxy,
    Garbage,
    Resets,
    MovesAndCallsBreak,
    MovesAndSubscriptionsBreak,

    // Another server takes over.
    KilledForGood,
    HangsForGood,
    FailedOverByHand,

    // Sentinels.
    FirstSentinelHangs,
    Deposed,
    DeposedAndRefusesWrites,

    // A cluster.
    SilentNode,
    BusCut,
    FailoversAndTheDemotedLeaves,
    UnknownEndpoint,
    MigrationTargetDies,
}

use Fault::*;

impl Fault {
    /// Returns the settings that a server needs for the fault.
    pub fn settings(self) -> &'static [&'static str] {
        match self {
            Killed => &["--appendonly", "yes", "--appendfsync", "always"],
            Loads => &["--loading-process-events-interval-bytes", "1024"],
            DeposedAndRefusesWrites => &["--min-replicas-to-write", "1", "--min-replicas-max-lag", "2"],
            UnknownEndpoint => &["--cluster-preferred-endpoint-type", "unknown-endpoint"],
            _ => &[],
        }
    }

    /// Begins the fault and waits until it takes effect. Blocks. Returns what ends it, if it ends.
    fn begin(self, deployment: &mut Deployment) -> Option<End> {
        match self {
            Killed => server::kill(deployment),
            Hangs => server::hang(deployment),
            Paused => server::pause(deployment),
            NoConnectionToSpare => server::refuse_connections(deployment),
            OutOfMemory => server::run_out_of_memory(deployment),
            CannotSave => server::fail_to_save(deployment),
            Loads => server::load_slowly(deployment),
            PasswordRotated => server::rotate_password(deployment),
            UserSwitchedOff => server::set_user(deployment, "off", "on"),
            PermissionTaken => server::set_user(deployment, "-hset", "+hset"),
            ChannelsTaken => server::set_user(deployment, "resetchannels", "allchannels"),
            ClosesIdleConnections => server::close_idle_connections(deployment),
            BecomesReplica => server::become_replica(deployment),
            SilentConnections => connection::silence_the_open_ones(deployment),
            SilentProxy => connection::silence(deployment),
            Garbage => connection::send_garbage(deployment),
            Resets => connection::reset(deployment),
            MovesAndCallsBreak => connection::move_the_address(deployment, "normal"),
            MovesAndSubscriptionsBreak => connection::move_the_address(deployment, "pubsub"),
            KilledForGood => takeover::signal(deployment, "KILL"),
            HangsForGood => takeover::signal(deployment, "STOP"),
            FailedOverByHand => takeover::fail_over(deployment),
            FirstSentinelHangs => takeover::kill_while_a_sentinel_hangs(deployment),
            Deposed | DeposedAndRefusesWrites => takeover::depose(deployment),
            SilentNode => cluster::silence_a_node(deployment),
            BusCut => cluster::cut_the_bus(deployment),
            FailoversAndTheDemotedLeaves => cluster::fail_over_and_reset_the_demoted_node(deployment),
            UnknownEndpoint => cluster::fail_over(deployment),
            MigrationTargetDies => cluster::stop_a_migration_target(deployment),
        }
    }

    /// Returns whether calls fail while the fault lasts, or until another server has taken over.
    fn fails_calls(self) -> bool {
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

    /// Starts servers, lets the fault happen to them, and compares instances. Returns how long the instances took to recover.
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
            comparison.restart();
            tokio::time::sleep(LASTS).await;
            let end = move || {
                end(&mut deployment);
                deployment
            };
            deployment =
                tokio::task::spawn_blocking(end).await.map_err(|panic| format!("its end: {panic}"))?;
        }
        let took = comparison.recovers().await?;
        if self.fails_calls() && comparison.failures() == failures {
            return Err("no call failed".to_owned());
        }
        let result = comparison.holds().await;
        // Blocks until its servers have ended.
        tokio::task::spawn_blocking(move || drop(deployment)).await.unwrap();
        let (fresh, busy, idle) = (took.fresh, took.busy, took.idle);
        result.map(|()| format!("{fresh:.1?}, {busy:.1?}, {idle:.1?}"))
    }
}

//! Faults after which another server takes over.

use super::End;
use crate::support::deployment::{Deployment, Topology};
use crate::support::redis::command;
use crate::support::sentinel::MASTER;

/// Sends a signal to the server that stores alice's records.
pub fn signal(deployment: &mut Deployment, signal: &str) -> Option<End> {
    let target = deployment.target();
    deployment.servers[target].signal(signal);
    deployment.another_takes_over(target);
    None
}

pub fn fail_over(deployment: &mut Deployment) -> Option<End> {
    if deployment.topology == Topology::Cluster {
        deployment.fail_over("alice");
        return None;
    }
    let target = deployment.target();
    let _: () = command(&mut deployment.sentinels[0].connection(), ["SENTINEL", "FAILOVER", MASTER]);
    deployment.another_takes_over(target);
    None
}

pub fn kill_while_a_sentinel_hangs(deployment: &mut Deployment) -> Option<End> {
    let target = deployment.target();
    deployment.sentinels[0].signal("STOP");
    deployment.servers[target].signal("KILL");
    deployment.another_takes_over(target);
    None
}

/// Shuts sentinels and replicas out of the master. Instances still reach it.
pub fn depose(deployment: &mut Deployment) -> Option<End> {
    let target = deployment.target();
    deployment.shut_out_servers(target);
    deployment.another_takes_over(target);
    None
}

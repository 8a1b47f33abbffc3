//! Faults of a cluster.

use std::net::TcpListener;

use super::End;
use crate::support::cluster::eventually;
use crate::support::deployment::Deployment;
use crate::support::redis::command;

/// How many failovers follow each other.
const FAILOVERS: usize = 10;

/// Replaces the master by a socket that accepts and does not answer.
pub fn silence_a_node(deployment: &mut Deployment) -> Option<End> {
    let target = deployment.target();
    deployment.servers[target].kill();
    let port = deployment.servers[target].port;
    eventually(|| {
        deployment.silence = TcpListener::bind(("127.0.0.1", port)).ok();
        deployment.silence.is_some()
    });
    deployment.another_takes_over(target);
    None
}

pub fn cut_the_bus(deployment: &mut Deployment) -> Option<End> {
    let target = deployment.target();
    deployment.buses.as_ref().expect("the nodes are behind relays").cut(&id(deployment, target));
    let replica = deployment.replica_of(target);
    eventually(|| deployment.is_master(replica));
    None
}

pub fn fail_over(deployment: &mut Deployment) -> Option<End> {
    deployment.fail_over("alice");
    None
}

pub fn fail_over_and_reset_the_demoted_node(deployment: &mut Deployment) -> Option<End> {
    for _ in 0..FAILOVERS {
        deployment.fail_over("alice");
    }
    let target = deployment.target();
    let (demoted, other) = (deployment.replica_of(target), another_master(deployment, target));
    let of_other = id(deployment, other);
    let _: () = command(&mut deployment.admin(demoted), ["CLUSTER", "REPLICATE", &of_other]);
    let _: () = command(&mut deployment.admin(demoted), ["CLUSTER", "RESET"]);
    None
}

/// Begins to migrate alice's slot, and stops the node that receives it.
pub fn stop_a_migration_target(deployment: &mut Deployment) -> Option<End> {
    let from = deployment.target();
    let to = another_master(deployment, from);
    let (mut at_from, mut at_to) = (deployment.admin(from), deployment.admin(to));
    let slot = command::<u16>(&mut at_from, ["CLUSTER", "KEYSLOT", "{alice}"]).to_string();
    let (from_id, to_id) = (id(deployment, from), id(deployment, to));
    let _: () = command(&mut at_to, ["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from_id]);
    let _: () = command(&mut at_from, ["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to_id]);
    deployment.servers[to].signal("STOP");
    None
}

fn id(deployment: &Deployment, node: usize) -> String {
    command(&mut deployment.admin(node), ["CLUSTER", "MYID"])
}

fn another_master(deployment: &Deployment, node: usize) -> usize {
    let others = (0..deployment.servers.len()).filter(|&other| other != node);
    others.into_iter().find(|&other| deployment.is_master(other)).expect("a cluster has several masters")
}

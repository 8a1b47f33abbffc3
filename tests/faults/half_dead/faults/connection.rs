//! Faults of the connection to a server.

use super::{End, ends};
use crate::support::deployment::Deployment;
use crate::support::redis::command;
use crate::support::relay::Relay;

fn relay(deployment: &Deployment) -> &Relay {
    deployment.relay.as_ref().expect("a relay is in front of one server")
}

fn ends_with_new_connections() -> Option<End> {
    ends(|deployment| relay(deployment).pass_new_connections())
}

pub fn silence_the_open_ones(deployment: &mut Deployment) -> Option<End> {
    relay(deployment).silence_connections();
    None
}

pub fn silence(deployment: &mut Deployment) -> Option<End> {
    relay(deployment).silence();
    ends_with_new_connections()
}

pub fn send_garbage(deployment: &mut Deployment) -> Option<End> {
    relay(deployment).send_garbage();
    ends_with_new_connections()
}

pub fn reset(deployment: &mut Deployment) -> Option<End> {
    relay(deployment).reset();
    ends_with_new_connections()
}

/// Moves the address of the server to its promoted replica, and closes connections of this type.
pub fn move_the_address(deployment: &mut Deployment, closed: &str) -> Option<End> {
    let mut admin = deployment.admin(deployment.target());
    let _: () = command(&mut deployment.admin(1), ["REPLICAOF", "NO", "ONE"]);
    relay(deployment).lead_to(deployment.servers[1].port);
    let _: i64 = command(&mut admin, ["CLIENT", "KILL", "USER", "app", "TYPE", closed]);
    None
}

//! A connected instance works again soon after a fresh one does, for each fault on each topology.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::faults::Fault::{self, *};
use crate::support::deployment::Topology::{self, Cluster, One, Sentinels};
use crate::support::deployment::Writes::{self, AreApplied, WaitForAReplica};

/// How many faults are tested at the same time.
const AT_ONCE: usize = 6;

const BY_TWO: Topology = Sentinels { replicas: 1 };
/// When the master is deposed, the next one still has a replica.
const BY_THREE: Topology = Sentinels { replicas: 2 };

type Case = (Topology, Writes, Fault);

const ON_ONE: &[Case] = &[
    (One, AreApplied, Killed),
    (One, AreApplied, Hangs),
    (One, AreApplied, Paused),
    (One, AreApplied, NoConnectionToSpare),
    (One, AreApplied, OutOfMemory),
    (One, AreApplied, CannotSave),
    (One, AreApplied, Loads),
    (One, AreApplied, PasswordRotated),
    (One, AreApplied, UserSwitchedOff),
    (One, AreApplied, PermissionTaken),
    (One, AreApplied, ChannelsTaken),
    (One, AreApplied, ClosesIdleConnections),
    (One, AreApplied, BecomesReplica),
    (One, AreApplied, SilentConnections),
    (One, WaitForAReplica, SilentConnections),
    (One, AreApplied, SilentProxy),
    (One, AreApplied, Garbage),
    (One, AreApplied, Resets),
    (One, AreApplied, MovesAndCallsBreak),
    (One, AreApplied, MovesAndSubscriptionsBreak),
];

const BEHIND_SENTINELS: &[Case] = &[
    (BY_TWO, AreApplied, KilledForGood),
    (BY_TWO, AreApplied, HangsForGood),
    (BY_TWO, AreApplied, FailedOverByHand),
    (BY_TWO, AreApplied, FirstSentinelHangs),
    (BY_THREE, AreApplied, Deposed),
    (BY_THREE, WaitForAReplica, Deposed),
    (BY_THREE, AreApplied, DeposedAndRefusesWrites),
];

const ON_A_CLUSTER: &[Case] = &[
    (Cluster, AreApplied, HangsForGood),
    (Cluster, AreApplied, SilentNode),
    (Cluster, AreApplied, BusCut),
    (Cluster, AreApplied, FailoversAndTheDemotedLeaves),
    (Cluster, AreApplied, UnknownEndpoint),
    (Cluster, AreApplied, MigrationTargetDies),
];

/// The faults of a server that has replicas, and other cases that the short form leaves out.
const AT_LENGTH: &[Case] = &[
    (BY_TWO, AreApplied, Killed),
    (BY_TWO, AreApplied, Hangs),
    (BY_TWO, AreApplied, Paused),
    (BY_TWO, AreApplied, NoConnectionToSpare),
    (BY_TWO, AreApplied, OutOfMemory),
    (BY_TWO, AreApplied, CannotSave),
    (BY_TWO, AreApplied, Loads),
    (BY_TWO, AreApplied, PasswordRotated),
    (BY_TWO, AreApplied, UserSwitchedOff),
    (BY_TWO, AreApplied, PermissionTaken),
    (BY_TWO, AreApplied, ChannelsTaken),
    (BY_TWO, AreApplied, ClosesIdleConnections),
    (BY_THREE, WaitForAReplica, HangsForGood),
    (BY_THREE, WaitForAReplica, FailedOverByHand),
    (Cluster, AreApplied, Killed),
    (Cluster, AreApplied, Hangs),
    (Cluster, AreApplied, Paused),
    (Cluster, AreApplied, NoConnectionToSpare),
    (Cluster, AreApplied, OutOfMemory),
    (Cluster, AreApplied, CannotSave),
    (Cluster, AreApplied, Loads),
    (Cluster, AreApplied, PasswordRotated),
    (Cluster, AreApplied, UserSwitchedOff),
    (Cluster, AreApplied, PermissionTaken),
    (Cluster, AreApplied, ChannelsTaken),
    (Cluster, AreApplied, ClosesIdleConnections),
    (Cluster, AreApplied, KilledForGood),
    (Cluster, AreApplied, FailedOverByHand),
];

/// Tests each fault. `FRESH_ONLY` names the faults to test, separated by commas.
async fn all(cases: impl IntoIterator<Item = &Case>) {
    let only = std::env::var("FRESH_ONLY").ok();
    let (room, mut testing) = (Arc::new(Semaphore::new(AT_ONCE)), JoinSet::new());
    for &(topology, writes, fault) in cases {
        let name = format!("{topology:?}, {fault:?}, writes {writes:?}");
        if only.as_ref().is_some_and(|only| !only.split(',').any(|part| name.contains(part))) {
            continue;
        }
        let room = Arc::clone(&room);
        testing.spawn(async move {
            let _permit = room.acquire_owned().await.unwrap();
            let since = Instant::now();
            let survived = fault.is_survived(topology, writes).await;
            println!("{name}: {survived:?} after {:.1?}", since.elapsed());
            (name, survived)
        });
    }
    let mut results = testing.join_all().await;
    results.sort();
    let mut failed = String::new();
    for (name, survived) in results {
        match survived {
            Ok(took) => {
                println!("figure | works again: a fresh one, a busy one, an idle one: {name} | {took}")
            }
            Err(error) => writeln!(failed, "{name}: {error}").unwrap(),
        }
    }
    assert!(failed.is_empty(), "\n{failed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_connected_instance_works_again_soon_after_a_fresh_one_does_on_one_server() {
    all(ON_ONE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_connected_instance_works_again_soon_after_a_fresh_one_does_behind_sentinels() {
    all(BEHIND_SENTINELS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_connected_instance_works_again_soon_after_a_fresh_one_does_on_a_cluster() {
    all(ON_A_CLUSTER).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "takes some minutes"]
async fn long_form_of_a_connected_instance_works_again_soon_after_a_fresh_one_does() {
    all(ON_ONE.iter().chain(BEHIND_SENTINELS).chain(ON_A_CLUSTER).chain(AT_LENGTH)).await;
}

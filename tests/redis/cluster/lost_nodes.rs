//! A node that is silent, stopped or cut off delays only calls for its own owners. The backend leaves it once another
//! node has taken over.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use mcp_task_store::{PageRequest, RedisBackend, StorageBackend, StorageError, Version};
use rstest::rstest;
use tokio::task::JoinSet;

use super::{RESPONSE_TIMEOUT, connect, until_a_write_works};
use crate::support::bus::Buses;
use crate::support::cluster::{Cluster, eventually};
use crate::support::redis::{command, free_port, master_for};
use crate::support::{in_an_hour, keep, key, owner};

/// Listens on the port of a server that has stopped, and never replies to a connection.
fn silence(port: u16) -> TcpListener {
    TcpListener::bind(("127.0.0.1", port)).unwrap()
}

/// Configures the cluster to serve the slots of the other masters when one master is lost.
fn serve_partly(cluster: &Cluster) {
    for node in &cluster.nodes {
        let partly = ["CONFIG", "SET", "cluster-require-full-coverage", "no"];
        let _: () = command(&mut node.connection(), partly);
    }
}

/// Returns `count` owners whose records are on this node, and one owner whose records are on another node.
fn owners(cluster: &Cluster, node: usize, count: usize) -> (Vec<String>, String) {
    let mut names = (0..).map(|number| format!("owner-{number}"));
    let (mut its, mut other) = (Vec::new(), None);
    while its.len() < count || other.is_none() {
        let name = names.next().unwrap();
        if cluster.master_for(&format!("{{{name}}}")) != node {
            other = Some(name);
        } else if its.len() < count {
            its.push(name);
        }
    }
    (its, other.unwrap())
}

/// Writes for an owner, one write after the other. Returns the mean time, the longest time, and the number of writes.
async fn pace(backend: &RedisBackend, owner: &str, lasts: Duration) -> (Duration, Duration, u32) {
    let (mut total, mut slowest, mut calls) = (Duration::ZERO, Duration::ZERO, 0);
    let begun = Instant::now();
    while begun.elapsed() < lasts {
        let since = Instant::now();
        backend.put(&key(owner, "t1"), "data".into(), in_an_hour()).await.unwrap();
        let took = since.elapsed();
        (total, slowest, calls) = (total + took, slowest.max(took), calls + 1);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    (total / calls, slowest, calls)
}

#[rstest]
#[case::one(1)]
#[case::fifty(50)]
#[case::three_hundred(300)]
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_node_delays_only_calls_for_its_own_owners_when_the_number_of_these_is(
    #[case] lost_owners: usize,
) {
    let mut cluster = Cluster::start(3, 0);
    serve_partly(&cluster);
    let backend = connect(&cluster).await;
    let lost = cluster.master_for("{alice}");
    let (its, healthy) = owners(&cluster, lost, lost_owners);
    let (usual, ..) = pace(&backend, &healthy, Duration::from_secs(1)).await;
    cluster.nodes[lost].kill();
    let silence = silence(cluster.nodes[lost].port);

    let done = Arc::new(AtomicBool::new(false));
    let mut polling = JoinSet::new();
    for name in its {
        let (backend, done) = (backend.clone(), Arc::clone(&done));
        polling.spawn(async move {
            let (mut calls, mut named) = (0, false);
            while !done.load(Ordering::Relaxed) {
                let error = backend.get(&key(&name, "t1")).await.unwrap_err();
                assert!(matches!(error, StorageError::Unavailable { .. }), "{error:?}");
                named = error.to_string().contains("127.0.0.1");
                calls += 1;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            assert!(named, "the error names the node");
            calls
        });
    }
    let (mean, slowest, calls) = pace(&backend, &healthy, Duration::from_secs(6)).await;
    done.store(true, Ordering::Relaxed);
    let lost_calls: usize = polling.join_all().await.into_iter().sum();
    let what = format!("cluster with a silent node, {lost_owners} of its owners polled");
    println!("figure | {what}: a write of another owner, mean (before: {usual:.1?}) | {mean:.1?}");
    println!("figure | {what}: a write of another owner, the slowest of {calls} | {slowest:.1?}");
    // Once the backend has detected that the node is lost, these calls fail at once.
    assert!(lost_calls > 20 * lost_owners, "{lost_calls} calls for its owners failed");
    assert!(mean < 10 * usual.max(Duration::from_millis(1)), "{mean:?}, and {usual:?} before");
    // The node returns.
    drop(silence);
    cluster.nodes[lost].start_again();
    until_a_write_works(&backend, "alice").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_seeds_do_not_delay_the_connection_to_the_others() {
    let cluster = Cluster::start(3, 0);
    let ports = [free_port(), free_port(), free_port(), free_port()];
    let _silence = ports.map(silence);
    let silent: Vec<String> = ports.iter().map(|port| format!("redis://127.0.0.1:{port}")).collect();
    let urls = format!("{},{}", silent.join(","), cluster.urls());
    let limit = Duration::from_secs(30);
    let since = Instant::now();
    let backend = RedisBackend::builder().connect_timeout(limit);
    let backend = backend.connect_cluster(urls.split(',')).await.unwrap();
    backend.put(&key("alice", "t1"), "data".into(), in_an_hour()).await.unwrap();
    assert!(since.elapsed() < limit / 2, "the seeds are asked at the same time: {:?}", since.elapsed());
    let all = RedisBackend::builder().connect_timeout(RESPONSE_TIMEOUT).connect_cluster(&silent).await;
    let error = all.unwrap_err();
    assert!(matches!(error, StorageError::Unavailable { outcome_unknown: false, .. }), "{error:?}");
    assert!(
        since.elapsed() < limit,
        "all attempts together take less than the connect timeout: {:?}",
        since.elapsed()
    );
}

/// The probe at the start uses a key that this master serves.
#[rstest]
#[case::is_killed(false)]
#[case::is_silent(true)]
#[tokio::test(flavor = "multi_thread")]
async fn a_new_instance_connects_while_the_master_of_the_probe_key(#[case] is_silent: bool) {
    let mut cluster = Cluster::start(3, 0);
    serve_partly(&cluster);
    let lost = cluster.master_for("pmcp:probe");
    let (_, healthy) = owners(&cluster, lost, 0);
    cluster.nodes[lost].kill();
    let _silence = is_silent.then(|| silence(cluster.nodes[lost].port));
    let backend = connect(&cluster).await;
    until_a_write_works(&backend, &healthy).await;
}

/// The node and the other nodes cannot reach each other, and clients still reach all of them.
#[tokio::test(flavor = "multi_thread")]
async fn the_backend_leaves_a_master_of_the_minority_when_the_others_have_elected_another() {
    let (buses, nodes) = Buses::start(6, &[]);
    let cluster = Cluster::join(nodes, 3);
    let backend = connect(&cluster).await;
    let t1 = key("alice", "t1");
    backend.put(&t1, "one".into(), in_an_hour()).await.unwrap();
    let mut watch = backend.watch(&t1);
    watch.next().await.unwrap().unwrap();
    let lost = cluster.master_for("{alice}");
    let (old, others) = (cluster.nodes[lost].url(), cluster.urls_without(lost));
    buses.cut(&cluster.id(lost));
    eventually(|| master_for(&others, "{alice}") != old);
    // Once a new instance has succeeded three times, writes and the watch of the first instance must succeed too.
    let fresh = RedisBackend::builder().response_timeout(RESPONSE_TIMEOUT);
    let fresh = fresh.connect_cluster(others.split(',')).await.unwrap();
    for _ in 0..3 {
        until_a_write_works(&fresh, "alice").await;
    }
    let since = Instant::now();
    until_a_write_works(&backend, "alice").await;
    println!(
        "figure | cluster, a bus is cut: from the election to a write that works | {:.1?}",
        since.elapsed()
    );
    assert!(since.elapsed() < Duration::from_secs(3));
    fresh.put(&t1, "newer".into(), keep()).await.unwrap();
    let notified = async {
        while backend.get(&t1).await.unwrap().data != "newer" {
            let _ = watch.next().await.unwrap();
        }
        // The notification for this write comes over the subscription at the new master.
        let written = fresh.put(&t1, "last".into(), keep()).await.unwrap();
        while backend.get(&t1).await.unwrap().version < written.version {
            let _ = watch.next().await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(30), notified).await.expect("the watch receives a notification");
}

/// Only the node that imports the slot knows whether a record is absent that the other node does not hold.
#[tokio::test(flavor = "multi_thread")]
async fn while_the_target_of_a_migration_is_lost_calls_succeed_for_records_on_the_source() {
    let mut cluster = Cluster::start(3, 0);
    let backend = connect(&cluster).await;
    let t1 = key("alice", "t1");
    let mut version = backend.put(&t1, "one".into(), in_an_hour()).await.unwrap().version;
    let (from, slot) = (cluster.master_for("{alice}"), cluster.slot("{alice}"));
    let to = cluster.add_master();
    cluster.set_slot(to, &slot, "IMPORTING", from);
    cluster.set_slot(from, &slot, "MIGRATING", to);
    for is_silent in [false, true] {
        let _silence = if is_silent {
            Some(silence(cluster.nodes[to].port))
        } else {
            cluster.nodes[to].kill();
            None
        };
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(3) {
            let absent = backend.get(&key("alice", "absent")).await.unwrap_err();
            assert!(matches!(absent, StorageError::Unavailable { .. }), "{absent:?}");
            assert!(
                absent.to_string().contains(&cluster.nodes[to].port.to_string()),
                "the error must name the node: {absent}"
            );
            assert_eq!(backend.get(&t1).await.unwrap().version, version);
            backend.put_if_version(&t1, "two".into(), keep(), version).await.unwrap();
            version = backend.put(&t1, "three".into(), in_an_hour()).await.unwrap().version;
            let page = backend.list(&owner("alice"), PageRequest::new(5)).await.unwrap();
            assert_eq!(page.records.len(), 1);
        }
    }
    cluster.nodes[to].start_again();
    // An administrator cancels the migration.
    let _: () = command(&mut cluster.nodes[from].connection(), ["CLUSTER", "SETSLOT", &slot, "STABLE"]);
    let absent = backend.get(&key("alice", "absent")).await.unwrap_err();
    assert!(matches!(absent, StorageError::NotFound { .. }), "{absent:?}");
    assert!(version > Version::FIRST);
}

/// The node is no seed, and leaves the cluster.
#[tokio::test(flavor = "multi_thread")]
async fn the_backend_closes_its_connections_to_a_node_that_leaves_the_cluster() {
    let cluster = Cluster::start(3, 1);
    let builder = RedisBackend::builder().response_timeout(RESPONSE_TIMEOUT);
    let backend = builder.connect_cluster(cluster.urls_without(3).split(',')).await.unwrap();
    let mut admin = cluster.nodes[3].connection();
    // The backend asks replicas too which node serves which slot.
    let has_connections = |admin: &mut redis::Connection| {
        let list: String = command(admin, ["CLIENT", "LIST", "TYPE", "normal"]);
        list.lines().filter(|line| line.contains("cluster|")).count() > 0
    };
    eventually(|| has_connections(&mut admin));
    let id = cluster.id(3);
    for node in &cluster.nodes[..3] {
        let _: () = command(&mut node.connection(), ["CLUSTER", "FORGET", &id]);
    }
    let _: () = command(&mut admin, ["CLUSTER", "RESET"]);
    eventually(|| !has_connections(&mut admin));
    until_a_write_works(&backend, "alice").await;
}

#[test]
fn the_slot_map_is_refreshed_on_another_runtime_after_the_first_one_shut_down() {
    let mut cluster = Cluster::start(3, 0);
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let first = runtime();
    let backend = first.block_on(connect(&cluster));
    drop(first);
    let second = runtime();
    second.block_on(until_a_write_works(&backend, "alice"));
    // The slot moves to a node that is new to the backend, while there are no calls.
    let (from, slot) = (cluster.master_for("{alice}"), cluster.slot("{alice}"));
    let to = cluster.add_master();
    let before = backend.generation();
    cluster.set_slot(to, &slot, "IMPORTING", from);
    cluster.set_slot(from, &slot, "MIGRATING", to);
    for key in ["pmcp:tasks:{alice}:t1", "pmcp:idx:{alice}"] {
        cluster.migrate(from, to, key);
    }
    cluster.set_slot(to, &slot, "NODE", to);
    cluster.set_slot(from, &slot, "NODE", to);
    eventually(|| backend.generation() > before);
    let version = second.block_on(until_a_write_works(&backend, "alice"));
    assert_eq!(version, Version::from(2));
}

//! A Redis Cluster: failover, and the migration of slots. `tests/contract/elsewhere.rs` tests the contract on a
//! cluster.

mod layout;
mod lost_nodes;
mod refusals;
mod subscriptions;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::cluster::{Cluster, eventually, info, moment};
use crate::support::redis::{Server, command, master_for};
use crate::support::{after_ms, in_an_hour, keep, key, never, owner};
use mcp_task_store::{PageRequest, PartName, RedisBackend, StorageBackend, StorageError, TaskKey, Version};
use rstest::rstest;
use tokio::task::JoinSet;

const RESPONSE_TIMEOUT: Duration = Duration::from_secs(1);

async fn connect(cluster: &Cluster) -> RedisBackend {
    let builder = RedisBackend::builder().response_timeout(RESPONSE_TIMEOUT);
    builder.connect_cluster(cluster.urls().split(',')).await.unwrap()
}

/// Returns the key of alice, as a cluster stores it.
fn alices(rest: &str) -> String {
    format!("pmcp:{}", rest.replace("alice", "{alice}"))
}

/// Writes until a write succeeds, and returns the version. Each error until then must be `Unavailable`.
async fn until_a_write_works(backend: &RedisBackend, owner: &str) -> Version {
    loop {
        match backend.put(&key(owner, "t1"), "new".into(), in_an_hour()).await {
            Ok(written) => return written.version,
            Err(error) => {
                assert!(matches!(error, StorageError::Unavailable { .. }), "{error:?}");
                // A caller that retries in a loop must pause.
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_generation_grows_when_a_node_restarts_while_there_are_no_calls() {
    let mut cluster = Cluster::start(3, 0);
    let backend = connect(&cluster).await;
    backend.put(&key("alice", "t1"), "data".into(), in_an_hour()).await.unwrap();
    let before = backend.generation();
    backend.get(&key("alice", "t1")).await.unwrap();
    assert_eq!(backend.generation(), before, "no connection broke");
    let node = cluster.master_for("{alice}");
    cluster.nodes[node].kill();
    cluster.nodes[node].start_again();
    eventually(|| backend.generation() > before);
    // Without RESP3, the next call detects the restart. The generation grows before a command travels over a new
    // connection.
    let nodes: Vec<String> = cluster.urls().split(',').map(|url| format!("{url}/?protocol=resp2")).collect();
    let resp2 = RedisBackend::builder().connect_cluster(&nodes).await.unwrap();
    until_a_write_works(&resp2, "alice").await;
    let before = resp2.generation();
    cluster.nodes[node].kill();
    cluster.nodes[node].start_again();
    until_a_write_works(&resp2, "alice").await;
    assert!(resp2.generation() > before);
}

#[rstest]
#[case::is_killed("KILL")]
#[case::hangs("STOP")]
#[tokio::test(flavor = "multi_thread")]
async fn the_backend_finds_the_new_master_of_a_slot_whose_master(#[case] signal: &str) {
    let cluster = Cluster::start(3, 3);
    let backend = connect(&cluster).await;
    backend.put(&key("alice", "t1"), "old".into(), in_an_hour()).await.unwrap();
    let lost = cluster.master_for("{alice}");
    let replicated = |node: usize| {
        let keys: Vec<String> = command(&mut cluster.nodes[node].connection(), ["KEYS", "*"]);
        keys.len() == 2
    };
    eventually(|| (0..6).filter(|&node| replicated(node)).count() == 2);
    let (old, others) = (cluster.nodes[lost].url(), cluster.urls_without(lost));
    cluster.nodes[lost].signal(signal);
    let since = Instant::now();
    let failed_over = moment(move || master_for(&others, "{alice}") != old);
    until_a_write_works(&backend, "alice").await;
    let (works, failed_over) = (Instant::now(), failed_over.join().unwrap());
    println!(
        "figure | cluster, a master gets SIG{signal}: until it is failed over | {:.1?}",
        failed_over - since
    );
    let later = works.saturating_duration_since(failed_over);
    println!("figure | cluster, a master gets SIG{signal}: from there to a write that works | {later:.1?}");
    assert!(later < 10 * RESPONSE_TIMEOUT);
    let version = until_a_write_works(&backend, "alice").await;
    assert!(version > Version::FIRST, "the replica that took over has the record");
    let listed = loop {
        // Right after the election the nodes may still disagree about the cluster's state.
        match backend.list(&owner("alice"), PageRequest::new(5)).await {
            Ok(page) => break page.records.len(),
            Err(error) => assert!(matches!(error, StorageError::Unavailable { .. }), "{error:?}"),
        }
    };
    assert_eq!(listed, 1);
    // Writes of other owners succeed too.
    for name in ["bob", "carol", "dave", "erin"] {
        until_a_write_works(&backend, name).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_to_a_cluster_that_lacks_a_master_are_unavailable_and_write_nothing() {
    let cluster = Cluster::start(3, 0);
    let backend = connect(&cluster).await;
    let lost = cluster.master_for("{alice}");
    let names: Vec<String> = (0..40).map(|number| format!("owner-{number}")).collect();
    let other = names.iter().find(|name| cluster.master_for(&format!("{{{name}}}")) != lost).unwrap();
    cluster.nodes[lost].signal("KILL");
    let survivor = (0..3).find(|&node| node != lost).unwrap();
    eventually(|| {
        let info: String = command(&mut cluster.nodes[survivor].connection(), ["CLUSTER", "INFO"]);
        info.contains("cluster_state:fail")
    });
    for name in ["alice", other] {
        let error = loop {
            // The connection may break during the first calls.
            match backend.put(&key(name, "t1"), "lost".into(), in_an_hour()).await {
                Err(error) if error.outcome_unknown() => {}
                other => break other.unwrap_err(),
            }
        };
        assert!(matches!(error, StorageError::Unavailable { outcome_unknown: false, .. }), "{error:?}");
    }
    let keys: Vec<String> = command(&mut cluster.nodes[survivor].connection(), ["KEYS", "*"]);
    assert!(keys.is_empty(), "{keys:?}");
}

/// Returns the keys of alice on the two nodes of a migration, each with its `DUMP`.
fn held(cluster: &Cluster, from: usize, to: usize) -> Vec<(String, Vec<u8>)> {
    let mut held = Vec::new();
    for node in [from, to] {
        let mut connection = cluster.nodes[node].connection();
        let mut keys: Vec<String> = command(&mut connection, ["KEYS", "*alice*"]);
        keys.sort();
        for key in keys {
            let _: () = command(&mut connection, ["ASKING"]);
            let dump = command(&mut connection, ["DUMP", &key]);
            held.push((format!("{node} {key}"), dump));
        }
    }
    held
}

/// Asserts that a call whose keys are on two nodes can be retried, and that its outcome is known.
fn assert_try_again<T: std::fmt::Debug>(reply: Result<T, StorageError>) {
    let error = reply.unwrap_err();
    assert!(matches!(error, StorageError::Unavailable { outcome_unknown: false, .. }), "{error:?}");
    assert!(error.to_string().contains("migrated"), "{error}");
}

#[rstest]
#[case::to_another_master(false, ["", "tasks:alice:t1", "idx:alice", "tasks:alice:t2"])]
#[case::to_a_master_without_slots(true, ["", "idx:alice", "tasks:alice:t2", "tasks:alice:t1"])]
#[tokio::test(flavor = "multi_thread")]
async fn while_a_slot_is_being_migrated_calls_on_one_hash_succeed_and_others_can_be_retried(
    #[case] is_new: bool,
    #[case] stages: [&str; 4],
) {
    let mut cluster = Cluster::start(3, 0);
    let backend = connect(&cluster).await;
    let (t1, t2, t9) = (key("alice", "t1"), key("alice", "t2"), key("alice", "t9"));
    let part = PartName::from_static("input");
    for task in [&t1, &t2] {
        backend.put(task, "one".into(), in_an_hour().set_part(part.clone(), "part")).await.unwrap();
    }
    let from = cluster.master_for("{alice}");
    let to = if is_new { cluster.add_master() } else { (from + 1) % 3 };
    let slot = cluster.slot("{alice}");
    cluster.set_slot(to, &slot, "IMPORTING", from);
    cluster.set_slot(from, &slot, "MIGRATING", to);
    let mut version = Version::FIRST;

    let (mut is_t1_there, mut is_index_there) = (false, false);
    for (stage, moved) in stages.into_iter().enumerate() {
        if !moved.is_empty() {
            cluster.migrate(from, to, &alices(moved));
            is_t1_there |= moved.ends_with("t1");
            is_index_there |= moved.starts_with("idx");
        }
        // These calls use only the hash, on whichever node it is.
        assert_eq!(backend.get(&t1).await.unwrap().version, version, "stage {stage}");
        let swapped = backend.put_if_version(&t1, "two".into(), keep(), version).await.unwrap();
        version = swapped.version;
        assert_eq!(backend.get(&t2).await.unwrap().version, Version::FIRST);
        assert_eq!(backend.part(&t2, &part).await.unwrap().unwrap().data, "part");
        let page = backend.list(&owner("alice"), PageRequest::new(5)).await.unwrap();
        assert_eq!(page.records.len(), 2, "stage {stage}");
        let before = held(&cluster, from, to);
        // The key of a new record is on neither node.
        assert_try_again(backend.put(&t9, "new".into(), in_an_hour()).await);
        assert_try_again(backend.put_if_version(&t9, "new".into(), keep(), Version::ABSENT).await);
        let set_part = || in_an_hour().set_part(part.clone(), "lost");
        if is_t1_there != is_index_there {
            assert_try_again(backend.put(&t1, "lost".into(), set_part()).await);
            assert_try_again(backend.put(&t1, "lost".into(), never()).await);
            assert_try_again(backend.put(&t1, "lost".into(), in_an_hour()).await);
            assert_try_again(backend.put_if_version(&t1, "lost".into(), in_an_hour(), version).await);
            assert_try_again(backend.delete(&t1).await);
        }
        assert_eq!(held(&cluster, from, to), before, "stage {stage}");
        if is_t1_there == is_index_there {
            version = backend.put(&t1, "three".into(), set_part()).await.unwrap().version;
        }
    }

    cluster.set_slot(to, &slot, "NODE", to);
    cluster.set_slot(from, &slot, "NODE", to);
    backend.put(&t9, "new".into(), in_an_hour()).await.unwrap();
    let swapped = backend.put_if_version(&t1, "last".into(), in_an_hour(), version).await.unwrap();
    assert_eq!(backend.get(&t1).await.unwrap().version, swapped.version);
    assert!(backend.delete(&t2).await.unwrap());
    assert_eq!(backend.list(&owner("alice"), PageRequest::new(5)).await.unwrap().records.len(), 2);
    // A new backend reads the same.
    assert_eq!(connect(&cluster).await.get(&t9).await.unwrap().data, "new");
}

/// A script cannot write to a key that it has removed while the slot is being migrated.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_empties_a_key_in_a_migrating_slot_is_atomic() {
    let cluster = Cluster::start(3, 0);
    let backend = connect(&cluster).await;
    let migrate = |owner: &str| {
        let tag = format!("{{{owner}}}");
        let (slot, from) = (cluster.slot(&tag), cluster.master_for(&tag));
        let to = (from + 1) % 3;
        cluster.set_slot(to, &slot, "IMPORTING", from);
        cluster.set_slot(from, &slot, "MIGRATING", to);
    };
    let expired = async |key: &TaskKey| {
        while backend.get(key).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let (never, hour, short) = (never(), in_an_hour(), after_ms(20));

    // This put removes the only index member that has an expiry.
    let (stays, goes) = (key("alice", "stays"), key("alice", "goes"));
    backend.put(&stays, "one".into(), never.clone()).await.unwrap();
    backend.put(&goes, "one".into(), short).await.unwrap();
    expired(&goes).await;
    migrate("alice");
    assert_eq!(backend.put(&stays, "two".into(), never.clone()).await.unwrap().version, Version::from(2));

    // This delete removes the only index member that has an expiry.
    let (stays, goes) = (key("bob", "stays"), key("bob", "goes"));
    backend.put(&stays, "one".into(), never.clone()).await.unwrap();
    backend.put(&goes, "one".into(), hour.clone()).await.unwrap();
    migrate("bob");
    assert!(backend.delete(&goes).await.unwrap());

    // This put removes an expired record that the server still holds. It fails, and writes nothing else.
    let old = key("carol", "expired");
    backend.put(&old, "one".into(), after_ms(500)).await.unwrap();
    let mut connection = cluster.nodes[cluster.master_for("{carol}")].connection();
    for key in ["pmcp:tasks:{carol}:expired", "pmcp:idx:{carol}"] {
        assert_eq!(command::<i64>(&mut connection, ["PERSIST", key]), 1);
    }
    expired(&old).await;
    migrate("carol");
    let mut index = || command::<Vec<u8>>(&mut connection, ["DUMP", "pmcp:idx:{carol}"]);
    let before = index();
    assert_try_again(backend.put(&old, "two".into(), hour.clone()).await);
    assert_eq!(index(), before);
    assert!(matches!(backend.get(&old).await, Err(StorageError::NotFound { .. })));

    for (of, task) in [("alice", "stays"), ("bob", "stays")] {
        let page = backend.list(&owner(of), PageRequest::new(5)).await.unwrap();
        let listed: Vec<_> = page.records.iter().map(|record| record.task.as_str()).collect();
        assert_eq!(listed, [task], "{of}");
    }
}

/// Measures the compare-and-swaps a second, as far as the cores of the machine allow it, and the time that the busiest
/// server spends in scripts for each write. A server runs scripts on one core.
async fn throughput(calls: u64) {
    const CALLERS: usize = 64;
    for masters in 1..=3 {
        let cluster = Cluster::start(masters, 0);
        let backend = Arc::new(connect(&cluster).await);
        let (mut callers, since) = (JoinSet::new(), Instant::now());
        for caller in 0..CALLERS {
            let backend = Arc::clone(&backend);
            callers.spawn(async move {
                let key = key(&format!("owner-{caller}"), "t1");
                let data = bytes::Bytes::from(vec![b'x'; 700]);
                backend.put(&key, data.clone(), in_an_hour()).await.unwrap();
                for version in 1..calls {
                    let version = Version::from(version);
                    backend.put_if_version(&key, data.clone(), keep(), version).await.unwrap();
                }
            });
        }
        while let Some(caller) = callers.join_next().await {
            caller.unwrap();
        }
        let writes = CALLERS as u64 * calls;
        let a_second = writes as f64 / since.elapsed().as_secs_f64();
        println!("figure | cluster of {masters} masters: writes a second by one process | {a_second:.0}");
        let share = cluster.nodes.iter().map(micros_in_scripts).max().unwrap() as f64 / writes as f64;
        println!(
            "figure | cluster of {masters} masters: the busiest one's time in scripts, a write | {share:.1} µs"
        );
    }
}

fn micros_in_scripts(node: &Server) -> u64 {
    let stats = info(&mut node.connection(), "commandstats");
    let eval = stats.lines().find(|line| line.starts_with("cmdstat_eval:"));
    eval.map_or(0, |line| line.split("usec=").nth(1).unwrap().split(',').next().unwrap().parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_of_many_owners_spread_over_the_masters() {
    throughput(10).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: measures for some seconds"]
async fn long_writes_of_many_owners_spread_over_the_masters() {
    throughput(1000).await;
}

//! Quotas, creation order, and writes that compete for one record.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use mcp_task_store::{
    ListedRecord, PageRequest, PutOptions, RedisBackend, StorageBackend, StorageError, Version,
};
use rstest::rstest;

use super::{Outcome, Write, assert_all_succeed, send_all, with_expired_members};
use crate::support::clock::{set_clock, start_server};
use crate::support::redis::{Namespace, Server, command};
use crate::support::{after_ms, in_an_hour, keep, key, never, owner};

/// Returns all records of an owner, newest first.
async fn walk(backend: &RedisBackend, owner_id: &str, limit: usize) -> Vec<ListedRecord> {
    let (mut records, mut request) = (Vec::new(), PageRequest::new(limit));
    loop {
        let page = backend.list(&owner(owner_id), request).await.unwrap();
        records.extend(page.records);
        match page.next {
            Some(next) => request = PageRequest::new(limit).after(next),
            None => return records,
        }
    }
}

fn creates(owner: &str, tasks: std::ops::Range<usize>) -> Vec<Write> {
    tasks.map(|task| Write::Create(key(owner, &task.to_string()))).collect()
}

async fn assert_created(backend: &RedisBackend, creates: &[Write]) {
    let outcomes = send_all(backend, creates).await;
    let failed = outcomes.into_iter().filter_map(Result::err).next();
    assert!(failed.is_none(), "{failed:?}");
}

fn winners(outcomes: &[Outcome]) -> usize {
    outcomes.iter().filter(|outcome| outcome.is_ok()).count()
}

#[tokio::test]
async fn creates_of_one_moment_fill_a_quota_exactly() {
    let namespace = Namespace::new();
    let backend = namespace.backend().await;
    assert_created(&backend, &creates("alice", 1000..1007)).await;
    // An owner without a quota, and one that is at its quota already, share the scripts.
    backend.put(&key("full", "first"), "data".into(), in_an_hour()).await.unwrap();
    let create = async |number: usize| {
        let (owner, options) = match number % 4 {
            0 | 1 => ("alice", in_an_hour().quota(50)),
            2 => ("bob", in_an_hour()),
            _ => ("full", in_an_hour().quota(1)),
        };
        let key = key(owner, &number.to_string());
        backend.put_if_version(&key, "data".into(), options, Version::ABSENT).await
    };
    let outcomes = join_all((0..400).map(create)).await;
    let of = |owner: [usize; 2]| outcomes.iter().enumerate().filter(move |(at, _)| owner.contains(&(at % 4)));
    for (owner, wins, quota) in [([0, 1], 43, Some(50)), ([2, 2], 100, None), ([3, 3], 0, Some(1))] {
        assert_eq!(of(owner).filter(|(_, outcome)| outcome.is_ok()).count(), wins);
        for (_, outcome) in of(owner) {
            match outcome {
                Ok(written) => assert_eq!(written.version, Version::FIRST),
                Err(StorageError::CapacityExceeded { quota: reached, .. }) => assert_eq!(*reached, quota),
                Err(error) => panic!("{error:?}"),
            }
        }
    }
    for (owner, count) in [("alice", 50), ("bob", 100), ("full", 1)] {
        assert_eq!(walk(&backend, owner, 256).await.len(), count);
    }
}

#[tokio::test]
async fn creates_of_one_moment_remove_the_members_of_expired_records_of_each_owner() {
    const BURSTS: usize = 100;
    let namespace = Namespace::new();
    let backend = namespace.backend().await;
    let owners = ["alice", "bob"];
    with_expired_members(&backend, &owners).await;
    let members = |owner: &str| -> usize { namespace.run(&["ZCARD", &format!("{{}}:idx:{owner}")]) };
    for burst in 0..BURSTS {
        let tasks = 8 * burst..8 * (burst + 1);
        let of_both: Vec<_> = owners.iter().flat_map(|owner| creates(owner, tasks.clone())).collect();
        assert_created(&backend, &of_both).await;
        let live = 1 + 8 * (burst + 1);
        if owners.iter().all(|owner| members(owner) == 2 * live) {
            return;
        }
    }
    panic!("members of expired records are left after {BURSTS} bursts");
}

#[tokio::test]
async fn the_index_of_creates_of_one_moment_expires_with_the_longest_lived_record() {
    let namespace = Namespace::new();
    let backend = namespace.backend().await;
    let create = async |number: u64| {
        // The longest-lived record of a script is neither the first nor the last one.
        let minutes = [1, 60, 2][number as usize % 3];
        let options = after_ms(minutes * 60_000);
        backend
            .put_if_version(&key("alice", &format!("{number:02}")), "data".into(), options, Version::ABSENT)
            .await
    };
    for first in [0, 30] {
        assert!(join_all((first..first + 30).map(create)).await.iter().all(Result::is_ok));
        let remaining: u64 = namespace.run(&["PTTL", "{}:idx:alice"]);
        assert!((59 * 60_000..=60 * 60_000).contains(&remaining), "{remaining} ms");
    }
}

/// The hashes were evicted, or deleted by hand. The longest-lived of the other records lives for an hour.
#[rstest]
#[case::alone(1)]
#[case::of_one_moment(8)]
#[tokio::test]
async fn the_index_of_records_that_are_created_again_after_their_hashes_were_lost_expires_with_the_longest_lived_record(
    #[case] count: usize,
    #[values(never(), after_ms(100 * 3_600_000))] before: PutOptions,
) {
    let namespace = Namespace::new();
    let backend = namespace.backend().await;
    for owner in ["alice", "bob"] {
        let keys: Vec<_> = (0..count).map(|task| key(owner, &task.to_string())).collect();
        for key in &keys {
            backend.put(key, "lost".into(), before.clone()).await.unwrap();
        }
        let tasks: Vec<String> = keys.iter().map(|key| format!("{{}}:tasks:{key}")).collect();
        let lost: Vec<&str> = ["DEL"].into_iter().chain(tasks.iter().map(String::as_str)).collect();
        assert_eq!(namespace.run::<usize>(&lost), count);
        if owner == "bob" {
            backend.put(&key(owner, "hour"), "data".into(), in_an_hour()).await.unwrap();
        }
        let create = |key| backend.put_if_version(key, "data".into(), after_ms(60_000), Version::ABSENT);
        let created = join_all(keys.iter().map(create)).await;
        assert!(created.iter().all(Result::is_ok), "{created:?}");
        let remaining: i64 = namespace.run(&["PTTL", &format!("{{}}:idx:{owner}")]);
        let longest = if owner == "bob" { 3_600_000 } else { 60_000 };
        assert!((longest - 30_000..=longest).contains(&remaining), "{owner}: {remaining} ms");
    }
}

#[tokio::test]
async fn members_of_expired_records_do_not_count_toward_the_quota_of_creates_of_one_moment() {
    let namespace = Namespace::new();
    let backend = namespace.backend().await;
    with_expired_members(&backend, &["alice", "bob"]).await;
    for (owner, tasks) in [("alice", 0..16), ("bob", 0..16)] {
        let create = async |number: usize| {
            let options = in_an_hour().quota(10);
            backend
                .put_if_version(&key(owner, &number.to_string()), "data".into(), options, Version::ABSENT)
                .await
        };
        let outcomes = join_all(tasks.map(create)).await;
        assert_eq!(winners(&outcomes), 9, "one record lives: {outcomes:?}");
    }
}

#[tokio::test]
async fn ten_thousand_creates_of_one_moment_have_one_total_order_and_each_is_listed_once() {
    const TASKS: usize = 10_000;
    // A server of its own, because so many keys delay other tests while they list the keys of the server.
    let server = Server::start(&[]);
    let patient = RedisBackend::builder().response_timeout(Duration::from_secs(120));
    let backend = patient.connect(&server.url()).await.unwrap();
    assert_created(&backend, &creates("alice", 0..TASKS)).await;
    let index = ["ZRANGE", "pmcp:idx:alice", "(1e14", "+inf", "BYSCORE", "WITHSCORES"];
    let index: Vec<String> = command(&mut server.connection(), index);
    let times: BTreeSet<u64> = index.chunks(2).map(|member| member[1].parse().unwrap()).collect();
    assert_eq!((index.len(), times.len()), (2 * TASKS, TASKS), "each creation time is another");
    let listed: Vec<String> =
        walk(&backend, "alice", 256).await.into_iter().map(|record| record.task.to_string()).collect();
    let newest_first: Vec<String> = index.chunks(2).rev().map(|member| member[0].clone()).collect();
    assert_eq!(listed, newest_first);
}

#[tokio::test]
async fn creates_after_the_clock_stepped_back_are_newer_and_each_record_is_listed_once() {
    let folder = tempfile::TempDir::new().unwrap();
    set_clock(folder.path(), "+1h");
    let mut server = start_server(&[], folder.path());
    let backend = RedisBackend::connect(&server.url()).await.unwrap();
    let seconds = |server: &Server| command::<(i64, i64)>(&mut server.connection(), ["TIME"]).0;
    let before = seconds(&server);
    assert_created(&backend, &creates("alice", 0..100)).await;
    set_clock(folder.path(), "+0");
    while seconds(&server) > before - 1800 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Most of the creates are of another owner, whose index has no time ahead of the clock.
    let later: Vec<Write> =
        (100..200).flat_map(|task| creates(["alice", "bob"][task % 2], task..task + 1)).collect();
    assert_created(&backend, &later).await;
    let listed = walk(&backend, "alice", 7).await;
    let tasks: Vec<usize> = listed.iter().map(|record| record.task.as_str().parse().unwrap()).collect();
    assert_eq!((tasks.len(), tasks.iter().collect::<BTreeSet<_>>().len()), (150, 150));
    assert!(tasks[..50].iter().all(|task| *task >= 100), "{tasks:?}");
    assert_eq!(walk(&backend, "bob", 7).await.len(), 50);
    // A server that is killed leaves the shared memory of `faketime` behind.
    server.shut_down();
}

#[tokio::test]
async fn of_many_creates_of_one_task_in_one_moment_exactly_one_wins() {
    let namespace = Namespace::new();
    let backend = namespace.backend().await;
    let create = async |number: usize| {
        let t1 = key("alice", "t1");
        backend.put_if_version(&t1, number.to_string().into(), in_an_hour(), Version::ABSENT).await
    };
    let others = creates("alice", 0..64);
    let (others, outcomes) = tokio::join!(
        // These begin first, so that no create of `t1` is sent before it is queued.
        send_all(&backend, &others),
        join_all((0..64).map(create)),
    );
    assert_eq!((winners(&outcomes), winners(&others)), (1, 64));
    let winner = outcomes.iter().position(Result::is_ok).unwrap();
    for outcome in outcomes.into_iter().filter_map(Result::err) {
        assert!(
            matches!(
                outcome,
                StorageError::VersionConflict { expected: Version::ABSENT, actual: Version::FIRST, .. }
            ),
            "{outcome:?}"
        );
    }
    let record = backend.get(&key("alice", "t1")).await.unwrap();
    assert_eq!((record.data, record.version), (winner.to_string().into(), Version::FIRST));
    assert_eq!(walk(&backend, "alice", 256).await.len(), 65);
}

#[tokio::test]
async fn of_many_compare_and_swaps_of_one_version_in_one_moment_exactly_one_wins() {
    let namespace = Namespace::new();
    let backend = namespace.backend().await;
    let keys: Vec<_> = (0..4).map(|task| key("alice", &task.to_string())).collect();
    for key in &keys {
        backend.put(key, "old".into(), in_an_hour()).await.unwrap();
    }
    for round in 1..=10_u64 {
        let swap = async |number: usize| {
            let data = format!("{round} {number}").into();
            backend.put_if_version(&keys[number % 4], data, keep(), Version::from(round)).await
        };
        let outcomes = join_all((0..64).map(swap)).await;
        for (task, key) in keys.iter().enumerate() {
            let of_task = || outcomes.iter().enumerate().filter(|(number, _)| number % 4 == task);
            let won: Vec<usize> =
                of_task().filter(|(_, won)| won.is_ok()).map(|(number, _)| number).collect();
            assert_eq!(won.len(), 1, "{won:?}");
            let record = backend.get(key).await.unwrap();
            let (data, version) = (format!("{round} {}", won[0]), Version::from(round + 1));
            assert_eq!((record.data.as_ref(), record.version), (data.as_bytes(), version));
            for (_, outcome) in of_task().filter(|(_, outcome)| outcome.is_err()) {
                assert!(
                    matches!(outcome, Err(StorageError::VersionConflict { expected, actual, .. })
                        if (*expected, *actual) == (Version::from(round), version)),
                    "{outcome:?}"
                );
            }
        }
    }
}

/// The index of the owner still has the members of records that have expired.
#[tokio::test]
async fn creates_over_expired_records_start_again_and_others_remove_their_members() {
    let namespace = Namespace::new();
    let backend = namespace.backend().await;
    backend.put(&key("alice", "live"), "data".into(), in_an_hour()).await.unwrap();
    for (count, others) in [(1, 0), (2, 2), (30, 0), (40, 40)] {
        let mut last = None;
        let task = |number| key("alice", &format!("{count}-{number}"));
        let tasks: Vec<_> = (0..count + others).map(task).collect();
        for task in &tasks {
            last = last.max(backend.put(task, "expired".into(), after_ms(20)).await.unwrap().expires_at);
        }
        while backend.clock(&tasks[0]).await.unwrap() < last.unwrap() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // Some are created again. The members of the others are removed sooner or later.
        let again: Vec<Write> = tasks[..count].iter().cloned().map(Write::Create).collect();
        assert_all_succeed(&backend, &again).await;
    }
    for task in 0..40 {
        assert_created(&backend, &creates("alice", task..task + 1)).await;
    }
    assert_eq!(walk(&backend, "alice", 256).await.len(), 1 + 1 + 2 + 30 + 40 + 40);
    assert_eq!(namespace.run::<usize>(&["ZCARD", "{}:idx:alice"]), 2 * (1 + 1 + 2 + 30 + 40 + 40));
}

/// Creates, updates and deletes of the same tasks in one moment. No write is lost, and none is applied twice.
#[tokio::test]
async fn writes_of_every_kind_to_the_same_tasks_in_one_moment_are_each_applied_once_or_refused() {
    let namespace = Namespace::new();
    let backend = namespace.backend().await;
    let keys: Vec<_> = (0..16).map(|task| key("alice", &task.to_string())).collect();
    let write = async |number: usize| {
        let key = &keys[number % keys.len()];
        let data = number.to_string().into();
        match number / keys.len() {
            0 | 3 => backend.put_if_version(key, data, in_an_hour(), Version::ABSENT).await,
            1 | 4 => backend.put_if_version(key, data, keep(), Version::FIRST).await,
            2 => backend.put_if_version(key, data, in_an_hour(), Version::from(2)).await,
            _ => backend.put(key, data, in_an_hour()).await,
        }
    };
    let outcomes = join_all((0..6 * keys.len()).map(write)).await;
    for (task, key) in keys.iter().enumerate() {
        let mut versions: Vec<u64> = Vec::new();
        for (number, outcome) in outcomes.iter().enumerate().filter(|(number, _)| number % keys.len() == task)
        {
            match outcome {
                Ok(written) => versions.push(written.version.get()),
                Err(StorageError::VersionConflict { .. } | StorageError::NotFound { .. }) => {}
                Err(error) => panic!("{number}: {error:?}"),
            }
        }
        versions.sort_unstable();
        let all: Vec<u64> = (1..=versions.len() as u64).collect();
        assert_eq!(versions, all, "each version is written once");
        assert_eq!(backend.get(key).await.unwrap().version.get(), versions.len() as u64);
    }
}

//! How large one owner, and one record, can be.

use std::time::{Duration, Instant};

use crate::support::cluster::info;
use crate::support::redis::{Server, command};
use crate::support::{in_an_hour, key, owner};
use bytes::Bytes;
use mcp_task_store::{PageRequest, RedisBackend, StorageBackend};
use redis::Value;
use tokio::task::JoinSet;

const WRITERS: usize = 64;

/// Fills one owner, in parallel, with records of 700 bytes.
async fn fill(backend: &RedisBackend, records: usize) {
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let backend = backend.clone();
        writers.spawn(async move {
            let data = Bytes::from(vec![b'x'; 700]);
            for task in (writer..records).step_by(WRITERS) {
                // As long as the ids that the store generates.
                let task = format!("{task:036}");
                let options = in_an_hour().quota(u64::MAX >> 12);
                backend.put(&key("alice", &task), data.clone(), options).await.unwrap();
            }
        });
    }
    while let Some(writer) = writers.join_next().await {
        writer.unwrap();
    }
}

/// Walks over all pages. Returns how many records they hold, and how long the slowest page took.
async fn walk(backend: &RedisBackend) -> (usize, Duration) {
    let (alice, mut walked, mut slowest) = (owner("alice"), 0, Duration::ZERO);
    let mut request = PageRequest::new(256);
    loop {
        let started = Instant::now();
        let page = backend.list(&alice, request).await.unwrap();
        slowest = slowest.max(started.elapsed());
        walked += page.records.len();
        match page.next {
            Some(next) => request = PageRequest::new(256).after(next),
            None => return (walked, slowest),
        }
    }
}

/// Measures inserts with a high quota, memory for each record, a walk over all pages, and the longest command of the
/// server.
async fn measure(records: usize) {
    let server = Server::start(&[]);
    let backend = RedisBackend::builder()
        .response_timeout(Duration::from_secs(20))
        .connect(&server.url())
        .await
        .unwrap();
    let mut admin = server.connection();
    let since = Instant::now();
    fill(&backend, records).await;
    println!(
        "figure | one owner, {records} records: inserts a second | {:.0}",
        records as f64 / since.elapsed().as_secs_f64()
    );
    let memory = info(&mut admin, "memory");
    let used = memory.lines().find(|line| line.starts_with("used_memory:")).unwrap();
    let used: usize = used.split(':').nth(1).unwrap().trim().parse().unwrap();
    println!(
        "figure | one owner, {records} records: bytes of Redis's memory a record of 700 | {}",
        used / records
    );

    let _: () = command(&mut admin, ["CONFIG", "SET", "slowlog-log-slower-than", "100"]);
    let _: () = command(&mut admin, ["CONFIG", "SET", "slowlog-max-len", "10000"]);
    let _: () = command(&mut admin, ["SLOWLOG", "RESET"]);
    let since = Instant::now();
    let (walked, slowest) = walk(&backend).await;
    assert_eq!(walked, records);
    println!(
        "figure | one owner, {records} records: a walk over all, pages of 256 | {:.1?}",
        since.elapsed()
    );
    println!("figure | one owner, {records} records: slowest page | {slowest:.1?}");
    fill(&backend, WRITERS).await;
    assert!(backend.delete(&key("alice", &format!("{:036}", 7))).await.unwrap());
    let entries: Vec<Vec<Value>> = command(&mut admin, ["SLOWLOG", "GET", "10000"]);
    let longest =
        entries.into_iter().map(|entry| redis::from_redis_value::<u64>(entry[2].clone()).unwrap()).max();
    let longest = Duration::from_micros(longest.unwrap_or(100));
    println!("figure | one owner, {records} records: longest command of the server | {longest:.1?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_walk_over_one_owner_returns_all_of_ten_thousand_records() {
    measure(10_000).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: a million records"]
async fn long_a_walk_over_one_owner_returns_all_of_a_million_records() {
    measure(1_000_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_of_many_megabytes_are_read_back_unchanged() {
    let server = Server::start(&[]);
    let backend = RedisBackend::builder()
        .max_value_bytes(256 << 20)
        .response_timeout(Duration::from_secs(60))
        .connect(&server.url())
        .await
        .unwrap();
    let key = key("alice", "t1");
    for mebibytes in [1, 16, 128] {
        let data = Bytes::from(vec![b'x'; mebibytes << 20]);
        let since = Instant::now();
        backend.put(&key, data.clone(), in_an_hour()).await.unwrap();
        let put = since.elapsed();
        let since = Instant::now();
        assert_eq!(backend.get(&key).await.unwrap().data, data);
        println!("figure | one record of {mebibytes} MiB: put, get | {put:.1?}, {:.1?}", since.elapsed());
    }
}

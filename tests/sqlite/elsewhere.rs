//! Changes that another process commits reach the subscribers of this one.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use mcp_task_store::{Agenda, Next, Queue, StorageBackend, Version};

use crate::support::sqlite::Folder;
use crate::support::{in_an_hour, keep, key};

const PATIENCE: Duration = Duration::from_secs(60);
/// How long a change should take to arrive. Ten times as much fails the test.
const REACHES: Duration = Duration::from_millis(20);

async fn item<T>(stream: &mut (impl StreamExt<Item = T> + Unpin)) -> T {
    tokio::time::timeout(PATIENCE, stream.next()).await.expect("an item").expect("the stream goes on")
}

async fn has_no_item<T>(stream: &mut (impl StreamExt<Item = T> + Unpin)) -> bool {
    tokio::time::timeout(Duration::from_millis(200), stream.next()).await.is_err()
}

fn median(mut took: Vec<Duration>) -> Duration {
    took.sort();
    took[took.len() / 2]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_has_an_item_for_each_write_of_another_process_and_ends_with_its_delete() {
    let folder = Folder::new();
    let (here, there) = (folder.backend().await, folder.backend().await);
    let [t1, t2] = ["t1", "t2"].map(|task| key("alice", task));
    for key in [&t1, &t2] {
        there.put(key, "data".into(), keep()).await.unwrap();
    }
    let mut watch = here.watch(&t1);
    item(&mut watch).await.unwrap();
    let mut took = Vec::new();
    for number in 0..50_u64 {
        let since = Instant::now();
        let version = there.put(&t1, number.to_string().into(), keep()).await.unwrap().version;
        loop {
            item(&mut watch).await.unwrap();
            if here.get(&t1).await.unwrap().version == version {
                break;
            }
        }
        took.push(since.elapsed());
    }
    let median = median(took);
    println!("figure | SQLite: a write in one process reaches a watch in another, median | {median:?}");
    assert!(median < REACHES * 10, "{median:?}");
    // A watch may still have an item for the last write.
    while !has_no_item(&mut watch).await {}
    there.put(&t2, "another record".into(), keep()).await.unwrap();
    assert!(has_no_item(&mut watch).await, "a write of another record");
    assert!(there.delete(&t1).await.unwrap());
    while let Some(item) = tokio::time::timeout(PATIENCE, watch.next()).await.expect("the watch ends") {
        item.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_is_created_again_elsewhere_at_the_same_version_is_a_change() {
    let folder = Folder::new();
    let (here, there) = (folder.backend().await, folder.backend().await);
    let t1 = key("alice", "t1");
    there.put(&t1, "first life".into(), in_an_hour()).await.unwrap();
    let mut watch = here.watch(&t1);
    item(&mut watch).await.unwrap();
    while !has_no_item(&mut watch).await {}
    // Both writes are in one transaction, so no poll can fall between them.
    let connection = folder.connection();
    connection
        .execute_batch(
            "BEGIN IMMEDIATE; UPDATE records SET created_at = created_at + 1, data = CAST('second life' AS BLOB); COMMIT",
        )
        .unwrap();
    item(&mut watch).await.unwrap();
    let record = here.get(&t1).await.unwrap();
    assert_eq!((record.version, &*record.data), (Version::FIRST, &b"second life"[..]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timer_that_another_process_makes_the_earliest_wakes_the_subscribers() {
    let folder = Folder::new();
    let (here, there) = (folder.backend().await, folder.backend().await);
    let hour = Duration::from_secs(3600);
    let mut wakeups = here.wakeups(&[Queue::leases()]);
    let mut took = Vec::new();
    for number in 0..20 {
        let since = Instant::now();
        let key = key("alice", &number.to_string());
        there.schedule(&Queue::leases(), &key, hour - number * Duration::from_secs(60)).await.unwrap();
        item(&mut wakeups).await;
        took.push(since.elapsed());
    }
    let median = median(took);
    println!("figure | SQLite: a timer of one process wakes a taker in another, median | {median:?}");
    assert!(median < REACHES * 10, "{median:?}");
    there.schedule(&Queue::leases(), &key("alice", "later"), 2 * hour).await.unwrap();
    assert!(has_no_item(&mut wakeups).await, "a timer that fires later");

    // This process takes the earliest timers, so a timer between the old and the new earliest one is news.
    let soon = key("alice", "soon");
    there.schedule(&Queue::leases(), &soon, Duration::ZERO).await.unwrap();
    item(&mut wakeups).await;
    let due = here.take_due(&[Queue::leases()], 1, 2 * hour).await.unwrap().due.remove(0);
    while !has_no_item(&mut wakeups).await {}
    let between = key("alice", "between");
    there.schedule(&Queue::leases(), &between, Duration::from_secs(600)).await.unwrap();
    item(&mut wakeups).await;
    assert!(here.resolve(&due, Next::Remove).await.unwrap());
}

/// Returns how often the threads that write have waited, plus their time on a processor in ticks of 10 ms, by the kernel's count.
#[cfg(target_os = "linux")]
fn activity() -> u64 {
    let threads = std::fs::read_dir("/proc/self/task").unwrap();
    let counts = threads.filter_map(|thread| {
        let thread = thread.ok()?.path();
        let name = std::fs::read_to_string(thread.join("comm")).ok()?;
        let status = std::fs::read_to_string(thread.join("status")).ok()?;
        let waits = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
        let stat = std::fs::read_to_string(thread.join("stat")).ok()?;
        // The time in user mode and in the kernel follow the name and eleven other fields.
        let ticks = stat.rsplit(')').next()?.split_whitespace().skip(11).take(2);
        let counts = ticks.chain([waits.trim()]).map(|count| count.parse::<u64>().unwrap());
        name.starts_with("sqlite-writer").then(|| counts.sum::<u64>())
    });
    counts.sum()
}

/// Set for the process of the next test, in which no other test runs.
#[cfg(target_os = "linux")]
const ALONE: &str = "SQLITE_ALONE";

#[cfg(target_os = "linux")]
#[tokio::test]
async fn without_subscribers_the_engine_does_not_poll() {
    if std::env::var_os(ALONE).is_none() {
        let mut alone = std::process::Command::new(std::env::current_exe().unwrap());
        alone.args(["--exact", "elsewhere::without_subscribers_the_engine_does_not_poll", "--nocapture"]);
        let ran = alone.env(ALONE, "1").output().unwrap();
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        return;
    }
    let folder = Folder::new();
    let store = folder.backend().await;
    let t1 = key("alice", "t1");
    store.put(&t1, "data".into(), keep()).await.unwrap();
    let polls = async || {
        let before = activity();
        tokio::time::sleep(Duration::from_millis(500)).await;
        activity() - before
    };
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(polls().await <= 1);
    let mut watch = store.watch(&t1);
    item(&mut watch).await.unwrap();
    assert!(polls().await > 5);
    drop(watch);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(polls().await <= 1);
}

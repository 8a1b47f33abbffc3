//! The power fails, and disks fail. A layer below SQLite drops what was not synced: in whole, in part, or by sectors.
//!
//! The layer concerns all files of a process, so each test runs in a process of its own.

mod vfs;

use std::collections::HashMap;
use std::sync::atomic::Ordering::SeqCst;

use futures_util::FutureExt;
use mcp_task_store::{SqliteBackend, StorageBackend, StorageError, Synchronous, TaskKey};

use self::vfs::Event;
use crate::load;
use crate::support::sqlite::Folder;
use crate::support::{Random, keep, key};

/// Set in the process of a test.
const ALONE: &str = "SQLITE_POWER_ALONE";

/// Runs the test of this name in a process of its own. Returns whether this is that process.
fn is_alone(name: &str) -> bool {
    if std::env::var_os(ALONE).is_some() {
        vfs::install();
        return true;
    }
    let mut alone = std::process::Command::new(std::env::current_exe().unwrap());
    let ran =
        alone.args(["--exact", name, "--nocapture", "--include-ignored"]).env(ALONE, "1").output().unwrap();
    let printed = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{printed}\n{}", String::from_utf8_lossy(&ran.stderr));
    printed
        .lines()
        .filter_map(|line| line.find("figure |").map(|at| &line[at..]))
        .for_each(|figure| println!("{figure}"));
    false
}

/// A file as it is on the disk, and what the disk has not synced.
#[derive(Default)]
struct Disk {
    synced: Vec<u8>,
    /// The number of the event, for each write and truncate since the last sync.
    unsynced: Vec<usize>,
}

/// The unit that a disk writes in whole.
const SECTOR: usize = 512;

fn apply(image: &mut Vec<u8>, event: &Event, mut is_applied: impl FnMut() -> bool) {
    match event {
        Event::Write { at, data, .. } => {
            for (number, sector) in data.chunks(SECTOR).enumerate() {
                if is_applied() {
                    let at = at + number * SECTOR;
                    image.resize(image.len().max(at + sector.len()), 0);
                    image[at..at + sector.len()].copy_from_slice(sector);
                }
            }
        }
        Event::Truncate { size, .. } if is_applied() => image.resize(*size, 0),
        _ => {}
    }
}

impl Disk {
    fn sync(&mut self, events: &[Event]) {
        for number in self.unsynced.drain(..) {
            apply(&mut self.synced, &events[number], || true);
        }
    }

    /// Returns what the disk may hold after the power has failed: of what was not synced, nothing, anything, or all.
    fn after_power_loss(&self, events: &[Event], random: &mut Random) -> Vec<u8> {
        let mut image = self.synced.clone();
        let applied_of_4 = random.below(5);
        for &number in &self.unsynced {
            apply(&mut image, &events[number], || random.below(4) < applied_of_4);
        }
        image
    }
}

/// Runs writers until this many writes were acknowledged. Returns all events.
async fn record(synchronous: Synchronous, writes: usize) -> Vec<Event> {
    let folder = Folder::roomy();
    vfs::RECORDS.store(true, SeqCst);
    let store = folder.builder().synchronous(synchronous).open().await.unwrap();
    let (acknowledged, mut received) = tokio::sync::mpsc::unbounded_channel();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..6 {
        let acknowledged = acknowledged.clone();
        writers.spawn(load::write(store.clone(), "p".to_owned(), writer, move |key, version| {
            vfs::record(Event::Acknowledged(format!("{} {} {version}", key.owner, key.task)));
            let _ = acknowledged.send(());
        }));
    }
    for _ in 0..writes {
        received.recv().await;
    }
    vfs::RECORDS.store(false, SeqCst);
    vfs::take()
}

/// Counts what was lost, over crashes at random moments of the events.
async fn lose_power(events: &[Event], crashes: usize) -> Vec<String> {
    let mut random = Random(u64::from(std::process::id()));
    let mut moments: Vec<usize> = (0..crashes).map(|_| random.below(events.len() as u64) as usize).collect();
    moments.sort_unstable();
    let mut disks = HashMap::<&str, Disk>::new();
    let (mut versions, mut lost) = (HashMap::<TaskKey, u64>::new(), Vec::new());
    let mut moments = moments.into_iter().peekable();
    for (number, event) in events.iter().enumerate() {
        while moments.next_if_eq(&number).is_some() {
            let after = Folder::roomy();
            for (name, disk) in &disks {
                let image = disk.after_power_loss(events, &mut random);
                std::fs::write(after.path().with_file_name(name), image).unwrap();
            }
            lost.extend(load::lost(&after, &versions).await);
        }
        match event {
            Event::Write { file, .. } | Event::Truncate { file, .. } => {
                disks.entry(file).or_default().unsynced.push(number);
            }
            Event::Sync { file } => disks.entry(file).or_default().sync(events),
            Event::Acknowledged(said) => {
                let [owner, task, version] = said.split(' ').collect::<Vec<_>>()[..] else { unreachable!() };
                let version: u64 = version.parse().unwrap();
                let known = versions.entry(key(owner, task)).or_default();
                *known = if version == 0 { 0 } else { version.max(*known) };
            }
        }
    }
    lost
}

fn count(events: &[Event], kind: impl Fn(&Event) -> bool) -> usize {
    events.iter().filter(|event| kind(event)).count()
}

async fn survives_power_loss(writes: usize, crashes: usize) {
    let events = record(Synchronous::Full, writes).await;
    let checkpoints = count(&events, |event| matches!(event, Event::Sync { file } if file == "tasks.db"));
    assert!(checkpoints > 3, "the log was copied into the file: {checkpoints}");
    let lost = lose_power(&events, crashes).await;
    println!(
        "figure | SQLite: {crashes} power losses during {writes} writes, {checkpoints} syncs of the file | {} acknowledged writes lost",
        lost.len()
    );
    assert!(lost.is_empty(), "{lost:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_loss_loses_no_acknowledged_write() {
    if is_alone("power::a_power_loss_loses_no_acknowledged_write") {
        survives_power_loss(2_000, 60).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute"]
async fn long_form_of_a_power_loss() {
    if is_alone("power::long_form_of_a_power_loss") {
        survives_power_loss(5_000, 200).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_loss_with_synchronous_normal_loses_the_latest_writes_and_the_file_stays_intact() {
    if is_alone(
        "power::a_power_loss_with_synchronous_normal_loses_the_latest_writes_and_the_file_stays_intact",
    ) {
        let events = record(Synchronous::Normal, 2_000).await;
        assert!(!lose_power(&events, 30).await.is_empty(), "the layer drops what was not synced");
    }
}

async fn open() -> (Folder, SqliteBackend, TaskKey) {
    let folder = Folder::new();
    let store = folder.backend().await;
    let t1 = key("alice", "t1");
    store.put(&t1, "before".into(), keep()).await.unwrap();
    (folder, store, t1)
}

#[tokio::test]
async fn a_commit_that_the_disk_fails_has_an_unknown_outcome_for_each_of_its_writes() {
    if !is_alone("power::a_commit_that_the_disk_fails_has_an_unknown_outcome_for_each_of_its_writes") {
        return;
    }
    let (folder, store, t1) = open().await;
    let t2 = key("alice", "t2");
    let other = folder.connection();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let mut writes = [&t1, &t2].map(|key| store.put(key, "in doubt".into(), keep()));
    assert!(writes.iter_mut().all(|write| write.now_or_never().is_none()));
    vfs::SYNCS_FAIL.store(true, SeqCst);
    other.execute_batch("COMMIT").unwrap();
    for result in futures_util::future::join_all(writes).await {
        let error = result.unwrap_err();
        assert!(matches!(error, StorageError::Unavailable { outcome_unknown: true, .. }), "{error:?}");
        assert!(error.to_string().contains("tasks.db") && error.to_string().contains("commit"), "{error}");
    }
    // A read needs no sync.
    store.get(&t1).await.unwrap();
    vfs::SYNCS_FAIL.store(false, SeqCst);
    let written = store.put(&t2, "after".into(), keep()).await.unwrap();
    assert_eq!(store.get(&t2).await.unwrap().version, written.version);
    assert_eq!(load::text(&folder, "PRAGMA integrity_check"), "ok");
}

#[tokio::test]
async fn a_full_disk_refuses_writes_and_loses_nothing() {
    if !is_alone("power::a_full_disk_refuses_writes_and_loses_nothing") {
        return;
    }
    let (folder, store, t1) = open().await;
    vfs::IS_FULL.store(true, SeqCst);
    let error = store.put(&t1, "lost".into(), keep()).await.unwrap_err();
    assert!(matches!(error, StorageError::CapacityExceeded { quota: None, .. }), "{error:?}");
    assert!(error.is_retryable() && !error.outcome_unknown(), "{error:?}");
    assert_eq!(store.get(&t1).await.unwrap().data, "before");
    vfs::IS_FULL.store(false, SeqCst);
    assert_eq!(store.put(&t1, "after".into(), keep()).await.unwrap().version.get(), 2);
    assert_eq!(load::text(&folder, "PRAGMA integrity_check"), "ok");
}

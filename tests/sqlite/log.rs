//! The write-ahead log stays short, whatever the readers do.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Barrier};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mcp_task_store::{SqliteBackend, StorageBackend};
use rusqlite::Connection;
use tokio::task::JoinSet;

use crate::support::sqlite::Folder;
use crate::support::{heavy, keep, key};

/// The size of a record.
const RECORD: usize = 256 * 1024;
const MIB: u64 = 1024 * 1024;
/// The engine tries to truncate a log of 16 MiB, and again each time it has grown by as much. On a busy machine, some tries fail.
const MAX_LOG: u64 = 96 * MIB;

fn log(folder: &Folder) -> u64 {
    std::fs::metadata(folder.path().with_file_name("tasks.db-wal")).map_or(0, |log| log.len())
}

/// Rewrites the same records until this much was written. Returns the size of the longest log.
async fn write(store: &SqliteBackend, folder: &Folder, bytes: u64) -> u64 {
    let mut longest = 0;
    for number in 0..bytes / RECORD as u64 {
        // SQLite does not write a page that stays the same.
        let data = vec![(number / 8) as u8; RECORD];
        store.put(&key("alice", &(number % 8).to_string()), data.into(), keep()).await.unwrap();
        longest = longest.max(log(folder));
    }
    longest
}

fn begin_to_read(connection: &Connection) {
    connection.execute_batch("BEGIN").unwrap();
    let _: i64 = connection.query_row("SELECT count(*) FROM records", [], |row| row.get(0)).unwrap();
}

/// Two readers as of another process. Each begins before the other ends, so the log is never without a reader.
struct Readers {
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Readers {
    /// Returns once the first reads.
    fn start(folder: &Folder) -> Self {
        let (is_over, reading) = (Arc::<AtomicBool>::default(), Arc::new(Barrier::new(2)));
        let (folder, ends, reads) = (folder.clone(), Arc::clone(&is_over), Arc::clone(&reading));
        let thread = std::thread::spawn(move || {
            let mut readers = [folder.connection(), folder.connection()];
            begin_to_read(&readers[0]);
            reads.wait();
            while !ends.load(Relaxed) {
                begin_to_read(&readers[1]);
                std::thread::sleep(Duration::from_millis(1));
                readers[0].execute_batch("COMMIT").unwrap();
                readers.swap(0, 1);
            }
        });
        reading.wait();
        Self { is_over, thread }
    }

    fn stop(self) {
        self.is_over.store(true, Relaxed);
        self.thread.join().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_stays_short_while_there_is_always_a_reader() {
    let _alone = heavy().await;
    let folder = Folder::roomy();
    let store = folder.backend().await;
    write(&store, &folder, MIB).await;
    let readers = Readers::start(&folder);
    let longest = write(&store, &folder, MAX_LOG * 3 / 2).await;
    readers.stop();
    assert!(longest < MAX_LOG, "the log has grown to {longest} bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_a_long_read_has_let_grow_becomes_short_without_further_writes() {
    let _alone = heavy().await;
    let folder = Folder::roomy();
    let store = folder.backend().await;
    write(&store, &folder, MIB).await;
    let reader = folder.connection();
    begin_to_read(&reader);
    let longest = write(&store, &folder, MAX_LOG / 2).await;
    assert!(longest > 40 * MIB, "the reader does not keep the log: {longest}");
    reader.execute_batch("COMMIT").unwrap();
    let shortened = async {
        while log(&folder) > MIB {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), shortened).await.expect("the log becomes short");
    assert_eq!(store.get(&key("alice", "0")).await.unwrap().data.len(), RECORD);
}

/// What a client did.
struct Client {
    writes: bool,
    calls: u64,
    /// The size of the longest log that it saw.
    longest: u64,
}

/// Writes or reads one record after the other.
async fn client(store: SqliteBackend, folder: Folder, number: u64, until: Instant) -> Client {
    let mut client = Client { writes: number.is_multiple_of(2), calls: 0, longest: 0 };
    while Instant::now() < until {
        let key = key(&format!("owner-{}", number / 2), &(client.calls % 16).to_string());
        match client.writes {
            true => drop(store.put(&key, vec![client.calls as u8; 700].into(), keep()).await.unwrap()),
            false => drop(store.get(&key).await),
        }
        client.calls += 1;
        if client.calls.is_multiple_of(64) {
            client.longest = client.longest.max(log(&folder));
        }
    }
    client
}

/// Runs 64 clients for half a minute. Returns the size of the longest log.
async fn load(store: &SqliteBackend, folder: &Folder, readers: &str) -> u64 {
    let until = Instant::now() + Duration::from_secs(30);
    let clients = (0..64).map(|number| client(store.clone(), folder.clone(), number, until));
    let clients = JoinSet::from_iter(clients).join_all().await;
    let calls =
        |writes| -> u64 { clients.iter().filter(|one| one.writes == writes).map(|one| one.calls).sum() };
    let (writes, reads) = (calls(true) / 30, calls(false) / 30);
    let longest = clients.iter().map(|client| client.longest).max().unwrap();
    println!(
        "figure | SQLite: 64 calls in flight, {readers} | {writes} writes and {reads} reads a second, log at most {longest} bytes"
    );
    longest
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute"]
async fn long_form_of_a_load_of_reads_and_writes() {
    let _alone = heavy().await;
    let folder = Folder::roomy();
    let store = folder.backend().await;
    let alone = load(&store, &folder, "no other process").await;
    let readers = Readers::start(&folder);
    let with_readers = load(&store, &folder, "another process always reads").await;
    readers.stop();
    assert!(alone.max(with_readers) < MAX_LOG, "the log has grown to {alone} and {with_readers} bytes");
}

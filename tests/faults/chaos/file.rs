//! A SQLite file that several processes use, and its faults: another process holds its lock, it is full, and a process is stopped
//! while it writes.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode};
use tokio::sync::Mutex;
use tokio::task::block_in_place;
use tokio::time::sleep;

use super::faults::{Counts, LONG_MS};
use super::log::{Event, Log};
use super::worker::Worker;
use crate::support::Random;
use crate::support::place::Place;

/// The maximum size of the file for the workers. The tasks of a run need less.
const MAX_BYTES: u64 = 48 * 1024 * 1024;
/// The sizes of the rows that fill the file, the largest first.
const FILLERS: [i64; 3] = [1024 * 1024, 64 * 1024, 1024];
/// How long a stopped process must keep the lock, so that it counts as held.
const LOCKED: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug)]
pub enum FileFault {
    /// Another process writes for a long time.
    Lock,
    /// Another process fills the file.
    Fill,
}

pub const FILE_FAULTS: [FileFault; 3] = [FileFault::Lock, FileFault::Fill, FileFault::Lock];

pub struct File {
    path: PathBuf,
    log: Arc<Log>,
    /// One fault of the file at a time, because the log records when it could not be written.
    outage: Mutex<()>,
}

impl File {
    pub fn new(path: PathBuf, log: Arc<Log>) -> Self {
        Self { path, log, outage: Mutex::new(()) }
    }

    pub fn place(&self) -> Place {
        Place::File { path: self.path.clone(), max_bytes: Some(MAX_BYTES) }
    }

    pub async fn inject(&self, fault: FileFault, random: &mut Random, counts: &mut Counts) {
        let _outage = self.outage.lock().await;
        // One fault in two is longer than the calls wait for the lock, and than a lease and its observation.
        let millis = if random.below(2) == 0 { LONG_MS + random.below(2_500) } else { random.below(2_500) };
        let lasts = Duration::from_millis(millis);
        let connection = self.connection(Duration::from_secs(30));
        match fault {
            FileFault::Lock => {
                self.log.append(Event::ServerPaused);
                block_in_place(|| connection.execute_batch("BEGIN IMMEDIATE").unwrap());
                sleep(lasts).await;
                connection.execute_batch("ROLLBACK").unwrap();
                counts.files_locked += 1;
            }
            FileFault::Fill => {
                self.log.append(Event::ServerPaused);
                block_in_place(|| fill(&connection));
                sleep(lasts).await;
                block_in_place(|| connection.execute_batch("DROP TABLE filler").unwrap());
                counts.files_filled += 1;
            }
        }
        self.log.append(Event::ServerUp);
    }

    /// Stops a process for some time. If the process holds the lock of the file, nobody else can write until it continues.
    pub async fn pause(&self, worker: &Worker, lasts: Duration, counts: &mut Counts) {
        let outage = self.outage.lock().await;
        self.log.append(Event::ServerPaused);
        self.log.append(Event::Paused { run: worker.run.clone() });
        worker.signal("STOP");
        let holds_the_lock = block_in_place(|| self.is_locked());
        let mut outage = Some(outage);
        if holds_the_lock {
            counts.paused_with_the_lock += 1;
        } else {
            self.log.append(Event::ServerUp);
            outage = None;
        }
        sleep(lasts).await;
        worker.signal("CONT");
        self.log.append(Event::Continued { run: worker.run.clone() });
        if outage.is_some() {
            self.log.append(Event::ServerUp);
        }
    }

    fn connection(&self, busy_timeout: Duration) -> Connection {
        let connection = Connection::open(&self.path).unwrap();
        connection.busy_timeout(busy_timeout).unwrap();
        connection
    }

    fn is_locked(&self) -> bool {
        match self.connection(LOCKED).execute_batch("BEGIN IMMEDIATE; ROLLBACK") {
            Ok(()) => false,
            Err(error) => {
                assert_eq!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy), "{error}");
                true
            }
        }
    }
}

/// Writes rows until the file has its maximum size.
fn fill(connection: &Connection) {
    let page_bytes: i64 = connection.query_row("PRAGMA page_size", [], |row| row.get(0)).unwrap();
    connection.pragma_update(None, "synchronous", "OFF").unwrap();
    connection.pragma_update(None, "max_page_count", MAX_BYTES as i64 / page_bytes).unwrap();
    connection.execute_batch("CREATE TABLE filler (data BLOB)").unwrap();
    for size in FILLERS {
        let mut insert = connection.prepare("INSERT INTO filler VALUES (zeroblob(?1))").unwrap();
        loop {
            match insert.execute([size]) {
                Ok(_) => {}
                Err(error) if error.sqlite_error_code() == Some(ErrorCode::DiskFull) => break,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

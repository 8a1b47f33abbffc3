//! Bare statements on the tables of this crate: the writes and reads of its calls, without checks, quota, expiry of other records,
//! notifications and cancellation.

use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use rusqlite::{Connection, params};
use sqlite_calls::{Contender, PAGE, SIZE, TTL};
use tokio::sync::oneshot;

const TABLES: &str = include_str!("../../../../src/sqlite/schema/1.sql");

/// How many writes one transaction serves at most, as in this crate.
const MAX_BATCH: usize = 256;

const CREATE_OWNER: &str = "INSERT OR IGNORE INTO owners (name, records, newest) VALUES (?1, 0, 0)";
const CREATE: &str = "
    INSERT INTO records (owner, task, version, created_at, expires_at, parts, data)
    VALUES ((SELECT id FROM owners WHERE name = ?1), ?2, 1, ?3, ?4, '', ?5)";
const SWAP: &str = "
    UPDATE records SET version = ?3 + 1, data = ?4
    WHERE owner = (SELECT id FROM owners WHERE name = ?1) AND task = ?2 AND version = ?3";
const GET: &str = "
    SELECT version, created_at, expires_at, parts, data FROM records
    WHERE owner = (SELECT id FROM owners WHERE name = ?1) AND task = ?2";
const LIST: &str = "
    SELECT task, version, created_at, expires_at, parts, data FROM records
    WHERE owner = (SELECT id FROM owners WHERE name = ?1) ORDER BY created_at DESC LIMIT ?2";

pub struct Record {
    owner: String,
    task: String,
    data: Vec<u8>,
}

impl Record {
    fn of(owner: &str, task: &str) -> Arc<Self> {
        Arc::new(Self { owner: owner.to_owned(), task: task.to_owned(), data: vec![b'x'; SIZE] })
    }
}

/// A write of a record.
#[derive(Clone, Copy)]
enum Write {
    Create,
    Swap(u64),
}

/// A connection with the settings of this crate.
struct Session {
    connection: Connection,
    /// Two records of one owner have different creation times.
    newest: i64,
}

impl Session {
    fn open(file: &Path) -> Result<Self> {
        let mut connection = Connection::open(file)?;
        connection.busy_handler(Some(|_| {
            let random = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().subsec_nanos();
            std::thread::sleep(Duration::from_micros(200 + u64::from(random % 1_000)));
            true
        }))?;
        connection.set_prepared_statement_cache_capacity(16);
        connection.pragma_update(None, "cache_size", -16_384)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        let has_tables: bool =
            connection.query_row("SELECT EXISTS (SELECT 1 FROM sqlite_schema)", [], |row| row.get(0))?;
        if !has_tables {
            connection.execute_batch(TABLES)?;
        }
        Ok(Self { connection, newest: 0 })
    }

    fn write(&mut self, record: &Record, write: Write) -> Result<()> {
        let Record { owner, task, data } = record;
        let written = match write {
            Write::Create => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros() as i64;
                self.newest = now.max(self.newest + 1);
                let expires_at = now / 1000 + TTL.as_millis() as i64;
                self.connection.prepare_cached(CREATE_OWNER)?.execute([owner])?;
                let mut create = self.connection.prepare_cached(CREATE)?;
                create.execute(params![owner, task, self.newest, expires_at, data])?
            }
            Write::Swap(version) => {
                let mut swap = self.connection.prepare_cached(SWAP)?;
                swap.execute(params![owner, task, version as i64, data])?
            }
        };
        anyhow::ensure!(written == 1, "{written} records were written");
        Ok(())
    }

    fn get(&self, record: &Record) -> Result<bool> {
        let mut get = self.connection.prepare_cached(GET)?;
        let data: Vec<u8> = get.query_row([&record.owner, &record.task], |row| row.get(4))?;
        Ok(data == record.data)
    }

    fn page(&self, record: &Record) -> Result<usize> {
        let mut list = self.connection.prepare_cached(LIST)?;
        let rows = list.query_map(params![record.owner, PAGE as i64], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, Vec<u8>>(5)?))
        })?;
        Ok(rows.collect::<Result<Vec<_>, _>>()?.len())
    }
}

fn lock(session: &Mutex<Session>) -> MutexGuard<'_, Session> {
    session.lock().expect("no thread panics while it holds the lock")
}

/// One transaction for each write, on the thread of the caller.
pub struct OneByOne(Mutex<Session>);

impl Contender for OneByOne {
    type Record = Arc<Record>;

    async fn open(file: &Path) -> Result<Self> {
        Ok(Self(Mutex::new(Session::open(file)?)))
    }

    fn record(owner: &str, task: &str) -> Arc<Record> {
        Record::of(owner, task)
    }

    async fn create(&self, record: &Arc<Record>) -> Result<()> {
        self.write(record, Write::Create)
    }

    async fn swap(&self, record: &Arc<Record>, version: u64) -> Result<()> {
        self.write(record, Write::Swap(version))
    }

    async fn get(&self, record: &Arc<Record>) -> Result<bool> {
        lock(&self.0).get(record)
    }

    async fn page(&self, record: &Arc<Record>) -> Result<usize> {
        lock(&self.0).page(record)
    }
}

impl OneByOne {
    fn write(&self, record: &Record, write: Write) -> Result<()> {
        let mut session = lock(&self.0);
        session.connection.execute_batch("BEGIN IMMEDIATE")?;
        session.write(record, write)?;
        Ok(session.connection.execute_batch("COMMIT")?)
    }
}

/// A write, and where to report that it was committed.
type Queued = (Arc<Record>, Write, oneshot::Sender<()>);

/// One transaction for all writes that wait, on a thread.
pub struct GroupCommit {
    queue: Sender<Queued>,
    reader: OneByOne,
}

impl Contender for GroupCommit {
    type Record = Arc<Record>;

    async fn open(file: &Path) -> Result<Self> {
        let (session, reader) = (Session::open(file)?, OneByOne::open(file).await?);
        let (queue, receiver) = channel();
        std::thread::spawn(move || commit(session, &receiver));
        Ok(Self { queue, reader })
    }

    fn record(owner: &str, task: &str) -> Arc<Record> {
        Record::of(owner, task)
    }

    async fn create(&self, record: &Arc<Record>) -> Result<()> {
        self.write(record, Write::Create).await
    }

    async fn swap(&self, record: &Arc<Record>, version: u64) -> Result<()> {
        self.write(record, Write::Swap(version)).await
    }

    async fn get(&self, record: &Arc<Record>) -> Result<bool> {
        self.reader.get(record).await
    }

    async fn page(&self, record: &Arc<Record>) -> Result<usize> {
        self.reader.page(record).await
    }
}

impl GroupCommit {
    async fn write(&self, record: &Arc<Record>, write: Write) -> Result<()> {
        let (answer, answered) = oneshot::channel();
        self.queue.send((Arc::clone(record), write, answer)).ok().context("the thread has ended")?;
        answered.await.context("the thread failed")
    }
}

/// Serves writes until the queue closes.
fn commit(mut session: Session, queue: &Receiver<Queued>) {
    while let Ok(first) = queue.recv() {
        let mut waiting = vec![first];
        session.connection.execute_batch("BEGIN IMMEDIATE").expect("a transaction begins");
        waiting.extend(queue.try_iter().take(MAX_BATCH - 1));
        for (record, write, _) in &waiting {
            session.write(record, *write).expect("a statement succeeds");
        }
        session.connection.execute_batch("COMMIT").expect("a transaction is committed");
        for (.., answer) in waiting {
            // The caller waits for the answer.
            let _ = answer.send(());
        }
    }
}

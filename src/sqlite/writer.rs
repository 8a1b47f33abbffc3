//! The thread that writes, with group commit: the writes that wait at the same moment share one transaction and one
//! sync of the disk.
//!
//! The thread first takes the lock of the file and then all waiting writes, so a transaction grows with the load and
//! with the wait for other processes. No write waits for a timer. A write that is refused has written nothing. If a
//! statement fails, the thread rolls the transaction back and runs each write in a transaction of its own, so only the
//! write that fails is lost.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode};

use super::changes::Changes;
use super::clock::now_ms;
use super::error::{Errors, Step};
use super::expired::drop_expired;
use super::identity::Identity;
use super::job::Write;
use super::log::Log;
use super::open::{File, Session};
use super::transaction::{Subscribers, Transaction};
use crate::backend::StorageError;
use crate::printable::Chain;
use crate::telemetry;

/// How many writes one transaction serves at most.
const MAX_BATCH: usize = 256;
/// How many expired records a transaction removes: so many for each of its writes, and so many in addition. Each write
/// creates at most one record, so expired records never pile up.
const DROPPED_PER_WRITE: usize = 2;
const DROPPED_AT_LEAST: usize = 8;
/// How often the thread removes expired records without writes, and how many in one transaction.
const SWEEP_EVERY: Duration = Duration::from_secs(10);
const SWEPT_AT_ONCE: usize = 256;
/// The pause between two such transactions while there are more expired records.
const BETWEEN_STEPS: Duration = Duration::from_millis(100);

/// A message to the thread that writes.
pub(super) enum Message {
    Write(Box<dyn Write>),
    /// Something is watched from now on.
    Watch,
}

pub(super) struct Writer {
    session: Session,
    queue: Receiver<Message>,
    subscribers: Arc<Subscribers>,
    changes: Changes,
    identity: Identity,
    log: Log,
    errors: Errors,
    next_sweep: Instant,
}

type Batch = Vec<Box<dyn Write>>;

impl Writer {
    pub(super) fn new(
        session: Session,
        queue: Receiver<Message>,
        subscribers: Arc<Subscribers>,
        file: &File,
    ) -> Self {
        let changes = Changes::new(&session.connection);
        let next_sweep = Instant::now() + SWEEP_EVERY;
        let (identity, log) = (Identity::of(&file.path), Log::of(&file.path));
        let errors = file.errors.clone();
        Self { session, queue, subscribers, changes, identity, log, errors, next_sweep }
    }

    /// Serves calls until the last clone of the backend is dropped.
    pub(super) fn run(mut self) {
        loop {
            match self.queue.recv_timeout(self.pause()) {
                Ok(Message::Write(first)) => self.serve(vec![first]),
                Ok(Message::Watch) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if !self.subscribers.is_empty() {
                self.session.wait_for(Duration::ZERO);
                self.changes.poll(&self.session.connection, &self.subscribers);
            }
            if Instant::now() >= self.next_sweep {
                self.sweep();
            }
            self.log.shorten(&self.session);
        }
    }

    /// Returns how long the thread may wait for a call.
    fn pause(&self) -> Duration {
        let sweep = self.next_sweep.saturating_duration_since(Instant::now());
        let housekeeping = self.log.retry_in().map_or(sweep, |retry| sweep.min(retry));
        match self.subscribers.is_empty() {
            true => housekeeping,
            false => housekeeping.min(self.changes.next_poll_in()),
        }
    }

    /// Adds the writes that wait, up to the size of a transaction.
    fn take_waiting(&self, batch: &mut Batch) {
        while batch.len() < MAX_BATCH
            && let Ok(message) = self.queue.try_recv()
        {
            if let Message::Write(write) = message {
                batch.push(write);
            }
        }
    }

    fn serve(&mut self, mut batch: Batch) {
        if !self.begin(&mut batch) {
            return;
        }
        self.take_waiting(&mut batch);
        batch.retain(|write| !write.is_given_up());
        let dropped = DROPPED_PER_WRITE * batch.len() + DROPPED_AT_LEAST;
        telemetry::batch("sqlite", batch.len());
        match self.commit(&mut batch, dropped) {
            Ok(()) => batch.into_iter().for_each(Write::committed),
            Err(Failed::Statement(error)) if batch.len() == 1 => self.fail(batch, error, Step::BeforeCommit),
            Err(Failed::Statement(_)) => batch.into_iter().for_each(|write| self.serve_alone(write)),
            Err(Failed::Commit(error)) => self.fail(batch, error, Step::Commit),
        }
    }

    fn serve_alone(&mut self, write: Box<dyn Write>) {
        let mut batch = vec![write];
        if !self.begin(&mut batch) {
            return;
        }
        match self.commit(&mut batch, 0) {
            Ok(()) => batch.into_iter().for_each(Write::committed),
            Err(Failed::Statement(error)) => self.fail(batch, error, Step::BeforeCommit),
            Err(Failed::Commit(error)) => self.fail(batch, error, Step::Commit),
        }
    }

    /// Begins a transaction with the lock for writes. While another process holds the lock, fails the writes that have
    /// waited too long. Returns whether the transaction has begun.
    fn begin(&mut self, batch: &mut Batch) -> bool {
        if !self.identity.is_same() {
            batch.drain(..).for_each(|write| write.failed(self.errors.replaced_file()));
            return false;
        }
        while let Some(oldest) = batch.iter().map(|write| write.since()).min() {
            self.session.patience.set(oldest + self.errors.busy_timeout);
            let Err(error) = self.session.connection.execute_batch("BEGIN IMMEDIATE") else { return true };
            if error.sqlite_error_code() != Some(ErrorCode::DatabaseBusy) {
                self.fail(std::mem::take(batch), error, Step::BeforeCommit);
                return false;
            }
            self.take_waiting(batch);
            let (late, waiting): (Batch, Batch) = std::mem::take(batch)
                .into_iter()
                .partition(|write| write.since().elapsed() >= self.errors.busy_timeout);
            *batch = waiting;
            self.fail(late, error, Step::BeforeCommit);
        }
        false
    }

    /// Runs the writes in the transaction that has begun, and commits it. After a failure, the transaction is rolled back.
    fn commit(&mut self, batch: &mut Batch, dropped: usize) -> Result<(), Failed> {
        let connection = &self.session.connection;
        let mut transaction = Transaction::new(connection, &self.subscribers);
        let run = batch
            .iter_mut()
            .try_for_each(|write| write.run(&mut transaction))
            .and_then(|()| drop_expired(connection, now_ms(), dropped));
        if let Err(error) = run {
            roll_back(connection);
            return Err(Failed::Statement(error));
        }
        if let Err(error) = connection.execute_batch("COMMIT") {
            roll_back(connection);
            return Err(Failed::Commit(error));
        }
        transaction.notify();
        Ok(())
    }

    fn fail(&mut self, batch: Batch, error: rusqlite::Error, step: Step) {
        if error.sqlite_error_code() == Some(ErrorCode::DiskFull) {
            // A write that fails removes no expired records. This frees their space for the next one.
            self.next_sweep = self.next_sweep.min(Instant::now() + BETWEEN_STEPS);
        }
        // Each caller receives an error of its own, and the first one the error of SQLite itself.
        let code = error.sqlite_error().copied();
        let mut error = Some(error);
        for write in batch {
            let own = error.take().unwrap_or_else(|| match code {
                Some(code) => rusqlite::Error::SqliteFailure(code, None),
                None => rusqlite::Error::InvalidQuery,
            });
            let own: StorageError = self.errors.sqlite(own, step);
            write.failed(own);
        }
    }

    /// Removes expired records in a transaction of its own.
    fn sweep(&mut self) {
        self.session.wait_for(Duration::ZERO);
        let swept = drop_expired(&self.session.connection, now_ms(), SWEPT_AT_ONCE);
        // If there may be more, the next step follows soon. Calls that wait come first.
        let pause = if matches!(swept, Ok(SWEPT_AT_ONCE..)) { BETWEEN_STEPS } else { SWEEP_EVERY };
        self.next_sweep = Instant::now() + pause;
        match swept {
            Ok(_) => {}
            Err(error) => tracing::debug!(error = %Chain(&error), "expired records were not removed"),
        }
    }
}

/// Why a transaction was not committed.
enum Failed {
    Statement(rusqlite::Error),
    Commit(rusqlite::Error),
}

/// Rolls the transaction back, unless SQLite has done so.
fn roll_back(connection: &Connection) {
    if connection.is_autocommit() {
        return;
    }
    if let Err(error) = connection.execute_batch("ROLLBACK") {
        tracing::warn!(error = %Chain(&error), "a transaction was not rolled back");
    }
}

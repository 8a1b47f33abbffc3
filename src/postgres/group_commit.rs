//! Group commit: the writes of one process that wait at the same moment share one statement, and so one commit.
//!
//! Two batches are under way at a time, each on a connection of its own. While both await the server, further writes wait and form the
//! next batch. So a batch grows with the load, and a write that is alone waits for nobody.
//!
//! Each caller keeps its own outcome, error, time limit and cancellation.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::database::Database;
use super::error::{Failed, Stage};
use crate::backend::StorageError;
use crate::backend::engine::on_drop;
use crate::telemetry;

/// How many batches of one kind are under way at a time.
const SENDERS: usize = 2;
/// A transaction with more rows would hold its locks for long.
const MAX_ROWS: usize = 256;
const MAX_BYTES: usize = 1024 * 1024;

/// A write that can share a statement with others of its kind.
pub(super) trait Batched: Send + Sync + Sized + 'static {
    type Reply: Send + 'static;

    /// Returns what no two writes of a batch may share.
    fn row(&self) -> String;

    /// Returns the size of the row in bytes.
    fn bytes(&self) -> usize;

    /// Returns whether the write must have a statement of its own.
    fn is_alone(&self) -> bool {
        false
    }

    /// Sends the writes in one statement. Returns one reply for each.
    fn send(
        writes: &[Self],
        database: &Database,
    ) -> impl Future<Output = Result<Vec<Result<Self::Reply, StorageError>>, Failed>> + Send;
}

/// How far a queued write has come.
#[derive(Default)]
struct Progress(AtomicU8);

const QUEUED: u8 = 0;
const SENT: u8 = 1;
const GIVEN_UP: u8 = 2;

impl Progress {
    fn leave_queue(&self, next: u8) -> bool {
        self.0.compare_exchange(QUEUED, next, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    fn stage(&self) -> Stage {
        match self.0.load(Ordering::Acquire) {
            SENT => Stage::WriteSent,
            _ => Stage::NothingWritten,
        }
    }
}

struct Queued<W: Batched> {
    write: W,
    progress: Arc<Progress>,
    answer: oneshot::Sender<Result<W::Reply, StorageError>>,
}

struct State<W: Batched> {
    queue: VecDeque<Queued<W>>,
    senders: usize,
}

/// The writes of one kind. All clones of a backend share it.
pub(super) struct GroupCommit<W: Batched>(Arc<Mutex<State<W>>>);

impl<W: Batched> Default for GroupCommit<W> {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(State { queue: VecDeque::new(), senders: 0 })))
    }
}

/// Locks the state. No code panics while it holds the lock, so the data behind a poisoned lock is consistent.
fn lock<W: Batched>(state: &Mutex<State<W>>) -> MutexGuard<'_, State<W>> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<W: Batched> GroupCommit<W> {
    /// Sends a write, alone or with others.
    ///
    /// # Cancellation safety
    /// A write whose future is dropped before it was sent is not sent.
    pub(super) async fn write(&self, database: &Arc<Database>, write: W) -> Result<W::Reply, StorageError> {
        let (answer, receiver) = oneshot::channel();
        let progress = Arc::new(Progress::default());
        let _given_up = on_drop({
            let progress = Arc::clone(&progress);
            move || {
                progress.leave_queue(GIVEN_UP);
            }
        });
        self.push(database, Queued { write, progress: Arc::clone(&progress), answer });
        match timeout(database.errors.limit, receiver).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(database.errors.stopped(progress.stage())),
            Err(_) => {
                progress.leave_queue(GIVEN_UP);
                Err(database.errors.timed_out(progress.stage()))
            }
        }
    }

    fn push(&self, database: &Arc<Database>, queued: Queued<W>) {
        let mut state = lock(&self.0);
        state.queue.push_back(queued);
        if state.senders < SENDERS {
            state.senders += 1;
            drop(state);
            let sender = Sender { state: Arc::clone(&self.0), is_counted: true };
            tokio::spawn(sender.run(Arc::clone(database)));
        }
    }
}

/// One of the tasks that send batches.
struct Sender<W: Batched> {
    state: Arc<Mutex<State<W>>>,
    is_counted: bool,
}

impl<W: Batched> Drop for Sender<W> {
    fn drop(&mut self) {
        if self.is_counted {
            // The runtime of this task has ended. The next write starts another sender.
            lock(&self.state).senders -= 1;
        }
    }
}

impl<W: Batched> Sender<W> {
    /// Sends batches until no write waits.
    async fn run(mut self, database: Arc<Database>) {
        // The tasks that are ready now queue their writes first.
        tokio::task::yield_now().await;
        while let Some(batch) = self.next_batch() {
            batch.send(&database).await;
        }
    }

    /// Takes the next batch. If no write waits, leaves under the same lock, so that no write waits for a sender that has left.
    fn next_batch(&mut self) -> Option<Batch<W>> {
        let mut state = lock(&self.state);
        let batch = Batch::take(&mut state.queue);
        if batch.is_none() {
            state.senders -= 1;
            self.is_counted = false;
        }
        batch
    }
}

/// The writes of one statement.
struct Batch<W: Batched> {
    writes: Vec<W>,
    answers: Vec<oneshot::Sender<Result<W::Reply, StorageError>>>,
}

impl<W: Batched> Batch<W> {
    /// Takes the writes that have waited longest, as many as may share a statement. The others keep their order.
    fn take(queue: &mut VecDeque<Queued<W>>) -> Option<Self> {
        let mut batch = Self { writes: Vec::new(), answers: Vec::new() };
        let (mut rows, mut bytes, mut kept) = (HashSet::new(), 0, VecDeque::new());
        while let Some(next) = queue.pop_front() {
            let has_room = batch.writes.is_empty()
                || (batch.writes.len() < MAX_ROWS
                    && bytes + next.write.bytes() <= MAX_BYTES
                    && !next.write.is_alone());
            if !has_room {
                queue.push_front(next);
                break;
            }
            if !rows.insert(next.write.row()) {
                kept.push_back(next);
                continue;
            }
            // A caller that has given up wants no write.
            if next.progress.leave_queue(SENT) {
                bytes += next.write.bytes();
                let is_alone = next.write.is_alone();
                batch.writes.push(next.write);
                batch.answers.push(next.answer);
                if is_alone {
                    break;
                }
            }
        }
        kept.into_iter().rev().for_each(|next| queue.push_front(next));
        (!batch.writes.is_empty()).then_some(batch)
    }

    async fn send(self, database: &Database) {
        let Self { writes, answers } = self;
        telemetry::batch("postgres", writes.len());
        match W::send(&writes, database).await {
            Ok(replies) => {
                for (reply, answer) in replies.into_iter().zip(answers) {
                    // A caller that has given up needs no reply.
                    let _ = answer.send(reply);
                }
            }
            // The server refused the whole batch, and wrote nothing.
            Err(failed) if writes.len() > 1 && failed.may_concern_one_row() => {
                for (write, answer) in writes.into_iter().zip(answers) {
                    let reply = W::send(&[write], database).await.map(|mut replies| replies.pop());
                    let _ = answer.send(match reply {
                        Ok(Some(reply)) => reply,
                        Ok(None) => {
                            Err(database.errors.unexpected("a write has no outcome", Stage::WriteSent))
                        }
                        Err(failed) => Err(database.errors.of(failed)),
                    });
                }
            }
            Err(failed) => {
                for answer in answers {
                    let _ = answer.send(Err(database.errors.of(failed.clone())));
                }
            }
        }
    }
}

//! Group commit: the writes that one process queues at the same moment go out as one script.
//!
//! A write is sent by its caller if no other write is in progress, and if the writes before it shared no script. Any other
//! write is queued. A task of the queue lets all other tasks that are ready run once, and sends what is queued then,
//! however many batches await replies. So a batch grows with the load, and no write waits for a timer or for the reply
//! to another write.
//!
//! Each caller keeps its own reply, error, time limit and cancellation.

mod batch;
mod inserts;
mod queue;
mod swaps;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use queue::{Queue, STALLED};
use redis::{ErrorKind, RedisError};
use smallvec::SmallVec;
use tokio::time::timeout;

use super::clock::Clock;
use super::connection::Connection;
use super::in_flight::{BatchedCall, CallInFlight, InFlight};
use super::reply::CommandError;
use crate::backend::engine::on_drop;
use crate::scripts::{Arguments, Reply, Script};

/// A write that can share a script with others of its type.
pub(super) trait Batched: Send + Sync + Sized + 'static {
    type Reply: Send + 'static;

    /// Returns the key of the record's hash.
    fn task(&self) -> &str;

    /// Returns the size of the record in bytes.
    fn payload(&self) -> usize;

    /// Returns whether one script may serve this write and the other one, apart from their owners.
    fn may_join(&self, other: &Self) -> bool;

    /// Sends the writes in one script. Their tasks are distinct and sorted.
    fn send(
        writes: &[Self],
        transport: &Transport,
        in_flight: &dyn InFlight,
    ) -> impl Future<Output = Result<Replies<Self>, CommandError>> + Send;
}

/// The reply to a write, the write's own error, or `None` if it must be sent alone.
type OneReply<R> = Option<Result<R, CommandError>>;

/// The replies to a batch.
pub(super) struct Replies<W: Batched> {
    /// One for each write. A write that is alone needs no vector.
    pub(super) each: SmallVec<[OneReply<W::Reply>; 1]>,
    /// Why the writes that the server applied do not count as written, if so.
    pub(super) unconfirmed: Option<CommandError>,
}

/// What the caller of a write receives.
pub(super) enum Answer<W: Batched> {
    Reply(Result<W::Reply, CommandError>),
    /// The batch has not written the record. The caller must send the write in a script of its own.
    Alone(W),
}

/// What a batch travels over.
pub(super) struct Transport {
    pub(super) connection: Arc<dyn Connection>,
    pub(super) clock: Arc<Clock>,
    /// The time limit of each call.
    pub(super) limit: Duration,
    /// Whether the records of one batch must belong to one owner.
    pub(super) has_one_owner: bool,
}

impl Transport {
    /// Runs a script that writes. Returns its reply, and why it does not count as confirmed, if so.
    async fn run<A: Arguments, T: Reply>(
        &self,
        script: &Script<A, T>,
        arguments: &A,
        key: &str,
        in_flight: &dyn InFlight,
    ) -> Result<(T, Option<CommandError>), CommandError> {
        let sent = self.clock.moment();
        let (reply, unconfirmed) =
            match self.connection.write(&script.command(arguments), key, in_flight).await {
                Ok(reply) => (reply, None),
                Err(CommandError::TooFewReplicas { replicas, reply: Some(reply), cause }) => {
                    (reply, Some(CommandError::TooFewReplicas { replicas, reply: None, cause }))
                }
                Err(failure) => return Err(failure),
            };
        let reply = script.decode(reply).map_err(CommandError::Unexpected)?;
        self.clock.observe(reply.server_us, sent);
        Ok((reply.value, unconfirmed))
    }
}

/// The writes of one type. All clones of a backend share it.
pub(super) struct GroupCommit<W: Batched> {
    queue: Arc<Queue<W>>,
    /// The number of writes in progress, queued or not.
    in_progress: AtomicUsize,
}

impl<W: Batched> GroupCommit<W> {
    pub(super) fn new(transport: Arc<Transport>) -> Self {
        Self { queue: Arc::new(Queue::new(transport)), in_progress: AtomicUsize::new(0) }
    }

    /// Sends a write, alone or with others.
    ///
    /// # Cancellation safety
    /// A write whose future is dropped before it was sent is not sent.
    pub(super) async fn write(&self, write: W, call: &CallInFlight) -> Answer<W> {
        let is_alone = self.in_progress.fetch_add(1, Ordering::Relaxed) == 0;
        let _ended = on_drop(|| {
            self.in_progress.fetch_sub(1, Ordering::Relaxed);
        });
        if is_alone && !self.queue.expects_company() {
            batch::send_one(self.queue.transport(), write, call).await
        } else {
            self.write_in_batch(write, call).await
        }
    }

    async fn write_in_batch(&self, write: W, call: &CallInFlight) -> Answer<W> {
        let batched = Arc::new(BatchedCall::default());
        call.join(Arc::clone(&batched));
        let _ended = on_drop(|| {
            batched.give_up();
        });
        let mut answer = self.queue.push(write, Arc::clone(&batched));
        let answer = match timeout(STALLED, &mut answer).await {
            Ok(answer) => answer,
            Err(_) => {
                self.queue.replace_stalled_sender();
                answer.await
            }
        };
        // The caller may send the write alone now, and then waits for a connection before the write is on its way again.
        let was_sent = batched.clear();
        answer.unwrap_or_else(|_| Answer::Reply(Err(runtime_shut_down(was_sent))))
    }
}

/// Returns the failure of a write whose batch ended without an answer.
fn runtime_shut_down(was_sent: bool) -> CommandError {
    let reason = "the runtime that sent the write was shut down before the reply arrived";
    let error = RedisError::from((ErrorKind::Client, reason));
    if was_sent { CommandError::NoReply(error) } else { CommandError::NotSent(error) }
}

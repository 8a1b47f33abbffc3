//! The queue of writes, and the task that sends them.

use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::task::yield_now;

use super::batch::Batch;
use super::{Answer, Batched, Transport};
use crate::backend::engine::on_drop;
use crate::redis::in_flight::BatchedCall;

pub(super) struct Queue<W: Batched> {
    transport: Arc<Transport>,
    waiting: Mutex<Waiting<W>>,
    /// Whether more than one write was queued when the queue was last sent.
    had_company: AtomicBool,
}

struct Waiting<W: Batched> {
    writes: Vec<Queued<W>>,
    /// The task that is about to send the writes.
    sender: Option<Sender>,
    /// The number of tasks so far.
    senders: u64,
}

#[derive(Clone, Copy)]
struct Sender {
    number: u64,
    since: Instant,
}

impl<W: Batched> Waiting<W> {
    /// Adds a write. Removes those that were given up before the list grows, so that the callers bound its size.
    fn push(&mut self, write: Queued<W>) {
        if self.writes.len() == self.writes.capacity() {
            self.writes.retain(|queued| !queued.call.is_given_up());
            self.writes.reserve(self.writes.len() + 1);
        }
        self.writes.push(write);
    }

    fn is_stalled(&self) -> bool {
        self.sender.is_some_and(|sender| sender.since.elapsed() >= STALLED)
    }

    fn is_sender(&self, number: u64) -> bool {
        self.sender.is_some_and(|sender| sender.number == number)
    }

    /// Makes a new task responsible for the writes. Returns its number.
    fn next_sender(&mut self) -> u64 {
        self.senders += 1;
        self.sender = Some(Sender { number: self.senders, since: Instant::now() });
        self.senders
    }

    fn take(&mut self) -> Vec<Queued<W>> {
        self.sender = None;
        mem::take(&mut self.writes)
    }
}

/// A task that has not run for this long may belong to a runtime that nobody drives, or to a thread that is blocked.
pub(super) const STALLED: Duration = Duration::from_millis(100);

/// A write, and its caller.
pub(super) struct Queued<W: Batched> {
    pub(super) write: W,
    pub(super) call: Arc<BatchedCall>,
    pub(super) answer: oneshot::Sender<Answer<W>>,
}

impl<W: Batched> Queue<W> {
    pub(super) fn new(transport: Arc<Transport>) -> Self {
        let waiting = Mutex::new(Waiting { writes: Vec::new(), sender: None, senders: 0 });
        Self { transport, waiting, had_company: AtomicBool::new(false) }
    }

    pub(super) fn transport(&self) -> &Transport {
        &self.transport
    }

    /// Returns whether the next write probably shares a script with others.
    pub(super) fn expects_company(&self) -> bool {
        self.had_company.load(Ordering::Relaxed)
    }

    /// Queues a write. The receiver fails if the runtime of the task that sends the write shuts down.
    pub(super) fn push(self: &Arc<Self>, write: W, call: Arc<BatchedCall>) -> oneshot::Receiver<Answer<W>> {
        let (answer, receiver) = oneshot::channel();
        let mut waiting = self.waiting();
        waiting.push(Queued { write, call, answer });
        if waiting.is_stalled() {
            self.replace_sender(waiting);
        } else if waiting.sender.is_none() {
            self.start_sender(waiting);
        }
        receiver
    }

    /// Starts another task if the one that is about to send the writes has not run for a while.
    pub(super) fn replace_stalled_sender(self: &Arc<Self>) {
        let waiting = self.waiting();
        if waiting.is_stalled() {
            self.replace_sender(waiting);
        }
    }

    /// Starts the task that sends the writes, on the runtime of the connection. No reply arrives without that runtime. The
    /// runtime of the caller may stop while writes of other runtimes are in the same batch.
    fn start_sender(self: &Arc<Self>, mut waiting: MutexGuard<'_, Waiting<W>>) {
        let number = waiting.next_sender();
        drop(waiting);
        if let Some(runtime) = self.transport.connection.runtime() {
            let task = runtime.spawn(Arc::clone(self).send_after_one_turn(number));
            // A runtime that has shut down drops the task before it runs.
            if !(task.is_finished() && self.waiting().is_sender(number)) {
                return;
            }
        }
        tokio::spawn(Arc::clone(self).send_after_one_turn(number));
    }

    /// Starts the task that sends the writes on the runtime of the caller.
    fn replace_sender(self: &Arc<Self>, mut waiting: MutexGuard<'_, Waiting<W>>) {
        let number = waiting.next_sender();
        drop(waiting);
        tokio::spawn(Arc::clone(self).send_after_one_turn(number));
    }

    /// Locks the queue. No code panics while it holds the lock, so the data behind a poisoned lock is consistent.
    fn waiting(&self) -> MutexGuard<'_, Waiting<W>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn send_after_one_turn(self: Arc<Self>, number: u64) {
        // If the runtime shuts down before this task runs, the writes fail, unless another task sends them.
        let unsent = on_drop(|| {
            let mut waiting = self.waiting();
            let writes = if waiting.is_sender(number) { waiting.take() } else { Vec::new() };
            drop(waiting);
            drop(writes);
        });
        yield_now().await;
        mem::forget(unsent);
        let writes = self.waiting().take();
        if writes.is_empty() {
            return;
        }
        self.had_company.store(writes.len() > 1, Ordering::Relaxed);
        let mut batches = Batch::split(writes, self.transport.has_one_owner);
        let last = batches.pop();
        for batch in batches {
            tokio::spawn(batch.commit(Arc::clone(&self.transport)));
        }
        if let Some(batch) = last {
            batch.commit(Arc::clone(&self.transport)).await;
        }
    }
}

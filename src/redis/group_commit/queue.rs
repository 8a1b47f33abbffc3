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
    /// When the task that is about to send the writes was started.
    sender_since: Option<Instant>,
}

/// A task that has not run for this long may belong to a runtime that nobody drives.
const STALLED: Duration = Duration::from_millis(100);

/// A write, and its caller.
pub(super) struct Queued<W: Batched> {
    pub(super) write: W,
    pub(super) call: Arc<BatchedCall>,
    pub(super) answer: oneshot::Sender<Answer<W>>,
}

impl<W: Batched> Queue<W> {
    pub(super) fn new(transport: Arc<Transport>) -> Self {
        let waiting = Mutex::new(Waiting { writes: Vec::new(), sender_since: None });
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
        waiting.writes.push(Queued { write, call, answer });
        if waiting.sender_since.is_none_or(|since| since.elapsed() > STALLED) {
            waiting.sender_since = Some(Instant::now());
            drop(waiting);
            tokio::spawn(Arc::clone(self).send_after_one_turn());
        }
        receiver
    }

    /// Locks the queue. No code panics while it holds the lock, so the data behind a poisoned lock is consistent.
    fn waiting(&self) -> MutexGuard<'_, Waiting<W>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Vec<Queued<W>> {
        let mut waiting = self.waiting();
        waiting.sender_since = None;
        mem::take(&mut waiting.writes)
    }

    async fn send_after_one_turn(self: Arc<Self>) {
        // If the runtime shuts down before this task runs, the writes fail.
        let unsent = on_drop(|| drop(self.take()));
        yield_now().await;
        mem::forget(unsent);
        let writes = self.take();
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

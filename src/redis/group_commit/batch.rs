//! One batch: which writes it holds, and how their callers receive its reply.

use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::queue::Queued;
use super::{Answer, Batched, Replies, Transport};
use crate::redis::error::concerns_one_key;
use crate::redis::in_flight::{BatchedCall, CallInFlight, InFlight};
use crate::redis::reply::CommandError;

/// A script with more records would occupy the server for too long.
const MAX_RECORDS: usize = 32;
const MAX_BYTES: usize = 256 * 1024;

/// The writes of one script, sorted by task. Each task occurs once.
pub(super) struct Batch<W: Batched> {
    writes: Vec<W>,
    calls: Vec<Arc<BatchedCall>>,
    answers: Vec<oneshot::Sender<Answer<W>>>,
    bytes: usize,
}

impl<W: Batched> Batch<W> {
    fn new() -> Self {
        Self { writes: Vec::new(), calls: Vec::new(), answers: Vec::new(), bytes: 0 }
    }

    /// Distributes writes over batches.
    pub(super) fn split(mut writes: Vec<Queued<W>>, has_one_owner: bool) -> Vec<Self> {
        writes.sort_unstable_by(|one, other| one.write.task().cmp(other.write.task()));
        let (mut batches, mut batch) = (Vec::new(), Self::new());
        for next in writes {
            if !batch.has_room_for(&next.write, has_one_owner) {
                batches.push(std::mem::replace(&mut batch, Self::new()));
            }
            batch.push(next);
        }
        batches.push(batch);
        batches
    }

    fn has_room_for(&self, next: &W, has_one_owner: bool) -> bool {
        let Some(last) = self.writes.last() else { return true };
        self.writes.len() < MAX_RECORDS
            && self.bytes + next.payload() <= MAX_BYTES
            && last.task() != next.task()
            && (!has_one_owner || owner(last.task()) == owner(next.task()))
            && last.may_join(next)
    }

    fn push(&mut self, Queued { write, call, answer }: Queued<W>) {
        self.bytes += write.payload();
        self.writes.push(write);
        self.calls.push(call);
        self.answers.push(answer);
    }

    /// Sends the batch, and answers its callers.
    pub(super) async fn commit(mut self, transport: Arc<Transport>) {
        // All callers give up within this limit, because their calls began earlier.
        let Ok(sent) = timeout(transport.limit, self.send(&transport)).await else { return };
        match sent {
            Ok(replies) => self.answer(replies),
            // The server refused the whole batch because of one key, and wrote nothing.
            Err(CommandError::ErrorReply(error)) if self.writes.len() > 1 && concerns_one_key(&error) => {
                self.answer_each(|write| Answer::Alone(write));
            }
            Err(failure) => self.answer_each(|_| Answer::Reply(Err(failure.clone()))),
        }
    }

    async fn send(&mut self, transport: &Transport) -> Result<Replies<W>, CommandError> {
        loop {
            self.remove_given_up();
            let sent = match self.writes.is_empty() {
                true => return Ok(Replies { each: Vec::new(), unconfirmed: None }),
                false => W::send(&self.writes, transport, &self.calls).await,
            };
            let is_incomplete = self.calls.iter().any(|call| call.is_given_up());
            if !(is_incomplete && matches!(sent, Err(CommandError::NotSent(_)))) {
                return sent;
            }
        }
    }

    fn remove_given_up(&mut self) {
        for at in (0..self.calls.len()).rev() {
            if self.calls[at].is_given_up() {
                self.writes.remove(at);
                self.calls.remove(at);
                self.answers.remove(at);
            }
        }
    }

    fn answer(self, Replies { each, unconfirmed }: Replies<W>) {
        let mut each = each.into_iter();
        self.answer_each(|write| match (each.next().flatten(), &unconfirmed) {
            (None, _) => Answer::Alone(write),
            (Some(Ok(_)), Some(unconfirmed)) => Answer::Reply(Err(unconfirmed.clone())),
            (Some(reply), _) => Answer::Reply(reply),
        });
    }

    fn answer_each(self, mut answer: impl FnMut(W) -> Answer<W>) {
        for (write, caller) in self.writes.into_iter().zip(self.answers) {
            // An error means that the caller has given up.
            let _ = caller.send(answer(write));
        }
    }
}

/// Sends one write for its caller.
pub(super) async fn send_one<W: Batched>(transport: &Transport, write: W, call: &CallInFlight) -> Answer<W> {
    let sent = W::send(std::slice::from_ref(&write), transport, call).await;
    call.clear();
    match sent {
        Err(failure) | Ok(Replies { unconfirmed: Some(failure), .. }) => Answer::Reply(Err(failure)),
        Ok(Replies { each, unconfirmed: None }) => match each.into_iter().next().flatten() {
            Some(reply) => Answer::Reply(reply),
            None => Answer::Alone(write),
        },
    }
}

/// Returns the part of a record's key that names its owner. No encoded id contains a colon.
fn owner(task: &str) -> &str {
    task.rsplit_once(':').map_or(task, |(owner, _)| owner)
}

//! One batch: which writes it holds, and how their callers receive its reply.

use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::queue::Queued;
use super::{Answer, Batched, Replies, Transport};
use crate::redis::error::concerns_one_key;
use crate::redis::in_flight::{BatchedCall, CallInFlight, InFlight};
use crate::redis::reply::CommandError;
use crate::telemetry;

/// A script with more records would occupy the server for too long.
const MAX_RECORDS: usize = 32;
const MAX_BYTES: usize = 256 * 1024;
/// The label of these batches in the metrics.
const ENGINE: &str = "redis";
/// How much later than its own time limit a caller on a busy machine may observe it.
const GRACE: Duration = Duration::from_secs(1);

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
        // All callers give up before, because their calls began earlier. Each of them must observe its own time limit, not the
        // end of this task.
        let Ok(sent) = timeout(transport.limit + GRACE, self.send(&transport)).await else { return };
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
                true => return Ok(Replies { each: SmallVec::new(), unconfirmed: None }),
                false => {
                    telemetry::batch(ENGINE, self.writes.len());
                    W::send(&self.writes, transport, &self.calls).await
                }
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
        self.answer_each(|write| answer(write, each.next().flatten(), unconfirmed.as_ref()));
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
    telemetry::batch(ENGINE, 1);
    let sent = W::send(std::slice::from_ref(&write), transport, call).await;
    call.clear();
    match sent {
        Ok(Replies { each, unconfirmed }) => {
            answer(write, each.into_iter().next().flatten(), unconfirmed.as_ref())
        }
        Err(failure) => Answer::Reply(Err(failure)),
    }
}

/// Returns what the caller of a write receives. A write that the server refused needs no confirmation.
fn answer<W: Batched>(
    write: W,
    reply: Option<Result<W::Reply, CommandError>>,
    unconfirmed: Option<&CommandError>,
) -> Answer<W> {
    match (reply, unconfirmed) {
        (None, _) => Answer::Alone(write),
        (Some(Ok(_)), Some(unconfirmed)) => Answer::Reply(Err(unconfirmed.clone())),
        (Some(reply), _) => Answer::Reply(reply),
    }
}

/// Returns the part of a record's key that names its owner. No encoded id contains a colon.
fn owner(task: &str) -> &str {
    task.rsplit_once(':').map_or(task, |(owner, _)| owner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::reply::Unconfirmed;
    use crate::scripts::{CasPut, Kept};
    use redis::ErrorKind;
    use rstest::rstest;

    fn write(owner: &str, task: usize, bytes: usize) -> CasPut {
        let (task, data) = (format!("pmcp:tasks:{owner}:{task:03}"), vec![b'x'; bytes].into());
        CasPut { task, data, expected: 1.into(), next: 2.into(), channel: None }
    }

    fn queued(write: CasPut) -> Queued<CasPut> {
        Queued { write, call: Arc::default(), answer: oneshot::channel().0 }
    }

    /// Returns the number of records of each batch.
    fn sizes(writes: impl IntoIterator<Item = CasPut>, has_one_owner: bool) -> Vec<usize> {
        let batches = Batch::split(writes.into_iter().map(queued).collect(), has_one_owner);
        batches.iter().map(|batch| batch.writes.len()).collect()
    }

    #[test]
    fn a_batch_has_at_most_32_records_and_256_kib() {
        assert_eq!(sizes((0..70).map(|task| write("alice", task, 10)), false), [32, 32, 6]);
        assert_eq!(sizes((0..5).map(|task| write("alice", task, 100 * 1024)), false), [2, 2, 1]);
        assert_eq!(sizes((0..2).map(|task| write("alice", task, 300 * 1024)), false), [1, 1]);
    }

    #[test]
    fn a_batch_has_each_task_once() {
        let tasks = [1, 0, 1, 2, 1].map(|task| write("alice", task, 10));
        let batches = Batch::split(tasks.map(queued).into(), false);
        for batch in &batches {
            assert!(batch.writes.windows(2).all(|two| two[0].task < two[1].task));
        }
        assert_eq!(batches.iter().map(|batch| batch.writes.len()).sum::<usize>(), 5);
    }

    #[test]
    fn a_batch_has_one_owner_if_the_owners_may_be_on_different_servers() {
        let writes =
            || ["a", "a-b", "b", "a"].into_iter().enumerate().map(|(task, owner)| write(owner, task, 10));
        assert_eq!(sizes(writes(), false), [4]);
        let mut each = sizes(writes(), true);
        each.sort_unstable();
        assert_eq!(each, [1, 1, 2]);
    }

    #[rstest]
    #[case::written(Some(Ok(Kept(None))), "TooFewReplicas")]
    #[case::refused(Some(Err(CommandError::NotSent((ErrorKind::Client, "refused").into()))), "NotSent")]
    #[case::left_out(None, "alone")]
    fn only_a_write_that_was_applied_needs_the_confirmation_of_replicas(
        #[case] reply: Option<Result<Kept, CommandError>>,
        #[case] expected: &str,
    ) {
        let replicas = Unconfirmed { wanted: 1, acknowledged: 0, within: Duration::from_secs(1) };
        let unconfirmed = CommandError::TooFewReplicas { replicas, reply: None, cause: None };
        let received = match answer(write("alice", 1, 1), reply, Some(&unconfirmed)) {
            Answer::Alone(_) => "alone".to_owned(),
            Answer::Reply(reply) => format!("{:?}", reply.map(|_| ()).unwrap_err()),
        };
        assert!(received.starts_with(expected), "{received}");
    }
}

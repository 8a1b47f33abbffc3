//! A call as the threads of the engine run it.

use std::time::Instant;

use tokio::sync::oneshot;

use super::error::Failure;
use super::transaction::Transaction;
use crate::backend::StorageError;

/// A call that writes. One transaction may serve several calls. It may run several times: a transaction that fails is
/// rolled back, and each of its calls runs again in a transaction of its own.
pub(super) trait Write: Send {
    /// When the call was made.
    fn since(&self) -> Instant;

    /// Returns whether the caller has dropped the call. It must then not run.
    fn is_given_up(&self) -> bool;

    /// Runs the call inside a transaction, and keeps its result.
    ///
    /// # Errors
    /// An error of SQLite. The transaction must then be rolled back.
    fn run(&mut self, transaction: &mut Transaction<'_>) -> rusqlite::Result<()>;

    /// Sends the result to the caller. The transaction was committed.
    fn committed(self: Box<Self>);

    /// Sends an error to the caller.
    fn failed(self: Box<Self>, error: StorageError);
}

struct Call<T, F> {
    since: Instant,
    run: F,
    result: Option<Result<T, StorageError>>,
    answer: oneshot::Sender<Result<T, StorageError>>,
}

/// Creates a write. Its result arrives at the receiver.
pub(super) fn write<T, F>(run: F) -> (Box<dyn Write>, oneshot::Receiver<Result<T, StorageError>>)
where
    T: Send + 'static,
    F: FnMut(&mut Transaction<'_>) -> Result<T, Failure> + Send + 'static,
{
    let (answer, receiver) = oneshot::channel();
    (Box::new(Call { since: Instant::now(), run, result: None, answer }), receiver)
}

impl<T, F> Write for Call<T, F>
where
    T: Send,
    F: FnMut(&mut Transaction<'_>) -> Result<T, Failure> + Send,
{
    fn since(&self) -> Instant {
        self.since
    }

    fn is_given_up(&self) -> bool {
        self.answer.is_closed()
    }

    fn run(&mut self, transaction: &mut Transaction<'_>) -> rusqlite::Result<()> {
        self.result = Some(match (self.run)(transaction) {
            Ok(value) => Ok(value),
            Err(Failure::Refused(error)) => Err(error),
            Err(Failure::Sqlite(error)) => return Err(error),
        });
        Ok(())
    }

    fn committed(self: Box<Self>) {
        if let Some(result) = self.result {
            // A caller that has dropped the call needs no result.
            let _ = self.answer.send(result);
        }
    }

    fn failed(self: Box<Self>, error: StorageError) {
        let _ = self.answer.send(Err(error));
    }
}

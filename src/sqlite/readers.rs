//! The threads that read. A read sees every write that was acknowledged before it began, and waits for no write.
//!
//! To wake a thread costs more than a small read. So a thread sleeps only when no read waits, and a read wakes at most one thread: if
//! more reads wait then, that thread wakes the next one. The thread that fell asleep last is woken first, because its page cache is the
//! most recent one.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Thread;
use std::time::Duration;

use rusqlite::Connection;

use super::open::{File, Session};
use crate::backend::StorageError;

/// How many reads run at the same time.
const READERS: usize = 4;

/// A call that reads.
pub(super) type Read = Box<dyn FnOnce(&Connection) + Send>;

/// The handle of the threads. They end when it is dropped.
pub(super) struct Readers(Arc<Queue>);

#[derive(Default)]
struct Queue(Mutex<State>);

#[derive(Default)]
struct State {
    waiting: VecDeque<Read>,
    /// How many threads have not ended.
    threads: usize,
    /// Those that sleep. The last one fell asleep last.
    asleep: Vec<Thread>,
    /// Whether a thread was woken and has not looked for a read yet.
    is_waking: bool,
    is_closed: bool,
}

impl Readers {
    /// Starts the threads.
    ///
    /// # Errors
    /// The errors of an open, and `Unavailable` if the system starts no thread.
    pub(super) fn start(file: &File) -> Result<Self, StorageError> {
        let readers = Self(Arc::default());
        for number in 0..READERS {
            let (session, limit) = (file.open_reader()?, file.errors.busy_timeout);
            let serving = Serving::new(&readers.0);
            let thread = std::thread::Builder::new().name(format!("sqlite-reader-{number}"));
            let started = thread.spawn(move || serving.serve(&session, limit));
            started.map_err(|error| {
                file.errors.unavailable("the system starts no thread for reads", false, Some(error.into()))
            })?;
        }
        Ok(readers)
    }

    /// Runs a read on one of the threads. Drops it if no thread runs any more.
    pub(super) fn run(&self, read: Read) {
        let mut state = self.0.state();
        if state.threads == 0 {
            return;
        }
        state.waiting.push_back(read);
        self.0.wake_one(state);
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.is_closed = true;
        state.asleep.drain(..).for_each(|thread| thread.unpark());
    }
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes a thread if a read waits, a thread sleeps, and none is waking up.
    fn wake_one(&self, mut state: MutexGuard<'_, State>) {
        if state.waiting.is_empty() || state.is_waking {
            return;
        }
        if let Some(thread) = state.asleep.pop() {
            state.is_waking = true;
            drop(state);
            thread.unpark();
        }
    }

    /// Waits for a read. Returns `None` once the handle was dropped.
    fn next(&self) -> Option<Read> {
        let this = std::thread::current();
        let mut state = self.state();
        loop {
            if let Some(read) = state.waiting.pop_front() {
                self.wake_one(state);
                return Some(read);
            }
            if state.is_closed {
                return None;
            }
            state.asleep.push(this.clone());
            drop(state);
            std::thread::park();
            state = self.state();
            // A thread may also wake up without a reason.
            state.asleep.retain(|thread| thread.id() != this.id());
            state.is_waking = false;
        }
    }
}

/// A thread that serves the queue, from before its start until its end.
struct Serving(Arc<Queue>);

impl Serving {
    fn new(queue: &Arc<Queue>) -> Self {
        queue.state().threads += 1;
        Self(Arc::clone(queue))
    }

    fn serve(self, session: &Session, limit: Duration) {
        while let Some(read) = self.0.next() {
            session.wait_for(limit);
            read(&session.connection);
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.threads -= 1;
        if state.threads == 0 {
            // Their callers receive an error.
            let abandoned = std::mem::take(&mut state.waiting);
            drop(state);
            drop(abandoned);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::mpsc::{RecvTimeoutError, channel};

    use super::*;
    use crate::sqlite::error::Errors;
    use crate::sqlite::settings::Synchronous;

    const LIMIT: Duration = Duration::from_secs(60);

    fn readers() -> (Readers, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let errors = Errors { address: "tasks.db".to_owned(), busy_timeout: LIMIT };
        let path = folder.path().join("tasks.db");
        let file =
            File { path, synchronous: Synchronous::Normal, max_file_bytes: None, must_exist: false, errors };
        file.open_writer().unwrap();
        (Readers::start(&file).unwrap(), folder)
    }

    #[test]
    fn as_many_reads_as_there_are_threads_run_at_the_same_time() {
        let (readers, _folder) = readers();
        for round in 0..1_000 {
            let (all, (done, dones)) = (Arc::new(Barrier::new(READERS)), channel());
            for _ in 0..READERS {
                let (all, done) = (Arc::clone(&all), done.clone());
                readers.run(Box::new(move |_| {
                    all.wait();
                    done.send(()).unwrap();
                }));
            }
            for _ in 0..READERS {
                dones.recv_timeout(LIMIT).unwrap_or_else(|error| panic!("round {round}: {error}"));
            }
        }
    }

    #[test]
    fn reads_are_dropped_once_no_thread_runs() {
        let (readers, _folder) = readers();
        let (done, dones) = channel::<()>();
        for _ in 0..=READERS {
            let done = done.clone();
            readers.run(Box::new(move |_| {
                let _held = done;
                panic!("a read that panics ends its thread");
            }));
        }
        drop(done);
        assert_eq!(dones.recv_timeout(LIMIT), Err(RecvTimeoutError::Disconnected));
    }
}

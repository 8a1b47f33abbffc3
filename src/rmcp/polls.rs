//! Polls of one task that are under way at the same time share one read.
//!
//! A poll must see every write that was acknowledged before the poll began. So a poll never takes the result of a read
//! that had begun before it. It waits for the end of that read, and shares the next one with every poll that waits too.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::Mutex as Lock;
use tokio::time::timeout;

use crate::backend::TaskKey;

/// How long a poll waits for the end of an earlier read. Then it reads on its own, because that read may hang.
const PATIENCE: Duration = Duration::from_secs(1);

/// The polls that are under way. A task without polls has no entry.
pub(super) struct Polls<T>(Mutex<HashMap<TaskKey, TaskPolls<T>>>);

impl<T> Default for Polls<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

/// The polls of one task.
struct TaskPolls<T> {
    polls: usize,
    /// The poll that reads holds this lock. It is first come, first served.
    reading: Arc<Lock<()>>,
    /// The next read, which has not begun.
    next: Arc<SharedRead<T>>,
}

impl<T> Default for TaskPolls<T> {
    fn default() -> Self {
        Self { polls: 0, reading: Arc::default(), next: Arc::default() }
    }
}

/// One read. Every poll that shares it began before the read.
struct SharedRead<T> {
    /// Empty before the end of the read; `None` if the read has failed.
    result: OnceLock<Option<T>>,
}

impl<T> Default for SharedRead<T> {
    fn default() -> Self {
        Self { result: OnceLock::new() }
    }
}

/// One poll of a task, until it is dropped.
struct Poll<'a, T> {
    polls: &'a Polls<T>,
    key: &'a TaskKey,
    reading: Arc<Lock<()>>,
    read: Arc<SharedRead<T>>,
}

impl<T: Clone> Polls<T> {
    /// Polls a task with this read, or shares the read of another poll. Polls whose shared read has failed read on their own.
    pub(super) async fn poll<E>(
        &self,
        key: &TaskKey,
        read: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let mut read = pin!(read);
        let poll = self.join(key);
        if let Ok(turn) = timeout(PATIENCE, poll.reading.lock()).await {
            match poll.read.result.get() {
                Some(Some(result)) => return Ok(result.clone()),
                Some(None) => drop(turn),
                None => {
                    poll.begin();
                    let result = read.await;
                    poll.end(result.as_ref().ok());
                    return result;
                }
            }
        }
        read.as_mut().await
    }

    fn join<'a>(&'a self, key: &'a TaskKey) -> Poll<'a, T> {
        let mut entries = self.entries();
        let task = entries.entry(key.clone()).or_default();
        task.polls += 1;
        Poll { polls: self, key, reading: Arc::clone(&task.reading), read: Arc::clone(&task.next) }
    }
}

impl<T> Polls<T> {
    /// No code panics while it holds the lock.
    fn entries(&self) -> MutexGuard<'_, HashMap<TaskKey, TaskPolls<T>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Clone> Poll<'_, T> {
    /// Begins the shared read. From now on no other poll can join it.
    fn begin(&self) {
        if let Some(task) = self.polls.entries().get_mut(self.key)
            && Arc::ptr_eq(&task.next, &self.read)
        {
            task.next = Arc::default();
        }
    }

    /// Ends the shared read. Copies the result only if other polls share it.
    fn end(&self, result: Option<&T>) {
        if Arc::strong_count(&self.read) > 1 {
            // The result is empty: only the poll that holds the lock sets it.
            let _ = self.read.result.set(result.cloned());
        }
    }
}

impl<T> Drop for Poll<'_, T> {
    fn drop(&mut self) {
        let mut entries = self.polls.entries();
        if let Some(task) = entries.get_mut(self.key) {
            task.polls -= 1;
            if task.polls == 0 {
                entries.remove(self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::pin::Pin;

    use futures_util::future::join_all;
    use tokio::sync::Notify;

    use super::*;

    /// A task whose reads a test holds back.
    #[derive(Default)]
    struct Task {
        polls: Polls<u32>,
        value: Cell<u32>,
        reads: Cell<usize>,
        answers: RefCell<Vec<Arc<Notify>>>,
        begun: Notify,
    }

    type PolledTask<'a> = Pin<Box<dyn Future<Output = Result<u32, String>> + 'a>>;

    impl Task {
        /// Starts a poll. Its read takes the value when it begins, and ends when the test answers it. A value of 0 fails.
        fn poll(&self) -> PolledTask<'_> {
            let mut poll: PolledTask<'_> = Box::pin(async {
                let key = TaskKey::new("alice", "t1").unwrap();
                let read = async {
                    let (value, answer) = (self.value.get(), Arc::<Notify>::default());
                    self.reads.set(self.reads.get() + 1);
                    self.answers.borrow_mut().push(Arc::clone(&answer));
                    self.begun.notify_waiters();
                    answer.notified().await;
                    if value == 0 { Err("failed".to_owned()) } else { Ok(value) }
                };
                self.polls.poll(&key, read).await
            });
            assert!(futures_util::FutureExt::now_or_never(&mut poll).is_none(), "no read has an answer");
            poll
        }

        /// Waits until this many reads have begun.
        async fn begin(&self, reads: usize) {
            loop {
                let begun = self.begun.notified();
                if self.reads.get() >= reads {
                    return;
                }
                begun.await;
            }
        }

        /// Answers a read, which may begin later.
        async fn answer(&self, read: usize) {
            self.begin(read + 1).await;
            self.answers.borrow()[read].notify_one();
        }
    }

    #[tokio::test]
    async fn polls_that_begin_during_a_read_share_the_next_one() {
        let task = Task::default();
        task.value.set(1);
        let polls: Vec<_> = (0..50).map(|_| task.poll()).collect();
        let (polled, ..) = tokio::join!(join_all(polls), task.answer(0), task.answer(1));
        assert_eq!((polled, task.reads.get()), (vec![Ok(1); 50], 2));
        assert!(task.polls.entries().is_empty());
    }

    #[tokio::test]
    async fn a_poll_that_begins_after_a_write_sees_it_although_an_earlier_read_is_under_way() {
        let task = Task::default();
        task.value.set(1);
        let (first, second) = (task.poll(), task.poll());
        task.value.set(2);
        let third = task.poll();
        let polled = async { tokio::join!(first, second, third) };
        let (polled, ..) = tokio::join!(polled, task.answer(0), task.answer(1));
        assert_eq!((polled, task.reads.get()), ((Ok(1), Ok(2), Ok(2)), 2));
    }

    #[tokio::test]
    async fn a_poll_takes_over_the_shared_read_of_a_poll_that_is_dropped() {
        let task = Task::default();
        task.value.set(1);
        let mut polls = [task.poll(), task.poll(), task.poll(), task.poll()].map(Some);
        for (number, poll) in polls.iter_mut().enumerate().take(3) {
            if let Some(mut poll) = poll.take() {
                assert!(futures_util::FutureExt::now_or_never(&mut poll).is_none());
                assert_eq!(task.reads.get(), number + 1);
            }
        }
        let last = polls[3].take().unwrap();
        let (polled, ()) = tokio::join!(last, task.answer(3));
        assert_eq!((polled, task.reads.get()), (Ok(1), 4));
        assert!(task.polls.entries().is_empty());
    }

    #[tokio::test]
    async fn polls_whose_shared_read_fails_read_on_their_own_at_the_same_time() {
        let task = Task::default();
        let mut polls: Vec<_> = (0..4).map(|_| task.poll()).collect();
        let first = polls.remove(0);
        let (polled, ()) = tokio::join!(first, task.answer(0));
        assert_eq!(polled, Err("failed".to_owned()));
        let answers = async {
            task.answer(1).await;
            // The reads of both other polls begin before either has an answer.
            task.begin(4).await;
            task.answer(2).await;
            task.answer(3).await;
        };
        let (polled, ()) = tokio::join!(join_all(polls), answers);
        assert_eq!((polled, task.reads.get()), (vec![Err("failed".to_owned()); 3], 4));
    }

    #[tokio::test(start_paused = true)]
    async fn a_poll_does_not_wait_for_a_read_that_hangs() {
        let task = Task::default();
        task.value.set(1);
        let (_hangs, second) = (task.poll(), task.poll());
        let (polled, ()) = tokio::join!(second, task.answer(1));
        assert_eq!((polled, task.reads.get()), (Ok(1), 2));
    }
}

//! The timers of an agenda that lives in this process.

use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_core::stream::BoxStream;
use futures_util::stream;
use tokio::sync::watch;

use super::agenda::{MAX_TAKEN, delay_millis};
use super::{Cursor, Due, Next, Queue, StorageError, Taken, TaskKey, Timer, TimerPage, from_millis};

/// All timers of an agenda in this process. Each call receives the time, in milliseconds since the epoch.
#[derive(Debug, Default)]
pub(crate) struct Timers(Mutex<Queues>);

#[derive(Debug, Default)]
struct Queues {
    by_name: HashMap<Queue, Timetable>,
    /// A number for each time that a timer was written, so that no token is given twice.
    writes: u64,
    /// One for each subscriber of wakeups.
    subscribers: Vec<(Vec<Queue>, watch::Sender<()>)>,
}

/// The timers of one queue.
#[derive(Debug, Default)]
struct Timetable {
    by_time: BTreeSet<(u64, TaskKey)>,
    /// When the timer of a task fires, and the number of the write that said so.
    by_task: HashMap<TaskKey, (u64, u64)>,
}

impl Timetable {
    fn set(&mut self, key: &TaskKey, at: u64, write: u64) {
        if let Some((before, _)) = self.by_task.insert(key.clone(), (at, write)) {
            self.by_time.remove(&(before, key.clone()));
        }
        self.by_time.insert((at, key.clone()));
    }

    fn remove(&mut self, key: &TaskKey) {
        if let Some((at, _)) = self.by_task.remove(key) {
            self.by_time.remove(&(at, key.clone()));
        }
    }

    fn first(&self) -> Option<u64> {
        self.by_time.first().map(|(at, _)| *at)
    }
}

impl Queues {
    fn next_write(&mut self) -> u64 {
        self.writes += 1;
        self.writes
    }

    /// Notifies the subscribers of a queue that its earliest timer is earlier than before.
    fn wake(&mut self, queue: &Queue) {
        self.subscribers.retain(|(_, wake)| wake.receiver_count() > 0);
        for (_, wake) in self.subscribers.iter().filter(|(queues, _)| queues.contains(queue)) {
            wake.send_replace(());
        }
    }
}

impl Timers {
    /// Nothing panics while it holds the queues.
    fn queues(&self) -> MutexGuard<'_, Queues> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn schedule(
        &self,
        queue: &Queue,
        key: &TaskKey,
        after: Duration,
        now: u64,
    ) -> Result<(), StorageError> {
        let asked = now + delay_millis(after)?;
        let mut queues = self.queues();
        let write = queues.next_write();
        let timetable = queues.by_name.entry(queue.clone()).or_default();
        let first = timetable.first();
        let at = timetable.by_task.get(key).map_or(asked, |(before, _)| asked.min(*before));
        timetable.set(key, at, write);
        if first.is_none_or(|first| at < first) {
            queues.wake(queue);
        }
        Ok(())
    }

    pub(crate) fn take_due(
        &self,
        names: &[Queue],
        limit: usize,
        hide_for: Duration,
        now: u64,
    ) -> Result<Taken, StorageError> {
        let hidden_until = now + delay_millis(hide_for)?;
        let limit = limit.min(MAX_TAKEN);
        let mut queues = self.queues();
        let mut due = Vec::new();
        let mut next: Option<u64> = None;
        for name in names {
            let mut writes = queues.writes;
            let Some(timetable) = queues.by_name.get_mut(name) else { continue };
            // Found before any is moved, or one that is hidden for no time would be taken again and again.
            let is_due = |(at, _): &&(u64, TaskKey)| *at <= now;
            let found = timetable.by_time.iter().take_while(is_due).take(limit - due.len());
            let keys: Vec<TaskKey> = found.map(|(_, key)| key.clone()).collect();
            for key in keys {
                writes += 1;
                timetable.set(&key, hidden_until, writes);
                due.push(Due::new(name.clone(), key, writes.to_string()));
            }
            next = [next, timetable.first()].into_iter().flatten().min();
            queues.writes = writes;
        }
        let next_in = next.map(|at| Duration::from_millis(at.saturating_sub(now)));
        Ok(Taken::new(due, next_in))
    }

    pub(crate) fn resolve(&self, due: &Due, next: Next, now: u64) -> Result<bool, StorageError> {
        let at = match next {
            Next::After(after) => Some(now + delay_millis(after)?),
            Next::Remove => None,
        };
        let mut queues = self.queues();
        let write = queues.next_write();
        let Some(timetable) = queues.by_name.get_mut(&due.queue) else { return Ok(false) };
        let is_valid = timetable
            .by_task
            .get(&due.key)
            .is_some_and(|(_, write)| due.token.parse::<u64>().is_ok_and(|token| token == *write));
        if is_valid {
            let first = timetable.first();
            match at {
                Some(at) => timetable.set(&due.key, at, write),
                None => timetable.remove(&due.key),
            }
            if timetable.by_task.is_empty() {
                queues.by_name.remove(&due.queue);
            }
            // Other takers may have seen it hidden for longer.
            if at.is_some_and(|at| first.is_none_or(|first| at < first)) {
                queues.wake(&due.queue);
            }
        }
        Ok(is_valid)
    }

    /// Items for the subscriber of these queues, for as long as it holds the stream.
    pub(crate) fn wakeups(&self, queues: &[Queue]) -> BoxStream<'static, ()> {
        let (wake, woken) = watch::channel(());
        self.queues().subscribers.push((queues.to_vec(), wake));
        Box::pin(stream::unfold(woken, |mut woken| async {
            if woken.changed().await.is_err() {
                // The agenda is gone, and with it all that could become due.
                std::future::pending::<()>().await;
            }
            Some(((), woken))
        }))
    }

    pub(crate) fn timers(&self, queue: &Queue, after: Option<&Cursor>) -> Result<TimerPage, StorageError> {
        let after = after.map(position).transpose()?;
        let queues = self.queues();
        let Some(timetable) = queues.by_name.get(queue) else {
            return Ok(TimerPage::default());
        };
        let behind = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut listed = timetable.by_time.range((behind, Bound::Unbounded));
        let timers: Vec<Timer> = listed
            .by_ref()
            .take(MAX_TAKEN)
            .map(|(at, key)| Timer::new(key.clone(), from_millis(*at)))
            .collect();
        let last = timers.last().filter(|_| listed.next().is_some());
        let next = last.map(|last| Cursor::from(format!("{}.{}", last.due_at.timestamp_millis(), last.key)));
        Ok(TimerPage::new(timers, timetable.by_task.len() as u64, next))
    }
}

/// The time and the key that a cursor of `timers` stands for.
fn position(cursor: &Cursor) -> Result<(u64, TaskKey), StorageError> {
    let malformed = || StorageError::InvalidPage { reason: "the cursor is malformed".to_owned() };
    let (at, key) = cursor.as_str().split_once('.').ok_or_else(malformed)?;
    Ok((at.parse().map_err(|_| malformed())?, key.parse().map_err(|_| malformed())?))
}

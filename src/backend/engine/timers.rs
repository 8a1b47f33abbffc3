//! A table of timers in the memory of this process.

use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_core::stream::BoxStream;

use super::time::{delay_millis, from_millis};
use super::wakers::Wakers;
use crate::backend::agenda::{Due, Next, Taken, Timer, TimerPage};
use crate::backend::error::StorageError;
use crate::backend::key::TaskKey;
use crate::backend::page::Cursor;
use crate::backend::queue::Queue;

/// The maximum number of timers that one [`take_due`](crate::Agenda::take_due) takes, and that one page of
/// [`timers`](crate::Agenda::timers) holds.
pub const MAX_TAKEN: usize = 256;

/// The timers of an [`Agenda`](crate::Agenda) in the memory of one process. The engine passes the time on its clock
/// to each call.
#[derive(Debug, Default)]
pub struct Timers(Mutex<Queues>);

#[derive(Debug, Default)]
struct Queues {
    by_name: HashMap<Queue, Timetable>,
    /// Counts the writes of timers. Each token contains the number of its write, so that no token is used twice.
    writes: u64,
    wakers: Wakers,
}

/// The timers of one queue.
#[derive(Debug, Default)]
struct Timetable {
    by_time: BTreeSet<(u64, TaskKey)>,
    /// When the timer of a task fires, and the number of the write that set it.
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
        self.wakers.remove_left();
        self.wakers.wake(queue);
    }
}

impl Timers {
    /// Locks the queues. No code panics while it holds the lock, so the queues behind a poisoned lock are consistent.
    fn queues(&self) -> MutexGuard<'_, Queues> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Implements [`Agenda::schedule`](crate::Agenda::schedule).
    ///
    /// # Errors
    /// [`StorageError::InvalidExpiry`] for a delay of more than 100 years.
    pub fn schedule(
        &self,
        queue: &Queue,
        key: &TaskKey,
        after: Duration,
        now: DateTime<Utc>,
    ) -> Result<(), StorageError> {
        let asked = millis(now) + delay_millis(after)?;
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

    /// Implements [`Agenda::take_due`](crate::Agenda::take_due).
    ///
    /// # Errors
    /// [`StorageError::InvalidExpiry`] for a delay of more than 100 years.
    pub fn take_due(
        &self,
        names: &[Queue],
        limit: usize,
        hide_for: Duration,
        now: DateTime<Utc>,
    ) -> Result<Taken, StorageError> {
        let now = millis(now);
        let hidden_until = now + delay_millis(hide_for)?;
        let limit = limit.min(MAX_TAKEN);
        let mut queues = self.queues();
        let mut due = Vec::new();
        let mut next: Option<u64> = None;
        for name in names {
            let mut writes = queues.writes;
            let Some(timetable) = queues.by_name.get_mut(name) else { continue };
            // Collect all due timers before you move the first one. Otherwise this loop would take a timer with a
            // `hide_for` of zero again and again.
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

    /// Implements [`Agenda::resolve`](crate::Agenda::resolve).
    ///
    /// # Errors
    /// [`StorageError::InvalidExpiry`] for a delay of more than 100 years.
    pub fn resolve(&self, due: &Due, next: Next, now: DateTime<Utc>) -> Result<bool, StorageError> {
        let at = match next {
            Next::After(after) => Some(millis(now) + delay_millis(after)?),
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
            // Other takers may have received a later `next_in`.
            if at.is_some_and(|at| first.is_none_or(|first| at < first)) {
                queues.wake(&due.queue);
            }
        }
        Ok(is_valid)
    }

    /// Implements [`Agenda::wakeups`](crate::Agenda::wakeups).
    pub fn wakeups(&self, queues: &[Queue]) -> BoxStream<'static, ()> {
        self.queues().wakers.subscribe(queues)
    }

    /// Implements [`Agenda::timers`](crate::Agenda::timers).
    ///
    /// # Errors
    /// [`StorageError::InvalidPage`] for a cursor that is malformed.
    pub fn timers(&self, queue: &Queue, after: Option<&Cursor>) -> Result<TimerPage, StorageError> {
        let after = after.map(timer_position).transpose()?;
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
        let next = timers.last().filter(|_| listed.next().is_some()).map(timer_cursor);
        Ok(TimerPage::new(timers, timetable.by_task.len() as u64, next))
    }
}

/// Converts a time of the engine's clock, at or after the Unix epoch.
fn millis(at: DateTime<Utc>) -> u64 {
    u64::try_from(at.timestamp_millis()).unwrap_or(0)
}

/// Returns the cursor of the page of `timers` that follows this timer.
pub(crate) fn timer_cursor(last: &Timer) -> Cursor {
    Cursor::from(format!("{}.{}", last.due_at.timestamp_millis(), last.key))
}

/// Returns the time and the key in a cursor of `timers`.
pub(crate) fn timer_position(cursor: &Cursor) -> Result<(u64, TaskKey), StorageError> {
    let malformed = || StorageError::InvalidPage { reason: "the cursor is malformed".to_owned() };
    let (at, key) = cursor.as_str().split_once('.').ok_or_else(malformed)?;
    Ok((at.parse().map_err(|_| malformed())?, key.parse().map_err(|_| malformed())?))
}

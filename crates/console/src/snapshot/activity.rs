//! How many tasks were created, started and ended in each minute of the last hour, as the snapshot has observed it.

use std::collections::VecDeque;

use chrono::{DateTime, Utc};
use mcp_task_store::TaskStatus;

use super::entry::Entry;

/// How many minutes are counted.
pub(crate) const MINUTES: usize = 60;

/// The tasks of one minute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Minute {
    pub(crate) created: u64,
    pub(crate) started: u64,
    pub(crate) completed: u64,
    pub(crate) failed: u64,
}

/// The counts of the last hour. They outlive the records, and count a task once.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    minutes: VecDeque<Minute>,
    /// The number of the last minute, counted from the epoch.
    last: i64,
}

impl Activity {
    /// Counts what has happened to a task since `before`, its last entry.
    pub(super) fn observe(&mut self, before: Option<&Entry>, after: &Entry, now: DateTime<Utc>) {
        if before.is_none()
            && let Some(minute) = self.minute(after.created_at, now)
        {
            minute.created += 1;
        }
        if before.is_none_or(|before| before.started_at.is_none())
            && let Some(minute) = after.started_at.and_then(|at| self.minute(at, now))
        {
            minute.started += 1;
        }
        if before.is_some_and(|before| !before.is_open()) {
            return;
        }
        match (after.status, self.minute(after.changed_at, now)) {
            (TaskStatus::Completed, Some(minute)) => minute.completed += 1,
            (TaskStatus::Failed, Some(minute)) => minute.failed += 1,
            _ => {}
        }
    }

    /// Returns the minutes until now, oldest first. The last one is not over.
    pub(crate) fn until(&mut self, now: DateTime<Utc>) -> Vec<Minute> {
        self.advance(number(now));
        self.minutes.iter().copied().collect()
    }

    fn minute(&mut self, at: DateTime<Utc>, now: DateTime<Utc>) -> Option<&mut Minute> {
        self.advance(number(now));
        let age = usize::try_from(self.last - number(at)).ok()?;
        self.minutes.iter_mut().rev().nth(age)
    }

    fn advance(&mut self, to: i64) {
        self.step_back(to);
        let passed = usize::try_from(to - self.last).unwrap_or(0).min(MINUTES);
        self.minutes.extend(std::iter::repeat_n(Minute::default(), passed));
        self.minutes.drain(..self.minutes.len().saturating_sub(MINUTES));
        self.last = self.last.max(to);
    }

    /// Continues from a minute that has been counted already, if the clock of the engine was set back. What was counted in later minutes
    /// belongs to this one.
    fn step_back(&mut self, to: i64) {
        let later = usize::try_from(self.last - to).unwrap_or(0).min(self.minutes.len());
        if later == 0 {
            return;
        }
        let counted = self.minutes.split_off(self.minutes.len() - later);
        let mut sum = self.minutes.pop_back().unwrap_or_default();
        counted.iter().for_each(|minute| sum.add(minute));
        self.minutes.push_back(sum);
        while self.minutes.len() < MINUTES {
            self.minutes.push_front(Minute::default());
        }
        self.last = to;
    }
}

impl Minute {
    fn add(&mut self, other: &Self) {
        let Self { created, started, completed, failed } = other;
        self.created += created;
        self.started += started;
        self.completed += completed;
        self.failed += failed;
    }
}

fn number(time: DateTime<Utc>) -> i64 {
    time.timestamp().div_euclid(60)
}

//! Lists and counts of the snapshot.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use mcp_task_store::{OwnerId, TaskKey, TaskStatus};

use super::entry::tool_name;
use super::{Entry, Tasks};

/// How many tools the overview names.
pub(crate) const MAX_TOOLS: usize = 50;

/// Which tasks a page lists. A task must meet all conditions.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    pub(crate) owner: Option<String>,
    /// A part of the id.
    pub(crate) id: Option<String>,
    pub(crate) status: Option<TaskStatus>,
    pub(crate) tool: Option<String>,
    pub(crate) only: Option<Only>,
    pub(crate) older_than: Option<TimeDelta>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Only {
    Open,
    Stuck,
    Dead,
}

/// One page of a list.
#[derive(Debug)]
pub(crate) struct Listed<T> {
    pub(crate) items: Vec<T>,
    /// How many there are on all pages.
    pub(crate) total: usize,
}

impl Wanted {
    fn matches(&self, key: &TaskKey, entry: &Entry, now: DateTime<Utc>) -> bool {
        let from = if entry.is_open() { entry.created_at } else { entry.changed_at };
        self.owner.as_deref().is_none_or(|owner| key.owner.as_str() == owner)
            && self.status.is_none_or(|status| entry.status == status)
            && self.tool.as_deref().is_none_or(|tool| entry.tool.as_deref() == Some(tool))
            && self.older_than.is_none_or(|age| now - from > age)
            && self.id.as_deref().is_none_or(|id| key.task.as_str().contains(id))
            && match self.only {
                None => true,
                Some(Only::Open) => entry.is_open(),
                Some(Only::Stuck) => entry.is_stuck,
                Some(Only::Dead) => entry.is_dead,
            }
    }
}

/// The tasks of one status, tool or owner.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) working: u64,
    pub(crate) input_required: u64,
    pub(crate) completed: u64,
    pub(crate) failed: u64,
    pub(crate) cancelled: u64,
    /// Those that a worker could claim.
    pub(crate) queued: u64,
    pub(crate) stuck: u64,
    pub(crate) dead: u64,
}

impl Counts {
    fn add(&mut self, entry: &Entry) {
        *match entry.status {
            TaskStatus::Working => &mut self.working,
            TaskStatus::InputRequired => &mut self.input_required,
            TaskStatus::Completed => &mut self.completed,
            TaskStatus::Failed => &mut self.failed,
            TaskStatus::Cancelled => &mut self.cancelled,
        } += 1;
        self.queued += u64::from(entry.queued_since.is_some());
        self.stuck += u64::from(entry.is_stuck);
        self.dead += u64::from(entry.is_dead);
    }

    /// Adds the tasks of other counts.
    pub(crate) fn add_all(&mut self, other: &Self) {
        let Self { working, input_required, completed, failed, cancelled, queued, stuck, dead } = other;
        self.working += working;
        self.input_required += input_required;
        self.completed += completed;
        self.failed += failed;
        self.cancelled += cancelled;
        self.queued += queued;
        self.stuck += stuck;
        self.dead += dead;
    }

    pub(crate) fn open(&self) -> u64 {
        self.working + self.input_required
    }

    pub(crate) fn total(&self) -> u64 {
        self.open() + self.completed + self.failed + self.cancelled
    }
}

/// What the overview shows.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    pub(crate) all: Counts,
    /// The tools with the most tasks, and `None` for tasks without a tool.
    pub(crate) tools: Vec<(Option<String>, Counts)>,
    /// The tasks of all other tools.
    pub(crate) other_tools: Counts,
    /// How many tools there are.
    pub(crate) all_tools: usize,
    /// Since when a task could be claimed that no worker has claimed.
    pub(crate) oldest_queued: Option<DateTime<Utc>>,
    pub(crate) oldest_open: Option<(TaskKey, DateTime<Utc>)>,
    /// How many tasks have lost their worker in the last hour.
    pub(crate) lost: u64,
}

impl Tasks {
    /// Returns a page of the tasks that match, newest first. `only` is the only owner that the visitor sees.
    pub(crate) fn list(
        &self,
        only: Option<&OwnerId>,
        wanted: &Wanted,
        page: usize,
        per_page: usize,
        now: DateTime<Utc>,
    ) -> Listed<TaskKey> {
        let wanted =
            Wanted { tool: wanted.tool.as_deref().map(|tool| tool_name(tool).into()), ..wanted.clone() };
        let matching = self.of(only).filter(|(key, entry)| wanted.matches(key, entry, now));
        let matching = matching.map(|(key, entry)| (Reverse(entry.created_at), key));
        let listed = paged(matching.collect(), page, per_page);
        Listed { items: listed.items.into_iter().map(|(_, key)| key.clone()).collect(), total: listed.total }
    }

    /// Returns the tasks of one owner, or of all.
    fn of<'a>(&'a self, only: Option<&'a OwnerId>) -> impl Iterator<Item = (&'a TaskKey, &'a Entry)> {
        self.entries.iter().filter(move |(key, _)| only.is_none_or(|only| *only == key.owner))
    }

    /// Returns a page of the owners whose id contains a text, by id. `only` is the only owner that the visitor sees.
    pub(crate) fn owners(
        &self,
        only: Option<&OwnerId>,
        part: &str,
        page: usize,
        per_page: usize,
    ) -> Listed<(OwnerId, Counts)> {
        let mut owners: BTreeMap<&OwnerId, Counts> = BTreeMap::new();
        for (key, entry) in self.of(only).filter(|(key, _)| key.owner.as_str().contains(part)) {
            owners.entry(&key.owner).or_default().add(entry);
        }
        let total = owners.len();
        let items = owners.into_iter().skip(page.saturating_mul(per_page)).take(per_page);
        Listed { items: items.map(|(owner, counts)| (owner.clone(), counts)).collect(), total }
    }

    /// Returns the counts of the tasks of one owner, or of all.
    pub(crate) fn totals(&self, only: Option<&OwnerId>, now: DateTime<Utc>) -> Totals {
        let (mut totals, mut tools) = (Totals::default(), BTreeMap::<Option<&str>, Counts>::new());
        let mut oldest: Option<(&TaskKey, DateTime<Utc>)> = None;
        for (key, entry) in self.of(only) {
            totals.all.add(entry);
            tools.entry(entry.tool.as_deref()).or_default().add(entry);
            totals.lost += u64::from(entry.lost_at.is_some_and(|at| now - at <= TimeDelta::hours(1)));
            totals.oldest_queued = [totals.oldest_queued, entry.queued_since].into_iter().flatten().min();
            if entry.is_open() && oldest.is_none_or(|(_, at)| entry.created_at < at) {
                oldest = Some((key, entry.created_at));
            }
        }
        totals.oldest_open = oldest.map(|(key, at)| (key.clone(), at));
        totals.all_tools = tools.len();
        let mut tools: Vec<_> = tools.into_iter().collect();
        tools.sort_by_key(|(_, counts)| Reverse(counts.total()));
        for (_, counts) in tools.drain(MAX_TOOLS.min(tools.len())..) {
            totals.other_tools.add_all(&counts);
        }
        totals.tools = tools.into_iter().map(|(tool, counts)| (tool.map(str::to_owned), counts)).collect();
        totals
    }
}

/// Sorts only what is up to the end of the page.
fn paged<T: Ord>(mut items: Vec<T>, page: usize, per_page: usize) -> Listed<T> {
    let total = items.len();
    let begin = page.saturating_mul(per_page).min(total);
    let end = begin.saturating_add(per_page).min(total);
    if end < total {
        items.select_nth_unstable(end);
        items.truncate(end);
    }
    items.sort_unstable();
    Listed { items: items.split_off(begin), total }
}

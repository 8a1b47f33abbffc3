//! Whether the indexes and timers of a store are complete: walks through owners, records and timers at a bounded rate, in
//! bounded memory.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use indicatif::{ProgressBar, ProgressStyle};
use mcp_task_store::{
    CheckedPage, Cursor, Diagnose, FaultKind, Finding, Health, Queue, StorageError, TaskError, TaskKey, Timer,
};
use tokio::time::{Instant, sleep_until};

use crate::args::DoctorArgs;
use crate::engine::Store;
use crate::failure::Failure;
use crate::key;
use crate::output::text;

/// How many records are read at the same time.
const CONCURRENT: usize = 16;
/// From when on a timer is overdue. Servers take the timers of leases at once, and those of work when a worker is free.
const OVERDUE: Duration = Duration::from_secs(60);
const WORK_OVERDUE: Duration = Duration::from_secs(300);

/// A finding, and how many faults it stands for.
pub struct Inspection {
    pub finding: Finding,
    pub found: Option<u64>,
    pub repaired: Option<u64>,
}

impl From<Finding> for Inspection {
    fn from(finding: Finding) -> Self {
        Self { finding, found: None, repaired: None }
    }
}

/// Faults of one kind.
#[derive(Default)]
struct Tally {
    found: u64,
    repaired: u64,
    /// The first one.
    example: Option<String>,
}

impl Tally {
    fn add(&mut self, subject: impl FnOnce() -> String, is_repaired: bool) {
        self.found += 1;
        self.repaired += u64::from(is_repaired);
        self.example.get_or_insert_with(subject);
    }

    /// Returns the line of this kind. `health` is that of a fault that is left.
    fn inspection(self, check: &str, health: Health, what: &str, advice: &str) -> Inspection {
        let Self { found, repaired, example } = self;
        let example = example.map(|subject| format!("; the first is {subject}")).unwrap_or_default();
        let finding = match (found, found - repaired, health) {
            (0, ..) => Finding::green(check, "none"),
            (_, 0, _) => Finding::green(check, format!("repaired {}{example}", text::with_commas(found))),
            (_, left, Health::Yellow) => {
                Finding::yellow(check, format!("{} {what}{example}", text::with_commas(left)), advice)
            }
            (_, left, _) => {
                Finding::red(check, format!("{} {what}{example}", text::with_commas(left)), advice)
            }
        };
        Inspection { finding, found: Some(found), repaired: Some(repaired) }
    }
}

/// Examines the records and timers of a store.
pub struct Inspector {
    engine: Arc<dyn Diagnose>,
    store: Store,
    repair: bool,
    time_per_record: Duration,
    not_before: Instant,
    read: u64,
    bar: ProgressBar,
    records: u64,
    members: Tally,
    unindexed: Tally,
    counts: Tally,
    unreadable: Tally,
    open: u64,
    without_timer: Tally,
    timers: u64,
    overdue: Tally,
    without_task: Tally,
}

impl Inspector {
    pub fn new(engine: Arc<dyn Diagnose>, store: Store, args: &DoctorArgs, quiet: bool) -> Self {
        let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new_spinner() };
        bar.set_style(ProgressStyle::default_spinner());
        Self {
            engine,
            store,
            repair: args.repair,
            time_per_record: Duration::from_secs(1) / args.rate.rate.max(1),
            not_before: Instant::now(),
            read: 0,
            bar,
            records: 0,
            members: Tally::default(),
            unindexed: Tally::default(),
            counts: Tally::default(),
            unreadable: Tally::default(),
            open: 0,
            without_timer: Tally::default(),
            timers: 0,
            overdue: Tally::default(),
            without_task: Tally::default(),
        }
    }

    /// Walks through the store. Returns a line for each kind of fault.
    pub async fn run(mut self) -> Result<Vec<Inspection>, Failure> {
        self.walk_records().await?;
        self.walk_members().await?;
        self.walk_timers().await?;
        self.bar.finish_and_clear();
        Ok(self.inspections())
    }

    async fn walk_members(&mut self) -> Result<(), Failure> {
        let mut owners_after: Option<Cursor> = None;
        loop {
            let page = self.engine.owners(owners_after.as_ref()).await?;
            for owner in page.owners {
                let mut after = None;
                loop {
                    let checked = self.engine.check_members(&owner, after.as_ref(), self.repair).await?;
                    self.take_faults(&checked);
                    self.pace(checked.checked).await;
                    after = checked.next;
                    if after.is_none() {
                        break;
                    }
                }
            }
            owners_after = page.next;
            if owners_after.is_none() {
                return Ok(());
            }
        }
    }

    async fn walk_records(&mut self) -> Result<(), Failure> {
        let mut after: Option<Cursor> = None;
        loop {
            let page = self.engine.check_records(after.as_ref(), self.repair).await?;
            self.take_faults(&page);
            self.records += page.records.len() as u64;
            self.check_open_tasks(&page.records).await?;
            self.pace(page.checked).await;
            after = page.next;
            if after.is_none() {
                return Ok(());
            }
        }
    }

    fn take_faults(&mut self, page: &CheckedPage) {
        for fault in &page.faults {
            let tally = match fault.kind {
                FaultKind::MemberWithoutRecord => &mut self.members,
                FaultKind::WrongCount => &mut self.counts,
                _ => &mut self.unindexed,
            };
            tally.add(|| fault.subject.clone(), fault.is_repaired);
        }
    }

    /// Finds the open tasks with a lease that have no timer in the queue of leases.
    async fn check_open_tasks(&mut self, keys: &[TaskKey]) -> Result<(), Failure> {
        let open = self.with_open_lease(keys).await?;
        self.open += open.len() as u64;
        let leases = Queue::leases();
        let without = self.engine.without_timer(&leases, &open).await?;
        // A task that has ended meanwhile needs no timer.
        let still_open = self.with_open_lease(&without).await?;
        for key in self.engine.without_timer(&leases, &still_open).await? {
            if self.repair {
                // The taker of the timer reads the record, and moves the timer to where it belongs.
                self.engine.schedule(&leases, &key, Duration::ZERO).await?;
            }
            self.without_timer.add(|| key::display(&key), self.repair);
        }
        Ok(())
    }

    /// Reads tasks, and returns those that are open and have a lease.
    async fn with_open_lease(&mut self, keys: &[TaskKey]) -> Result<Vec<TaskKey>, Failure> {
        let store = &self.store;
        let mut reads = stream::iter(keys.to_vec())
            .map(|key| async move { (store.get(&key).await, key) })
            .buffer_unordered(CONCURRENT);
        let mut open = Vec::new();
        while let Some((read, key)) = reads.next().await {
            match read {
                Ok(stored) if !stored.task.status.is_terminal() && stored.task.lease.is_some() => {
                    open.push(key)
                }
                Ok(_) | Err(TaskError::NotFound { .. }) => {}
                Err(
                    TaskError::Unreadable { .. }
                    | TaskError::Storage(StorageError::Corrupt { .. } | StorageError::MissingKey { .. }),
                ) => self.unreadable.add(|| key::display(&key), false),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(open)
    }

    async fn walk_timers(&mut self) -> Result<(), Failure> {
        let mut after: Option<Cursor> = None;
        // A walk may return a queue again for each shard.
        let mut seen = std::collections::HashSet::new();
        loop {
            let page = self.engine.queues(after.as_ref()).await?;
            for queue in page.queues {
                if seen.insert(queue.clone()) {
                    self.check_queue(&queue).await?;
                }
            }
            after = page.next;
            if after.is_none() {
                return Ok(());
            }
        }
    }

    /// Reads the timers of a queue in the order of their due times, up to the first one that is not overdue.
    async fn check_queue(&mut self, queue: &Queue) -> Result<(), Failure> {
        let patience = if queue.as_str().starts_with("work/") { WORK_OVERDUE } else { OVERDUE };
        let mut after: Option<Cursor> = None;
        loop {
            let page = self.engine.timers(queue, after.as_ref()).await?;
            if after.is_none() {
                self.timers += page.total;
            }
            let overdue_before = self.engine.now() - patience;
            let overdue: Vec<&Timer> =
                page.timers.iter().take_while(|timer| timer.due_at < overdue_before).collect();
            self.check_overdue(queue, &overdue).await?;
            self.pace(page.timers.len()).await;
            after = page.next.filter(|_| overdue.len() == page.timers.len());
            if after.is_none() {
                return Ok(());
            }
        }
    }

    async fn check_overdue(&mut self, queue: &Queue, timers: &[&Timer]) -> Result<(), Failure> {
        let engine = &self.engine;
        let exists: Vec<bool> = stream::iter(timers)
            .map(|timer| async move {
                match engine.get(&timer.key).await {
                    Ok(_) | Err(StorageError::Corrupt { .. } | StorageError::MissingKey { .. }) => Ok(true),
                    Err(StorageError::NotFound { .. }) => Ok(false),
                    Err(error) => Err(error),
                }
            })
            .buffered(CONCURRENT)
            .try_collect()
            .await?;
        for (timer, exists) in timers.iter().zip(exists) {
            let subject = || format!("{} in queue {}", key::display(&timer.key), text::plain(queue.as_str()));
            let tally = if exists { &mut self.overdue } else { &mut self.without_task };
            tally.add(subject, false);
        }
        Ok(())
    }

    /// Shows the progress, and waits until the rate allows the next page.
    async fn pace(&mut self, read: usize) {
        self.read += read as u64;
        self.bar.set_message(format!("{} read", text::count(self.read, "record")));
        self.bar.tick();
        let time = self.time_per_record * u32::try_from(read).unwrap_or(u32::MAX);
        self.not_before = self.not_before.max(Instant::now()) + time;
        sleep_until(self.not_before).await;
    }

    fn inspections(self) -> Vec<Inspection> {
        const REPAIR: &str = "run doctor --repair";
        let records = Finding::green("records", format!("{} were read", text::count(self.records, "record")));
        let timers = format!(
            "{} for {} with a lease",
            text::count(self.timers, "timer"),
            text::count(self.open, "open task")
        );
        vec![
            records.into(),
            self.unreadable.inspection(
                "unreadable records",
                Health::Yellow,
                "cannot be read as tasks",
                "look at one with show --raw; an encrypted record needs its key; delete --force removes one",
            ),
            self.members.inspection(
                "members, no record",
                Health::Yellow,
                "index members have no record; it was evicted or deleted by hand, and the quota counts it",
                REPAIR,
            ),
            self.unindexed.inspection(
                "records, no member",
                Health::Red,
                "records are not in the index of their owner, and lists miss them",
                REPAIR,
            ),
            self.counts.inspection(
                "counts of owners",
                Health::Yellow,
                "owners have a wrong count of records, which their quota uses",
                REPAIR,
            ),
            Finding::green("timers", timers).into(),
            self.without_timer.inspection(
                "tasks, no timer",
                Health::Red,
                "open tasks have no timer, so no server detects that their worker is lost",
                REPAIR,
            ),
            self.overdue.inspection(
                "overdue timers",
                Health::Yellow,
                "timers are overdue: no running server takes them, or all workers of the tool are busy",
                "start a server that registers the tool",
            ),
            self.without_task.inspection(
                "timers, no task",
                Health::Yellow,
                "overdue timers belong to no task, and only take up space",
                "start a server that takes the queue; it removes them",
            ),
        ]
    }
}

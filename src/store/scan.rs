//! Walks through the tasks of all owners at a bounded rate, in bounded memory.

use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::TaskStore;
use super::error::TaskError;
use super::filter::TaskFilter;
use crate::backend::{Agenda, Cursor, MAX_PAGE_LIMIT, OwnerId, PageRequest, TaskId};
use crate::task::StoredTask;

/// How many records a scan reads a second by default.
const DEFAULT_RATE: u32 = 5_000;
/// How many owners a scan remembers, because an engine may list an owner twice. They take about 16 MiB.
const MAX_REMEMBERED: usize = 1_000_000;

/// The tasks of one owner that one page of a scan has found.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ScannedPage {
    /// The owner.
    pub owner: OwnerId,
    /// The tasks that match the filter. There may be none.
    pub tasks: Vec<StoredTask>,
    /// The ids of tasks whose record cannot be read, whatever the filter.
    pub unreadable: Vec<TaskId>,
    /// How many records the page has read.
    pub scanned: usize,
}

/// The position of a scan between two pages. [`TaskScan::resume`] continues there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScanPosition {
    /// The cursor of the page of owners.
    owners: Option<Cursor>,
    /// The owner in this page whose tasks are next; `None` for the first one.
    owner: Option<OwnerId>,
    /// The cursor of the next page of its tasks.
    tasks: Option<Cursor>,
    is_end: bool,
}

/// A walk through the tasks of all owners, or of the [owner](TaskFilter::owner) of its filter. [`TaskStore::scan`] begins one.
///
/// It reads `owners` and `list` page by page, at a bounded rate, and holds one page of each. It returns each task that lived
/// throughout the scan and matched the filter when it was read. An engine that lists an owner twice can make it return a task
/// twice, but only if the store has more than a million owners, or after a [`resume`](Self::resume).
#[derive(Debug)]
pub struct TaskScan<B> {
    store: TaskStore<B>,
    filter: TaskFilter,
    time_per_record: Duration,
    /// When the next page may be read.
    not_before: Instant,
    /// The cursor with which the page of owners was read.
    owners_after: Option<Cursor>,
    /// The owners of this page that are left.
    owners: VecDeque<OwnerId>,
    owners_left: OwnersLeft,
    /// The cursor of the next page of the first owner.
    tasks_after: Option<Cursor>,
    /// Where the scan was resumed, until the page of owners was read.
    resumed: Option<OwnerId>,
    seen: HashSet<u64>,
    hasher: RandomState,
}

/// Which owners follow those of the page.
#[derive(Debug)]
enum OwnersLeft {
    /// The page itself was not read yet.
    ThisPage,
    After(Cursor),
    None,
}

impl<B: Agenda> TaskStore<B> {
    /// Begins a scan of the tasks that match a filter. For operators: the scan reads every record of the engine, or of the owner
    /// that the filter names.
    ///
    /// # Examples
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), mcp_task_store::TaskError> {
    /// use mcp_task_store::{MemoryBackend, NewTask, OwnerId, TaskFilter, TaskStatus, TaskStore};
    ///
    /// let store = TaskStore::new(MemoryBackend::new());
    /// for owner in ["alice", "bob"] {
    ///     store.create(&OwnerId::try_from(owner).expect("not empty"), NewTask::new("tools/call")).await?;
    /// }
    /// let mut scan = store.scan(TaskFilter::new().status(TaskStatus::Working));
    /// let mut found = 0;
    /// while let Some(page) = scan.next_page().await? {
    ///     found += page.tasks.len();
    /// }
    /// assert_eq!(found, 2);
    /// # Ok(())
    /// # }
    /// ```
    pub fn scan(&self, filter: TaskFilter) -> TaskScan<B> {
        let owners = VecDeque::from_iter(filter.owner.clone());
        let owners_left = if owners.is_empty() { OwnersLeft::ThisPage } else { OwnersLeft::None };
        let scan = TaskScan {
            store: self.clone(),
            filter,
            time_per_record: Duration::ZERO,
            not_before: Instant::now(),
            owners_after: None,
            owners,
            owners_left,
            tasks_after: None,
            resumed: None,
            seen: HashSet::new(),
            hasher: RandomState::new(),
        };
        scan.rate(DEFAULT_RATE)
    }
}

impl<B: Agenda> TaskScan<B> {
    /// Sets how many records the scan reads a second at most; 5,000 by default, at least 1. A page has up to 256 records, and the
    /// scan waits after each page.
    #[must_use]
    pub fn rate(mut self, records_per_second: u32) -> Self {
        self.time_per_record = Duration::from_secs(1) / records_per_second.max(1);
        self
    }

    /// Continues at the position of an earlier scan with the same filter.
    #[must_use]
    pub fn resume(mut self, position: ScanPosition) -> Self {
        let ScanPosition { owners, owner, tasks, is_end } = position;
        (self.owners_after, self.tasks_after) = (owners, tasks);
        // The owner of the filter is the only one, so there is no page to look for it.
        self.resumed = owner.filter(|_| self.filter.owner.is_none());
        if is_end {
            self.owners.clear();
            self.owners_left = OwnersLeft::None;
        }
        self
    }

    /// Returns the position of the next page.
    pub fn position(&self) -> ScanPosition {
        let (owner, tasks) = match &self.resumed {
            Some(owner) => (Some(owner.clone()), self.tasks_after.clone()),
            None => (self.owners.front().cloned(), self.tasks_after.clone()),
        };
        let owners = match &self.owners_left {
            OwnersLeft::After(next) if owner.is_none() => Some(next.clone()),
            _ => self.owners_after.clone(),
        };
        let is_end = owner.is_none() && matches!(self.owners_left, OwnersLeft::None);
        ScanPosition { owners, owner, tasks, is_end }
    }

    /// Reads the next page; `None` at the end of the scan.
    ///
    /// # Errors
    /// The errors of [`TaskStore::owners`] and [`TaskStore::list`]. The next call reads the same page again.
    ///
    /// # Cancellation safety
    /// If the future is dropped, the next call reads the same page again.
    pub async fn next_page(&mut self) -> Result<Option<ScannedPage>, TaskError> {
        loop {
            if let Some(owner) = self.owners.front().cloned() {
                return self.read_tasks(owner).await.map(Some);
            }
            match &self.owners_left {
                OwnersLeft::None => return Ok(None),
                OwnersLeft::After(next) => {
                    self.owners_after = Some(next.clone());
                    self.owners_left = OwnersLeft::ThisPage;
                }
                OwnersLeft::ThisPage => self.read_owners().await?,
            }
        }
    }

    async fn read_owners(&mut self) -> Result<(), TaskError> {
        let begun = self.begin_page().await;
        let page = self.store.owners(self.owners_after.as_ref()).await?;
        self.end_page(begun, page.owners.len());
        let mut owners = page.owners;
        owners.sort_unstable();
        if let Some(resumed) = self.resumed.take() {
            owners.retain(|owner| *owner >= resumed);
            if owners.first() != Some(&resumed) {
                self.tasks_after = None;
            }
        }
        owners.retain(|owner| self.is_new(owner));
        self.owners = owners.into();
        self.owners_left = page.next.map_or(OwnersLeft::None, OwnersLeft::After);
        Ok(())
    }

    /// Returns whether the scan has not met this owner, as far as it remembers, and remembers it.
    fn is_new(&mut self, owner: &OwnerId) -> bool {
        let hash = self.hasher.hash_one(owner);
        match self.seen.len() < MAX_REMEMBERED {
            true => self.seen.insert(hash),
            false => !self.seen.contains(&hash),
        }
    }

    async fn read_tasks(&mut self, owner: OwnerId) -> Result<ScannedPage, TaskError> {
        let begun = self.begin_page().await;
        let mut request = PageRequest::new(MAX_PAGE_LIMIT);
        if let Some(cursor) = self.tasks_after.clone() {
            request = request.after(cursor);
        }
        let page = self.store.list(&owner, request).await?;
        let scanned = page.tasks.len() + page.unreadable.len();
        self.end_page(begun, scanned);
        self.tasks_after = page.next;
        if self.tasks_after.is_none() {
            self.owners.pop_front();
        }
        let (mut tasks, now) = (page.tasks, self.store.backend().now());
        tasks.retain(|stored| self.filter.matches(stored, now));
        Ok(ScannedPage { owner, tasks, unreadable: page.unreadable, scanned })
    }

    /// Waits until the next page may be read. Returns the time.
    async fn begin_page(&self) -> Instant {
        sleep_until(self.not_before).await;
        Instant::now()
    }

    /// Notes what a page has read. A page without records counts as one record.
    fn end_page(&mut self, begun: Instant, records: usize) {
        let records = u32::try_from(records.max(1)).unwrap_or(u32::MAX);
        self.not_before = begun + self.time_per_record * records;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rstest::rstest;

    use super::*;
    use crate::backend::TaskKey;
    use crate::memory::MemoryBackend;
    use crate::store::{NewTask, StoreConfig};
    use crate::task::TaskStatus;

    const TASKS: [(&str, usize); 4] = [("alice", 600), ("bob", 1), ("carol", 256), ("dave", 3)];

    async fn store() -> TaskStore<MemoryBackend> {
        let store = TaskStore::with_config(MemoryBackend::new(), StoreConfig::new());
        for (owner, count) in TASKS {
            for _ in 0..count {
                store.create(&owner.try_into().unwrap(), NewTask::new("m")).await.unwrap();
            }
        }
        store
    }

    /// How often each task was found.
    type Found = BTreeMap<TaskKey, usize>;

    fn count(found: &mut Found, page: ScannedPage) {
        for stored in page.tasks {
            *found.entry(stored.key).or_default() += 1;
        }
    }

    #[rstest]
    #[case::of_all_owners(TaskFilter::new(), 860)]
    #[case::of_one_owner(TaskFilter::new().owner("alice".try_into().unwrap()), 600)]
    #[tokio::test(start_paused = true)]
    async fn a_scan_returns_every_task_once_also_when_each_page_resumes_a_new_scan(
        #[case] filter: TaskFilter,
        #[case] total: usize,
    ) {
        let store = store().await;
        let (mut at_once, mut resumed) = (Found::new(), Found::new());
        let mut scan = store.scan(filter.clone());
        while let Some(page) = scan.next_page().await.unwrap() {
            count(&mut at_once, page);
        }
        let (mut position, mut pages) = (ScanPosition::default(), 0);
        loop {
            let mut scan = store.scan(filter.clone()).resume(position);
            let Some(page) = scan.next_page().await.unwrap() else { break };
            count(&mut resumed, page);
            pages += 1;
            assert!(pages < 10, "the scan ends");
            position = scan.position();
            assert_eq!(store.scan(filter.clone()).resume(position.clone()).position(), position);
        }
        assert_eq!((at_once.len(), at_once.values().sum::<usize>()), (total, total));
        assert_eq!(resumed, at_once);
    }

    #[tokio::test(start_paused = true)]
    async fn a_scan_returns_only_what_matches_and_reads_only_the_owner_of_the_filter() {
        let store = store().await;
        let alice: OwnerId = "alice".try_into().unwrap();
        let task = store.list(&alice, PageRequest::new(1)).await.unwrap().tasks.remove(0);
        store.cancel(&task).await.unwrap();
        let filter = TaskFilter::new().owner(alice).status(TaskStatus::Cancelled);
        let (mut scan, mut found, mut scanned) = (store.scan(filter), Vec::new(), 0);
        while let Some(page) = scan.next_page().await.unwrap() {
            scanned += page.scanned;
            found.extend(page.tasks.into_iter().map(|stored| stored.key));
        }
        assert_eq!((found, scanned), (vec![task.key], 600));
    }

    #[tokio::test(start_paused = true)]
    async fn a_scan_reads_at_most_as_many_records_a_second_as_its_rate() {
        let store = store().await;
        let begun = Instant::now();
        let mut scan = store.scan(TaskFilter::new()).rate(100);
        while scan.next_page().await.unwrap().is_some() {}
        // The scan does not wait after its last page, which has up to 256 records.
        assert!(begun.elapsed() >= Duration::from_secs(6), "{:?}", begun.elapsed());
    }
}

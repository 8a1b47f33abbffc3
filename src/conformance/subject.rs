//! The engine under test, with its capabilities and hooks.

use std::any::Any;
use std::fmt::{self, Debug, Display};
use std::io::Write;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};

use super::fixtures::{PATIENCE, after_ms, owner};
use crate::backend::{
    Agenda, Cursor, DEFAULT_MAX_PART_BYTES, ListedRecord, LocalAgenda, OwnerId, PageRequest, StorageBackend,
    TaskKey, Version,
};

/// What an engine cannot do. The suite skips the rules that need it, and reports each skipped rule with the reason.
///
/// ```
/// use mcp_task_store::conformance::Capabilities;
///
/// let capabilities = Capabilities::default().no_notified_watch("the file system reports no changes");
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Capabilities {
    notified_watch: Result<(), &'static str>,
    notified_wakeups: Result<(), &'static str>,
    engine_clock: Result<(), &'static str>,
    owner_listing: Result<(), &'static str>,
    max_part_bytes: usize,
    burst: u32,
}

impl Default for Capabilities {
    /// Creates the capabilities of an engine that can do everything, with parts of up to
    /// [`DEFAULT_MAX_PART_BYTES`].
    fn default() -> Self {
        Self {
            notified_watch: Ok(()),
            notified_wakeups: Ok(()),
            engine_clock: Ok(()),
            owner_listing: Ok(()),
            max_part_bytes: DEFAULT_MAX_PART_BYTES,
            burst: 10_000,
        }
    }
}

impl Capabilities {
    /// States that the engine polls to watch a record. A polling watch also has items for quiet writes.
    #[must_use]
    pub fn no_notified_watch(mut self, reason: &'static str) -> Self {
        self.notified_watch = Err(reason);
        self
    }

    /// States that the engine polls for wakeups.
    #[must_use]
    pub fn no_notified_wakeups(mut self, reason: &'static str) -> Self {
        self.notified_wakeups = Err(reason);
        self
    }

    /// States that the engine cannot read its clock exactly.
    #[must_use]
    pub fn no_engine_clock(mut self, reason: &'static str) -> Self {
        self.engine_clock = Err(reason);
        self
    }

    /// States that [`owners`](Agenda::owners) is not supported.
    #[must_use]
    pub fn no_owner_listing(mut self, reason: &'static str) -> Self {
        self.owner_listing = Err(reason);
        self
    }

    /// Sets the maximum size of a part that the engine is configured to accept, in bytes.
    #[must_use]
    pub fn max_part_bytes(mut self, max: usize) -> Self {
        self.max_part_bytes = max;
        self
    }

    /// Sets how many records the suite inserts in one burst, 10,000 unless set. Lower it for an engine that syncs
    /// every write to a slow disk.
    #[must_use]
    pub fn burst(mut self, records: u32) -> Self {
        self.burst = records;
        self
    }
}

/// Creates states that no call of the contract creates. Each provided method reports that the hooks cannot create the
/// state. The suite then skips the rules that need this state.
#[async_trait]
pub trait Hooks: Send + Sync + 'static {
    /// Damages the stored record, so that the engine cannot read it. Returns `false` if the hooks cannot do this.
    async fn damage(&self, key: &TaskKey) -> bool {
        let _ = key;
        false
    }

    /// Sets the version of the stored record. Returns `false` if the hooks cannot do this.
    async fn set_version(&self, key: &TaskKey, version: Version) -> bool {
        let _ = (key, version);
        false
    }

    /// Sets the engine's clock back by this much, or gives this record a creation time that is ahead of the clock by
    /// this much. Returns `false` if the hooks cannot do this.
    async fn step_clock_back(&self, key: &TaskKey, by: TimeDelta) -> bool {
        let _ = (key, by);
        false
    }

    /// Returns everything that the engine holds of any owner: keys, rows, files. Returns `None` if the hooks cannot
    /// list it.
    async fn left_behind(&self) -> Option<Vec<String>> {
        None
    }
}

struct NoHooks;

impl Hooks for NoHooks {}

/// A fresh engine for one rule of the suite. It has no records and no timers.
///
/// An [`Agenda`] alone is a subject. An engine without timers of its own becomes one by
/// [`without_agenda`](Self::without_agenda).
///
/// ```
/// use mcp_task_store::MemoryBackend;
/// use mcp_task_store::conformance::{Capabilities, Subject};
///
/// async fn open() -> Subject {
///     Subject::new(MemoryBackend::new().max_part_bytes(4096))
///         .capabilities(Capabilities::default().max_part_bytes(4096))
/// }
/// ```
pub struct Subject {
    engine: Arc<dyn Agenda>,
    capabilities: Capabilities,
    hooks: Arc<dyn Hooks>,
    rule: &'static str,
    _guard: Box<dyn Any + Send + Sync>,
}

impl Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subject").field("capabilities", &self.capabilities).finish_non_exhaustive()
    }
}

impl<A: Agenda> From<A> for Subject {
    fn from(engine: A) -> Self {
        Self::new(engine)
    }
}

impl Deref for Subject {
    type Target = dyn Agenda;

    fn deref(&self) -> &Self::Target {
        &*self.engine
    }
}

impl Subject {
    /// Creates a subject from an engine that has all capabilities.
    pub fn new(engine: impl Agenda) -> Self {
        Self {
            engine: Arc::new(engine),
            capabilities: Capabilities::default(),
            hooks: Arc::new(NoHooks),
            rule: "",
            _guard: Box::new(()),
        }
    }

    /// Creates a subject from an engine without timers of its own: the suite runs it in a [`LocalAgenda`].
    pub fn without_agenda(engine: impl StorageBackend) -> Self {
        Self::new(LocalAgenda::new(engine)).capabilities(Capabilities::default().no_owner_listing(NO_OWNERS))
    }

    /// Sets which features the engine lacks. A subject [`without_agenda`](Self::without_agenda) never lists owners.
    #[must_use]
    pub fn capabilities(mut self, capabilities: Capabilities) -> Self {
        let owner_listing = self.capabilities.owner_listing.and(capabilities.owner_listing);
        self.capabilities = Capabilities { owner_listing, ..capabilities };
        self
    }

    /// Sets the hooks that create states for the suite.
    #[must_use]
    pub fn hooks(mut self, hooks: impl Hooks) -> Self {
        self.hooks = Arc::new(hooks);
        self
    }

    /// Keeps a value until the suite has checked the rule, for example a temporary directory.
    #[must_use]
    pub fn guard(mut self, guard: impl Any + Send + Sync) -> Self {
        self._guard = Box::new(guard);
        self
    }

    pub(super) fn named(mut self, rule: &'static str) -> Self {
        self.rule = rule;
        self
    }

    pub(super) fn engine(&self) -> Arc<dyn Agenda> {
        Arc::clone(&self.engine)
    }
}

const NO_OWNERS: &str = "a LocalAgenda cannot list owners";

/// What the engine and its hooks can do.
impl Subject {
    pub(super) fn max_part_bytes(&self) -> usize {
        self.capabilities.max_part_bytes
    }

    pub(super) fn burst(&self) -> u32 {
        self.capabilities.burst
    }

    pub(super) fn notifies_watch(&self) -> bool {
        self.capabilities.notified_watch.is_ok()
    }

    pub(super) fn notifies_wakeups(&self) -> bool {
        self.capabilities.notified_wakeups.is_ok()
    }

    pub(super) fn lists_owners(&self) -> bool {
        self.capabilities.owner_listing.is_ok()
    }

    /// Reports that the suite has not checked the rule. The test harness does not capture this line, so it always
    /// shows.
    pub(super) fn skip(&self, reason: impl Display) {
        let rule = self.rule.replace('_', " ");
        // If standard error is closed, nobody can read the report.
        let _ = writeln!(std::io::stderr(), "skipped: {rule}: {reason}");
    }

    fn has(&self, capability: Result<(), &'static str>) -> bool {
        capability.inspect_err(|reason| self.skip(reason)).is_ok()
    }

    pub(super) fn has_notified_watch(&self) -> bool {
        self.has(self.capabilities.notified_watch)
    }

    pub(super) fn has_notified_wakeups(&self) -> bool {
        self.has(self.capabilities.notified_wakeups)
    }

    pub(super) fn has_engine_clock(&self) -> bool {
        self.has(self.capabilities.engine_clock)
    }

    pub(super) fn has_owner_listing(&self) -> bool {
        self.has(self.capabilities.owner_listing)
    }

    fn hooked(&self, is_done: bool, what: &str) -> bool {
        if !is_done {
            self.skip(format_args!("the hooks cannot {what}"));
        }
        is_done
    }

    pub(super) async fn damage(&self, key: &TaskKey) -> bool {
        self.hooked(self.hooks.damage(key).await, "damage a record")
    }

    pub(super) async fn set_version(&self, key: &TaskKey, version: Version) -> bool {
        self.hooked(self.hooks.set_version(key, version).await, "set a version")
    }

    pub(super) async fn step_clock_back(&self, key: &TaskKey, by: TimeDelta) -> bool {
        self.hooked(self.hooks.step_clock_back(key, by).await, "set the clock back")
    }

    pub(super) async fn left_behind(&self) -> Option<Vec<String>> {
        self.hooks.left_behind().await
    }
}

/// Steps that many rules share.
impl Subject {
    /// Waits until the engine's estimated clock, which may lag, has reached `at`.
    pub(super) async fn until(&self, at: DateTime<Utc>) {
        let (begun, mut waited) = (Instant::now(), 0);
        while self.now() < at {
            assert!(begun.elapsed() < PATIENCE, "`now` is {}, and does not reach {at}", self.now());
            tokio::time::sleep(Duration::from_millis(1)).await;
            waited += 1;
            // A reply of the engine corrects a clock that lags.
            if waited % 20 == 0 {
                self.list(&owner("nobody"), PageRequest::new(1)).await.unwrap();
            }
        }
    }

    /// Writes a record, and returns once the record has expired.
    pub(super) async fn put_expired(&self, key: &TaskKey) {
        let written = self.put(key, "expired".into(), after_ms(1)).await.unwrap();
        self.until(written.expires_at.unwrap()).await;
    }

    /// Lists all records of an owner, page by page.
    pub(super) async fn walk(&self, owner: &OwnerId, limit: usize) -> Vec<ListedRecord> {
        let (mut records, mut after) = (Vec::new(), None::<Cursor>);
        loop {
            let request = after.clone().into_iter().fold(PageRequest::new(limit), PageRequest::after);
            let page = self.list(owner, request).await.unwrap();
            assert!(page.records.len() <= limit);
            assert!(page.next.is_none() || page.next != after, "the walk does not advance: {after:?}");
            records.extend(page.records);
            after = page.next;
            if after.is_none() {
                return records;
            }
        }
    }

    /// Lists the task ids of an owner, newest first.
    pub(super) async fn ids(&self, id: &str) -> Vec<String> {
        self.walk(&owner(id), 256).await.into_iter().map(|record| record.task.to_string()).collect()
    }
}

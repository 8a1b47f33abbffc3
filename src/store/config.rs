//! What a [`TaskStore`](crate::TaskStore) allows.

use std::time::Duration;

use super::limits::MAX_JSON_DEPTH;
use super::transitions::DEFAULT_MAX_ATTEMPTS;

/// Ten of them are a delay that every engine takes.
const LONGEST_LEASE: Duration = Duration::from_secs(365 * 24 * 3600);

/// The limits and defaults of a [`TaskStore`](crate::TaskStore). Every value has a default; each method
/// replaces one.
///
/// ```
/// use std::time::Duration;
/// use mcp_task_store::StoreConfig;
///
/// let config = StoreConfig::new()
///     .max_tasks_per_owner(1_000)
///     .default_ttl(Duration::from_secs(600))
///     .max_ttl(None);
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct StoreConfig {
    pub(super) max_tasks_per_owner: Option<u64>,
    pub(super) default_ttl: Option<Duration>,
    pub(super) max_ttl: Option<Duration>,
    pub(super) retention: Option<Duration>,
    pub(super) default_poll_interval: Option<Duration>,
    pub(super) max_status_message_bytes: usize,
    pub(super) max_input_requests: usize,
    pub(super) max_variables_bytes: usize,
    pub(super) max_variables_depth: usize,
    pub(super) max_variables_string_bytes: usize,
    pub(super) max_conflicts: u32,
    pub(super) max_attempts: u32,
    pub(super) lease: Duration,
    pub(super) call_timeout: Duration,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            max_tasks_per_owner: Some(10_000),
            default_ttl: Some(Duration::from_secs(3600)),
            max_ttl: Some(Duration::from_secs(24 * 3600)),
            retention: None,
            default_poll_interval: Some(Duration::from_secs(1)),
            max_status_message_bytes: 4096,
            max_input_requests: 64,
            max_variables_bytes: 256 * 1024,
            max_variables_depth: 16,
            max_variables_string_bytes: 64 * 1024,
            max_conflicts: 64,
            max_attempts: DEFAULT_MAX_ATTEMPTS,
            lease: Duration::from_secs(30),
            call_timeout: Duration::from_secs(10),
        }
    }
}

impl StoreConfig {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many live tasks an owner may have, finished ones that are still kept included; 10,000 unless set,
    /// `None` is no limit.
    pub fn max_tasks_per_owner(mut self, max: impl Into<Option<u64>>) -> Self {
        self.max_tasks_per_owner = max.into();
        self
    }

    /// The TTL of a task that does not name one, an hour unless set; `None` is unlimited. Where
    /// [`max_ttl`](Self::max_ttl) is shorter, that is the default.
    pub fn default_ttl(mut self, ttl: impl Into<Option<Duration>>) -> Self {
        self.default_ttl = ttl.into();
        self
    }

    /// The longest TTL that a task may ask for, a day unless set. `None` is no limit, and the only setting
    /// under which a task may ask for an unlimited TTL.
    pub fn max_ttl(mut self, ttl: impl Into<Option<Duration>>) -> Self {
        self.max_ttl = ttl.into();
        self
    }

    /// How long a record is kept after its TTL, so that a late result can still be fetched; the task's TTL
    /// again unless set.
    pub fn retention(mut self, retention: impl Into<Option<Duration>>) -> Self {
        self.retention = retention.into();
        self
    }

    /// The poll interval of a task that does not name one, a second unless set; `None` leaves it out. A create is refused
    /// with [`InvalidArgument`](crate::TaskError::InvalidArgument) if it is under 1 ms or over 24 hours.
    pub fn default_poll_interval(mut self, interval: impl Into<Option<Duration>>) -> Self {
        self.default_poll_interval = interval.into();
        self
    }

    /// The longest status message in bytes, 4 KiB unless set.
    pub fn max_status_message_bytes(mut self, max: usize) -> Self {
        self.max_status_message_bytes = max;
        self
    }

    /// How many input requests a task may make in its life, 64 unless set.
    pub fn max_input_requests(mut self, max: usize) -> Self {
        self.max_input_requests = max;
        self
    }

    /// How large the variables of a task may be as JSON, in bytes, names included; 256 KiB unless set.
    pub fn max_variables_bytes(mut self, max: usize) -> Self {
        self.max_variables_bytes = max;
        self
    }

    /// How deep a variable may be nested, 16 unless set. A plain value has depth 1, and so has an empty
    /// array or object; each array or object around something adds one. 100 at the most: deeper JSON could not
    /// be read back.
    pub fn max_variables_depth(mut self, max: usize) -> Self {
        self.max_variables_depth = max.min(MAX_JSON_DEPTH);
        self
    }

    /// The longest string anywhere in a variable, and the longest name, in bytes; 64 KiB unless set.
    pub fn max_variables_string_bytes(mut self, max: usize) -> Self {
        self.max_variables_string_bytes = max;
        self
    }

    /// How many compare-and-swaps of one call may lose against other processes before the call fails with
    /// [`Contended`](crate::TaskError::Contended); 64 unless set, at least 1.
    pub fn max_conflicts(mut self, max: u32) -> Self {
        self.max_conflicts = max.max(1);
        self
    }

    /// How many workers of a task that can resume may be lost before it fails with "gave up after 3 attempts: the worker
    /// was lost"; 3 unless set, at least 1. A release does not count, so any number of deploys in a row fail nothing. Each
    /// task keeps the bound with which it was created; [`NewTask::max_attempts`](crate::NewTask::max_attempts) sets one for
    /// a single task.
    pub fn max_attempts(mut self, max: u32) -> Self {
        self.max_attempts = max.max(1);
        self
    }

    /// How long a worker may go without renewing its lease before other instances may consider it lost; 30 s unless
    /// set, 3 ms to a year. The worker renews each third of it. The duration is in the lease, so instances with
    /// different settings get along.
    pub fn lease(mut self, duration: Duration) -> Self {
        self.lease = duration.clamp(Duration::from_millis(3), LONGEST_LEASE);
        self
    }

    /// How long one call of the store may take as a whole; 10 s unless set, at least 1 ms. Waiting for other writers of the
    /// task, reads, back-offs, the write, and looking up its outcome are included. A call that runs into it is
    /// [`Unavailable`](crate::StorageError::Unavailable), with an unknown outcome only if a write was sent whose outcome is
    /// not known. Choose more than the time limit of the engine's calls.
    ///
    /// The first timer of a new lease fires this long after the lease lapses, but no later than a third of the lease and 3 s
    /// after it (for a lease under 3 s: 1⅓ leases after it). A keeper that finds no record then removes the timer. A write that
    /// took longer schedules the timer again before its call returns.
    pub fn call_timeout(mut self, limit: Duration) -> Self {
        self.call_timeout = limit.clamp(Duration::from_millis(1), LONGEST_LEASE);
        self
    }
}

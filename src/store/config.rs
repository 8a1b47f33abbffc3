//! The limits and defaults of a [`TaskStore`](crate::TaskStore).

use std::time::Duration;

#[cfg(feature = "pmcp")]
use super::durations::millis;

/// The maximum depth of the JSON of arguments, checkpoints, requests, answers, results and error data. The limit of
/// the JSON parser is a little higher, so the store can read everything that it has written.
pub(super) const MAX_JSON_DEPTH: usize = 100;
/// The longest lease, and the longest time limit of a call. Every engine accepts a delay that is ten times as long.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);
/// The number of attempts at which a task fails by default.
pub(super) const DEFAULT_MAX_ATTEMPTS: u32 = 3;

/// The limits and defaults of a [`TaskStore`](crate::TaskStore).
///
/// Every value has a default. Each method replaces one value.
///
/// ```
/// use std::time::Duration;
/// use mcp_task_store::{MemoryBackend, StoreConfig, TaskStore};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let config = StoreConfig::new()
///     .max_tasks_per_owner(1_000)
///     .default_ttl(Duration::from_secs(600))
///     .max_ttl(None);
/// let store = TaskStore::with_config(MemoryBackend::new(), config);
/// # }
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
    pub(super) is_observer: bool,
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
            is_observer: false,
        }
    }
}

impl StoreConfig {
    /// Returns the default configuration.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets how many tasks an owner may have; 10,000 by default. Ended tasks count until their records expire. `None` removes
    /// the limit.
    pub fn max_tasks_per_owner(mut self, max: impl Into<Option<u64>>) -> Self {
        self.max_tasks_per_owner = max.into();
        self
    }

    /// Sets the TTL of a task that states no TTL; one hour by default. `None` is unlimited. If
    /// [`max_ttl`](Self::max_ttl) is shorter, such a task has the maximum TTL.
    pub fn default_ttl(mut self, ttl: impl Into<Option<Duration>>) -> Self {
        self.default_ttl = ttl.into();
        self
    }

    /// Sets the maximum TTL of a task; 24 hours by default. `None` removes the limit. The store accepts tasks with an
    /// unlimited TTL only if there is no limit.
    pub fn max_ttl(mut self, ttl: impl Into<Option<Duration>>) -> Self {
        self.max_ttl = ttl.into();
        self
    }

    /// Sets how long the engine keeps a record after the TTL of its task, so that a client can still fetch a late
    /// result. The default is the TTL of the task.
    pub fn retention(mut self, retention: impl Into<Option<Duration>>) -> Self {
        self.retention = retention.into();
        self
    }

    /// Sets the poll interval of a task that states no interval; one second by default. With `None` the task has no
    /// poll interval. A create fails with [`InvalidArgument`](crate::TaskError::InvalidArgument) if the interval is
    /// under 1 ms or over 24 hours.
    pub fn default_poll_interval(mut self, interval: impl Into<Option<Duration>>) -> Self {
        self.default_poll_interval = interval.into();
        self
    }

    /// Sets the maximum size of a status message in bytes; 4 KiB by default.
    pub fn max_status_message_bytes(mut self, max: usize) -> Self {
        self.max_status_message_bytes = max;
        self
    }

    /// Sets how many input requests a task may make in its life; 64 by default.
    pub fn max_input_requests(mut self, max: usize) -> Self {
        self.max_input_requests = max;
        self
    }

    /// Sets the maximum size of a task's variables as JSON in bytes, names included; 256 KiB by default.
    pub fn max_variables_bytes(mut self, max: usize) -> Self {
        self.max_variables_bytes = max;
        self
    }

    /// Sets how deep a variable may be nested; 16 by default. At most 100, because the store cannot read deeper JSON.
    /// A value without items or members has depth 1. Each array or object around it adds 1.
    pub fn max_variables_depth(mut self, max: usize) -> Self {
        self.max_variables_depth = max.min(MAX_JSON_DEPTH);
        self
    }

    /// Sets the maximum size of a variable's name, and of any string in a variable, in bytes; 64 KiB by default.
    pub fn max_variables_string_bytes(mut self, max: usize) -> Self {
        self.max_variables_string_bytes = max;
        self
    }

    /// Sets the number of compare-and-swaps after which a call fails with [`Contended`](crate::TaskError::Contended)
    /// if all of them conflicted with other processes; 64 by default, at least 1.
    pub fn max_conflicts(mut self, max: u32) -> Self {
        self.max_conflicts = max.max(1);
        self
    }

    /// Sets the number of attempts at which a task that can resume fails; 3 by default, at least 1. With 3, the
    /// task fails when it loses its worker for the third time, with the message "gave up after 3 attempts: the worker was lost".
    ///
    /// A release does not count, so deploys never use up the attempts of a task. A later change of this setting does
    /// not affect existing tasks. [`NewTask::max_attempts`](crate::NewTask::max_attempts) sets the number for a
    /// single task.
    pub fn max_attempts(mut self, max: u32) -> Self {
        self.max_attempts = max.max(1);
        self
    }

    /// Sets how long a worker may go without renewing its lease before other instances may consider it lost; 30 s by default,
    /// from 3 ms to one year.
    ///
    /// The worker renews the lease each time a third of this duration has passed. The lease states its duration, so
    /// instances with different settings work together.
    pub fn lease(mut self, duration: Duration) -> Self {
        self.lease = duration.clamp(Duration::from_millis(3), LONGEST);
        self
    }

    /// Sets the time limit of one call of the store as a whole; 10 s by default, at least 1 ms. Set it higher than
    /// the time limit of one call of the engine.
    ///
    /// The limit includes reads, back-offs, the write, the reads that resolve an unknown outcome, and the wait for
    /// other writers of the task. A call that exceeds it fails with
    /// [`Unavailable`](crate::StorageError::Unavailable). The error says that the outcome is unknown only if the call
    /// has sent a write whose outcome is not known.
    ///
    /// The first timer of a new lease fires one time limit after the lease lapses, but at most a third of the lease
    /// and 3 s after the lapse (for a lease under 3 s: at most 1⅓ leases). A keeper that finds no record when the
    /// timer fires removes the timer. A create or claim whose write took longer than this delay schedules the timer
    /// again before it returns.
    pub fn call_timeout(mut self, limit: Duration) -> Self {
        self.call_timeout = limit.clamp(Duration::from_millis(1), LONGEST);
        self
    }

    /// Makes the store an observer, for the tools of operators; off by default. An observer changes only what its caller asks
    /// it to change:
    ///
    /// * It has no keeper. It takes no timers, so a process that exits soon does not delay the detection of lost workers.
    /// * Its reads write nothing. It returns a task whose TTL has elapsed as ended, and leaves it to the servers to store the end.
    ///   It does not schedule the timers of lapsed leases.
    ///
    /// Do not [start](crate::TaskStore::start) or [claim](crate::TaskStore::claim) tasks with an observer: if its process drops
    /// their attempts, their leases must lapse before another instance ends them.
    pub fn observer(mut self, on: bool) -> Self {
        self.is_observer = on;
        self
    }
}

/// The defaults and limits that an SDK states to its clients.
#[cfg(feature = "pmcp")]
pub(crate) struct StatedLimits {
    pub(crate) default_ttl_ms: Option<u64>,
    pub(crate) max_ttl_ms: Option<u64>,
    pub(crate) default_poll_interval_ms: Option<u64>,
    pub(crate) max_tasks_per_owner: Option<u64>,
}

#[cfg(feature = "pmcp")]
impl StoreConfig {
    pub(crate) fn stated_limits(&self) -> StatedLimits {
        let default_ttl = [self.default_ttl, self.max_ttl].into_iter().flatten().min();
        StatedLimits {
            default_ttl_ms: default_ttl.map(millis),
            max_ttl_ms: self.max_ttl.map(millis),
            default_poll_interval_ms: self.default_poll_interval.map(millis),
            max_tasks_per_owner: self.max_tasks_per_owner,
        }
    }
}

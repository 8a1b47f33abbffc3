//! The names of the queues of timers, and the priority of the tasks that wait in them.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::error::StorageError;
#[cfg(any(feature = "postgres", feature = "redis", feature = "sqlite"))]
use crate::printable::Printable;

/// The longest name of a queue, in bytes of UTF-8.
const MAX_QUEUE_BYTES: usize = 512;
/// The prefix of the queues of operations.
const WORK: &str = "work/";
/// The suffixes of the queues of a priority. No operation may have a name that ends with one of them.
const HIGH: &str = "\0high";
const LOW: &str = "\0low";

/// Which of the tasks that wait for a worker are claimed first. Workers claim all tasks of a higher priority that they can run
/// before those of a lower one. Tasks of the same priority are claimed oldest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Priority {
    /// Claimed first.
    High,
    /// The default.
    #[default]
    Normal,
    /// Claimed when no other task waits.
    Low,
}

impl Priority {
    /// All priorities, highest first.
    #[cfg(feature = "rmcp")]
    pub(crate) const ALL: [Self; 3] = [Self::High, Self::Normal, Self::Low];

    /// Returns what follows the name of the operation in the name of a queue.
    fn suffix(self) -> &'static str {
        match self {
            Self::High => HIGH,
            Self::Normal => "",
            Self::Low => LOW,
        }
    }
}

/// The name of a queue of timers: any non-empty UTF-8 of up to 512 bytes. A queue is cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Queue(Arc<str>);

impl Queue {
    /// Returns the queue `leases`, which has the timers of leases. Every instance takes timers from it.
    pub fn leases() -> Self {
        Self("leases".into())
    }

    /// Returns the queue `dead`, which has a timer for each task that failed because its attempts are used up. Every instance
    /// takes timers from it.
    pub fn dead() -> Self {
        Self("dead".into())
    }

    /// Returns the queue `work/{operation}`, which has the timers of the tasks that wait for a worker of this
    /// operation. The tasks of a priority other than [`Normal`](Priority::Normal) wait in a queue of their own, whose name ends with
    /// NUL and the priority.
    ///
    /// # Errors
    /// [`StorageError::InvalidKey`] for an overlong name, and for a name that ends like that of another queue of an operation.
    pub fn work(operation: &str, priority: Priority) -> Result<Self, StorageError> {
        if [HIGH, LOW].iter().any(|suffix| operation.ends_with(suffix)) {
            let reason = "the name of an operation ends with NUL and a priority; use another name".to_owned();
            return Err(StorageError::InvalidKey { reason });
        }
        Self::try_from(format!("{WORK}{operation}{}", priority.suffix()).as_str())
    }

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the name in a form that is safe in a log line.
    #[cfg(any(feature = "postgres", feature = "redis", feature = "sqlite"))]
    pub(crate) fn printable(&self) -> Printable<'_> {
        Printable(&self.0)
    }

    /// Returns the priority of the tasks that wait in this queue.
    #[cfg(feature = "rmcp")]
    pub(crate) fn priority(&self) -> Priority {
        let ends = |priority: &Priority| self.0.ends_with(priority.suffix());
        [Priority::High, Priority::Low].into_iter().find(ends).unwrap_or_default()
    }

    /// Returns the operation whose tasks wait in this queue.
    #[cfg(feature = "rmcp")]
    pub(crate) fn operation(&self) -> Option<&str> {
        let name = self.0.strip_prefix(WORK)?;
        [HIGH, LOW].iter().find_map(|suffix| name.strip_suffix(suffix)).or(Some(name))
    }
}

impl TryFrom<&str> for Queue {
    type Error = StorageError;

    /// # Errors
    /// [`StorageError::InvalidKey`] for an empty or overlong name.
    fn try_from(name: &str) -> Result<Self, StorageError> {
        if (1..=MAX_QUEUE_BYTES).contains(&name.len()) {
            return Ok(Self(name.into()));
        }
        let length = name.len();
        let reason = format!("the queue name has {length} bytes, but must have 1 to {MAX_QUEUE_BYTES}");
        Err(StorageError::InvalidKey { reason })
    }
}

impl fmt::Display for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(all(test, feature = "rmcp"))]
mod tests {
    use super::*;

    #[test]
    fn each_operation_has_a_queue_for_each_priority_and_no_two_operations_share_one() {
        let name = |operation, priority| Queue::work(operation, priority).map(|queue| queue.to_string());
        let names = Priority::ALL.map(|priority| name("render", priority).unwrap());
        assert_eq!(names, ["work/render\0high", "work/render", "work/render\0low"]);
        for priority in Priority::ALL {
            let queue = Queue::work("render", priority).unwrap();
            assert_eq!((queue.operation(), queue.priority()), (Some("render"), priority));
            assert!(name("render\0high", priority).is_err(), "the name of the queue would be ambiguous");
            assert_eq!(Queue::work("\0", priority).unwrap().operation(), Some("\0"));
        }
        assert_eq!(Queue::leases().operation(), None);
        assert_eq!(Queue::dead().operation(), None);
    }
}

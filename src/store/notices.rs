//! The log lines about tasks that this process leaves alone: one line for each operation.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};

use crate::printable::Printable;
use crate::task::{Lease, StoredTask};

/// How many operations a process reports for each reason. The names come from the records, so their number has no limit.
const MAX_REPORTED: usize = 256;

/// The operations that this process has reported, and those that it need not report.
#[derive(Debug, Default)]
pub(super) struct Notices(Mutex<Operations>);

#[derive(Debug, Default)]
struct Operations {
    /// The operations that this process runs.
    known: HashSet<String>,
    /// Those whose tasks wait for a worker and are not known.
    waiting: HashSet<String>,
    /// Those with a task that only a later version may run.
    later: HashSet<String>,
}

impl Notices {
    /// No code panics while it holds the lock.
    fn operations(&self) -> MutexGuard<'_, Operations> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that this process runs an operation, so that its tasks are never reported as waiting.
    pub(super) fn note_known(&self, operation: &str) {
        let mut operations = self.operations();
        if !operations.known.contains(operation) {
            operations.known.insert(operation.to_owned());
        }
    }

    /// Reports the operation of a task that has waited for a worker for longer than one lease, unless this process runs the
    /// operation.
    pub(super) fn report_waiting(&self, stored: &StoredTask, waiting: &Lease, now: DateTime<Utc>) {
        let Some(operation) = stored.task.operation.as_deref() else { return };
        let waited = (now - waiting.deadline).to_std().unwrap_or_default();
        let is_new = || {
            let mut operations = self.operations();
            !operations.known.contains(operation) && insert(&mut operations.waiting, operation)
        };
        if waited > waiting.duration() && is_new() {
            tracing::warn!(
                operation = %Printable(operation),
                owner = %stored.key.owner.printable(),
                task = %stored.key.task.printable(),
                ?waited,
                "a task waits for a worker, and this process has not registered its operation, so it leaves all tasks of the \
                 operation alone; check that workers with the operation run and keep up"
            );
        }
    }

    /// Reports the operation of a task that only a later version of this crate may run, because of what was `found` in its record.
    pub(super) fn report_later(&self, stored: &StoredTask, found: &str) {
        let operation = stored.task.operation.as_deref().unwrap_or_default();
        if insert(&mut self.operations().later, operation) {
            tracing::warn!(
                operation = %Printable(operation),
                owner = %stored.key.owner.printable(),
                task = %stored.key.task.printable(),
                "a later version of mcp-task-store has written the {found} of a task, so this process leaves such tasks of the \
                 operation alone; upgrade this instance"
            );
        }
    }
}

/// Adds an operation to a bounded set. Returns whether it was added.
fn insert(reported: &mut HashSet<String>, operation: &str) -> bool {
    reported.len() < MAX_REPORTED && reported.insert(operation.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_reported_operations_is_bounded() {
        let mut reported = HashSet::new();
        let added =
            (0..MAX_REPORTED + 10).filter(|number| insert(&mut reported, &format!("operation {number}")));
        assert_eq!(added.count(), MAX_REPORTED);
        assert!(!insert(&mut reported, "operation 0"));
    }
}

//! Stores a task whose operation already runs in this process. The create can be tried again under the same key, and leaves
//! at most one record.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::time::Instant;

use super::TaskStore;
use super::attempt::Attempt;
use super::deadline::{CallTarget, Deadline};
use super::error::TaskError;
use super::lease;
use super::limits::check_owner;
use super::new_task::NewTask;
use crate::backend::{Agenda, OwnerId, StorageError, TaskKey};
use crate::task::{Lease, StoredTask};

impl<B: Agenda> TaskStore<B> {
    /// Checks a task that may be stored later, without a call of the engine.
    ///
    /// # Errors
    /// The errors of [`create`](Self::create) that do not depend on the engine, except for the size of the record.
    pub(crate) fn check_new(&self, owner: &OwnerId, new: &NewTask) -> Result<(), TaskError> {
        check_owner(owner)?;
        self.check_options(new)
    }

    /// Checks the options of a task that may be stored later, without a call of the engine.
    ///
    /// # Errors
    /// As [`check_new`](Self::check_new).
    pub(crate) fn check_options(&self, new: &NewTask) -> Result<(), TaskError> {
        new.check_all(&self.0.records_only().config)
    }

    /// Prepares the first attempt at a new task under this key, as [`start`](Self::start) does. Stores nothing yet. No other
    /// task may ever use the key.
    pub(crate) fn start_as(&self, key: &TaskKey, new: NewTask) -> Starting<B> {
        // Registered before the engine stores the lease, and until the last try has ended: a keeper ends every lease that
        // belongs to a store of its process and has no registered attempt.
        let attempt = Attempt::new(&self.0, key, 1);
        Starting { store: self.clone(), attempt, new, may_be_stored: AtomicBool::new(false) }
    }
}

/// The first attempt at a task that is not stored yet.
pub(crate) struct Starting<B> {
    store: TaskStore<B>,
    attempt: Attempt<B>,
    new: NewTask,
    /// A create may have been applied, or may still be.
    may_be_stored: AtomicBool,
}

impl<B: Agenda> Starting<B> {
    /// Returns the attempt. Its writes fail until the task is stored.
    pub(crate) fn attempt(&self) -> &Attempt<B> {
        &self.attempt
    }

    /// Returns whether the engine may have stored the task, or may still store it.
    pub(crate) fn may_be_stored(&self) -> bool {
        self.may_be_stored.load(Ordering::Acquire)
    }

    /// Creates the record of the task. When the call returns, the task is durable. After a failure the call can be repeated.
    ///
    /// # Errors
    /// The errors of [`TaskStore::start`]. If an earlier try was applied, those of [`Attempt::renew`]: another instance may
    /// have ended the task meanwhile.
    ///
    /// # Cancellation safety
    /// If the future is dropped, the task may be stored nevertheless.
    pub(crate) async fn try_to_store(&self) -> Result<StoredTask, TaskError> {
        let had_doubt = self.may_be_stored.swap(true, Ordering::AcqRel);
        let records = self.store.0.records();
        let deadline = records.deadline();
        let stored = {
            let create = pin!(self.create(&deadline));
            deadline.limit("start", CallTarget::Task(self.attempt.key()), create).await
        };
        match stored {
            Err(TaskError::Storage(StorageError::VersionConflict { .. })) if had_doubt => self.find().await,
            Err(error) => {
                self.may_be_stored.store(had_doubt || error.outcome_unknown(), Ordering::Release);
                Err(error)
            }
            stored => stored,
        }
    }

    async fn create(&self, deadline: &Deadline) -> Result<StoredTask, TaskError> {
        let (kept, started) = (&self.store.0, Instant::now());
        let records = kept.records();
        let lease = Lease { traceparent: self.attempt.traceparent(), ..records.new_lease(1, 0) };
        let stored = records.create(deadline, self.attempt.key(), self.new.clone(), Some(lease)).await?;
        lease::begin(kept, deadline, &self.attempt, started).await?;
        Ok(stored)
    }

    /// Finds the task that an earlier try may have stored, and renews its lease. Each try has scheduled the timer of the lease.
    ///
    /// # Errors
    /// `NotFound` if no try was applied; the other errors of [`Attempt::renew`].
    pub(crate) async fn find(&self) -> Result<StoredTask, TaskError> {
        let stored = self.attempt.renew().await?;
        self.attempt.set_begun();
        Ok(stored)
    }
}

impl<B> Drop for Starting<B> {
    fn drop(&mut self) {
        if !self.may_be_stored.load(Ordering::Acquire) {
            // No record names this attempt, so the keeper need not act on its end.
            self.attempt.set_over();
        }
    }
}

//! One run of an operation in this process: the operation, its lease, and the newest known state of the task.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::BoxStream;
use rmcp::task_manager::TaskFuture;

use super::context::TaskContext;
use super::identity::Identity;
use super::operation::{PollTimer, RunningOperation};
use super::progress_reports::ProgressReports;
use super::renewals::RenewalHandle;
use super::renewer::Renewer;
use super::slots::{Slot, SlotGuard};
use super::stage::{self, StoredStage};
use super::task_state::RunState;
use super::timeouts::{call_timeout, lease_left};
use crate::backend::{Agenda, StorageError};
use crate::store::{Attempt, DropGuard, TaskStore};
use crate::task::StoredTask;
use crate::telemetry;

pub(super) struct Run<B> {
    pub(super) store: TaskStore<B>,
    pub(super) attempt: Attempt<B>,
    pub(super) state: RunState,
    pub(super) progress_reports: Arc<ProgressReports>,
    pub(super) renewals: RenewalHandle,
    renewer: Arc<Renewer<B>>,
    pub(super) operation: RunningOperation,
    /// How long the ended task is of use; `None` if as long as its record lives.
    pub(super) keep_for: Option<Duration>,
    /// Held until the run ends, except while the operation waits for input.
    _slot: Option<SlotGuard>,
    /// Ends the attempt with this run: a clone that the operation still holds does not keep it alive.
    _drop_guard: DropGuard,
}

impl<B: Agenda> Run<B> {
    /// Calls an operation for a task. `stored` is the task as `attempt` began with it. Also returns whether the
    /// closure returned a future. If it did not, the operation has panicked.
    pub(super) fn begin(
        store: TaskStore<B>,
        renewer: Arc<Renewer<B>>,
        attempt: Attempt<B>,
        stored: StoredTask,
        slot: Option<Slot>,
        operation: impl FnOnce(TaskContext) -> TaskFuture,
    ) -> (Self, bool) {
        let identity = Identity::of(&stored, attempt.number());
        let state = RunState::new(Arc::new(stored));
        let reports = Arc::new(ProgressReports::new(store.max_status_message_bytes()));
        let (slot, polls) = (slot.map(Arc::new), Arc::new(PollTimer::new()));
        // The renewals start before the operation is called, because the call may block.
        let renewals = renewer.start(&store, &attempt, &state.stored(), &polls);
        let view = stage::stored(stage_of(&attempt, &state));
        let context =
            TaskContext::new(identity, view, store.lease_duration(), Arc::clone(&reports), slot.clone());
        let (operation, has_begun) =
            RunningOperation::start(polls, context.retry_mark(), || operation(context));
        let _drop_guard = attempt.drop_guard();
        let _slot = slot.map(SlotGuard);
        let run = Self {
            store,
            attempt,
            state,
            progress_reports: reports,
            renewals,
            renewer,
            operation,
            keep_for: None,
            _slot,
            _drop_guard,
        };
        (run, has_begun)
    }

    /// Continues the run of an operation that has begun before its task was stored. `stored` is the task as `attempt`
    /// began with it.
    pub(super) fn continue_with(
        store: TaskStore<B>,
        renewer: Arc<Renewer<B>>,
        attempt: Attempt<B>,
        stored: StoredTask,
        operation: RunningOperation,
        progress_reports: Arc<ProgressReports>,
    ) -> Self {
        let state = RunState::new(Arc::new(stored));
        let renewals = renewer.start(&store, &attempt, &state.stored(), &operation.polls);
        let _drop_guard = attempt.drop_guard();
        Self {
            store,
            attempt,
            state,
            progress_reports,
            renewals,
            renewer,
            operation,
            keep_for: None,
            _slot: None,
            _drop_guard,
        }
    }

    /// Returns what the operation works with.
    pub(super) fn stage(&self) -> StoredStage {
        stage_of(&self.attempt, &self.state)
    }

    /// Subscribes to the changes of the task.
    pub(super) fn watch(&self) -> BoxStream<'static, Result<(), StorageError>> {
        telemetry::watched(self.store.backend().watch(self.attempt.key()))
    }

    /// Starts the renewals again after their task has panicked.
    pub(super) fn restart_renewals(&mut self) {
        let stored = self.state.stored();
        self.renewals = self.renewer.start(&self.store, &self.attempt, &stored, &self.operation.polls);
    }

    /// Returns the TTL of the task, which may change.
    pub(super) fn ttl_ms(&self) -> Option<u64> {
        self.state.stored().task.ttl_ms
    }

    /// Returns the time until the TTL elapses; `None` for a task without a TTL.
    pub(super) fn ttl_left(&self) -> Option<Duration> {
        let deadline = self.state.stored().task.deadline()?;
        Some((deadline - self.store.backend().now()).to_std().unwrap_or_default() + Duration::from_millis(5))
    }

    /// Returns how long the lease still lasts, as far as this run knows.
    pub(super) fn lease_left(&self) -> Option<Duration> {
        let read = self.state.stored().task.lease.as_ref().map(|lease| lease.deadline);
        lease_left(&self.store, read.max(self.renewals.deadline()))
    }

    /// Returns the time limit of one read or write.
    pub(super) fn call_timeout(&self) -> Duration {
        call_timeout(self.store.lease_duration(), self.lease_left())
    }

    pub(super) fn operation_name(&self) -> Option<String> {
        self.state.stored().task.operation.clone()
    }
}

fn stage_of<B: Agenda>(attempt: &Attempt<B>, state: &RunState) -> StoredStage {
    StoredStage { attempt: Arc::new(attempt.clone()), state: state.subscribe() }
}

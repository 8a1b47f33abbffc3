//! Where the task of a running operation is: only in the memory of this process, or stored.

use std::sync::Arc;

use tokio::sync::{Notify, watch};

use super::any_attempt::AnyAttempt;
use super::task_state::TaskState;

/// Where the task of a running operation is.
enum Stage {
    /// Only in the memory of this process. No other process knows the task, and no client has its id.
    InMemory,
    Stored(StoredStage),
}

/// What the operation of a stored task works with.
#[derive(Clone)]
pub(super) struct StoredStage {
    pub(super) attempt: Arc<dyn AnyAttempt>,
    pub(super) state: watch::Receiver<TaskState>,
}

/// The run's side of a stage. When it is dropped before the task is stored, the operation must stop.
pub(super) struct StageControl {
    stage: watch::Sender<Stage>,
    requested: Arc<Notify>,
}

/// The operation's side of a stage. Clones share it.
#[derive(Clone)]
pub(super) struct StageView {
    stage: watch::Receiver<Stage>,
    /// The operation needs its task to be stored.
    requested: Arc<Notify>,
}

/// Returns both sides of the stage of a task that is not stored yet.
pub(super) fn in_memory() -> (StageControl, StageView) {
    let (sender, receiver) = watch::channel(Stage::InMemory);
    let requested = Arc::<Notify>::default();
    let view = StageView { stage: receiver, requested: Arc::clone(&requested) };
    (StageControl { stage: sender, requested }, view)
}

/// Returns the operation's side of the stage of a stored task.
pub(super) fn stored(stage: StoredStage) -> StageView {
    let (_, receiver) = watch::channel(Stage::Stored(stage));
    StageView { stage: receiver, requested: Arc::default() }
}

impl StageControl {
    /// Waits until the operation needs its task to be stored.
    pub(super) async fn store_requested(&self) {
        self.requested.notified().await;
    }

    /// Says that the task is stored.
    pub(super) fn set_stored(&self, stage: StoredStage) {
        self.stage.send_replace(Stage::Stored(stage));
    }
}

impl StageView {
    fn now(&self) -> Option<StoredStage> {
        match &*self.stage.borrow() {
            Stage::InMemory => None,
            Stage::Stored(stored) => Some(stored.clone()),
        }
    }

    /// Returns whether the task is not stored yet.
    pub(super) fn is_in_memory(&self) -> bool {
        matches!(&*self.stage.borrow(), Stage::InMemory)
    }

    /// Asks the run to store the task, and waits until it is stored. Returns `None` if the operation must stop first.
    pub(super) async fn stored(&self) -> Option<StoredStage> {
        if let Some(stored) = self.now() {
            return Some(stored);
        }
        self.requested.notify_one();
        self.becomes_stored().await
    }

    /// Waits until the task is stored. Returns `None` if the run ends first.
    async fn becomes_stored(&self) -> Option<StoredStage> {
        let mut stage = self.stage.clone();
        let stored = stage.wait_for(|stage| matches!(stage, Stage::Stored(_))).await.is_ok();
        if stored { self.now() } else { None }
    }

    /// Returns whether the operation must stop.
    pub(super) fn must_stop(&self) -> bool {
        match self.now() {
            Some(stored) => stored.state.borrow().must_stop(),
            None => self.stage.has_changed().is_err(),
        }
    }

    /// Waits until the operation must stop.
    pub(super) async fn stop_required(&self) {
        if let Some(mut stored) = self.becomes_stored().await {
            // An error means that the run has ended. Then the operation must stop, too.
            let _ = stored.state.wait_for(TaskState::must_stop).await;
        }
    }
}

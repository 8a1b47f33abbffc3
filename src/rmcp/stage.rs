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
    stop: StopSignal,
}

/// Asks an operation to stop whose task may not be stored yet. It has no effect after it was dropped.
pub(super) struct StopRequest(watch::Sender<bool>);

/// Receives a [`StopRequest`].
#[derive(Clone)]
pub(super) struct StopSignal(watch::Receiver<bool>);

impl StopRequest {
    pub(super) fn new() -> (Self, StopSignal) {
        let (sender, receiver) = watch::channel(false);
        (Self(sender), StopSignal(receiver))
    }

    pub(super) fn send(&self) {
        self.0.send_replace(true);
    }
}

impl StopSignal {
    fn is_sent(&self) -> bool {
        *self.0.borrow()
    }

    async fn sent(&self) {
        if self.0.clone().wait_for(|is_sent| *is_sent).await.is_err() {
            // The request was dropped, and nobody sends it any more.
            std::future::pending().await
        }
    }
}

/// Returns both sides of the stage of a task that is not stored yet.
pub(super) fn in_memory(stop: StopSignal) -> (StageControl, StageView) {
    let (sender, receiver) = watch::channel(Stage::InMemory);
    let requested = Arc::<Notify>::default();
    let view = StageView { stage: receiver, requested: Arc::clone(&requested), stop };
    (StageControl { stage: sender, requested }, view)
}

/// Returns the operation's side of the stage of a stored task.
pub(super) fn stored(stage: StoredStage) -> StageView {
    let (_, receiver) = watch::channel(Stage::Stored(stage));
    let (_, stop) = StopRequest::new();
    StageView { stage: receiver, requested: Arc::default(), stop }
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
        let of_stage = match self.now() {
            Some(stored) => stored.state.borrow().must_stop(),
            None => self.stage.has_changed().is_err(),
        };
        of_stage || self.stop.is_sent()
    }

    /// Waits until the operation must stop.
    pub(super) async fn stop_required(&self) {
        tokio::select! {
            () = self.stage_requires_stop() => {}
            () = self.stop.sent() => {}
        }
    }

    async fn stage_requires_stop(&self) {
        if let Some(mut stored) = self.becomes_stored().await {
            // An error means that the run has ended. Then the operation must stop, too.
            let _ = stored.state.wait_for(TaskState::must_stop).await;
        }
    }
}

//! What all clones of a manager share, and how a run starts.

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rmcp::model::DetailedTask;
use rmcp::task_manager::TaskFuture;
use serde_json::Value;
use tokio::sync::Notify;
use tracing::{Instrument, Span};

use super::announcer::{self, Announcing};
use super::asked::AskedQuestions;
use super::config::ManagerConfig;
use super::context::TaskContext;
use super::count::{Count, CountGuard};
use super::fleet_limits::{FleetLimits, FullOwners};
use super::identity::Identity;
use super::places::{Full, Place, Places};
use super::polls::Polls;
use super::renewer::Renewer;
use super::request::FindExtensions;
use super::run::Run;
use super::shutdown::Shutdown;
use super::slots::{Slot, Slots};
use super::supervise::supervise;
use crate::backend::{Agenda, TaskKey};
use crate::spans;
use crate::store::{Attempt, TaskError, TaskStore};
use crate::task::StoredTask;

/// How long a shutdown waits for a create, a claim or a release that has begun.
pub(super) const SHUTDOWN_CALL_LIMIT: Duration = Duration::from_secs(5);

pub(super) type RegisteredOperation = Arc<dyn Fn(TaskContext, Value) -> TaskFuture + Send + Sync>;

struct Registered {
    operation: RegisteredOperation,
    /// How many runs of the operation may run at once, if the number is limited.
    places: Option<Places>,
}

/// What all clones of a manager share.
pub(super) struct Runtime<B> {
    pub(super) store: TaskStore<B>,
    operations: Mutex<HashMap<String, Registered>>,
    /// The operations of this process. A count does not keep the manager alive: the manager ends with its last clone.
    pub(super) runs: Count,
    /// The held calls of this process, and the writes that follow them.
    pub(super) calls: Count,
    pub(super) shutdown: Shutdown,
    pub(super) claiming: Claiming,
    pub(super) announcing: Announcing,
    pub(super) slots: Slots,
    pub(super) limits: FleetLimits,
    pub(super) polls: Polls<DetailedTask>,
    pub(super) asked: AskedQuestions,
    pub(super) extensions: Option<FindExtensions>,
    pub(super) renewer: Arc<Renewer<B>>,
}

/// The signals between a manager and the background task that claims tasks.
#[derive(Debug, Default)]
pub(super) struct Claiming {
    pub(super) is_running: Arc<AtomicBool>,
    /// An operation was registered. The background task then claims from its queue too.
    pub(super) registered: Arc<Notify>,
    /// A call of a tool with a limited number of places has ended.
    pub(super) place_freed: Arc<Notify>,
    /// Once it has begun, this process claims no more tasks. It begins with the shutdown at the latest.
    pub(super) closed: Shutdown,
    /// The takes and claims that are under way.
    pub(super) claims: Count,
    /// A task was not claimed, because the engine has failed, or because its owner has as many attempts as one owner may have.
    pub(super) was_refused: AtomicBool,
    pub(super) full_owners: FullOwners,
    /// Tasks that had their turn, and were refused. They may have another one.
    refused_turns: Mutex<Vec<TaskKey>>,
}

impl Claiming {
    pub(super) fn add_refused_turn(&self, key: TaskKey) {
        self.refused_turns().push(key);
    }

    pub(super) fn take_refused_turns(&self) -> Vec<TaskKey> {
        std::mem::take(&mut *self.refused_turns())
    }

    fn refused_turns(&self) -> MutexGuard<'_, Vec<TaskKey>> {
        // No code panics while it holds this lock.
        self.refused_turns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Claiming {
    fn drop(&mut self) {
        // The background task wakes up, finds that the manager was dropped, and ends.
        self.registered.notify_one();
    }
}

impl<B> Runtime<B> {
    fn operations(&self) -> MutexGuard<'_, HashMap<String, Registered>> {
        // No code panics while it holds this lock.
        self.operations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the names of the registered operations.
    pub(super) fn registered(&self) -> Vec<String> {
        self.operations().keys().cloned().collect()
    }

    pub(super) fn operation(&self, name: &str) -> Option<RegisteredOperation> {
        self.operations().get(name).map(|registered| Arc::clone(&registered.operation))
    }

    /// Returns the names of the registered operations that have a free place, and how many places each of them has at least.
    pub(super) fn claimable(&self) -> (Vec<String>, usize) {
        let free = |registered: &Registered| registered.places.as_ref().map_or(usize::MAX, Places::free);
        let operations = self.operations();
        let claimable = operations.iter().map(|(name, registered)| (name, free(registered)));
        let claimable: Vec<_> = claimable.filter(|(_, free)| *free > 0).collect();
        let fewest = claimable.iter().map(|(_, free)| *free).min().unwrap_or_default();
        (claimable.into_iter().map(|(name, _)| name.clone()).collect(), fewest)
    }

    /// Reserves a place for a task of this operation; `None` if any number of runs of the operation may run at once.
    pub(super) fn reserve(&self, operation: Option<&str>) -> Result<Option<Place>, Full> {
        let operations = self.operations();
        let registered = operation.and_then(|name| operations.get(name));
        let places = registered.and_then(|registered| registered.places.as_ref());
        places.map(|places| places.try_take().ok_or(Full)).transpose()
    }
}

impl<B: Agenda> Runtime<B> {
    pub(super) fn register(&self, name: String, operation: RegisteredOperation, places: Option<Places>) {
        if let Some(places) = &places {
            places.notify(&self.claiming.place_freed);
        }
        self.store.note_operation(&name);
        self.announce(&name);
        self.operations().insert(name, Registered { operation, places });
        self.claiming.registered.notify_one();
    }

    /// Tells operators that this worker runs an operation.
    pub(super) fn announce(&self, operation: &str) {
        self.announcing.add(operation);
        announcer::ensure_running(self);
    }

    pub(super) fn new(store: TaskStore<B>, config: ManagerConfig<B>) -> Self {
        let renewer = Arc::new(Renewer::new(&store, config.connect));
        Self {
            store,
            operations: Mutex::default(),
            runs: Count::default(),
            calls: Count::default(),
            shutdown: Shutdown::default(),
            claiming: Claiming::default(),
            announcing: Announcing::new(config.max_concurrent),
            slots: Slots::new(config.max_concurrent),
            limits: config.limits,
            polls: Polls::default(),
            asked: AskedQuestions::default(),
            extensions: config.extensions,
            renewer,
        }
    }

    /// Runs the operation of a task that a call in the span `caller` has started.
    ///
    /// # Errors
    /// `OperationPanicked` if the closure panics before it returns its future.
    pub(super) fn run_started(
        &self,
        guard: CountGuard,
        attempt: Attempt<B>,
        stored: StoredTask,
        caller: &Span,
        operation: impl FnOnce(TaskContext) -> TaskFuture,
    ) -> Result<(), TaskError> {
        let task = stored.key.task.clone();
        let span = Identity::of(&stored, attempt.number()).span(caller.id());
        attempt.set_traceparent(spans::traceparent(&span));
        let has_begun = span.in_scope(|| {
            tracing::info!("started");
            self.run(guard, attempt, stored, None, operation)
        });
        if has_begun { Ok(()) } else { Err(TaskError::OperationPanicked { task }) }
    }

    /// Runs an operation in the current span. Returns whether its closure returned a future. If it did not, it has panicked.
    pub(super) fn run(
        &self,
        guard: CountGuard,
        attempt: Attempt<B>,
        stored: StoredTask,
        slot: Option<Slot>,
        operation: impl FnOnce(TaskContext) -> TaskFuture,
    ) -> bool {
        let (store, renewer) = (self.store.clone(), Arc::clone(&self.renewer));
        let (run, has_begun) = Run::begin(store, renewer, attempt, stored, slot, operation);
        let shutdown = self.shutdown.signal();
        // Boxed, because Tokio copies a future several times until it runs, and this one has kilobytes.
        let supervised = Box::pin(async move {
            supervise(run, shutdown).await;
            drop(guard);
        });
        tokio::spawn(supervised.in_current_span());
        has_begun
    }
}

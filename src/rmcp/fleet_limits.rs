//! The limits on attempts that hold across all instances.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep, timeout};
use tracing::Instrument;

use super::runtime::{Runtime, SHUTDOWN_CALL_LIMIT};
use super::shutdown::ShutdownSignal;
use crate::backend::{Agenda, OwnerId};
use crate::printable::Chain;
use crate::store::{HeldSlot, SlotLimit, TaskError, TaskStore};

/// The pause before a failed renewal of a slot is repeated.
const RETRY_DELAY: Duration = Duration::from_millis(500);

/// The limits of one manager.
#[derive(Clone, Debug, Default)]
pub(super) struct FleetLimits {
    /// How many attempts of an operation there are at once.
    pub(super) operations: HashMap<String, u32>,
    /// How many attempts at the tasks of one owner there are at once.
    pub(super) per_owner: Option<u32>,
}

/// How long a refusal, or the end of an attempt, says something about an owner.
const RECENT: Duration = Duration::from_secs(1);

/// The owners that have as many attempts as one owner may have, as far as this process knows. An owner whose attempts end here now
/// and then is not one of them, because its next task can be claimed soon.
#[derive(Clone, Debug, Default)]
pub(super) struct FullOwners(Arc<Mutex<HashMap<OwnerId, Sign>>>);

/// The last sign of whether an owner is full.
#[derive(Debug)]
struct Sign {
    is_full: bool,
    at: Instant,
}

impl FullOwners {
    /// Notes that a task of an owner was not claimed.
    pub(super) fn note_refused(&self, owner: &OwnerId) {
        let mut signs = self.recent();
        if signs.get(owner).is_none_or(|sign| sign.is_full) {
            signs.insert(owner.clone(), Sign { is_full: true, at: Instant::now() });
        }
    }

    fn note_attempt_ended(&self, owner: &OwnerId) {
        self.recent().insert(owner.clone(), Sign { is_full: false, at: Instant::now() });
    }

    pub(super) fn owners(&self) -> HashSet<OwnerId> {
        let signs = self.recent();
        let full = signs.iter().filter(|(_, sign)| sign.is_full);
        full.map(|(owner, _)| owner.clone()).collect()
    }

    /// Removes the signs that are no longer recent.
    fn recent(&self) -> MutexGuard<'_, HashMap<OwnerId, Sign>> {
        // No code panics while it holds this lock.
        let mut signs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        signs.retain(|_, sign| sign.at.elapsed() < RECENT);
        signs
    }
}

/// The slots of one attempt, which are free again when this value is dropped.
#[derive(Default)]
pub(super) struct FleetSlots {
    /// Each ends the task that keeps a slot.
    kept: Vec<oneshot::Sender<()>>,
}

/// Why an attempt may not begin now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FleetFull {
    Operation,
    Owner,
}

impl FleetLimits {
    /// Removes the operations that have no free slot. Returns the fewest free slots of the others; `None` if they have no limit.
    pub(super) async fn retain_free<B: Agenda>(
        &self,
        runtime: &Runtime<B>,
        operations: &mut Vec<String>,
    ) -> Result<Option<usize>, TaskError> {
        let mut fewest: Option<usize> = None;
        for (operation, max) in &self.operations {
            if !operations.contains(operation) {
                continue;
            }
            match runtime.store.free_slots(&SlotLimit::of_operation(operation, *max)?).await? {
                0 => operations.retain(|name| name != operation),
                free => fewest = Some(fewest.map_or(free, |fewest| fewest.min(free))),
            }
        }
        Ok(fewest)
    }

    /// Takes the slots of an attempt at a task of this operation and owner.
    pub(super) async fn take<B: Agenda>(
        &self,
        runtime: &Runtime<B>,
        operation: Option<&str>,
        owner: &OwnerId,
    ) -> Result<Result<FleetSlots, FleetFull>, TaskError> {
        let mut slots = FleetSlots::default();
        let limit = operation.and_then(|name| Some((name, *self.operations.get(name)?)));
        let of_operation = limit.map(|(name, max)| SlotLimit::of_operation(name, max)).transpose()?;
        let of_owner = self.per_owner.map(|max| SlotLimit::of_owner(owner, max)).transpose()?;
        // The owner comes first, so that a task whose owner is full never holds a slot of the operation: the claimer takes only tasks
        // of operations with a free slot.
        for (limit, full) in [(of_owner, FleetFull::Owner), (of_operation, FleetFull::Operation)] {
            let Some(limit) = limit else { continue };
            match runtime.store.take_slot(&limit).await? {
                Some(slot) => {
                    let owner = (full == FleetFull::Owner).then(|| owner.clone());
                    slots.kept.push(keep(runtime, limit, slot, owner));
                }
                None => return Ok(Err(full)),
            }
        }
        Ok(Ok(slots))
    }
}

/// Renews a slot until the returned sender is dropped, and then frees it. A shutdown waits for that.
fn keep<B: Agenda>(
    runtime: &Runtime<B>,
    limit: SlotLimit,
    slot: HeldSlot<B>,
    owner: Option<OwnerId>,
) -> oneshot::Sender<()> {
    let (kept, dropped) = oneshot::channel();
    let counted = runtime.calls.add();
    let keeper = SlotKeeper {
        store: runtime.store.clone(),
        limit,
        slot: Some(slot),
        owner,
        full_owners: runtime.claiming.full_owners.clone(),
        freed: Arc::clone(&runtime.claiming.place_freed),
        shutdown: runtime.shutdown.signal(),
    };
    let keep = async move {
        keeper.run(dropped).await;
        drop(counted);
    };
    tokio::spawn(keep.in_current_span());
    kept
}

/// Keeps the slot of one attempt.
struct SlotKeeper<B> {
    store: TaskStore<B>,
    limit: SlotLimit,
    /// `None` after the slot has expired.
    slot: Option<HeldSlot<B>>,
    /// The owner, for a slot of the limit of an owner.
    owner: Option<OwnerId>,
    full_owners: FullOwners,
    freed: Arc<Notify>,
    shutdown: ShutdownSignal,
}

impl<B: Agenda> SlotKeeper<B> {
    async fn run(mut self, mut dropped: oneshot::Receiver<()>) {
        let regular = self.store.slot_duration() / 3;
        let (mut pause, shutdown) = (regular, self.shutdown.clone());
        loop {
            tokio::select! {
                _ = &mut dropped => break,
                () = sleep(pause) => {}
            }
            // A renewal is not dropped halfway, except when the process is about to end: its outcome would be unknown.
            pause = tokio::select! {
                renewed = self.renew() => match renewed {
                    Ok(()) => regular,
                    Err(error) => {
                        tracing::debug!(error = %Chain(&error), "a slot of a fleet-wide limit could not be renewed yet");
                        RETRY_DELAY.min(regular)
                    }
                },
                () = shutdown.limit_elapsed(SHUTDOWN_CALL_LIMIT) => return,
            };
        }
        self.release().await;
    }

    /// Renews the slot. An attempt whose slot has expired takes another one as soon as one is free.
    async fn renew(&mut self) -> Result<(), TaskError> {
        if let Some(slot) = &self.slot {
            if slot.renew().await? {
                return Ok(());
            }
            tracing::warn!(
                "a slot of a fleet-wide limit has expired, so more attempts than the limit may run until one ends"
            );
            self.slot = None;
        }
        self.slot = self.store.take_slot(&self.limit).await?;
        Ok(())
    }

    async fn release(self) {
        let Some(slot) = self.slot else { return };
        match timeout(SHUTDOWN_CALL_LIMIT, slot.release()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::debug!(error = %Chain(&error), "a slot could not be freed; it expires")
            }
            Err(_) => tracing::debug!("a slot could not be freed within {SHUTDOWN_CALL_LIMIT:?}; it expires"),
        }
        if let Some(owner) = &self.owner {
            self.full_owners.note_attempt_ended(owner);
        }
        self.freed.notify_one();
    }
}

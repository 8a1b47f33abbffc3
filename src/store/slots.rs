//! Slots of a limit that holds across all instances: each holder of a slot has a record, which expires unless the holder renews it.

use std::collections::HashSet;
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::TaskStore;
use super::deadline::CallTarget;
use super::error::TaskError;
use super::pointer::hash;
use crate::backend::{
    Agenda, Expiry, MAX_PAGE_LIMIT, OwnerId, PageRequest, PutOptions, StorageError, TaskKey, Version,
};

/// The reserved owners of slots: one for each limit, by the hash of its name.
const SLOTS: &str = "\0mcp/slots/";

/// A limit on how many holders of a name there are at once, across all instances on one engine.
#[derive(Clone, Debug)]
pub(crate) struct SlotLimit {
    owner: OwnerId,
    max: u32,
}

impl SlotLimit {
    /// The most slots that a limit may have: as many as one page of records.
    pub(crate) const MAX: u32 = MAX_PAGE_LIMIT as u32;

    /// Returns the limit on the attempts of an operation.
    pub(crate) fn of_operation(operation: &str, max: u32) -> Result<Self, TaskError> {
        Self::of(&["operation", operation], max)
    }

    /// Returns the limit on the attempts at the tasks of an owner.
    pub(crate) fn of_owner(owner: &OwnerId, max: u32) -> Result<Self, TaskError> {
        Self::of(&["owner", owner.as_str()], max)
    }

    fn of(name: &[&str], max: u32) -> Result<Self, TaskError> {
        let owner = format!("{SLOTS}{}", hash(name));
        let owner = OwnerId::try_from(owner.as_str()).map_err(TaskError::Storage)?;
        Ok(Self { owner, max: max.clamp(1, Self::MAX) })
    }

    fn key(&self, number: u32) -> Result<TaskKey, TaskError> {
        TaskKey::new(self.owner.as_str(), &number.to_string()).map_err(TaskError::Storage)
    }
}

/// A slot that this process holds.
pub(crate) struct HeldSlot<B> {
    store: TaskStore<B>,
    key: TaskKey,
    written: Mutex<LastWrite>,
}

/// The last write of a slot that the engine has applied.
#[derive(Clone, Copy)]
struct LastWrite {
    version: Version,
    /// When the call began. The record lives at least for its duration from then on.
    begun: Instant,
}

impl<B: Agenda> TaskStore<B> {
    /// Returns how many slots of a limit are free.
    pub(crate) async fn free_slots(&self, limit: &SlotLimit) -> Result<usize, TaskError> {
        let held = self.held_slots(limit).await?;
        Ok((0..limit.max).filter(|number| !held.contains(number)).count())
    }

    /// Takes a slot of a limit; `None` if no slot is free. The slot is free again once its holder has not renewed it for
    /// the duration of a lease.
    pub(crate) async fn take_slot(&self, limit: &SlotLimit) -> Result<Option<HeldSlot<B>>, TaskError> {
        let held = self.held_slots(limit).await?;
        let mut free: Vec<_> = (0..limit.max).filter(|number| !held.contains(number)).collect();
        // Instances that take a slot at the same moment begin at different numbers.
        if !free.is_empty() {
            let first = uuid::Uuid::new_v4().as_u64_pair().0 % free.len() as u64;
            free.rotate_left(usize::try_from(first).unwrap_or_default());
        }
        for number in free {
            let (key, begun) = (limit.key(number)?, Instant::now());
            match self.write_slot(&key, Version::ABSENT, self.slot_duration()).await {
                Ok(version) => {
                    let written = Mutex::new(LastWrite { version, begun });
                    return Ok(Some(HeldSlot { store: self.clone(), key, written }));
                }
                Err(TaskError::Storage(StorageError::VersionConflict { .. })) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Returns how long a slot lives from each renewal.
    pub(crate) fn slot_duration(&self) -> Duration {
        self.lease_duration()
    }

    /// Returns the numbers of the slots that are held.
    async fn held_slots(&self, limit: &SlotLimit) -> Result<HashSet<u32>, TaskError> {
        let records = self.0.records();
        let list = records.engine.backend.list(&limit.owner, PageRequest::new(MAX_PAGE_LIMIT));
        let list = pin!(async {
            records.engine.answers.count(Some(&limit.owner), list).await.map_err(TaskError::Storage)
        });
        let page = records.deadline().limit("held_slots", CallTarget::Store, list).await?;
        Ok(page.records.iter().filter_map(|record| record.task.as_str().parse().ok()).collect())
    }

    async fn write_slot(
        &self,
        key: &TaskKey,
        expected: Version,
        life: Duration,
    ) -> Result<Version, TaskError> {
        let records = self.0.records();
        let options = PutOptions::new(Expiry::After(life));
        let write = pin!(async {
            let written = records.engine.put(key, Bytes::from_static(b"{}"), options, expected).await;
            written.map_err(TaskError::Storage)
        });
        let deadline = records.deadline();
        Ok(deadline.limit("write_slot", CallTarget::Store, write).await?.version)
    }
}

impl<B: Agenda> HeldSlot<B> {
    /// Renews the slot. Returns whether it is still held. After a failure the call can be repeated.
    pub(crate) async fn renew(&self) -> Result<bool, TaskError> {
        let begun = Instant::now();
        let LastWrite { version, begun: last } = *self.written();
        let duration = self.store.slot_duration();
        // Later, the number may belong to another holder, whose record may have the same version.
        if begun - last >= duration {
            return Ok(false);
        }
        match self.store.write_slot(&self.key, version, duration).await {
            Ok(version) => {
                *self.written() = LastWrite { version, begun };
                Ok(true)
            }
            Err(TaskError::Storage(StorageError::NotFound { .. } | StorageError::VersionConflict { .. })) => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Frees the slot. If that fails, the slot is free once its record has expired.
    pub(crate) async fn release(self) -> Result<(), TaskError> {
        let LastWrite { version, begun } = *self.written();
        if begun.elapsed() >= self.store.slot_duration() {
            return Ok(());
        }
        match self.store.write_slot(&self.key, version, Duration::from_millis(1)).await {
            Ok(_)
            | Err(TaskError::Storage(StorageError::NotFound { .. } | StorageError::VersionConflict { .. })) => {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn written(&self) -> MutexGuard<'_, LastWrite> {
        // No code panics while it holds this lock.
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryBackend;
    use crate::store::StoreConfig;

    fn stores() -> [TaskStore<MemoryBackend>; 2] {
        let engine = MemoryBackend::new();
        let config = StoreConfig::new().lease(Duration::from_millis(300));
        [(); 2].map(|()| TaskStore::with_config(engine.clone(), config.clone()))
    }

    #[tokio::test]
    async fn a_limit_has_so_many_holders_and_each_frees_its_slot_once() {
        let [one, other] = stores();
        let limit = SlotLimit::of_operation("render", 3).unwrap();
        let mut held = Vec::new();
        for store in [&one, &other, &one] {
            held.push(store.take_slot(&limit).await.unwrap().unwrap());
        }
        assert_eq!(one.free_slots(&limit).await.unwrap(), 0);
        assert!(other.take_slot(&limit).await.unwrap().is_none());
        let another = SlotLimit::of_operation("preview", 3).unwrap();
        assert_eq!(one.free_slots(&another).await.unwrap(), 3);
        held.pop().unwrap().release().await.unwrap();
        while one.free_slots(&limit).await.unwrap() == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(held[0].renew().await.unwrap());
        assert!(other.take_slot(&limit).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn the_slot_of_a_dead_holder_is_free_after_a_lease_and_its_holder_cannot_renew_it() {
        let [one, other] = stores();
        let limit = SlotLimit::of_owner(&"alice".try_into().unwrap(), 1).unwrap();
        let dead = one.take_slot(&limit).await.unwrap().unwrap();
        let alive = loop {
            if let Some(taken) = other.take_slot(&limit).await.unwrap() {
                break taken;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        assert_eq!(dead.written().version, alive.written().version, "a compare-and-swap could meet it");
        assert!(!dead.renew().await.unwrap());
        dead.release().await.unwrap();
        assert!(alive.renew().await.unwrap(), "the dead holder has freed no slot of another one");
    }

    #[tokio::test]
    async fn holders_that_race_for_a_slot_never_share_it() {
        let [one, other] = stores();
        let limit = SlotLimit::of_operation("render", 2).unwrap();
        let takes = (0..8).map(|number| [&one, &other][number % 2].take_slot(&limit));
        let taken = futures_util::future::join_all(takes).await;
        assert_eq!(taken.into_iter().filter_map(|taken| taken.unwrap()).count(), 2);
    }
}

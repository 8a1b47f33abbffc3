//! Slots of a limit that holds across all instances: each holder of a slot has a record, which expires unless the holder renews it.

use std::collections::HashMap;
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
    Agenda, Expiry, MAX_PAGE_LIMIT, OwnerId, PageRequest, PutOptions, Record, StorageError, TaskKey, Version,
};
use crate::telemetry::EngineCall;

/// The reserved owners of slots: one for each limit, by the hash of its name.
const SLOTS: &str = "\0mcp/slots/";

/// The data of a record whose holder has freed the slot. The record expires soon, and another holder may write over it before.
const FREE: &[u8] = br#"{"free":true}"#;

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
    /// Names this holder, so that it recognizes its own record after a write whose outcome was unknown.
    data: Bytes,
    written: Mutex<LastWrite>,
}

/// How often the record of a slot is written at most until the engine accepts the version. Only the holder writes it.
const MAX_WRITES: usize = 3;

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
        Ok(self.list_free(limit).await?.len())
    }

    /// Takes a slot of a limit; `None` if no slot is free. The slot is free again once its holder has not renewed it for
    /// the duration of a lease.
    pub(crate) async fn take_slot(&self, limit: &SlotLimit) -> Result<Option<HeldSlot<B>>, TaskError> {
        let mut free = self.list_free(limit).await?;
        // Instances that take a slot at the same moment begin at different numbers.
        if !free.is_empty() {
            let first = uuid::Uuid::new_v4().as_u64_pair().0 % free.len() as u64;
            free.rotate_left(usize::try_from(first).unwrap_or_default());
        }
        let data = Bytes::from(format!(r#"{{"holder":"{}"}}"#, uuid::Uuid::new_v4()));
        for (number, version) in free {
            let (key, begun) = (limit.key(number)?, Instant::now());
            if let Some(version) = self.write_free_slot(&key, &data, version).await? {
                let written = Mutex::new(LastWrite { version, begun });
                return Ok(Some(HeldSlot { store: self.clone(), key, data, written }));
            }
        }
        Ok(None)
    }

    /// Returns how long a slot lives from each renewal.
    pub(crate) fn slot_duration(&self) -> Duration {
        self.lease_duration()
    }

    /// Returns the numbers of the slots that are free, each with the version of its record.
    async fn list_free(&self, limit: &SlotLimit) -> Result<Vec<(u32, Version)>, TaskError> {
        let records = self.0.records();
        let list = records.engine.backend.list(&limit.owner, PageRequest::new(MAX_PAGE_LIMIT));
        let list = pin!(async {
            records
                .engine
                .answers
                .count(EngineCall::List, Some(&limit.owner), list)
                .await
                .map_err(TaskError::Storage)
        });
        let page = records.deadline().limit("list_free", CallTarget::Store, list).await?;
        let numbered = page.records.into_iter().filter_map(|record| {
            let number: u32 = record.task.as_str().parse().ok()?;
            Some((number, (record.data == FREE).then_some(record.version)))
        });
        let versions: HashMap<_, _> = numbered.collect();
        let free = |number| versions.get(&number).map_or(Some(Version::ABSENT), |freed| *freed);
        Ok((0..limit.max).filter_map(|number| Some((number, free(number)?))).collect())
    }

    /// Writes the record of a slot that was free at this version. Returns `None` if another holder has it now.
    async fn write_free_slot(
        &self,
        key: &TaskKey,
        data: &Bytes,
        version: Version,
    ) -> Result<Option<Version>, TaskError> {
        for version in [version, Version::ABSENT] {
            match self.write_slot(key, data.clone(), version, self.slot_duration()).await {
                Ok(version) => return Ok(Some(version)),
                // The record that its holder has freed has expired meanwhile.
                Err(TaskError::Storage(StorageError::NotFound { .. })) => {}
                Err(TaskError::Storage(StorageError::VersionConflict { .. })) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    async fn write_slot(
        &self,
        key: &TaskKey,
        data: Bytes,
        expected: Version,
        life: Duration,
    ) -> Result<Version, TaskError> {
        let records = self.0.records();
        let options = PutOptions::new(Expiry::After(life));
        let write = pin!(async {
            let written = records.engine.put(key, data, options, expected).await;
            written.map_err(TaskError::Storage)
        });
        let deadline = records.deadline();
        Ok(deadline.limit("write_slot", CallTarget::Store, write).await?.version)
    }

    /// Returns the record of a slot; `None` if there is none.
    async fn read_slot(&self, key: &TaskKey) -> Result<Option<Record>, TaskError> {
        let records = self.0.records();
        let read = pin!(async {
            match records.engine.runtime_record(key).await {
                Ok(record) => Ok(Some(record)),
                Err(StorageError::NotFound { .. }) => Ok(None),
                Err(error) => Err(TaskError::Storage(error)),
            }
        });
        records.deadline().limit("read_slot", CallTarget::Store, read).await
    }
}

impl<B: Agenda> HeldSlot<B> {
    /// Renews the slot. Returns whether it is still held. After a failure the call can be repeated.
    pub(crate) async fn renew(&self) -> Result<bool, TaskError> {
        self.write(self.data.clone(), self.store.slot_duration()).await
    }

    /// Frees the slot. If that fails, the slot is free once its record has expired.
    pub(crate) async fn release(self) -> Result<(), TaskError> {
        self.write(Bytes::from_static(FREE), Duration::from_millis(1)).await.map(drop)
    }

    /// Writes the record of the slot, if this holder still has it. Returns whether it has.
    async fn write(&self, data: Bytes, life: Duration) -> Result<bool, TaskError> {
        for _ in 0..MAX_WRITES {
            let begun = Instant::now();
            let LastWrite { version, begun: last } = *self.written();
            // Later, the number may belong to another holder, whose record may have the same version.
            if begun - last >= self.store.slot_duration() {
                return Ok(false);
            }
            match self.store.write_slot(&self.key, data.clone(), version, life).await {
                Ok(version) => {
                    *self.written() = LastWrite { version, begun };
                    return Ok(true);
                }
                Err(TaskError::Storage(StorageError::NotFound { .. })) => return Ok(false),
                Err(TaskError::Storage(StorageError::VersionConflict { .. })) => {}
                Err(error) => return Err(error),
            }
            // The engine may have applied an earlier write of this holder, and the reply was lost.
            match self.store.read_slot(&self.key).await? {
                Some(record) if record.data == self.data => self.written().version = record.version,
                _ => return Ok(false),
            }
        }
        Ok(false)
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
        assert_eq!(one.free_slots(&limit).await.unwrap(), 1, "at once");
        assert!(held[0].renew().await.unwrap());
        let taken = other.take_slot(&limit).await.unwrap().unwrap();
        assert!(taken.renew().await.unwrap());
        taken.release().await.unwrap();
        // The record of a freed slot expires.
        while one.list_free(&limit).await.unwrap()[0].1 != Version::ABSENT {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
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

//! The work that the rows of the memory engine measure.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use bytes::Bytes;
use mcp_task_store::{
    Expiry, MemoryBackend, NewTask, OwnerId, PageRequest, PutOptions, StorageBackend, StoreConfig,
    StoredTask, TaskKey, TaskStore, Version,
};

use super::timing::{InProcess, Numbers};
use crate::contender::HOUR;
use crate::record::TYPICAL;

#[derive(Clone, Copy)]
pub enum Work {
    Put,
    Swap,
    Get,
    Page,
    Create,
    UpdateByKey,
    UpdateByCopy,
}

impl Work {
    pub const ALL: [Self; 7] =
        [Self::Put, Self::Swap, Self::Get, Self::Page, Self::Create, Self::UpdateByKey, Self::UpdateByCopy];

    pub fn name(self) -> &'static str {
        match self {
            Self::Put => "`put` of new records",
            Self::Swap => "`put_if_version` with `Keep`",
            Self::Get => "`get`",
            Self::Page => "a page of 20",
            Self::Create => "`TaskStore::create` with a quota",
            Self::UpdateByKey => "a status update by key",
            Self::UpdateByCopy => "a status update by `StoredTask`",
        }
    }
}

/// The content of a store: records of the measured owners, and of other owners.
#[derive(Clone, Copy)]
pub struct Store {
    pub own: usize,
    pub owners: usize,
    pub others: usize,
}

impl Store {
    pub const fn of(own: usize, owners: usize) -> Self {
        Self { own, owners, others: 0 }
    }

    async fn fill(self) -> Result<(Arc<MemoryBackend>, Vec<TaskKey>)> {
        let backend = Arc::new(MemoryBackend::new());
        let mut keys = Vec::with_capacity(self.own);
        for number in 0..self.own {
            let key = TaskKey::new(&format!("owner-{}", number % self.owners), &format!("task-{number}"))?;
            backend.put(&key, data(), options()).await?;
            keys.push(key);
        }
        for number in 0..self.others {
            let key = TaskKey::new(&format!("other-{}", number % 2_000), &format!("task-{number}"))?;
            backend.put(&key, data(), options()).await?;
        }
        Ok((backend, keys))
    }
}

fn data() -> Bytes {
    Bytes::from_static(&[b'x'; TYPICAL])
}

fn options() -> PutOptions {
    PutOptions::new(Expiry::After(HOUR))
}

/// The records of a store, shared by the Tokio tasks.
type Filled = (Arc<MemoryBackend>, Arc<Vec<TaskKey>>);

impl Work {
    /// Returns the median time of one call in nanoseconds, with this many Tokio tasks.
    pub fn measure(self, bench: &mut InProcess, tasks: usize, store: Store) -> Result<f64> {
        let (backend, keys) = bench.runtime.block_on(store.fill())?;
        let filled = (backend, Arc::new(keys));
        match self {
            Self::Put => put(bench, tasks, filled, store.owners),
            Self::Swap => swap(bench, tasks, filled),
            Self::Get => get(bench, tasks, filled),
            Self::Page => page(bench, tasks, filled),
            Self::Create => create(bench, tasks, filled, store.owners),
            Self::UpdateByKey => update(bench, tasks, false),
            Self::UpdateByCopy => update(bench, tasks, true),
        }
    }
}

fn config() -> StoreConfig {
    StoreConfig::new().max_tasks_per_owner(1_000_000_000)
}

fn put(bench: &mut InProcess, tasks: usize, (backend, _): Filled, owners: usize) -> Result<f64> {
    bench.batches(tasks, Arc::clone(&backend), move |batch| {
        let new =
            |number: usize| TaskKey::new(&format!("owner-{}", number % owners), &format!("new-{number}"));
        let keys: Arc<Vec<TaskKey>> =
            Arc::new((0..batch).map(|number| new(number).expect("legal ids")).collect());
        let of = Arc::clone(&backend);
        move |numbers: Numbers| {
            let (of, keys) = (Arc::clone(&of), Arc::clone(&keys));
            async move {
                let mut made = Vec::with_capacity(numbers.len());
                for number in numbers {
                    of.put(&keys[number], data(), options()).await?;
                    made.push(keys[number].clone());
                }
                Ok(made)
            }
        }
    })
}

fn create(bench: &mut InProcess, tasks: usize, (backend, keys): Filled, owners: usize) -> Result<f64> {
    let of = TaskStore::with_config(Arc::clone(&backend), config());
    let owners: Arc<Vec<OwnerId>> = Arc::new((0..owners).map(|of| keys[of].owner.clone()).collect());
    bench.batches(tasks, backend, move |_| {
        let (of, owners) = (of.clone(), Arc::clone(&owners));
        move |numbers: Numbers| {
            let (of, owners) = (of.clone(), Arc::clone(&owners));
            async move {
                let mut made = Vec::with_capacity(numbers.len());
                for number in numbers {
                    let owner = &owners[number % owners.len()];
                    made.push(of.create(owner, NewTask::new("tools/call")).await?.key);
                }
                Ok(made)
            }
        }
    })
}

fn swap(bench: &mut InProcess, tasks: usize, (backend, keys): Filled) -> Result<f64> {
    let versions: Arc<Vec<_>> = Arc::new((0..keys.len()).map(|_| AtomicU64::new(1)).collect());
    bench.calls(tasks, move |numbers| {
        let (of, keys, versions) = (Arc::clone(&backend), Arc::clone(&keys), Arc::clone(&versions));
        async move {
            for number in numbers {
                let at = number % keys.len();
                let expected = Version::from(versions[at].fetch_add(1, Ordering::Relaxed));
                of.put_if_version(&keys[at], data(), Expiry::Keep.into(), expected).await?;
            }
            Ok(())
        }
    })
}

fn get(bench: &mut InProcess, tasks: usize, (backend, keys): Filled) -> Result<f64> {
    bench.calls(tasks, move |numbers| {
        let (of, keys) = (Arc::clone(&backend), Arc::clone(&keys));
        async move {
            for number in numbers {
                of.get(&keys[number * 7_919 % keys.len()]).await?;
            }
            Ok(())
        }
    })
}

fn page(bench: &mut InProcess, tasks: usize, (backend, keys): Filled) -> Result<f64> {
    bench.calls(tasks, move |numbers| {
        let (of, keys) = (Arc::clone(&backend), Arc::clone(&keys));
        async move {
            for number in numbers {
                of.list(&keys[number % keys.len()].owner, PageRequest::new(20)).await?;
            }
            Ok(())
        }
    })
}

fn update(bench: &mut InProcess, tasks: usize, by_copy: bool) -> Result<f64> {
    let store = TaskStore::with_config(Arc::new(MemoryBackend::new()), config());
    // So many that no two Tokio tasks use the same record at the same time.
    let mut created = Vec::new();
    for number in 0..512 {
        let owner = OwnerId::try_from(format!("owner-{number}"))?;
        created.push(bench.runtime.block_on(store.create(&owner, NewTask::new("tools/call")))?);
    }
    let created = Arc::new(created);
    bench.calls(tasks, move |numbers: Numbers| {
        let (store, created) = (store.clone(), Arc::clone(&created));
        async move {
            let mut held: Vec<StoredTask> = Vec::new();
            for at in (numbers.start..created.len()).step_by(numbers.step) {
                held.push(store.get(&created[at].key).await?);
            }
            for number in 0..numbers.len() {
                let at = number % held.len();
                held[at] = match by_copy {
                    true => store.set_status_message(&held[at], "frame 7 of 240").await?,
                    false => store.set_status_message(&held[at].key, "frame 7 of 240").await?,
                };
            }
            Ok(())
        }
    })
}

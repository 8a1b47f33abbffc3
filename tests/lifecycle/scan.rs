//! A scan of the tasks of all owners.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use mcp_task_store::{
    Agenda, PutOptions, StorageError, StoreConfig, TaskFilter, TaskKey, TaskScan, TaskStore,
};
use rstest_reuse::apply;

use crate::common::{Tasks, plain};
use crate::support::intercept::{Call, Hooks, Intercept, Reply, unavailable};
use crate::support::{Engine, key, on_every_engine, owner};

/// Lists every owner twice, and fails every second call.
struct Unreliable {
    engine: Arc<dyn Agenda>,
    calls: AtomicUsize,
}

#[async_trait]
impl Hooks for Unreliable {
    fn engine(&self) -> Arc<dyn Agenda> {
        Arc::clone(&self.engine)
    }

    async fn call(&self, call: Call) -> Result<Reply, StorageError> {
        if self.calls.fetch_add(1, Ordering::SeqCst).is_multiple_of(2) {
            return Err(unavailable("connection reset", false));
        }
        let mut reply = call.send(&*self.engine).await?;
        if let Reply::Owners(page) = &mut reply {
            page.owners.extend(page.owners.clone());
        }
        Ok(reply)
    }
}

/// Creates tasks of several owners, one of which has more than a page of them.
async fn fill(tasks: &Tasks) -> Vec<TaskKey> {
    let owners = (0..12).flat_map(|number| {
        let count = if number == 5 { 300 } else { number };
        std::iter::repeat_n(owner(&format!("owner:{number}")), count)
    });
    let created =
        stream::iter(owners).map(|owner| async move { tasks.create(&owner, plain()).await.unwrap().key });
    let mut created: Vec<TaskKey> = created.buffer_unordered(32).collect().await;
    created.sort();
    created
}

/// Counts how often a scan finds each task. Repeats the pages that fail.
async fn found(mut scan: TaskScan<Arc<dyn Agenda>>) -> BTreeMap<TaskKey, usize> {
    let mut found = BTreeMap::new();
    loop {
        match scan.next_page().await {
            Ok(Some(page)) => {
                page.tasks.into_iter().for_each(|stored| *found.entry(stored.key).or_default() += 1)
            }
            Ok(None) => return found,
            Err(error) => assert!(error.is_retryable(), "{error}"),
        }
    }
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_scan_finds_each_task_of_every_owner_once(#[case] engine: Engine) {
    let store = engine.open().await;
    let tasks: Tasks = TaskStore::new(Arc::clone(&store.backend));
    let created = fill(&tasks).await;
    let found = found(tasks.scan(TaskFilter::new()).rate(u32::MAX)).await;
    assert!(found.values().all(|times| *times == 1));
    assert!(found.into_keys().eq(created));
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_scan_continues_after_failures_and_scans_an_owner_once_that_is_listed_twice(
    #[case] engine: Engine,
) {
    let store = engine.open().await;
    let created = fill(&TaskStore::new(Arc::clone(&store.backend))).await;
    let unreliable =
        Intercept::new(Unreliable { engine: Arc::clone(&store.backend), calls: AtomicUsize::new(0) });
    let config = StoreConfig::new().observer(true);
    let tasks: Tasks = TaskStore::with_config(unreliable.agenda(), config);
    let found = found(tasks.scan(TaskFilter::new()).rate(u32::MAX)).await;
    assert!(found.values().all(|times| *times == 1));
    assert!(found.into_keys().eq(created));
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_scan_names_the_records_that_it_cannot_read(#[case] engine: Engine) {
    let store = engine.open().await;
    let tasks: Tasks = TaskStore::new(Arc::clone(&store.backend));
    let damaged = key("alice", "damaged");
    store.backend.put(&damaged, "{".into(), PutOptions::default()).await.unwrap();
    let mut scan = tasks.scan(TaskFilter::new());
    let (mut unreadable, mut scanned) = (Vec::new(), 0);
    while let Some(page) = scan.next_page().await.unwrap() {
        unreadable.extend(page.unreadable);
        scanned += page.scanned;
    }
    assert_eq!((unreadable, scanned), (vec![damaged.task], 1));
}

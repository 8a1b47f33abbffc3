//! Writes that the engine applies late. The pointer has expired meanwhile, and a later pointer of the key has reached the version
//! that the write expects: the server hung, its clock was set forward, or the process was stopped.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use mcp_task_store::{Agenda, PageRequest, StorageError, TaskStore, UniqueStart};
use rstest_reuse::apply;
use serde_json::json;
use tokio::sync::Notify;

use super::{assert_only_open, config, instance, joined, owners, started, try_start};
use crate::common::{LONG, plain};
use crate::support::elsewhere::elsewhere;
use crate::support::intercept::{Call, Hooks, Intercept, Reply};
use crate::support::{Engine, Store, key, on_every_engine, owner};

/// Holds one write of a pointer back until the test releases it.
struct Late {
    engine: Arc<dyn Agenda>,
    /// How many writes of pointers are left until the one that is late.
    left: AtomicUsize,
    arrived: Notify,
    released: Notify,
}

#[async_trait]
impl Hooks for Late {
    fn engine(&self) -> Arc<dyn Agenda> {
        Arc::clone(&self.engine)
    }

    async fn call(&self, call: Call) -> Result<Reply, StorageError> {
        let is_pointer =
            matches!(&call, Call::PutIfVersion { key, .. } if key.owner.as_str().starts_with('\0'));
        let one_less = |left: usize| left.checked_sub(1);
        if is_pointer && self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less) == Ok(1) {
            self.arrived.notify_one();
            self.released.notified().await;
        }
        call.send(&*self.engine).await
    }
}

async fn pointer_owner(store: &Store) -> String {
    owners(&*store.backend).await.into_iter().find(|id| id.starts_with('\0')).expect("there is a pointer")
}

/// Removes the pointer, as its expiry does.
async fn expire_pointer(store: &Store) {
    let pointers = pointer_owner(store).await;
    for id in store.ids(&pointers).await {
        assert!(store.delete(&key(&pointers, &id)).await.unwrap());
    }
}

/// Holds back write `late` of a start, lets another instance start and change its TTL so often, and then releases the write.
async fn start_with_a_late_write(engine: Engine, late: usize, extensions: u32) {
    let store = engine.open().await;
    let other = instance(&store, config()).await;
    // The pointer of an ended task is at version 2, as is the pointer of the next open task.
    let (_, attempt) = started(&other, plain()).await;
    attempt.complete(json!(1)).await.unwrap();
    let engine = elsewhere(&store.of_another_process().await);
    let hooks =
        Late { engine, left: AtomicUsize::new(late), arrived: Notify::new(), released: Notify::new() };
    let intercept = Intercept::new(hooks);
    let tasks = TaskStore::with_config(intercept.agenda(), config());
    let start = tokio::spawn(async move { try_start(&tasks, plain()).await });
    intercept.arrived.notified().await;
    expire_pointer(&store).await;
    let (open, _attempt) = started(&other, plain().ttl(LONG * 4)).await;
    let mut open = open;
    for times in 0..extensions {
        open = other.set_ttl(&open.key, LONG * (times + 5)).await.unwrap();
    }
    intercept.released.notify_one();
    let UniqueStart::Joined(found) = start.await.unwrap().unwrap() else { panic!("two tasks were started") };
    assert_eq!(found.key, open.key);
    assert_only_open(&other, &open).await;
    assert_eq!(joined(&other).await.key, open.key);
    let pointers = owner(&pointer_owner(&store).await);
    let page = store.list(&pointers, PageRequest::new(2)).await.unwrap();
    assert!(page.records[0].expires_at >= open.expires_at, "the pointer outlives the task");
    assert_eq!(page.records[0].parts.len(), 1, "the pointer names no other task");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_late_claim_does_not_take_the_key_from_an_open_task(#[case] engine: Engine) {
    start_with_a_late_write(engine, 1, 0).await;
}

#[apply(on_every_engine)]
#[tokio::test]
async fn a_late_confirmation_does_not_take_the_key_from_an_open_task(#[case] engine: Engine) {
    for extensions in 0..3 {
        start_with_a_late_write(engine, 2, extensions).await;
    }
}

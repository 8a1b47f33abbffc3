//! The traits on pointers, and behaviour of single engines outside the contract.

use std::sync::Arc;
use std::time::Duration;

use crate::support::{Engine, after_ms, in_an_hour, key, never, owner};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
#[cfg(feature = "redis-tests")]
use mcp_task_store::Cursor;
use mcp_task_store::{Agenda, MemoryBackend, Next, Queue, StorageBackend, StorageError, Version};

const NOW: Duration = Duration::ZERO;
const HOUR: Duration = Duration::from_secs(3600);

fn leases() -> Queue {
    Queue::leases()
}

type Wakeups = BoxStream<'static, ()>;

async fn item(wakeups: &mut Wakeups) {
    tokio::time::timeout(Duration::from_secs(60), wakeups.next())
        .await
        .expect("an item")
        .expect("the stream does not end");
}

#[tokio::test]
async fn cleanup_on_the_memory_engine_counts_what_it_removed() {
    let store = Engine::Memory.open().await;
    store.put(&key("alice", "lives"), "data".into(), in_an_hour()).await.unwrap();
    let mut last = None;
    for task in 0..5 {
        let key = key("bob", &task.to_string());
        last = store.put(&key, "data".into(), after_ms(20)).await.unwrap().expires_at;
    }
    store.until(last.unwrap()).await;
    assert_eq!(store.cleanup_expired().await.unwrap(), 5);
    assert_eq!(store.cleanup_expired().await.unwrap(), 0);
    assert_eq!(store.ids("alice").await, ["lives"]);
}

#[cfg(feature = "redis-tests")]
async fn every_owner(store: &crate::support::Store) -> Vec<String> {
    let (mut owners, mut after) = (Vec::new(), None::<Cursor>);
    loop {
        let page = store.owners(after.as_ref()).await.unwrap();
        owners.extend(page.owners.iter().map(ToString::to_string));
        after = page.next.map(|next| Cursor::from(next.as_str()));
        if after.is_none() {
            owners.sort();
            return owners;
        }
    }
}

#[cfg(feature = "redis-tests")]
#[tokio::test]
async fn owners_lists_the_owners_of_hash_tagged_keys() {
    let store = Engine::Sharded.open().await;
    for name in ["alice", "a:b", "{a}", "🦀"] {
        store.put(&key(name, "t1"), "data".into(), in_an_hour()).await.unwrap();
    }
    assert_eq!(every_owner(&store).await, ["a:b", "alice", "{a}", "🦀"]);
}

#[tokio::test]
async fn the_agenda_of_an_engine_without_one_cannot_list_owners() {
    let store = Engine::Polled.open().await;
    assert_refused!(store.owners(None).await, StorageError::Backend { .. });
}

#[tokio::test]
async fn a_shared_or_boxed_agenda_implements_agenda() {
    async fn works<A: Agenda>(agenda: A) {
        let t1 = key("alice", "t1");
        let agenda = Arc::new(agenda);
        let mut stream = agenda.wakeups(&[leases()]);
        agenda.schedule(&leases(), &t1, NOW).await.unwrap();
        item(&mut stream).await;
        let due = agenda.take_due(&[leases()], 1, HOUR).await.unwrap().due.remove(0);
        assert_eq!(agenda.timers(&leases(), None).await.unwrap().total, 1);
        assert!(agenda.resolve(&due, Next::Remove).await.unwrap());
        agenda.put(&t1, "data".into(), never()).await.unwrap();
        assert_eq!(agenda.owners(None).await.unwrap().owners, [owner("alice")]);
        agenda.delete(&t1).await.unwrap();
    }
    works(MemoryBackend::new()).await;
    works(Arc::new(MemoryBackend::new())).await;
    works(Arc::new(MemoryBackend::new()) as Arc<dyn Agenda>).await;
    works(Arc::new(Arc::new(MemoryBackend::new()) as Arc<dyn Agenda>)).await;
}

#[tokio::test]
async fn an_arc_of_an_engine_implements_storage_backend() {
    async fn round_trip(engine: impl StorageBackend) {
        let key = key("alice", "t1");
        assert_eq!(engine.put(&key, "data".into(), never()).await.unwrap().version, Version::FIRST);
        assert_eq!(engine.get(&key).await.unwrap().data, "data");
    }
    round_trip(MemoryBackend::new()).await;
    round_trip(Arc::new(MemoryBackend::new())).await;
    round_trip(Arc::new(MemoryBackend::new()) as Arc<dyn StorageBackend>).await;
}

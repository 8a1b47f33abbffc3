//! No layer sends a write twice, and a dropped call does not disturb the others.

use std::time::Duration;

use crate::support::cluster::Cluster;
use crate::support::fake::{Answer, Fake, greeting, greeting_of_a_node};
use crate::support::redis::Server;
use crate::support::{in_an_hour, keep, key, owner};
use mcp_task_store::{
    NewTask, PageRequest, RedisBackend, RedisBuilder, StorageBackend, StorageError, TaskStore, Version,
};
use rstest::rstest;
use tokio::task::JoinSet;

/// How a backend is connected to one fake server.
#[derive(Clone, Copy, Debug)]
enum Connection {
    Single,
    SingleResp2,
    Replicated,
    Cluster,
    /// A connection of the caller.
    Given,
}

async fn connect(connection: Connection, fake: &Fake) -> RedisBackend {
    let builder = RedisBackend::builder().response_timeout(Duration::from_secs(10));
    match connection {
        Connection::Single => builder.connect(&fake.url()).await,
        Connection::SingleResp2 => builder.connect(&format!("{}?protocol=resp2", fake.url())).await,
        Connection::Replicated => {
            builder.wait_for_replicas(1, Duration::from_secs(1)).connect(&fake.url()).await
        }
        Connection::Cluster => builder.connect_cluster([fake.url()]).await,
        Connection::Given => {
            let client = redis::Client::open(fake.url()).unwrap();
            builder.over(client.get_multiplexed_async_connection().await.unwrap()).await
        }
    }
    .unwrap()
}

/// Starts a server that replies only to the commands before a call, and closes the connection after each script. In a cluster
/// it is the master of all slots.
async fn dropping() -> Fake {
    Fake::start(|port, words| match &*words[0].to_ascii_uppercase() {
        "EVAL" => Answer::Close,
        _ => greeting_of_a_node(port, words),
    })
    .await
}

#[rstest]
#[case::single(Connection::Single)]
#[case::single_resp2(Connection::SingleResp2)]
#[case::replicated(Connection::Replicated)]
#[case::cluster(Connection::Cluster)]
#[case::a_connection_of_the_callers(Connection::Given)]
#[tokio::test]
async fn a_write_whose_connection_breaks_was_sent_once(#[case] connection: Connection) {
    let fake = dropping().await;
    let mut sent = 0;
    for round in 0..10 {
        let backend = connect(connection, &fake).await;
        for write in [Write::Put, Write::Replace, Write::Create, Write::Delete] {
            let task = format!("{round}-{write:?}");
            let error = write.send(&backend, &task).await.unwrap_err();
            assert!(
                matches!(error, StorageError::Unavailable { .. } | StorageError::TooFewReplicas { .. }),
                "{error:?}"
            );
            // If the write was not sent, because there was no connection, the outcome may be known.
            let times = fake.received("EVAL").iter().filter(|words| is_about(words, &task)).count();
            assert!(times <= 1, "{times} times");
            assert!(times == 0 || error.outcome_unknown(), "{error:?}");
            sent += times;
        }
    }
    assert!(sent >= 10, "the first of each round reaches the server: {sent}");
}

#[derive(Clone, Copy, Debug)]
enum Write {
    Put,
    Replace,
    Create,
    Delete,
}

impl Write {
    async fn send(self, backend: &RedisBackend, task: &str) -> Result<(), StorageError> {
        let (key, data) = (key("alice", task), "data".into());
        match self {
            Self::Put => backend.put(&key, data, in_an_hour()).await.map(drop),
            Self::Replace => backend.put_if_version(&key, data, keep(), Version::FIRST).await.map(drop),
            Self::Create => backend.put_if_version(&key, data, keep(), Version::ABSENT).await.map(drop),
            Self::Delete => backend.delete(&key).await.map(drop),
        }
    }
}

fn is_about(words: &[String], task: &str) -> bool {
    words.iter().any(|word| word.ends_with(task))
}

#[tokio::test]
async fn a_read_that_fails_is_sent_once() {
    let fake = Fake::start(|_, words| match &*words[0].to_ascii_uppercase() {
        "HMGET" => Answer::Close,
        _ => greeting(words),
    });
    let fake = fake.await;
    let backend = connect(Connection::Single, &fake).await;
    backend.get(&key("alice", "t1")).await.unwrap_err();
    assert_eq!(fake.received("HMGET").len(), 1);
}

#[tokio::test]
async fn the_store_sends_a_write_again_only_after_it_has_read_its_outcome() {
    let fake = dropping().await;
    let store = TaskStore::new(connect(Connection::Single, &fake).await);
    let error = store.create(&owner("alice"), NewTask::new("tools/call")).await.unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
    // This server replies to no read, so the store cannot learn the outcome of the first write.
    let creates =
        fake.received("EVAL").into_iter().filter(|words| words.iter().any(|word| word.contains(":alice:")));
    assert_eq!(creates.count(), 1);
    assert!(!fake.received("HMGET").is_empty());
}

/// How a backend is connected to real servers.
enum Servers {
    Single(Server),
    Replicated { master: Server, _replica: Server },
    Cluster(Cluster),
}

impl Servers {
    async fn connect(&self, builder: RedisBuilder) -> RedisBackend {
        match self {
            Self::Single(server) => builder.connect(&server.url()).await,
            Self::Replicated { master, .. } => {
                builder.wait_for_replicas(1, Duration::from_secs(5)).connect(&master.url()).await
            }
            Self::Cluster(cluster) => builder.connect_cluster(cluster.urls().split(',')).await,
        }
        .unwrap()
    }
}

fn replicated() -> Servers {
    let master = Server::start(&[]);
    let port = master.port.to_string();
    let replica = Server::start(&["--replicaof", "127.0.0.1", &port]);
    master.is_replicated();
    Servers::Replicated { master, _replica: replica }
}

const CALLERS: usize = 16;
const CALLS: usize = 300;

#[rstest]
#[case::single(Servers::Single(Server::start(&[])))]
#[case::replicated(replicated())]
#[case::cluster(Servers::Cluster(Cluster::start(3, 0)))]
#[tokio::test(flavor = "multi_thread")]
async fn no_caller_receives_the_reply_of_a_dropped_call(#[case] servers: Servers) {
    let limit = RedisBackend::builder().response_timeout(Duration::from_secs(10));
    let backend = servers.connect(limit).await;
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        callers.spawn(drops_calls(backend.clone(), format!("owner-{caller}")));
    }
    let dropped: usize = callers.join_all().await.into_iter().sum();
    assert!(dropped > CALLERS, "calls were dropped: {dropped}");
}

/// Makes calls and drops some of them. Returns how many writes it dropped.
async fn drops_calls(backend: RedisBackend, owner_id: String) -> usize {
    let t1 = key(&owner_id, "t1");
    let mut dropped = 0;
    backend.put(&t1, owner_id.clone().into(), in_an_hour()).await.unwrap();
    for call in 0..CALLS {
        // The call is dropped after some microseconds: before it is sent, before its reply, or after it.
        let patience = Duration::from_micros((call as u64 * 37) % 1500);
        let put = backend.put(&t1, owner_id.clone().into(), keep());
        dropped += usize::from(tokio::time::timeout(patience, put).await.is_err());
        let get = backend.get(&t1);
        if let Ok(record) = tokio::time::timeout(patience / 2, get).await {
            assert_eq!(record.unwrap().data, owner_id);
        }
        assert_eq!(backend.get(&t1).await.unwrap().data, owner_id, "another call's reply");
        let page = backend.list(&owner(&owner_id), PageRequest::new(5)).await.unwrap();
        assert_eq!(page.records[0].data, owner_id);
    }
    dropped
}

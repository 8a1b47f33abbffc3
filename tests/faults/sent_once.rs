//! No layer sends a write twice, and a call that was dropped does nobody harm.

use std::sync::Arc;
use std::time::Duration;

use crate::support::cluster::Cluster;
use crate::support::fake::{Answer, Fake, greeting};
use crate::support::redis::Server;
use crate::support::{in_an_hour, keep, key, owner};
use mcp_task_store::{
    NewTask, PageRequest, RedisBackend, RedisBuilder, StorageBackend, StorageError, TaskStore, Version,
};
use rstest::rstest;
use tokio::task::JoinSet;

/// How a backend is connected to one fake server.
#[derive(Clone, Copy, Debug)]
enum Way {
    Single,
    SingleResp2,
    Replicated,
    Cluster,
    Given,
}

async fn connect(way: Way, fake: &Fake) -> RedisBackend {
    let builder = RedisBackend::builder().response_timeout(Duration::from_secs(10));
    match way {
        Way::Single => builder.connect(&fake.url()).await,
        Way::SingleResp2 => builder.connect(&format!("{}?protocol=resp2", fake.url())).await,
        Way::Replicated => builder.wait_for_replicas(1, Duration::from_secs(1)).connect(&fake.url()).await,
        Way::Cluster => builder.connect_cluster([fake.url()]).await,
        Way::Given => {
            let client = redis::Client::open(fake.url()).unwrap();
            builder.over(client.get_multiplexed_async_connection().await.unwrap()).await
        }
    }
    .unwrap()
}

/// A server that answers nothing but the words before a call, and drops the connection after each script. As a
/// cluster it is the master of all slots.
async fn dropping() -> Fake {
    Fake::start(|port, words| match &*words[0].to_ascii_uppercase() {
        "EVAL" => Answer::Close,
        "CLUSTER" if words[1] == "INFO" => {
            let info = "cluster_state:ok\r\ncluster_current_epoch:1\r\n";
            Answer::Bytes(format!("${}\r\n{info}\r\n", info.len()).into_bytes())
        }
        "CLUSTER" => {
            let node = format!("*3\r\n$9\r\n127.0.0.1\r\n:{port}\r\n$4\r\nfake\r\n");
            Answer::Bytes(format!("*1\r\n*3\r\n:0\r\n:16383\r\n{node}").into_bytes())
        }
        _ => greeting(words),
    })
    .await
}

#[rstest]
#[case::single(Way::Single)]
#[case::single_resp2(Way::SingleResp2)]
#[case::replicated(Way::Replicated)]
#[case::cluster(Way::Cluster)]
#[case::a_connection_of_the_callers(Way::Given)]
#[tokio::test]
async fn a_write_whose_connection_breaks_was_sent_once(#[case] way: Way) {
    let fake = dropping().await;
    let mut sent = 0;
    for round in 0..10 {
        let backend = connect(way, &fake).await;
        for call in 0..4 {
            let key = key("alice", &format!("{round}-{call}"));
            let refused = match call {
                0 => backend.put(&key, "data".into(), in_an_hour()).await.map(drop),
                1 => backend.put_if_version(&key, "data".into(), keep(), Version::FIRST).await.map(drop),
                2 => backend.put_if_version(&key, "data".into(), keep(), Version::ABSENT).await.map(drop),
                _ => backend.delete(&key).await.map(drop),
            };
            let error = refused.unwrap_err();
            assert!(matches!(error, StorageError::Unavailable { .. }), "{error:?}");
            // One that was not sent, as there was no connection at that moment, says so or does not know.
            let its = fake
                .received("EVAL")
                .iter()
                .filter(|words| words.iter().any(|word| word.ends_with(&format!("{round}-{call}"))))
                .count();
            assert!(its <= 1, "{its} times");
            assert!(its == 0 || error.outcome_unknown(), "{error:?}");
            sent += its;
        }
    }
    assert!(sent >= 10, "the first of each round reaches the server: {sent}");
}

#[tokio::test]
async fn a_read_that_fails_is_not_repeated_either() {
    let fake = Fake::start(|_, words| match &*words[0].to_ascii_uppercase() {
        "HMGET" => Answer::Close,
        _ => greeting(words),
    });
    let fake = fake.await;
    let backend = connect(Way::Single, &fake).await;
    backend.get(&key("alice", "t1")).await.unwrap_err();
    assert_eq!(fake.received("HMGET").len(), 1);
}

#[tokio::test]
async fn the_store_sends_a_write_again_only_after_it_has_read_what_became_of_it() {
    let fake = dropping().await;
    let store = TaskStore::new(connect(Way::Single, &fake).await);
    let error = store.create(&owner("alice"), NewTask::new("tools/call")).await.unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
    // Reads get no good reply from this server, so nothing tells what became of the first write.
    println!("{:?}", fake.received("EVAL").iter().map(|w| w[2..].join(" ")).collect::<Vec<_>>());
    assert_eq!(fake.received("EVAL").len(), 1);
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

#[rstest]
#[case::single(Servers::Single(Server::start(&[])))]
#[case::replicated(replicated())]
#[case::cluster(Servers::Cluster(Cluster::start(3, 0)))]
#[tokio::test(flavor = "multi_thread")]
async fn the_reply_of_a_dropped_call_reaches_nobody(#[case] servers: Servers) {
    const CALLERS: usize = 16;
    const CALLS: usize = 300;
    let limit = RedisBackend::builder().response_timeout(Duration::from_secs(10));
    let backend = Arc::new(servers.connect(limit).await);
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let backend = Arc::clone(&backend);
        callers.spawn(async move {
            let owner_id = format!("owner-{caller}");
            let t1 = key(&owner_id, "t1");
            let mut dropped = 0;
            backend.put(&t1, owner_id.clone().into(), in_an_hour()).await.unwrap();
            for call in 0..CALLS {
                // Dropped after some microseconds: before it was sent, on the way, and with the reply there.
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
        });
    }
    let mut dropped = 0;
    while let Some(caller) = callers.join_next().await {
        dropped += caller.unwrap();
    }
    assert!(dropped > CALLERS, "calls were dropped: {dropped}");
}

//! The owners of a store, listed from the keys of one server or of every master.

use std::collections::BTreeSet;
use std::time::Duration;

use mcp_task_store::{Agenda, Cursor, RedisBackend, StorageBackend, StorageError};
use redis::Commands;

use super::connect;
use crate::support::cluster::{Cluster, eventually};
use crate::support::redis::Server;
use crate::support::{in_an_hour, key};

#[tokio::test]
async fn owners_skips_keys_that_are_not_the_index_of_an_owner() {
    let server = Server::start(&[]);
    let mut admin = server.connection();
    let backend = RedisBackend::connect(&server.url()).await.unwrap();
    backend.put(&key("alice", "t1"), "data".into(), in_an_hour()).await.unwrap();
    let _: () = admin.set("pmcp:idx:text", "text").unwrap();
    for foreign in ["pmcp:idx:", "pmcp:idx:a%3a", "pmcp:idx:{bob}:", "pmcp:idx:\u{7f}", "other:idx:bob"] {
        let _: () = admin.zadd(foreign, "t1", 1).unwrap();
    }
    let _: () = admin.zadd(b"pmcp:idx:\xff", "t1", 1).unwrap();
    let page = backend.owners(None).await.unwrap();
    let owners: Vec<&str> = page.owners.iter().map(|owner| owner.as_str()).collect();
    assert_eq!((owners, page.next), (vec!["alice"], None));
}

#[tokio::test]
async fn owners_are_found_among_many_other_keys_in_bounded_steps() {
    let server = Server::start(&[]);
    let mut admin = server.connection();
    let backend = RedisBackend::connect(&server.url()).await.unwrap();
    let mut many = redis::pipe();
    for number in 0..30_000 {
        many.set(format!("other:{number}"), "").ignore();
    }
    let _: () = many.query(&mut admin).unwrap();
    for number in 0..50 {
        let key = key(&format!("owner-{number}"), "t1");
        backend.put(&key, "data".into(), in_an_hour()).await.unwrap();
    }
    let (mut owners, mut after, mut pages) = (BTreeSet::new(), None::<Cursor>, 0);
    loop {
        let page = backend.owners(after.as_ref()).await.unwrap();
        owners.extend(page.owners.iter().map(ToString::to_string));
        (after, pages) = (page.next, pages + 1);
        if after.is_none() {
            break;
        }
    }
    assert_eq!(owners.len(), 50);
    assert!(pages > 5, "a page looks at a few thousand keys: {pages}");
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_cluster_owners_lists_the_owners_of_every_master_even_after_a_failover() {
    let cluster = Cluster::start(3, 3);
    let backend = connect(&cluster).await;
    let wanted: BTreeSet<String> = (0..60).map(|number| format!("owner-{number}")).collect();
    for name in &wanted {
        backend.put(&key(name, "t1"), "data".into(), in_an_hour()).await.unwrap();
    }
    let mut owners = BTreeSet::new();
    let mut after = None::<Cursor>;
    let mut pages = 0;
    loop {
        let page = match backend.owners(after.as_ref()).await {
            Ok(page) => page,
            Err(error) => {
                assert!(matches!(error, StorageError::Unavailable { .. }), "{error:?}");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        owners.extend(page.owners.iter().map(ToString::to_string));
        (after, pages) = (page.next, pages + 1);
        let Some(cursor) = &after else { break };
        if pages == 1 {
            // The next master goes down, and its replica takes over.
            let port: u16 = cursor.as_str().split('.').nth(2).unwrap().parse().unwrap();
            let next = cluster.nodes.iter().position(|node| node.port == port).unwrap();
            cluster.nodes[next].signal("KILL");
            let survivors = cluster.urls_without(next);
            eventually(|| {
                let masters = crate::support::redis::masters(&survivors);
                masters.len() == 3 && !masters.values().any(|url| url.ends_with(&port.to_string()))
            });
        }
    }
    assert_eq!(owners, wanted);
    assert!(pages >= 3, "each page has owners of one master: {pages}");
}

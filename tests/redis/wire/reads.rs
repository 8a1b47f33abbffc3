//! The commands of reads: one for a record or a part, and two round trips for a page.

use mcp_task_store::{PageRequest, PartName, StorageBackend};

use super::{Monitor, Sent, open};
use crate::support::redis::Namespace;
use crate::support::{keep, key, owner};

#[tokio::test]
async fn a_get_is_one_hmget() {
    let (_namespace, backend, mut monitor) = open().await;
    backend.put(&key("alice", "t1"), "data".into(), keep()).await.unwrap();
    monitor.sent().await;
    for task in ["t1", "absent"] {
        let sent = monitor.sent_by(backend.get(&key("alice", task))).await;
        assert_eq!(sent, [Sent { command: "HMGET".into(), ran: vec![] }]);
    }
}

#[tokio::test]
async fn the_read_of_a_part_is_one_hmget() {
    let (_namespace, backend, mut monitor) = open().await;
    let t1 = key("alice", "t1");
    backend.put(&t1, "data".into(), keep()).await.unwrap();
    monitor.sent().await;
    let sent = monitor.sent_by(backend.part(&t1, &PartName::from_static("output"))).await;
    assert_eq!(sent, [Sent { command: "HMGET".into(), ran: vec![] }]);
}

#[tokio::test]
async fn a_page_is_a_script_for_the_ids_and_then_one_hmget_for_each_record() {
    let (namespace, backend, mut monitor) = open().await;
    for task in ["t1", "t2"] {
        backend.put(&key("alice", task), "data".into(), keep()).await.unwrap();
    }
    monitor.sent().await;
    let alice = owner("alice");
    let sent =
        monitor.assert_sends(backend.list(&alice, PageRequest::new(10)), &["EVAL", "HMGET", "HMGET"]).await;
    assert_eq!(sent[0].ran(), ["TIME", "ZRANGE"]);

    // After a page with a member without a hash comes one reap.
    let _: i64 = namespace.run(&["DEL", "{}:tasks:alice:t1"]);
    monitor.sent().await;
    let expected = ["EVAL", "HMGET", "HMGET", "EVAL"];
    let sent = monitor.assert_sends(backend.list(&alice, PageRequest::new(10)), &expected).await;
    assert_eq!(sent[3].ran(), ["TIME", "EXISTS", "ZRANGE", "ZREM"]);
}

#[tokio::test]
async fn a_page_reads_as_many_records_as_fit_and_the_sizes_of_the_others_before_it_reads_more() {
    let namespace = Namespace::new();
    let backend = namespace.backend().await;
    for task in 0..40 {
        backend.put(&key("alice", &task.to_string()), vec![b'x'; 100].into(), keep()).await.unwrap();
    }
    let mut monitor = Monitor::start(&namespace).await;
    // At first the backend expects records of the maximum size, 4096 bytes. With each page it expects half as much.
    for (max_bytes, first, read) in [(8_192, 2, 38), (8_192, 4, 36), (400, 1, 3), (1 << 20, 40, 0)] {
        backend.list(&owner("alice"), PageRequest::new(64).max_bytes(max_bytes)).await.unwrap();
        let commands: Vec<_> = monitor.sent().await.into_iter().map(|sent| sent.command).collect();
        let sizes = &["HSTRLEN"; 40][first..];
        let expected = [&["EVAL"][..], &["HMGET"; 40][..first], sizes, &["HMGET"; 40][..read]].concat();
        assert_eq!(commands, expected, "{max_bytes}");
    }
}

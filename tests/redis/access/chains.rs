//! No error repeats the text of its source.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use mcp_task_store::{
    Credentials, NewTask, PmcpTasksBackend, RedisBackend, RedisBuilder, StorageBackend, StorageError,
    TaskError, TaskStore,
};
use pmcp_tasks::StorageBackend as _;

use crate::support::fake::{Answer, Fake, greeting};
use crate::support::redis::{Server, command, free_port};
use crate::support::tls::Authority;
use crate::support::{in_an_hour, keep, key, owner};

/// The texts of an error and its sources.
fn chain(error: &dyn Error) -> Vec<String> {
    let mut texts = vec![error.to_string()];
    let mut source = error.source();
    while let Some(error) = source {
        texts.push(error.to_string());
        source = error.source();
    }
    texts
}

/// Asserts that the chain of an error has at least `links` errors, that these words are in the last of them or deeper,
/// and that no error repeats the text of its source.
fn assert_said_once(error: &dyn Error, links: usize, words: &str) {
    let texts = chain(error);
    assert!(texts.len() >= links, "{links}: {texts:#?}");
    assert!(texts.iter().skip(links - 1).any(|text| text.contains(words)), "{words}: {texts:#?}");
    for pair in texts.windows(2) {
        assert!(!pair[0].contains(&pair[1]), "{texts:#?}");
    }
}

fn builder() -> RedisBuilder {
    RedisBackend::builder()
        .connect_timeout(Duration::from_secs(5))
        .response_timeout(Duration::from_millis(300))
}

fn secret(port: u16) -> String {
    format!("redis://user:pass-word@127.0.0.1:{port}")
}

#[tokio::test]
async fn no_error_of_a_connection_repeats_its_source() {
    let refused = builder().connect(&secret(free_port())).await.unwrap_err();
    assert_said_once(&refused, 2, "Connection refused");
    let failing = || async { Err::<Credentials, _>(std::io::Error::other("the token endpoint is down")) };
    let server = Server::start(&["--requirepass", "right"]);
    let not_provided = builder().credentials(failing).connect(&server.url()).await.unwrap_err();
    assert!(not_provided.to_string().contains("credentials callback"), "{not_provided}");
    assert_said_once(&not_provided, 2, "the token endpoint is down");
    let denied = builder().connect(&secret(server.port)).await.unwrap_err();
    assert!(matches!(denied, StorageError::Denied { .. }), "{denied:?}");
    assert_said_once(&denied, 2, "username-password");
    let missing = builder().connect(&server.url()).await.unwrap_err();
    assert_said_once(&missing, 2, "NOAUTH");

    let without = Server::start(&["--rename-command", "EVAL", ""]);
    assert_said_once(&builder().connect(&without.url()).await.unwrap_err(), 2, "unknown command");

    let (authority, another) = (Authority::new(), Authority::new());
    let (_server, port) = authority.start_server(false);
    let stranger = builder().root_certificates(another.pem("ca.pem"));
    let untrusted = stranger.connect(&format!("rediss://127.0.0.1:{port}")).await.unwrap_err();
    assert!(matches!(untrusted, StorageError::Denied { .. }), "{untrusted:?}");
    assert_said_once(&untrusted, 2, "certificate");
}

#[tokio::test]
async fn no_error_of_a_call_repeats_its_source() {
    let mut server = Server::start(&[]);
    let backend = builder().connect(&server.url()).await.unwrap();
    let (t1, t2) = (key("alice", "t1"), key("alice", "t2"));
    let mut admin = server.connection();
    let _: () = command(&mut admin, ["SET", "pmcp:tasks:alice:t2", "a string"]);
    assert_said_once(&backend.get(&t2).await.unwrap_err(), 2, "WRONGTYPE");
    assert_said_once(&backend.put(&t2, "data".into(), keep()).await.unwrap_err(), 2, "WRONGTYPE");
    let _: () = command(&mut admin, ["CONFIG", "SET", "maxmemory", "1"]);
    assert_said_once(&backend.put(&t1, "data".into(), keep()).await.unwrap_err(), 2, "OOM");
    let _: () = command(&mut admin, ["CONFIG", "SET", "maxmemory", "0"]);

    let wait =
        builder().wait_for_replicas(1, Duration::from_millis(50)).connect(&server.url()).await.unwrap();
    let few = wait.put(&t1, "data".into(), keep()).await.unwrap_err();
    assert!(matches!(few, StorageError::TooFewReplicas { wanted: 1, acknowledged: 0, .. }), "{few:?}");
    assert_said_once(&few, 1, "0 of 1 replicas");
    let _: () = command(&mut admin, ["ACL", "SETUSER", "default", "-wait"]);
    let few = wait.put(&t1, "data".into(), keep()).await.unwrap_err();
    assert!(matches!(few, StorageError::TooFewReplicas { wanted: 1, acknowledged: 0, .. }), "{few:?}");
    assert_said_once(&few, 2, "NOPERM");
    let _: () = command(&mut admin, ["ACL", "SETUSER", "default", "-eval", "-hmget"]);
    assert_said_once(&backend.put(&t1, "data".into(), keep()).await.unwrap_err(), 2, "NOPERM");

    // The same errors through `TaskStore` and the adapter.
    let tasks = TaskStore::new(backend.clone());
    let denied = tasks.create(&owner("alice"), NewTask::new("tools/call")).await.unwrap_err();
    assert!(matches!(denied, TaskError::Storage(StorageError::Denied { .. })), "{denied:?}");
    assert_said_once(&denied, 2, "NOPERM");
    let adapter = PmcpTasksBackend::new(Arc::new(backend.clone()));
    assert_said_once(&adapter.put("alice:t1", b"{}").await.unwrap_err(), 3, "NOPERM");
    let _: () = command(&mut admin, ["ACL", "SETUSER", "default", "+@all"]);
    backend.put(&t1, "no JSON".into(), in_an_hour()).await.unwrap();
    assert_said_once(&tasks.get(&t1).await.unwrap_err(), 2, "expected");

    server.kill();
    assert_said_once(&backend.put(&t1, "data".into(), keep()).await.unwrap_err(), 2, "");
    assert_said_once(&backend.put(&t1, "data".into(), keep()).await.unwrap_err(), 2, "Connection refused");
    assert_said_once(&tasks.get(&t1).await.unwrap_err(), 2, "Connection refused");
}

#[tokio::test]
async fn no_error_caused_by_a_malformed_reply_repeats_its_source() {
    for (reply, words) in [
        (Answer::Bytes(b"HTTP/1.1 400 Bad Request\r\n".to_vec()), ""),
        (Answer::Bytes(b":7\r\n".to_vec()), "form"),
        (Answer::Bytes(b"-ODD what is that\r\n".to_vec()), "ODD what is that"),
        (Answer::BytesAndReset(b"*9\r\n".to_vec()), ""),
        (Answer::Close, ""),
    ] {
        let fake = Fake::start(move |_, words| match &*words[0].to_ascii_uppercase() {
            "EVAL" | "HMGET" => reply.clone(),
            _ => greeting(words),
        })
        .await;
        let backend = builder().connect(&fake.url()).await.unwrap();
        assert_said_once(
            &backend.put(&key("alice", "t1"), "data".into(), keep()).await.unwrap_err(),
            2,
            words,
        );
        assert_said_once(&backend.get(&key("alice", "t1")).await.unwrap_err(), 2, "");
    }
}

//! The URL of a server: its password, database and settings.

use futures_util::StreamExt;
use mcp_task_store::{RedisBackend, StorageBackend, StorageError};
use redis::{Commands, Value};

use super::{assert_names, every_operation};
use crate::support::redis::{Server, command, connection};
use crate::support::{keep, key};

#[tokio::test]
async fn the_error_for_a_url_that_cannot_be_read_does_not_hold_the_password() {
    let form = "redis://[user:password@]host[:port][/database][?protocol=resp2]";
    for (url, part) in [
        ("redis//user:pass-word@host", "`redis://`"),
        ("redis://user:pass-word@:port", "host"),
        ("http://user:pass-word@host", "scheme"),
        ("redis://user:pass-word@host?db=2", "`db`"),
        ("redis://user:pass-word@host?protcol=resp2", "`protcol`"),
        ("redis://user:pass-word#1@host", "%23"),
        ("rediss://user:pass-word@host#insecure", "insecure"),
        ("", "`redis://`"),
    ] {
        let builder = RedisBackend::builder;
        let good = "redis://127.0.0.1:1";
        for (error, which) in [
            (builder().connect(url).await.unwrap_err(), "the URL"),
            (builder().connect_cluster([good, url]).await.unwrap_err(), "the URL of node 2"),
            (
                builder().connect_sentinel([good, url], "redis://mymaster").await.unwrap_err(),
                "the URL of sentinel 2",
            ),
            (builder().connect_sentinel([good], url).await.unwrap_err(), "the URL"),
        ] {
            assert!(!error.is_retryable() && !error.outcome_unknown(), "{error}");
            assert_names(&error, &[form, part, which]);
        }
    }
}

#[tokio::test]
async fn a_password_with_the_text_of_a_setting_is_used_as_the_password() {
    let server = Server::start(&["--requirepass", "protocol=resp2/?#@%"]);
    let url = format!("redis://:protocol=resp2%2F%3F%23%40%25@127.0.0.1:{}", server.port);
    let backend = RedisBackend::connect(&url).await.unwrap();
    backend.put(&key("alice", "t1"), "data".into(), keep()).await.unwrap();
    // The backend uses RESP3, so it subscribes.
    backend.watch(&key("alice", "t1")).next().await.unwrap().unwrap();
    let clients: String = redis::cmd("CLIENT").arg("LIST").query(&mut connection(&url)).unwrap();
    assert!(clients.contains("resp=3"), "{clients}");
}

#[tokio::test]
async fn a_wrong_or_missing_password_is_denied() {
    let server = Server::start(&["--requirepass", "right"]);
    for user in ["", ":pass-word@", "somebody:pass-word@"] {
        let error =
            RedisBackend::connect(&format!("redis://{user}127.0.0.1:{}", server.port)).await.unwrap_err();
        assert!(matches!(error, StorageError::Denied { .. }), "{error:?}");
        assert_names(&error, &[&format!("127.0.0.1:{}", server.port)]);
    }
    let backend = RedisBackend::connect(&format!("redis://:right@127.0.0.1:{}", server.port)).await.unwrap();
    backend.put(&key("alice", "t1"), "data".into(), keep()).await.unwrap();
    assert!(!format!("{backend:?}").contains("right"));
}

#[tokio::test]
async fn the_database_of_the_url_is_used() {
    let server = Server::start(&[]);
    let backend = RedisBackend::connect(&format!("{}/3", server.url())).await.unwrap();
    backend.put(&key("alice", "t1"), "data".into(), keep()).await.unwrap();
    let mut connection = connection(&server.url());
    assert!(!connection.exists::<_, bool>("pmcp:tasks:alice:t1").unwrap());
    let _: Value = command(&mut connection, ["SELECT", "3"]);
    assert!(connection.exists::<_, bool>("pmcp:tasks:alice:t1").unwrap());
}

#[tokio::test]
async fn the_backend_uses_resp2_if_the_url_says_so() {
    let server = Server::start(&[]);
    let mut admin = connection(&server.url());
    let backend = RedisBackend::connect(&format!("{}?protocol=resp2", server.url())).await.unwrap();
    every_operation(&backend, &mut admin).await.unwrap();
}

//! Servers to which a backend cannot connect: their errors name the address and the cause.

use std::time::Duration;

use mcp_task_store::{RedisBackend, StorageBackend, StorageError};
use rstest::rstest;

use super::assert_names;
use crate::support::redis::{Server, free_port};
use crate::support::sentinel::Watched;
use crate::support::{in_an_hour, key};

#[tokio::test]
async fn the_error_for_an_unreachable_server_names_its_host_and_port() {
    let port = free_port();
    let url = format!("redis://user:pass-word@127.0.0.1:{port}");
    let error = RedisBackend::connect(&url).await.unwrap_err();
    assert!(matches!(error, StorageError::Unavailable { outcome_unknown: false, .. }), "{error:?}");
    assert!(error.is_retryable());
    assert_names(&error, &[&format!("127.0.0.1:{port}"), "no server accepts connections there"]);
}

#[tokio::test]
async fn connecting_to_a_server_that_never_answers_fails_at_the_connect_timeout() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let url = format!("redis://user:pass-word@{address}");
    let connecting = RedisBackend::builder().connect_timeout(Duration::from_millis(200)).connect(&url);
    // Far above the timeout, so that this fails only if the call never ends.
    let ended = tokio::time::timeout(Duration::from_secs(20), connecting).await;
    let error = ended.expect("connect returns").unwrap_err();
    assert!(matches!(error, StorageError::Unavailable { outcome_unknown: false, .. }), "{error:?}");
    assert_names(&error, &[&address]);
}

#[rstest]
#[case::scripts("EVAL")]
#[case::a_read_of_a_page("HSTRLEN")]
#[case::a_read("HMGET")]
#[case::a_command_of_scripts("HSETNX")]
#[case::another_command_of_scripts("ZADD")]
#[tokio::test]
async fn connecting_to_a_server_that_lacks_a_command_names_the_command(#[case] lacking: &str) {
    let server = Server::start(&["--rename-command", lacking, ""]);
    let error = RedisBackend::connect(&server.url()).await.unwrap_err();
    assert!(matches!(error, StorageError::Backend { outcome_unknown: false, .. }), "{error:?}");
    assert!(!error.is_retryable());
    assert_names(&error, &[lacking, &format!("127.0.0.1:{}", server.port)]);
    let texts = format!("{error:?} {:?}", std::error::Error::source(&error));
    assert!(!texts.contains("local") && !texts.contains("redis.pcall"), "the text of the script: {texts}");
}

#[tokio::test]
async fn connecting_to_a_server_that_lacks_hello_names_the_setting_and_works_with_it() {
    let server = Server::start(&["--rename-command", "HELLO", "", "--requirepass", "pass-word"]);
    let url = format!("redis://:pass-word@127.0.0.1:{}", server.port);
    let error = RedisBackend::connect(&url).await.unwrap_err();
    assert!(!error.is_retryable() && !error.outcome_unknown());
    assert_names(&error, &["HELLO", "?protocol=resp2", &format!("127.0.0.1:{}", server.port)]);
    let backend = RedisBackend::connect(&format!("{url}?protocol=resp2")).await.unwrap();
    backend.put(&key("alice", "t1"), "data".into(), in_an_hour()).await.unwrap();
}

/// Each call connects to a server of another kind than it expects.
#[tokio::test]
async fn connecting_to_another_kind_of_server_names_the_method_that_connects_to_it() {
    let server = Server::start(&[]);
    let error = RedisBackend::builder().connect_cluster([server.url()]).await.unwrap_err();
    assert_names(&error, &["is not a node of a cluster", "connect with connect"]);
    let error = RedisBackend::builder().connect_sentinel([server.url()], "redis://main").await.unwrap_err();
    assert_names(&error, &["not a sentinel", "26379"]);
    assert!(!format!("{error:?}").contains("args"), "{error:?}");
    let watched = Watched::start(&[]);
    let sentinels = watched.sentinel_urls();
    let error = RedisBackend::connect(&sentinels[0]).await.unwrap_err();
    assert_names(&error, &["connect_sentinel"]);
    let error = RedisBackend::builder().connect_sentinel(&sentinels, "redis://other").await.unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
    assert_names(&error, &["do not know a master of this name", "other"]);
}

#[tokio::test]
async fn the_error_for_a_host_name_without_an_address_differs_from_that_for_a_server_that_is_down() {
    let error = RedisBackend::connect("redis://redis.invalid").await.unwrap_err();
    assert!(matches!(error, StorageError::Unavailable { .. }), "{error:?}");
    assert_names(&error, &["redis.invalid:6379", "no address was found for the host name"]);
}

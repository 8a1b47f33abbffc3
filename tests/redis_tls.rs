//! `rediss://`: private authorities, client certificates, and who is refused.

#![cfg(feature = "redis-tests")]

mod support;

use std::time::Duration;

use mcp_task_store::{RedisBackend, RedisBuilder, StorageBackend, StorageError};
use support::cluster::{eventually, info, start_node};
use support::redis::{Server, free_port};
use support::tls::Authority;
use support::{in_an_hour, key};

fn builder() -> RedisBuilder {
    RedisBackend::builder().connect_timeout(Duration::from_secs(10))
}

fn trusting(authority: &Authority) -> RedisBuilder {
    builder().root_certificates(authority.pem("ca.pem"))
}

fn url(port: u16) -> String {
    format!("rediss://user:pass-word@127.0.0.1:{port}")
}

fn start(authority: &Authority, clients_need_certificates: bool) -> (Server, u16) {
    let (server, port) = authority.start_server(clients_need_certificates);
    let rule = ["ACL", "SETUSER", "user", "on", ">pass-word", "allkeys", "allcommands", "allchannels"];
    let _: () = support::redis::command(&mut server.connection(), rule);
    (server, port)
}

/// One side does not accept the other.
fn assert_denied(connected: Result<RedisBackend, StorageError>) {
    let error = connected.unwrap_err();
    assert!(matches!(error, StorageError::Denied { .. }), "{error:?}");
    assert!(!error.is_retryable());
    assert!(error.to_string().contains("certificate"), "{error}");
    assert!(!format!("{error:?}").contains("pass-word"), "{error:?}");
}

#[tokio::test]
async fn a_server_of_a_private_authority_is_trusted_only_where_the_authority_is() {
    let (authority, another) = (Authority::new(), Authority::new());
    let (_server, port) = start(&authority, false);
    let backend = trusting(&authority).connect(&url(port)).await.unwrap();
    backend.put(&key("alice", "t1"), "data".into(), in_an_hour()).await.unwrap();
    assert_eq!(backend.get(&key("alice", "t1")).await.unwrap().data, "data");
    assert_denied(trusting(&another).connect(&url(port)).await);
    // Those of the operating system do not know it.
    assert_denied(builder().connect(&url(port)).await);
}

#[tokio::test]
async fn a_client_without_the_certificate_that_the_server_wants_is_denied() {
    let (authority, another) = (Authority::new(), Authority::new());
    let (_server, port) = start(&authority, true);
    let with = |of: &Authority| {
        trusting(&authority).client_certificate(of.pem("client.pem"), of.pem("client-key.pem"))
    };
    let backend = with(&authority).connect(&url(port)).await.unwrap();
    backend.put(&key("alice", "t1"), "data".into(), in_an_hour()).await.unwrap();
    assert_denied(trusting(&authority).connect(&url(port)).await);
    assert_denied(with(&another).connect(&url(port)).await);
}

#[tokio::test]
async fn a_connection_over_tls_heals() {
    let authority = Authority::new();
    let (mut server, port) = start(&authority, false);
    let rule = "ACL SETUSER user on >pass-word allkeys allcommands allchannels";
    let backend = trusting(&authority).connect(&url(port)).await.unwrap();
    server.kill();
    backend.get(&key("alice", "t1")).await.unwrap_err();
    server.start_again();
    let _: () = support::redis::command(&mut server.connection(), rule.split(' '));
    while let Err(error) = backend.put(&key("alice", "t1"), "data".into(), in_an_hour()).await {
        // The user is not there at once.
        assert!(matches!(error, StorageError::Unavailable { .. } | StorageError::Denied { .. }), "{error:?}");
    }
}

/// With a certificate of another authority.
fn builder_of_a_stranger(authority: &Authority) -> RedisBuilder {
    let another = Authority::new();
    trusting(authority).client_certificate(another.pem("client.pem"), another.pem("client-key.pem"))
}

#[tokio::test]
async fn a_cluster_is_reached_over_tls() {
    let authority = Authority::new();
    let port = free_port();
    let settings = authority.settings(port, true);
    let mut settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    settings.extend(["--cluster-enabled", "yes", "--tls-cluster", "yes"]);
    let server = start_node(&settings);
    let all = ["CLUSTER", "ADDSLOTSRANGE", "0", "16383"];
    let _: () = support::redis::command(&mut server.connection(), all);
    eventually(|| info(&mut server.connection(), "cluster").contains("cluster_enabled:1"));
    let builder =
        trusting(&authority).client_certificate(authority.pem("client.pem"), authority.pem("client-key.pem"));
    let backend = builder.connect_cluster([format!("rediss://127.0.0.1:{port}")]).await.unwrap();
    while let Err(error) = backend.put(&key("alice", "t1"), "data".into(), in_an_hour()).await {
        // The cluster is up some moments after its slots are given out.
        assert!(matches!(error, StorageError::Unavailable { outcome_unknown: false, .. }), "{error:?}");
    }
    assert_eq!(backend.get(&key("alice", "t1")).await.unwrap().data, "data");
    let url = format!("rediss://127.0.0.1:{port}");
    assert_denied(trusting(&authority).connect_cluster([&url]).await);
    let of_another = builder_of_a_stranger(&authority);
    assert_denied(of_another.connect_cluster([&url]).await);
    // Of several seeds, the one that says most is heard.
    let nobody = format!("rediss://127.0.0.1:{}", free_port());
    assert_denied(trusting(&authority).connect_cluster([&nobody, &url]).await);
}

#[tokio::test]
async fn settings_that_do_not_go_together_are_refused() {
    let authority = Authority::new();
    let (server, port) = start(&authority, false);
    let plain = trusting(&authority).connect(&server.url()).await.unwrap_err();
    assert!(matches!(plain, StorageError::Backend { outcome_unknown: false, .. }), "{plain:?}");
    let unreadable = builder().root_certificates("no certificate").connect(&url(port)).await.unwrap_err();
    assert!(!matches!(unreadable, StorageError::Unavailable { .. }), "{unreadable:?}");
    // The port for TLS hangs up on anything else.
    let plain = builder().connect(&format!("redis://127.0.0.1:{port}")).await.unwrap_err();
    assert!(matches!(plain, StorageError::Unavailable { .. }), "{plain:?}");
}

#[test]
fn certificates_and_keys_are_not_printed() {
    let authority = Authority::new();
    let key = authority.pem("client-key.pem");
    let printed =
        format!("{:?}", trusting(&authority).client_certificate(authority.pem("client.pem"), key.clone()));
    let key = String::from_utf8(key).unwrap();
    assert!(!printed.contains(key.lines().nth(1).unwrap()));
    assert!(!printed.contains(&format!("{:?}", key.as_bytes()[..8].to_vec())[1..20]), "{printed}");
}

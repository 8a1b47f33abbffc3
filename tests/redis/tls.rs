//! `rediss://`: private authorities, client certificates, and the errors of certificates that are not accepted.

use std::time::Duration;

use crate::support::cluster::{eventually, info, start_node};
use crate::support::redis::{Server, free_port};
use crate::support::tls::Authority;
use crate::support::{in_an_hour, key};
use mcp_task_store::{RedisBackend, RedisBuilder, StorageBackend, StorageError};

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
    let _: () = crate::support::redis::command(&mut server.connection(), rule);
    (server, port)
}

/// Asserts that one side did not accept the certificate of the other.
fn assert_denied(connected: Result<RedisBackend, StorageError>) {
    let error = connected.unwrap_err();
    assert!(matches!(error, StorageError::Denied { .. }), "{error:?}");
    assert!(!error.is_retryable());
    assert!(error.to_string().contains("certificate"), "{error}");
    assert!(!format!("{error:?}").contains("pass-word"), "{error:?}");
}

#[tokio::test]
async fn a_server_of_a_private_authority_is_trusted_only_if_the_builder_trusts_the_authority() {
    let (authority, another) = (Authority::new(), Authority::new());
    let (_server, port) = start(&authority, false);
    let backend = trusting(&authority).connect(&url(port)).await.unwrap();
    backend.put(&key("alice", "t1"), "data".into(), in_an_hour()).await.unwrap();
    assert_eq!(backend.get(&key("alice", "t1")).await.unwrap().data, "data");
    assert_denied(trusting(&another).connect(&url(port)).await);
    // The authorities of the operating system do not include this one.
    assert_denied(builder().connect(&url(port)).await);
}

#[tokio::test]
async fn a_client_without_the_certificate_that_the_server_requires_is_denied() {
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
async fn a_connection_over_tls_reconnects() {
    let authority = Authority::new();
    let (mut server, port) = start(&authority, false);
    let rule = "ACL SETUSER user on >pass-word allkeys allcommands allchannels";
    let backend = trusting(&authority).connect(&url(port)).await.unwrap();
    server.kill();
    backend.get(&key("alice", "t1")).await.unwrap_err();
    server.start_again();
    let _: () = crate::support::redis::command(&mut server.connection(), rule.split(' '));
    while let Err(error) = backend.put(&key("alice", "t1"), "data".into(), in_an_hour()).await {
        // The restarted server does not have the user at once.
        assert!(matches!(error, StorageError::Unavailable { .. } | StorageError::Denied { .. }), "{error:?}");
    }
}

/// Returns a builder whose client certificate is of another authority.
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
    let _: () = crate::support::redis::command(&mut server.connection(), all);
    eventually(|| info(&mut server.connection(), "cluster").contains("cluster_enabled:1"));
    let builder =
        trusting(&authority).client_certificate(authority.pem("client.pem"), authority.pem("client-key.pem"));
    let backend = builder.connect_cluster([format!("rediss://127.0.0.1:{port}")]).await.unwrap();
    while let Err(error) = backend.put(&key("alice", "t1"), "data".into(), in_an_hour()).await {
        // The cluster is up some moments after its slots are assigned.
        assert!(matches!(error, StorageError::Unavailable { outcome_unknown: false, .. }), "{error:?}");
    }
    assert_eq!(backend.get(&key("alice", "t1")).await.unwrap().data, "data");
    let url = format!("rediss://127.0.0.1:{port}");
    assert_denied(trusting(&authority).connect_cluster([&url]).await);
    let of_another = builder_of_a_stranger(&authority);
    assert_denied(of_another.connect_cluster([&url]).await);
    // Of several seeds, the one with the clearest error is reported.
    let nobody = format!("rediss://127.0.0.1:{}", free_port());
    assert_denied(trusting(&authority).connect_cluster([&nobody, &url]).await);
}

/// Asserts that the settings are refused before the backend connects. No server listens, so connecting would be
/// `Unavailable`.
async fn assert_refused(builder: RedisBuilder, scheme: &str, words: &[&str]) {
    let url = |name: &str| format!("{scheme}://user:pass-word@{name}");
    let (server, master) = (url(&format!("127.0.0.1:{}", free_port())), url("mymaster"));
    for error in [
        builder.clone().connect(&server).await.unwrap_err(),
        builder.clone().connect_cluster([&server]).await.unwrap_err(),
        builder.clone().connect_sentinel([&server], &master).await.unwrap_err(),
    ] {
        assert!(matches!(error, StorageError::Backend { outcome_unknown: false, .. }), "{error:?}");
        let text = error.to_string();
        words.iter().for_each(|word| assert!(text.contains(word), "{word}: {text}"));
        assert!(!text.contains("pass-word"), "{text}");
    }
}

#[tokio::test]
async fn an_invalid_certificate_is_refused_and_the_error_names_the_setting() {
    let (authority, another) = (Authority::new(), Authority::new());
    let (root, client, key) =
        (authority.pem("ca.pem"), authority.pem("client.pem"), authority.pem("client-key.pem"));
    let (garbage, half) = (b"no certificate".to_vec(), root[..root.len() / 2].to_vec());
    for (pem, found) in [
        (Vec::new(), "it is empty"),
        (garbage.clone(), "-----BEGIN"),
        (key.clone(), "it holds a private key"),
        (half.clone(), "a part of one"),
    ] {
        let words = ["root_certificates holds no certificate", found];
        assert_refused(builder().root_certificates(pem.clone()), "rediss", &words).await;
        let with = trusting(&authority).client_certificate(pem, key.clone());
        assert_refused(with, "rediss", &["client_certificate holds no certificate", found]).await;
    }
    for (pem, found) in
        [(Vec::new(), "it is empty"), (garbage, "-----BEGIN"), (client.clone(), "it holds a certificate")]
    {
        let with = trusting(&authority).client_certificate(client.clone(), pem);
        assert_refused(with, "rediss", &["the key of client_certificate is not a private key", found]).await;
    }
    let with = trusting(&authority).client_certificate(client, another.pem("client-key.pem"));
    assert_refused(with, "rediss", &["do not belong together"]).await;
    assert_refused(trusting(&authority), "redis", &["rediss://"]).await;
}

#[tokio::test]
async fn a_port_with_tls_and_a_port_without_tls_are_distinguished() {
    let authority = Authority::new();
    let (server, port) = start(&authority, false);
    let limit = Duration::from_secs(2);
    for (builder, url, words) in [
        (
            trusting(&authority),
            format!("rediss://127.0.0.1:{}", server.port),
            "does not speak TLS at this port; use redis://",
        ),
        (builder(), format!("redis://127.0.0.1:{port}"), "speaks TLS at this port; use rediss://"),
    ] {
        let error = builder.connect_timeout(limit).connect(&url).await.unwrap_err();
        assert!(matches!(error, StorageError::Unavailable { outcome_unknown: false, .. }), "{error:?}");
        assert!(error.to_string().contains(words), "{error}");
    }
    // The same holds for the nodes of a cluster and for sentinels.
    let plain = format!("redis://127.0.0.1:{port}");
    for error in [
        builder().connect_timeout(limit).connect_cluster([&plain]).await.unwrap_err(),
        builder().connect_timeout(limit).connect_sentinel([&plain], "redis://mymaster").await.unwrap_err(),
    ] {
        assert!(error.to_string().contains("speaks TLS at this port"), "{error}");
    }
    // If a server sends nothing at all, the error says nothing about TLS.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    for (builder, scheme) in [(builder(), "redis"), (trusting(&authority), "rediss")] {
        let builder = builder.connect_timeout(Duration::from_millis(200));
        let error = builder.connect(&format!("{scheme}://{address}")).await.unwrap_err();
        assert!(matches!(error, StorageError::Unavailable { .. }), "{error:?}");
        assert!(!error.to_string().contains("TLS"), "{error}");
    }
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

//! Passwords that are rotated, and tokens that expire: the backend asks a callback for them each time that it opens a
//! connection.

use std::future::{Ready, ready};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use mcp_task_store::{Credentials, RedisBackend, RedisBuilder, StorageBackend, StorageError};
use redis::Value;
use rstest::rstest;

use crate::support::cluster::Cluster;
use crate::support::redis::{Server, command};
use crate::support::sentinel::{MASTER, Watched};
use crate::support::{in_an_hour, keep, key};

const USER: &str = "rotated";

/// A secrets manager: its password, and how often the backend asked for it.
#[derive(Clone, Default)]
struct Vault {
    password: Arc<Mutex<Option<String>>>,
    asked: Arc<AtomicUsize>,
}

impl Vault {
    fn holding(password: &str) -> Self {
        let vault = Self::default();
        vault.set(Some(password));
        vault
    }

    fn set(&self, password: Option<&str>) {
        *self.password.lock().unwrap() = password.map(str::to_owned);
    }

    fn provide(&self) -> Ready<Result<Credentials, std::io::Error>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let password = self.password.lock().unwrap().clone();
        let password = password.ok_or_else(|| std::io::Error::other("the vault is sealed"));
        ready(password.map(|password| Credentials::user(USER, password)))
    }

    fn builder(&self) -> RedisBuilder {
        let vault = self.clone();
        RedisBackend::builder().response_timeout(Duration::from_secs(5)).credentials(move || vault.provide())
    }
}

/// Sets the only password of the user, and closes all connections of the user.
fn rotate(server: &Server, password: &str) {
    let mut admin = server.connection();
    let rule = format!("ACL SETUSER {USER} reset on >{password} ~* &* +@all");
    let _: Value = command(&mut admin, rule.split(' '));
    let _: Value = command(&mut admin, ["CLIENT", "KILL", "USER", USER]);
}

/// Starts a server on which this user has this password.
fn start(password: &str) -> Server {
    let server = Server::start(&[]);
    rotate(&server, password);
    server
}

async fn within<T>(call: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), call).await.expect("the call returns within a minute")
}

/// Writes until a write succeeds. Until then, each write is denied with a known outcome, or its connection was closed.
async fn put(backend: &RedisBackend) {
    within(async {
        while let Err(error) = backend.put(&key("alice", "t1"), "data".into(), keep()).await {
            assert!(
                matches!(error, StorageError::Unavailable { .. } | StorageError::Denied { .. }),
                "{error:?}"
            );
        }
    })
    .await;
}

fn watch(backend: &RedisBackend) -> BoxStream<'static, Result<(), StorageError>> {
    backend.watch(&key("alice", "t1"))
}

/// Writes and waits until the watch has an item.
async fn assert_notified(backend: &RedisBackend, watch: &mut BoxStream<'static, Result<(), StorageError>>) {
    within(async {
        loop {
            let _ = backend.put(&key("alice", "t1"), "data".into(), keep()).await;
            match tokio::time::timeout(Duration::from_millis(100), watch.next()).await {
                Ok(Some(Ok(()))) => return,
                // An item may report that the subscription was lost.
                Ok(Some(Err(error))) => assert!(error.is_retryable(), "{error:?}"),
                Ok(None) => panic!("the watch has ended"),
                Err(_) => {}
            }
        }
    })
    .await;
}

fn assert_hides_passwords(printed: impl std::fmt::Debug) {
    let printed = format!("{printed:?} {printed:#?}");
    assert!(!printed.contains("pass-word"), "{printed}");
}

#[tokio::test]
async fn after_a_rotation_the_next_connection_uses_the_new_password_and_a_watch_continues() {
    let server = start("pass-word-1");
    let vault = Vault::holding("pass-word-1");
    // The backend ignores the user and the password of the URL.
    let url = format!("redis://nobody:wrong@127.0.0.1:{}", server.port);
    let backend = vault.builder().connect(&url).await.unwrap();
    put(&backend).await;
    let asked = vault.asked.load(Ordering::SeqCst);
    let mut watch = watch(&backend);
    assert_notified(&backend, &mut watch).await;
    assert!(vault.asked.load(Ordering::SeqCst) > asked, "the subscription has a connection of its own");

    for password in ["pass-word-2", "pass-word-3"] {
        let asked = vault.asked.load(Ordering::SeqCst);
        vault.set(Some(password));
        rotate(&server, password);
        put(&backend).await;
        // Two items, because the first may have been under way before the rotation.
        assert_notified(&backend, &mut watch).await;
        assert_notified(&backend, &mut watch).await;
        assert!(vault.asked.load(Ordering::SeqCst) >= asked + 2);
    }
    assert_hides_passwords((&backend, vault.builder()));
}

#[tokio::test]
async fn after_a_rotation_for_the_default_user_the_next_connection_uses_the_new_password() {
    let server = Server::start(&["--requirepass", "pass-word-1"]);
    let password = Arc::new(Mutex::new("pass-word-1"));
    let provided = Arc::clone(&password);
    let provide = move || ready(Ok::<_, StorageError>(Credentials::password(*provided.lock().unwrap())));
    let backend = RedisBackend::builder().credentials(provide).connect(&server.url()).await.unwrap();
    put(&backend).await;
    let mut watch = watch(&backend);
    assert_notified(&backend, &mut watch).await;
    let url = format!("redis://:pass-word-1@127.0.0.1:{}", server.port);
    let mut admin = crate::support::redis::connection(&url);
    let _: Value = command(&mut admin, ["CONFIG", "SET", "requirepass", "pass-word-2"]);
    *password.lock().unwrap() = "pass-word-2";
    let _: Value = command(&mut admin, ["CLIENT", "KILL", "SKIPME", "yes"]);
    put(&backend).await;
    assert_notified(&backend, &mut watch).await;
    assert_notified(&backend, &mut watch).await;
}

#[tokio::test]
async fn an_outdated_password_is_denied_until_the_callback_returns_the_new_one() {
    let server = start("pass-word-1");
    let vault = Vault::holding("pass-word-1");
    let backend = vault.builder().connect(&server.url()).await.unwrap();
    put(&backend).await;
    rotate(&server, "pass-word-2");
    let denied = within(async {
        loop {
            match backend.put(&key("alice", "t1"), "data".into(), in_an_hour()).await.unwrap_err() {
                error @ StorageError::Denied { .. } => return error,
                error => assert!(error.is_retryable(), "{error:?}"),
            }
        }
    });
    let denied = denied.await;
    assert!(!denied.outcome_unknown());
    super::assert_names(&denied, &["WRONGPASS"]);
    vault.set(Some("pass-word-2"));
    put(&backend).await;
}

#[rstest]
#[case::it_returns_an_error(false)]
#[case::it_never_returns(true)]
#[tokio::test]
async fn a_call_whose_credentials_callback_fails_is_unavailable_with_a_known_outcome_and_the_next_one_retries_it(
    #[case] hangs: bool,
) {
    let server = start("pass-word-1");
    let vault = Vault::holding("pass-word-1");
    let provider = vault.clone();
    let provide = move || {
        let provided = provider.provide();
        async move {
            match provided.await {
                Err(_) if hangs => std::future::pending().await,
                provided => provided,
            }
        }
    };
    let limit = Duration::from_millis(300);
    let builder = || RedisBackend::builder().connect_timeout(limit).credentials(provide.clone());
    let backend = builder().connect(&server.url()).await.unwrap();
    put(&backend).await;
    vault.set(None);
    rotate(&server, "pass-word-2");
    // This first call may still use the connection that was closed.
    let _ = backend.put(&key("alice", "t1"), "data".into(), in_an_hour()).await;
    let failed = within(backend.put(&key("alice", "t1"), "data".into(), in_an_hour())).await.unwrap_err();
    assert!(matches!(failed, StorageError::Unavailable { outcome_unknown: false, .. }), "{failed:?}");
    assert!(failed.is_retryable());
    let words: &[&str] =
        if hangs { &[] } else { &["the credentials callback failed", "the vault is sealed"] };
    super::assert_names(&failed, words);
    // A new backend fails in the same way.
    let failed = within(builder().connect(&server.url())).await.unwrap_err();
    assert!(matches!(failed, StorageError::Unavailable { outcome_unknown: false, .. }), "{failed:?}");
    super::assert_names(&failed, words);
    vault.set(Some("pass-word-2"));
    put(&backend).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_sentinels_the_next_connection_after_a_rotation_uses_the_new_password() {
    let watched = Watched::start(&[]);
    rotate(&watched.master, "pass-word-1");
    let vault = Vault::holding("pass-word-1");
    let url = format!("redis://{MASTER}");
    let backend = vault.builder().connect_sentinel(watched.sentinel_urls(), &url).await.unwrap();
    put(&backend).await;
    let mut watch = watch(&backend);
    assert_notified(&backend, &mut watch).await;
    let asked = vault.asked.load(Ordering::SeqCst);
    assert!(asked >= 2, "for calls and for the subscription");
    vault.set(Some("pass-word-2"));
    rotate(&watched.master, "pass-word-2");
    put(&backend).await;
    assert_notified(&backend, &mut watch).await;
    assert_notified(&backend, &mut watch).await;
    assert!(vault.asked.load(Ordering::SeqCst) >= asked + 2);
    assert_hides_passwords(&backend);
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_cluster_the_next_connection_after_a_rotation_uses_the_new_password() {
    let cluster = Cluster::start(2, 0);
    let rotate_all = |password: &str| cluster.nodes.iter().for_each(|node| rotate(node, password));
    rotate_all("pass-word-1");
    let vault = Vault::holding("pass-word-1");
    let urls = cluster.nodes.iter().map(|node| format!("redis://nobody:wrong@127.0.0.1:{}", node.port));
    let backend = vault.builder().connect_cluster(urls).await.unwrap();
    put(&backend).await;
    let mut watch = watch(&backend);
    assert_notified(&backend, &mut watch).await;
    let asked = vault.asked.load(Ordering::SeqCst);
    vault.set(Some("pass-word-2"));
    rotate_all("pass-word-2");
    put(&backend).await;
    assert_notified(&backend, &mut watch).await;
    assert_notified(&backend, &mut watch).await;
    assert!(vault.asked.load(Ordering::SeqCst) >= asked + 2);
    assert_hides_passwords(&backend);
}

#[test]
fn credentials_and_builders_do_not_print_the_password() {
    let credentials = [Credentials::password("pass-word"), Credentials::user(USER, "pass-word")];
    assert_hides_passwords(&credentials);
    assert!(format!("{credentials:?}").contains(USER));
    let given = credentials[0].clone();
    assert_hides_passwords(
        RedisBackend::builder().credentials(move || ready(Ok::<_, StorageError>(given.clone()))),
    );
}

#[tokio::test]
async fn a_password_without_a_user_authenticates_the_default_user() {
    let server = Server::start(&["--requirepass", "pass-word"]);
    let url = format!("redis://nobody:wrong@127.0.0.1:{}", server.port);
    let provide = || ready(Ok::<_, std::io::Error>(Credentials::password("pass-word")));
    RedisBackend::builder().credentials(provide).connect(&url).await.unwrap();
}

#[tokio::test]
async fn the_error_names_a_credentials_callback_that_does_not_return() {
    let server = Server::start(&[]);
    let provide = std::future::pending::<Result<Credentials, std::io::Error>>;
    let builder = RedisBackend::builder().connect_timeout(Duration::from_millis(200)).credentials(provide);
    let error = builder.connect(&format!("redis://127.0.0.1:{}", server.port)).await.unwrap_err();
    assert!(error.to_string().contains("that the credentials callback returns"), "{error}");
}

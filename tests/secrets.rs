//! Errors, `Debug`, events and panics print no password, token or key.

#![cfg(feature = "redis-tests")]

mod support;

use std::error::Error;
use std::fmt::Debug;
use std::io::Write;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::StreamExt;
use mcp_task_store::{
    Credentials, NewTask, PageRequest, RedisBackend, RedisBuilder, StorageBackend, StorageError, TaskStore,
};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use support::cluster::Cluster;
use support::fake::{Answer, Fake, greeting};
use support::redis::{Server, command, free_port};
use support::sentinel::{MASTER, Watched};
use support::tls::Authority;
use support::{Printed, in_an_hour, key, owner};

const PASSWORD: &str = "pass-word-17/@";
/// The password in a URL.
const ENCODED: &str = "pass-word-17%2F%40";
/// What every form of the password contains.
const PART: &str = "pass-word-17";
/// The password that the credentials callback returns.
const TOKEN: &str = "to-ken-18";

impl Printed {
    fn note(&self, printed: impl Debug) {
        writeln!(self.clone(), "{printed:?} {printed:#?}").unwrap();
    }

    /// Prints an error and its causes in every format, and as a panic.
    fn note_error(&self, error: &(dyn Error + 'static)) {
        let mut cause = Some(error);
        while let Some(error) = cause {
            writeln!(self.clone(), "{error} {error:#} {error:?} {error:#?}").unwrap();
            cause = error.source();
        }
        let panic = std::panic::catch_unwind(AssertUnwindSafe(|| panic!("{error:?}"))).unwrap_err();
        self.note(panic.downcast_ref::<String>().unwrap());
    }
}

fn builder() -> RedisBuilder {
    RedisBackend::builder()
        .response_timeout(Duration::from_millis(300))
        .connect_timeout(Duration::from_secs(2))
}

fn secret(port: u16) -> String {
    format!("redis://user:{ENCODED}@127.0.0.1:{port}")
}

fn add_user(server: &Server) {
    let rule = format!("ACL SETUSER user on >{PASSWORD} allkeys allcommands allchannels");
    let _: () = command(&mut server.connection(), rule.split(' '));
}

/// Makes calls of several kinds, and prints the backend, the store and the errors.
async fn call(printed: &Printed, backend: &RedisBackend) {
    printed.note(backend);
    let store = TaskStore::new(backend.clone());
    printed.note(&store);
    let (t1, alice) = (key("alice", "t1"), owner("alice"));
    let calls = [
        backend.put(&t1, "data".into(), in_an_hour()).await.err(),
        backend.get(&t1).await.err(),
        backend.list(&alice, PageRequest::new(1)).await.err(),
        backend.delete(&t1).await.err(),
    ];
    calls.iter().flatten().for_each(|error| printed.note_error(error));
    match store.create(&alice, NewTask::new("tools/call")).await {
        Ok(task) => printed.note(task),
        Err(error) => printed.note_error(&error),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_password_token_or_key_is_printed() {
    let printed = Printed::default();
    print_everything_to(&printed);
    printed.note(builder());
    let mut server = Server::start(&[]);
    refused(&printed, &server).await;
    with_faults(&printed, &mut server).await;
    that_does_not_know_the_commands(&printed).await;
    on_a_cluster(&printed).await;
    behind_sentinels(&printed).await;
    let key = over_tls(&printed).await;
    check(&printed.text(), &key);
}

/// Records events, panics and what the redis crate logs.
fn print_everything_to(printed: &Printed) {
    let (writer, hook) = (printed.clone(), printed.clone());
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_span_events(tracing_subscriber::fmt::format::FmtSpan::FULL)
        .with_writer(move || writer.clone())
        .init();
    std::panic::set_hook(Box::new(move |panic| {
        // Captured by the harness, which shows it if the test fails.
        eprintln!("{panic}");
        hook.note(panic.to_string());
    }));
}

/// No server, URLs that cannot be read, a server that does not know the user, and one that does not speak TLS.
async fn refused(printed: &Printed, server: &Server) {
    printed.note_error(&builder().connect(&secret(free_port())).await.unwrap_err());
    for url in [
        format!("redis//user:{PASSWORD}@host"),
        format!("redis://user:{PASSWORD}@host"),
        format!("redis://user:{ENCODED}@:port"),
        format!("redis://user:{ENCODED}"),
        format!("redis://host?password={ENCODED}"),
        format!("redis://user:{ENCODED}@host#insecure"),
    ] {
        printed.note_error(&builder().connect(&url).await.unwrap_err());
    }
    printed.note_error(&builder().connect(&secret(server.port)).await.unwrap_err());
    add_user(server);
    let tls = secret(server.port).replace("redis://", "rediss://");
    printed.note_error(&builder().connect(&tls).await.unwrap_err());
}

/// A server that works, hangs, is killed, and restarts without the user.
async fn with_faults(printed: &Printed, server: &mut Server) {
    let backend = builder().connect(&secret(server.port)).await.unwrap();
    call(printed, &backend).await;
    let _: () = command(&mut server.connection(), ["ACL", "SETUSER", "user", "-hset"]);
    call(printed, &backend).await;
    server.signal("STOP");
    call(printed, &backend).await;
    server.signal("CONT");
    server.kill();
    call(printed, &backend).await;
    server.start_again();
    call(printed, &backend).await;
}

async fn that_does_not_know_the_commands(printed: &Printed) {
    let fake = Fake::start(|_, words| match &*words[0].to_ascii_uppercase() {
        "EVAL" | "HMGET" => Answer::Bytes(b"-ERR what is that\r\n".to_vec()),
        _ => greeting(words),
    });
    let fake = fake.await;
    call(printed, &builder().connect(&secret(fake.port)).await.unwrap()).await;
}

async fn on_a_cluster(printed: &Printed) {
    let cluster = Cluster::start(1, 0);
    let urls = [secret(cluster.nodes[0].port)];
    printed.note_error(&builder().connect_cluster(&urls).await.unwrap_err());
    add_user(&cluster.nodes[0]);
    let backend = builder().connect_cluster(&urls).await.unwrap();
    call(printed, &backend).await;
    cluster.nodes[0].signal("KILL");
    call(printed, &backend).await;
}

async fn behind_sentinels(printed: &Printed) {
    let mut watched = Watched::start(&[]);
    let url = format!("redis://user:{ENCODED}@{MASTER}");
    let connect = || builder().connect_sentinel(watched.sentinel_urls(), &url);
    printed.note_error(&connect().await.unwrap_err());
    add_user(&watched.master);
    let backend = connect().await.unwrap();
    call(printed, &backend).await;
    watched.master.kill();
    call(printed, &backend).await;
}

/// Asserts that the text has what it must, and no secret.
fn check(text: &str, key: &[u8]) {
    assert!(
        text.contains("Denied") && text.contains("Unavailable") && text.contains("backend::put")
            || text.contains("put{")
    );
    assert!(text.contains("redis::"), "the text has events of the redis crate");
    assert!(text.contains("credentials callback"), "the callback has failed");
    let secrets = [("password", PART.to_owned()), ("token", TOKEN.to_owned())];
    for (what, secret) in secrets.into_iter().chain(forms(key)) {
        let Some(at) = text.find(&secret) else { continue };
        let around = &text.as_bytes()[at.saturating_sub(500)..text.len().min(at + 100)];
        let _ = std::panic::take_hook();
        panic!("the {what} is printed: {}", String::from_utf8_lossy(around));
    }
}

/// Returns parts of a private key as they could be printed: as the text of PEM, and as bytes.
fn forms(pem: &[u8]) -> impl Iterator<Item = (&'static str, String)> {
    let text = String::from_utf8(pem.to_vec()).unwrap();
    let line = text.lines().find(|line| !line.starts_with('-')).unwrap().to_owned();
    let PrivateKeyDer::Pkcs8(key) = PrivateKeyDer::from_pem_slice(pem).unwrap() else {
        panic!("the key is not in PKCS #8")
    };
    // After the bytes with which every key of this kind begins.
    let bytes = |bytes: &[u8]| format!("{bytes:?}").trim_matches(['[', ']']).to_owned();
    let hexadecimal = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let der = &key.secret_pkcs8_der()[40..60];
    [line, bytes(&pem[60..80]), bytes(der), hexadecimal(der)].map(|form| ("key", form)).into_iter()
}

/// Calls over TLS with a client certificate and a token. Returns the private key of the client.
async fn over_tls(printed: &Printed) -> Vec<u8> {
    let client = TlsClient::start();
    printed.note((client.with_key(), client.with_token(), Credentials::user("user", TOKEN)));
    client.refused(printed).await;
    client.with_faults(printed).await
}

/// A server with TLS, and what a client needs for it.
struct TlsClient {
    authority: Authority,
    server: Server,
    /// The port for TLS.
    port: u16,
    key: Vec<u8>,
}

impl TlsClient {
    fn start() -> Self {
        let authority = Authority::new();
        let (server, port) = authority.start_server(true);
        let rule = format!("ACL SETUSER user reset on >{TOKEN} ~* &* +@all");
        let _: () = command(&mut server.connection(), rule.split(' '));
        let key = authority.pem("client-key.pem");
        Self { authority, server, port, key }
    }

    /// A URL with a wrong password.
    fn url(&self) -> String {
        format!("rediss://user:{ENCODED}@127.0.0.1:{}", self.port)
    }

    fn trusting(&self) -> RedisBuilder {
        builder().root_certificates(self.authority.pem("ca.pem"))
    }

    fn with_key(&self) -> RedisBuilder {
        self.trusting().client_certificate(self.authority.pem("client.pem"), self.key.clone())
    }

    fn with_token(&self) -> RedisBuilder {
        self.with_key().credentials(token)
    }

    /// Wrong passwords, certificates and keys, and TLS on one side only.
    async fn refused(&self, printed: &Printed) {
        let another = Authority::new();
        for refused in [
            self.with_key(),
            self.trusting().credentials(token),
            self.trusting().client_certificate(another.pem("client.pem"), another.pem("client-key.pem")),
            self.trusting().client_certificate(self.key.clone(), self.authority.pem("client.pem")),
            self.trusting().client_certificate(another.pem("client.pem"), self.key.clone()),
            builder().root_certificates(self.key.clone()),
            self.with_key().credentials(|| async {
                Err::<Credentials, _>(std::io::Error::other("the vault is sealed"))
            }),
        ] {
            printed.note(&refused);
            printed.note_error(&refused.connect(&self.url()).await.unwrap_err());
        }
        let plain = format!("rediss://127.0.0.1:{}", self.server.port);
        printed.note_error(&self.with_token().connect(&plain).await.unwrap_err());
        let plain = format!("redis://user:{ENCODED}@127.0.0.1:{}", self.port);
        printed.note_error(&builder().connect(&plain).await.unwrap_err());
    }

    /// The connections are closed, the token is no longer valid, the server hangs and is killed. Returns the private key.
    async fn with_faults(mut self, printed: &Printed) -> Vec<u8> {
        let backend = self.with_token().connect(&self.url()).await.unwrap();
        call(printed, &backend).await;
        let t1 = key("alice", "t1");
        backend.put(&t1, "data".into(), in_an_hour()).await.unwrap();
        let mut watch = backend.watch(&t1);
        printed.note(watch.next().await);
        let mut admin = self.server.connection();
        let _: () = command(&mut admin, ["CLIENT", "KILL", "USER", "user"]);
        call(printed, &backend).await;
        let _: () = command(&mut admin, ["ACL", "SETUSER", "user", "resetpass", ">another"]);
        let _: () = command(&mut admin, ["CLIENT", "KILL", "USER", "user"]);
        call(printed, &backend).await;
        printed.note(watch.next().await);
        self.server.signal("STOP");
        call(printed, &backend).await;
        self.server.signal("CONT");
        self.server.kill();
        call(printed, &backend).await;
        self.key
    }
}

async fn token() -> Result<Credentials, StorageError> {
    Ok(Credentials::user("user", TOKEN))
}

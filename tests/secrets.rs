//! No password, token or key in anything that is printed: errors, `Debug`, events, panics.

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
/// The same in a URL.
const ENCODED: &str = "pass-word-17%2F%40";
/// What all forms of the password have in common.
const PART: &str = "pass-word-17";
/// What a provider supplies.
const TOKEN: &str = "to-ken-18";

impl Printed {
    fn note(&self, printed: impl Debug) {
        writeln!(self.clone(), "{printed:?} {printed:#?}").unwrap();
    }

    /// An error and its causes, as they are logged and as they panic.
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

fn let_in(server: &Server) {
    let rule = format!("ACL SETUSER user on >{PASSWORD} allkeys allcommands allchannels");
    let _: () = command(&mut server.connection(), rule.split(' '));
}

/// Calls of all kinds; those that fail are noted.
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
async fn passwords_tokens_and_keys_are_in_nothing_that_is_printed() {
    let printed = Printed::default();
    let writer = printed.clone();
    // The events of this crate, and those of the redis crate, which go through `log`.
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_span_events(tracing_subscriber::fmt::format::FmtSpan::FULL)
        .with_writer(move || writer.clone())
        .init();
    let hook = printed.clone();
    std::panic::set_hook(Box::new(move |panic| hook.note(panic.to_string())));
    printed.note(builder());

    // Nobody there; a URL that cannot be read; a server that knows the user not; or under another password.
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
    let mut server = Server::start(&[]);
    printed.note_error(&builder().connect(&secret(server.port)).await.unwrap_err());
    let_in(&server);
    let tls = secret(server.port).replace("redis://", "rediss://");
    printed.note_error(&builder().connect(&tls).await.unwrap_err());

    // One that works, hangs, goes away, comes back without the user.
    let backend = builder().connect(&secret(server.port)).await.unwrap();
    call(&printed, &backend).await;
    let _: () = command(&mut server.connection(), ["ACL", "SETUSER", "user", "-hset"]);
    call(&printed, &backend).await;
    server.signal("STOP");
    call(&printed, &backend).await;
    server.signal("CONT");
    server.kill();
    call(&printed, &backend).await;
    server.start_again();
    call(&printed, &backend).await;

    // One that repeats what it is sent.
    let fake = Fake::start(|_, words| match &*words[0].to_ascii_uppercase() {
        "EVAL" | "HMGET" => Answer::Bytes(b"-ERR what is that\r\n".to_vec()),
        _ => greeting(words),
    });
    let fake = fake.await;
    call(&printed, &builder().connect(&secret(fake.port)).await.unwrap()).await;

    // A cluster and sentinels.
    let cluster = Cluster::start(1, 0);
    let urls = [secret(cluster.nodes[0].port)];
    printed.note_error(&builder().connect_cluster(&urls).await.unwrap_err());
    let_in(&cluster.nodes[0]);
    let backend = builder().connect_cluster(&urls).await.unwrap();
    call(&printed, &backend).await;
    cluster.nodes[0].signal("KILL");
    call(&printed, &backend).await;
    let mut watched = Watched::start(&[]);
    let url = format!("redis://user:{ENCODED}@{MASTER}");
    let connect = || builder().connect_sentinel(watched.sentinel_urls(), &url);
    printed.note_error(&connect().await.unwrap_err());
    let_in(&watched.master);
    let backend = connect().await.unwrap();
    call(&printed, &backend).await;
    watched.master.kill();
    call(&printed, &backend).await;

    let key = over_tls(&printed).await;

    let text = printed.text();
    assert!(
        text.contains("Denied") && text.contains("Unavailable") && text.contains("backend::put")
            || text.contains("put{")
    );
    assert!(text.contains("redis::"), "the events of the redis crate are there too");
    assert!(text.contains("credentials provider"), "a provider has failed");
    for (what, secret) in
        [("password", PART.to_owned()), ("token", TOKEN.to_owned())].into_iter().chain(forms(&key))
    {
        if let Some(at) = text.find(&secret) {
            let around =
                String::from_utf8_lossy(&text.as_bytes()[at.saturating_sub(500)..text.len().min(at + 100)]);
            let _ = std::panic::take_hook();
            panic!("the {what} is printed: {around}");
        }
    }
}

/// How a part of this private key could be printed: as the text that it is in PEM, and as bytes.
fn forms(pem: &[u8]) -> impl Iterator<Item = (&'static str, String)> {
    let text = String::from_utf8(pem.to_vec()).unwrap();
    let line = text.lines().find(|line| !line.starts_with('-')).unwrap().to_owned();
    let PrivateKeyDer::Pkcs8(key) = PrivateKeyDer::from_pem_slice(pem).unwrap() else {
        panic!("another form")
    };
    // Behind what all keys of a kind begin with.
    let bytes = |bytes: &[u8]| format!("{bytes:?}").trim_matches(['[', ']']).to_owned();
    let hexadecimal = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let der = &key.secret_pkcs8_der()[40..60];
    [line, bytes(&pem[60..80]), bytes(der), hexadecimal(der)].map(|form| ("key", form)).into_iter()
}

/// Calls over TLS with a client certificate and a token: good ones, refused ones, and some that are cut off. Returns the
/// client's private key.
async fn over_tls(printed: &Printed) -> Vec<u8> {
    let (authority, another) = (Authority::new(), Authority::new());
    let (mut server, port) = authority.start_server(true);
    let rule = format!("ACL SETUSER user reset on >{TOKEN} ~* &* +@all");
    let _: () = command(&mut server.connection(), rule.split(' '));
    let url = format!("rediss://user:{ENCODED}@127.0.0.1:{port}");
    let key = authority.pem("client-key.pem");
    let trusting = || builder().root_certificates(authority.pem("ca.pem"));
    let with_key = || trusting().client_certificate(authority.pem("client.pem"), key.clone());
    let provided = |token: &'static str| {
        with_key().credentials(move || async move { Ok::<_, StorageError>(Credentials::user("user", token)) })
    };
    printed.note((with_key(), provided(TOKEN), Credentials::user("user", TOKEN)));

    // The URL's password is wrong; no certificate, and a stranger's; a certificate in place of the key, and the reverse.
    for refused in [
        with_key(),
        trusting().credentials(|| async { Ok::<_, StorageError>(Credentials::user("user", TOKEN)) }),
        trusting().client_certificate(another.pem("client.pem"), another.pem("client-key.pem")),
        trusting().client_certificate(key.clone(), authority.pem("client.pem")),
        trusting().client_certificate(another.pem("client.pem"), key.clone()),
        builder().root_certificates(key.clone()),
        with_key()
            .credentials(|| async { Err::<Credentials, _>(std::io::Error::other("the vault is sealed")) }),
    ] {
        printed.note(&refused);
        printed.note_error(&refused.connect(&url).await.unwrap_err());
    }
    // TLS to a port without it, and the reverse.
    let plain = format!("rediss://127.0.0.1:{}", server.port);
    printed.note_error(&provided(TOKEN).connect(&plain).await.unwrap_err());
    let plain = format!("redis://user:{ENCODED}@127.0.0.1:{port}");
    printed.note_error(&builder().connect(&plain).await.unwrap_err());

    let backend = provided(TOKEN).connect(&url).await.unwrap();
    call(printed, &backend).await;
    let t1 = support::key("alice", "t1");
    backend.put(&t1, "data".into(), in_an_hour()).await.unwrap();
    let mut watch = backend.watch(&t1);
    printed.note(watch.next().await);
    // All connections are closed; the token is not good any more; the server hangs, and goes away.
    let _: () = command(&mut server.connection(), ["CLIENT", "KILL", "USER", "user"]);
    call(printed, &backend).await;
    let _: () = command(&mut server.connection(), ["ACL", "SETUSER", "user", "resetpass", ">another"]);
    let _: () = command(&mut server.connection(), ["CLIENT", "KILL", "USER", "user"]);
    call(printed, &backend).await;
    printed.note(watch.next().await);
    server.signal("STOP");
    call(printed, &backend).await;
    server.signal("CONT");
    server.kill();
    call(printed, &backend).await;
    key
}

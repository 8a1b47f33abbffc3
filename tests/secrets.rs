//! No password in anything that is printed: errors, `Debug`, events, panics.

#![cfg(feature = "redis-tests")]

mod support;

use std::error::Error;
use std::fmt::Debug;
use std::io::Write;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use mcp_task_store::{NewTask, PageRequest, RedisBackend, RedisBuilder, StorageBackend, TaskStore};
use support::cluster::Cluster;
use support::fake::{Answer, Fake, greeting};
use support::redis::{Server, command, free_port};
use support::sentinel::{MASTER, Watched};
use support::{Printed, in_an_hour, key, owner};

const PASSWORD: &str = "pass-word-17";

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
    format!("redis://user:{PASSWORD}@127.0.0.1:{port}")
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
async fn the_password_is_in_nothing_that_is_printed() {
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
    for url in [format!("redis//user:{PASSWORD}@host"), format!("redis://user:{PASSWORD}@:port")] {
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
    let url = format!("redis://user:{PASSWORD}@{MASTER}");
    let connect = || builder().connect_sentinel(watched.sentinel_urls(), &url);
    printed.note_error(&connect().await.unwrap_err());
    let_in(&watched.master);
    let backend = connect().await.unwrap();
    call(&printed, &backend).await;
    watched.master.kill();
    call(&printed, &backend).await;

    let text = printed.text();
    assert!(
        text.contains("Denied") && text.contains("Unavailable") && text.contains("backend::put")
            || text.contains("put{")
    );
    assert!(text.contains("redis::"), "the events of the redis crate are there too");
    if let Some(at) = text.find(PASSWORD) {
        let around = &text[at.saturating_sub(500)..text.len().min(at + 100)];
        let _ = std::panic::take_hook();
        panic!("the password is printed: {around}");
    }
}

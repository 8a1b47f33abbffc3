//! A task is enqueued by a server, begun by a worker that is killed, and ended by another worker. Each process exports its spans.

use mcp_task_store::TaskStatus;
use rstest_reuse::apply;
use serde_json::json;

use super::collector::{Collector, Exported};
use super::process::{Process, Role};
use super::{CLIENT_SPAN, SECRET, TRACE, names};
use crate::support::place::Place;
use crate::support::rmcp::{LONG, alice, ended, key, manager, said};
use crate::support::{Engine, on_every_shared_engine};

/// Returns the calls of the engine of this name in a span.
fn calls<'a>(spans: &'a [Exported], name: &str, parent: &str) -> Vec<&'a Exported> {
    let is_call = |span: &&Exported| span.text("parentSpanId") == parent && span.name().starts_with(name);
    spans.iter().filter(is_call).collect()
}

/// Asserts what the spans of all calls of the engine have in common.
fn assert_calls_of(engine: Engine, spans: &[Exported]) {
    let calls: Vec<_> = spans.iter().filter(|span| span.kind() == "client").collect();
    assert!(!calls.is_empty());
    for call in calls {
        let attribute = |name| call.attribute(name);
        let operation = attribute(names::DB_OPERATION_NAME).expect("every call has a name");
        let target = match engine {
            Engine::Sqlite => {
                assert_eq!(attribute(names::DB_SYSTEM_NAME).as_deref(), Some("sqlite"));
                assert_eq!(attribute(names::DB_NAMESPACE).as_deref(), Some("tasks.db"));
                assert_eq!(attribute(names::SERVER_ADDRESS), None);
                "tasks.db".to_owned()
            }
            _ => {
                let (host, port) = (attribute(names::SERVER_ADDRESS), attribute(names::SERVER_PORT));
                assert_eq!(attribute(names::DB_SYSTEM_NAME).as_deref(), Some("redis"));
                assert_eq!(attribute(names::DB_NAMESPACE).as_deref(), Some("0"));
                let server = format!("{}:{}", host.unwrap(), port.unwrap());
                assert!(crate::support::redis::url().contains(&server), "{server}");
                server
            }
        };
        assert_eq!(call.name(), format!("{operation} {target}"));
    }
}

/// Asserts the attributes of a task as a message.
fn assert_message(span: &Exported, operation: &str, of_type: &str, task: &str) {
    for (name, value) in [
        (names::MESSAGING_SYSTEM, "mcp_task_store"),
        (names::MESSAGING_OPERATION_NAME, operation),
        (names::MESSAGING_OPERATION_TYPE, of_type),
        (names::MESSAGING_DESTINATION_NAME, "render"),
        (names::MESSAGING_MESSAGE_ID, task),
    ] {
        assert_eq!(span.attribute(name).as_deref(), Some(value), "{name}: {}", span.span);
    }
    assert_eq!(span.name(), format!("{operation} render"));
}

#[apply(on_every_shared_engine)]
#[tokio::test(flavor = "multi_thread")]
async fn the_second_attempt_of_a_killed_worker_continues_the_trace_of_the_call(#[case] engine: Engine) {
    let (store, collector) = (engine.open_roomy().await, Collector::start().await);
    let place = Place::of(&store);
    let mut server = Process::start(Role::Server, &place, &collector.endpoint);
    let response = server.message().await;
    let task = response["result"]["taskId"].as_str().unwrap_or_else(|| panic!("{response}")).to_owned();
    server.end().await;

    let mut stuck = Process::start(Role::Stuck, &place, &collector.endpoint);
    assert_eq!(stuck.message().await, json!("begun"));
    // The checkpoint is a call of the engine in the span of the first attempt, which no process ever exports.
    let call = collector.find("the call", |span| span.name() == "tools/call render").await;
    let enqueue = collector.find("the enqueue", |span| span.name() == "enqueue render").await;
    let checkpoint = collector
        .find("the checkpoint", |span| {
            span.service == "Stuck"
                && span.name().starts_with("put_if_version")
                && span.text("traceId") == TRACE
        })
        .await;
    stuck.kill().await;

    let worker = Process::start(Role::Worker, &place, &collector.endpoint);
    assert_eq!(said(&ended(&manager(&store.backend, LONG), &task).await), "attempt 2");
    worker.end().await;
    let attempt = collector.find("the attempt", |span| span.name() == "process render").await;

    assert_eq!((call.kind(), call.text("parentSpanId")), ("server", CLIENT_SPAN));
    assert_eq!((enqueue.kind(), enqueue.text("parentSpanId")), ("producer", call.id()));
    assert_eq!((attempt.kind(), attempt.text("parentSpanId")), ("consumer", enqueue.id()));
    assert_eq!(attempt.links(), [checkpoint.text("parentSpanId"), enqueue.id()]);
    assert_eq!(attempt.attribute("attempt").as_deref(), Some("2"));
    for span in [&call, &enqueue, &attempt] {
        assert_eq!(span.text("traceId"), TRACE, "{}", span.span);
    }
    assert_eq!([&call, &enqueue, &attempt].map(|span| span.service.as_str()), ["Server", "Server", "Worker"]);

    // These two are in the conventions for generative AI, apart from the others.
    assert_eq!(call.attribute("mcp.method.name").as_deref(), Some("tools/call"));
    assert_eq!(call.attribute("gen_ai.tool.name").as_deref(), Some("render"));
    assert_message(&enqueue, "enqueue", "send", &task);
    assert_message(&attempt, "process", "process", &task);

    let spans = collector.spans();
    assert_eq!(calls(&spans, "create_with_timer ", enqueue.id()).len(), 1, "{spans:#?}");
    assert!(!calls(&spans, "put_if_version ", attempt.id()).is_empty(), "{spans:#?}");
    assert_calls_of(engine, &spans);
    assert!(!format!("{spans:?}").contains(SECRET), "{spans:#?}");

    let stored = mcp_task_store::TaskStore::new(store.backend.clone()).get(&key(&task)).await.unwrap();
    assert_eq!((stored.task.status, &stored.key.owner), (TaskStatus::Completed, &alice()));
    let traceparent = format!("00-{TRACE}-{}-01", enqueue.id());
    assert_eq!(stored.task.traceparent.as_deref(), Some(traceparent.as_str()));
}

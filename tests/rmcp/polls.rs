//! Polls of one task at the same time: how many reads they cost, and that none of them shows an outdated state.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use futures_util::future::join_all;
use mcp_task_store::{Agenda, NewTask, StorageError};
use rmcp::model::TaskStatus;
use rstest_reuse::apply;
use serde_json::json;

use crate::support::elsewhere::elsewhere;
use crate::support::intercept::{Call, Hooks, Intercept, Reply};
use crate::support::rmcp::*;
use crate::support::{Engine, on_every_engine};

/// An engine that counts its reads, and answers none of them at once.
struct Counted {
    engine: Arc<dyn Agenda>,
    records: AtomicUsize,
    parts: AtomicUsize,
}

#[async_trait]
impl Hooks for Counted {
    fn engine(&self) -> Arc<dyn Agenda> {
        Arc::clone(&self.engine)
    }

    async fn call(&self, call: Call) -> Result<Reply, StorageError> {
        match call {
            Call::Get { .. } => self.records.fetch_add(1, Ordering::SeqCst),
            Call::Part { .. } => self.parts.fetch_add(1, Ordering::SeqCst),
            _ => 0,
        };
        let reply = call.send(&*self.engine).await;
        tokio::task::yield_now().await;
        reply
    }
}

fn counted(engine: Arc<dyn Agenda>) -> Arc<Intercept<Counted>> {
    Intercept::new(Counted { engine, records: AtomicUsize::new(0), parts: AtomicUsize::new(0) })
}

#[apply(on_every_engine)]
#[tokio::test]
async fn twenty_polls_of_one_task_at_the_same_time_cost_two_reads_and_one_for_each_other_task(
    #[case] engine: Engine,
) {
    let store = engine.open().await;
    let counted = counted(Arc::clone(&store.backend));
    let one = manager(&counted.agenda(), LONG);
    let create = async || one.store().create(&alice(), NewTask::new("tools/call")).await.unwrap().key;
    let (large, another) = (create().await, create().await);
    let result = json!({ "content": [{ "type": "text", "text": "x".repeat(10_000) }] });
    one.store().complete(&large, result).await.unwrap();
    let before = (counted.records.load(Ordering::SeqCst), counted.parts.load(Ordering::SeqCst));
    let poll = async |task: &str| one.get_task(&alice(), task).await.unwrap();
    let (polled, another) =
        tokio::join!(join_all((0..20).map(|_| poll(large.task.as_str()))), poll(another.task.as_str()));
    assert!(polled.iter().all(|task| said(&task.payload).len() == 10_000));
    assert_eq!(another.status(), TaskStatus::Working);
    let reads = (counted.records.load(Ordering::SeqCst), counted.parts.load(Ordering::SeqCst));
    assert_eq!((reads.0 - before.0, reads.1 - before.1), (3, 2));

    let missing = join_all((0..5).map(|_| async { one.get_task(&alice(), "missing").await })).await;
    let texts: Vec<String> = missing.into_iter().map(|error| error.unwrap_err().to_string()).collect();
    assert_eq!(texts, ["task not found: missing"; 5], "each poll has its own error");
}

#[apply(on_every_engine)]
#[tokio::test]
async fn no_poll_that_begins_after_an_answer_was_acknowledged_shows_the_question_as_open(
    #[case] engine: Engine,
) {
    let store = engine.open().await;
    let one = manager(&counted(elsewhere(&store.backend)).agenda(), LONG);
    let other = manager(&store.backend, LONG);
    let task = one.store().create(&alice(), NewTask::new("tools/call")).await.unwrap().key;
    let task_id = task.task.as_str();
    let polling = async || -> () {
        loop {
            one.get_task(&alice(), task_id).await.unwrap();
        }
    };
    let answering = async {
        for round in 0..30 {
            let question = round.to_string();
            let request = serde_json::to_value(elicitation("Go on?")).unwrap();
            other.store().request_input(&task, [(&*question, request)]).await.unwrap();
            assert_eq!(one.get_task(&alice(), task_id).await.unwrap().status(), TaskStatus::InputRequired);
            other.update_task(&alice(), task_id, [(question, json!({}))]).await.unwrap();
            assert_eq!(one.get_task(&alice(), task_id).await.unwrap().status(), TaskStatus::Working);
        }
    };
    tokio::select! {
        () = answering => {}
        _ = join_all((0..4).map(|_| polling())) => unreachable!("the polls have no end"),
    }
}

//! The operations of the tasks. This file has every call of a manager and of a `TaskContext` in this test.

use std::sync::Arc;
use std::time::Duration;

use mcp_task_store::{
    Agenda, DurableTaskManager, ManagerConfig, OnWorkerLost, RegisteredOptions, StoreConfig, TaskContext,
    TaskError, TaskStore,
};
use rmcp::model::{
    CallToolResult, ContentBlock, ElicitRequest, ElicitRequestParams, ElicitationSchema, InputRequest,
};
use rmcp::task_manager::{TaskExit, TaskFuture, TaskOptions};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::log::{Event, Log};
use super::worker::Role;
use crate::support::{Random, owner};

pub type Manager = DurableTaskManager<Arc<dyn Agenda>>;

/// The lease. It is short, so that lost workers are detected during the test.
pub const LEASE: Duration = Duration::from_secs(3);
/// How many attempts a task has.
pub const MAX_ATTEMPTS: u32 = 3;
/// The TTL of a brief task, which its operation exceeds.
const BRIEF: Duration = Duration::from_millis(2500);
/// How many owners exist: `owner 0`, `owner 1` and so on.
pub const OWNERS: u64 = 5;
/// The key of the request for input.
pub const QUESTION: &str = "go";

/// What a task does.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    pub number: u64,
    pub owner: String,
    /// Whether the task resumes after its worker was lost.
    pub resume: bool,
    /// Whether the operation is a closure, which no other instance can resume.
    pub closure: bool,
    pub asks: bool,
    /// Whether the operation ends when the task is cancelled. Otherwise it completes.
    pub heeds: bool,
    /// Whether the TTL elapses before the operation ends.
    pub brief: bool,
    pub steps: u64,
    pub pause_ms: u64,
    /// How many bytes the operation adds to its result. A large result becomes a part of the record.
    pub pad: usize,
    /// How long after its creation the client cancels it.
    pub cancel_after_ms: Option<u64>,
}

impl Plan {
    pub fn new(seed: u64, number: u64) -> Self {
        let mut random = Random(seed ^ number.wrapping_mul(0x2545_f491_4f6c_dd1d));
        let mut one_in = |count| random.below(count) == 0;
        let resume = one_in(2);
        let (closure, asks, heeds, brief, is_long, is_large, cancels) =
            (!resume && one_in(2), one_in(3), !one_in(3), one_in(40), one_in(8), one_in(12), one_in(10));
        let steps = if is_long || brief { 20 + random.below(20) } else { 2 + random.below(10) };
        Self {
            number,
            owner: format!("owner {}", random.below(OWNERS)),
            resume,
            closure,
            asks,
            heeds,
            brief,
            steps,
            pause_ms: if is_long || brief { 200 } else { 20 + random.below(150) },
            pad: if is_large { 6_000 } else { 0 },
            cancel_after_ms: cancels.then(|| random.below(2_500)),
        }
    }

    /// Returns the answer of the client. It is always the same, because the client may have to answer again.
    pub fn answer(&self) -> String {
        format!("the answer to {}", self.number)
    }
}

pub fn manager(backend: Arc<dyn Agenda>, log: Arc<Log>, run: String, role: Role) -> Manager {
    // The record of a brief task must still exist after steps of the clock.
    let config = StoreConfig::new()
        .lease(LEASE)
        .call_timeout(Duration::from_secs(5))
        .max_tasks_per_owner(None)
        .retention(Duration::from_secs(20_000));
    let store = TaskStore::with_config(backend, config);
    // As many as the clients of a run have at once.
    let manager = DurableTaskManager::with_config(store, ManagerConfig::new().max_concurrent(250));
    if role == Role::Server {
        return manager;
    }
    manager.register("work", move |context, arguments| {
        work(context, serde_json::from_value(arguments).unwrap(), Arc::clone(&log), run.clone())
    });
    manager
}

pub async fn spawn(manager: &Manager, plan: Plan, log: &Arc<Log>, run: &str) -> Result<String, TaskError> {
    let owner = owner(&plan.owner);
    let task = if plan.closure {
        let (log, run, options) = (Arc::clone(log), run.to_owned(), ttl(&plan));
        manager.spawn(&owner, "closure", options, |context| work(context, plan, log, run)).await?
    } else {
        let arguments = serde_json::to_value(&plan).unwrap();
        manager.spawn_registered(&owner, "work", arguments, options(&plan)).await?
    };
    Ok(task.task_id)
}

/// Creates a task that waits for a worker.
pub async fn enqueue(manager: &Manager, plan: &Plan) -> Result<String, TaskError> {
    let arguments = serde_json::to_value(plan).unwrap();
    let task = manager.enqueue(&owner(&plan.owner), "work", arguments, options(plan)).await?;
    Ok(task.task_id)
}

fn ttl(plan: &Plan) -> TaskOptions {
    let ttl = if plan.brief { BRIEF } else { Duration::from_secs(20_000) };
    TaskOptions::new().with_ttl_ms(ttl.as_millis() as u64)
}

fn options(plan: &Plan) -> RegisteredOptions {
    let then = if plan.resume { OnWorkerLost::Resume } else { OnWorkerLost::Fail };
    RegisteredOptions::from(ttl(plan)).on_worker_lost(then)
}

fn work(context: TaskContext, plan: Plan, log: Arc<Log>, run: String) -> TaskFuture {
    Box::pin(async move {
        let (task, attempt) = (context.task_id().to_owned(), context.attempt());
        log.append(Event::Begin { task: task.clone(), attempt, run: run.clone(), plan: plan.clone() });
        let mut answer = None;
        let stop = || {
            log.append(Event::SawCancel { task: task.clone(), attempt });
            Err(TaskExit::Cancelled)
        };
        for step in 0..plan.steps {
            context.set_status_message(format!("step {step}"));
            if plan.asks && step == plan.steps / 2 {
                match context.request_input(QUESTION, question()).await {
                    Ok(given) => {
                        let given = given.as_str().unwrap_or_default().to_owned();
                        log.append(Event::GotAnswer { task: task.clone(), attempt, answer: given.clone() });
                        answer = Some(given);
                    }
                    Err(TaskExit::Cancelled) => return stop(),
                    Err(error) => return Err(error),
                }
            }
            let pause = tokio::time::sleep(Duration::from_millis(plan.pause_ms));
            if plan.heeds {
                tokio::select! {
                    () = context.cancelled() => return stop(),
                    () = pause => {}
                }
            } else {
                pause.await;
            }
        }
        let nonce = uuid::Uuid::new_v4().to_string();
        let result = json!({ "attempt": attempt, "nonce": nonce, "answer": answer }).to_string();
        let mut content = vec![ContentBlock::text(result)];
        if plan.pad > 0 {
            content.push(ContentBlock::text("x".repeat(plan.pad)));
        }
        log.append(Event::Produced { task, attempt, run, nonce });
        Ok(CallToolResult::success(content))
    })
}

fn question() -> InputRequest {
    InputRequest::Elicitation(ElicitRequest::new(ElicitRequestParams::FormElicitationParams {
        meta: None,
        message: "Go on?".to_owned(),
        requested_schema: ElicitationSchema::new([].into()),
    }))
}

pub async fn status(manager: &Manager, owner_id: &str, task: &str) -> Result<Value, TaskError> {
    let task = manager.get_task(&owner(owner_id), task).await?;
    Ok(serde_json::to_value(task.status()).unwrap())
}

pub async fn answer(manager: &Manager, owner_id: &str, task: &str, answer: Value) -> Result<(), TaskError> {
    manager.update_task(&owner(owner_id), task, [(QUESTION.to_owned(), answer)]).await
}

pub async fn cancel(manager: &Manager, owner_id: &str, task: &str) -> Result<(), TaskError> {
    manager.cancel_task(&owner(owner_id), task).await
}

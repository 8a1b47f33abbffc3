//! The tasks of a dump, in every state that a task can be in, and what the present version does with each.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mcp_task_store::{
    Agenda, Attempt, NewTask, OwnerId, PageRequest, PayloadKind, Priority, Queue, Retry, RpcError,
    StoreConfig, StoredTask, TaskKey, TaskStatus, TaskStore, UniqueEnqueue, UniqueKey, UniqueStart,
};
use serde_json::{Map, Value, json};

use crate::common::{LONG, TaskAttempt, Tasks, plain, resumable, until, waits_for_a_worker, within};
use crate::support::elsewhere::elsewhere;
use crate::support::{in_a_process_that_dies, owner};

/// Which tasks a dump has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Those of the present version.
    Complete,
    /// Those of a state of the crate without priorities, and without a delay before the first attempt.
    WithoutPriorities,
}

/// The duration of the leases in a dump. They have lapsed soon after it was loaded.
const LEASE: Duration = Duration::from_millis(300);
const DELAY: Duration = Duration::from_secs(1800);
const PRIORITIES: [(&str, Priority); 3] =
    [("waiting high", Priority::High), ("waiting", Priority::Normal), ("waiting low", Priority::Low)];

fn alice() -> OwnerId {
    owner("alice")
}

fn large() -> Value {
    json!({ "text": "x".repeat(5000) })
}

fn unique() -> UniqueKey {
    UniqueKey::new("render", "scene 7")
}

/// The key of a question, and of the name of a task.
const NAME: &str = "name";

fn question() -> Value {
    json!({ "method": "elicitation/create", "params": { "message": "Which?" } })
}

fn answer() -> [(&'static str, Value); 1] {
    [(NAME, json!({ "action": "accept" }))]
}

/// Names a task within the tests.
fn named(name: &str, new: NewTask) -> NewTask {
    new.extensions(Map::from_iter([(NAME.to_owned(), json!(name))]))
}

fn error() -> RpcError {
    RpcError::new(-32000, "out of paper").with_data(json!({ "tray": 2 }))
}

/// Creates the tasks, in a process that dies.
pub async fn create(engine: &Arc<dyn Agenda>, form: Form) {
    let engine = elsewhere(engine);
    in_a_process_that_dies(async move {
        let tasks = TaskStore::with_config(engine, StoreConfig::new().lease(LEASE));
        let started = async |name: &str, new: NewTask| {
            let (stored, attempt) = tasks.start(&alice(), named(name, new)).await.unwrap();
            (stored.key, attempt)
        };
        let new = || plain().operation("render");
        create_ended(&tasks).await;
        for (name, priority) in PRIORITIES {
            if form == Form::Complete || priority == Priority::Normal {
                tasks.enqueue(&alice(), named(name, resumable().priority(priority))).await.unwrap();
            }
        }
        if form == Form::Complete {
            tasks.enqueue(&alice(), named("delayed", new().delay(DELAY))).await.unwrap();
            for (name, attempts) in [("retried", 3), ("dead", 1)] {
                let retry = Retry::exponential(attempts, DELAY, DELAY);
                started(name, resumable().retry(retry)).await.1.retry(error()).await.unwrap();
            }
        }
        match tasks.enqueue_unique(&alice(), named("unique", resumable()), &unique()).await.unwrap() {
            UniqueEnqueue::Enqueued(_) => {}
            other => panic!("{other:?}"),
        }
        let created = tasks.create(&alice(), named("without a worker", plain())).await.unwrap();
        tasks.request_input(&created, [(NAME, question())]).await.unwrap();

        let (_, released) = started("released", resumable()).await;
        released.release().await.unwrap();
        let mut lost = vec![started("lost", new()).await.1];
        let (key, cancelled) = started("lost after a cancel", resumable()).await;
        tasks.request_cancel(&key).await.unwrap();
        let (_, resumes) = started("lost with a checkpoint", resumable().arguments(large())).await;
        resumes.set_checkpoint(large()).await.unwrap();
        resumes.set_variables([("step".to_owned(), json!(3))]).await.unwrap();
        let (_, asks) = started("asking", resumable()).await;
        asks.request_input(NAME, question()).await.unwrap();
        let (key, answered) = started("answered", resumable()).await;
        answered.request_input(NAME, question()).await.unwrap();
        tasks.deliver_inputs(&key, answer()).await.unwrap();
        lost.extend([cancelled, resumes, asks, answered]);
        // The process dies, so nothing ends these attempts.
        std::mem::forget(lost);
    })
    .await;
}

async fn create_ended(tasks: &Tasks) {
    let created = async |name: &str| tasks.create(&alice(), named(name, plain())).await.unwrap();
    tasks.complete(&created("completed").await, json!({ "content": [] })).await.unwrap();
    tasks.complete(&created("completed with a part").await, large()).await.unwrap();
    tasks.fail(&created("failed").await, error()).await.unwrap();
    tasks.cancel(&created("cancelled").await).await.unwrap();
}

/// The tasks of a loaded dump, by their names.
struct Loaded {
    tasks: Tasks,
    by_name: BTreeMap<String, StoredTask>,
}

impl Loaded {
    fn key(&self, name: &str) -> &TaskKey {
        &self.by_name[name].key
    }

    async fn assert_has(&self, name: &str, kind: PayloadKind, expected: Value) {
        let payload = self.tasks.payload(&self.by_name[name], kind).await.unwrap();
        assert_eq!(payload, Some(expected), "{name}");
    }

    async fn claim(&self, name: &str) -> TaskAttempt {
        let claimed = self.tasks.claim(self.key(name)).await.unwrap();
        claimed.unwrap_or_else(|| panic!("the task {name:?} can be claimed")).1
    }

    async fn completes(&self, name: &str, attempt: Attempt<Arc<dyn Agenda>>) {
        attempt.complete(json!(name)).await.unwrap();
        let ended = within(self.tasks.wait(self.key(name))).await.unwrap();
        assert_eq!(ended.task.status, TaskStatus::Completed);
        let result = self.tasks.payload(&ended, PayloadKind::Output).await.unwrap();
        assert_eq!(result, Some(json!(name)));
    }
}

/// Reads, claims, answers, completes and cancels the tasks of a loaded dump.
pub async fn check(engine: &Arc<dyn Agenda>, form: Form) {
    // This store has a long lease, so that its own attempts are never lost.
    let tasks = TaskStore::with_config(Arc::clone(engine), StoreConfig::new().lease(LONG));
    let listed = tasks.list(&alice(), PageRequest::new(100)).await.unwrap();
    assert!(listed.unreadable.is_empty() && listed.next.is_none());
    let name = |stored: &StoredTask| stored.task.extensions[NAME].as_str().expect("a name").to_owned();
    let by_name = listed.tasks.into_iter().map(|stored| (name(&stored), stored)).collect();
    let loaded = Loaded { tasks, by_name };
    assert_eq!(loaded.by_name.len(), if form == Form::Complete { 18 } else { 13 });
    for stored in loaded.by_name.values() {
        assert_eq!(loaded.tasks.get(&stored.key).await.unwrap().task.method, "tools/call");
    }
    check_ended(&loaded).await;
    check_lost(engine, &loaded).await;
    check_waiting(engine, &loaded, form).await;
    if form == Form::Complete {
        check_delayed(&loaded).await;
        check_dead(&loaded).await;
    }
    check_others(engine, &loaded).await;
}

async fn check_ended(loaded: &Loaded) {
    let is = |name: &str, status| assert_eq!(loaded.by_name[name].task.status, status, "{name}");
    is("completed", TaskStatus::Completed);
    is("completed with a part", TaskStatus::Completed);
    is("failed", TaskStatus::Failed);
    is("cancelled", TaskStatus::Cancelled);
    loaded.assert_has("completed", PayloadKind::Output, json!({ "content": [] })).await;
    loaded.assert_has("completed with a part", PayloadKind::Output, large()).await;
    assert_eq!(loaded.by_name["failed"].task.error, Some(error()));
}

/// The keeper finds the lost workers.
async fn check_lost(engine: &Arc<dyn Agenda>, loaded: &Loaded) {
    let until =
        |name, expected: fn(&mcp_task_store::Task) -> bool| until(&**engine, loaded.key(name), expected);
    until("lost", |task| task.status == TaskStatus::Failed).await;
    until("lost after a cancel", |task| task.status == TaskStatus::Cancelled).await;
    for name in ["lost with a checkpoint", "asking", "answered"] {
        let lease = until(name, waits_for_a_worker).await.lease.unwrap();
        assert_eq!((lease.attempt, lease.losses), (1, 1), "{name}");
    }
    loaded.assert_has("lost with a checkpoint", PayloadKind::Input, large()).await;
    let resumed = loaded.claim("lost with a checkpoint").await;
    assert_eq!(resumed.number(), 2);
    let read = resumed.read().await.unwrap();
    assert_eq!(read.task.variables["step"], 3);
    assert_eq!(resumed.last_checkpoint().await.unwrap(), Some(large()));
    loaded.completes("lost with a checkpoint", resumed).await;

    let answered = loaded.tasks.deliver_inputs(loaded.key("asking"), answer()).await.unwrap();
    assert_eq!(answered.task.status, TaskStatus::Working);
    for name in ["asking", "answered"] {
        let resumed = loaded.claim(name).await;
        // The next attempt makes the request again, which is answered.
        assert!(resumed.request_input(NAME, question()).await.unwrap().task.input_requests.is_empty());
        loaded.completes(name, resumed).await;
    }
}

/// Takes the tasks that wait for a worker, as a worker does.
async fn check_waiting(engine: &Arc<dyn Agenda>, loaded: &Loaded, form: Form) {
    let queues = PRIORITIES.map(|(_, priority)| Queue::work("render", priority).unwrap());
    let due = engine.take_due(&queues, 100, LONG).await.unwrap().due;
    let mut names = Vec::new();
    for due in &due {
        let named = loaded.by_name.iter().find(|(_, stored)| stored.key == due.key);
        names.push(named.expect("a timer of a task in the dump").0.as_str());
    }
    // The tasks of lost workers have been claimed already, without their timers.
    names.retain(|name| !["asking", "answered", "lost with a checkpoint"].contains(name));
    let expected: &[_] = match form {
        Form::Complete => &["waiting high", "waiting", "unique", "released", "waiting low"],
        Form::WithoutPriorities => &["waiting", "unique", "released"],
    };
    assert_eq!(names, expected);
    match loaded.tasks.start_unique(&alice(), resumable(), &unique()).await.unwrap() {
        UniqueStart::Joined(task) => assert_eq!(task.key, *loaded.key("unique")),
        other => panic!("{other:?}"),
    }
    for name in expected {
        let attempt = loaded.claim(name).await;
        assert_eq!(attempt.number(), if *name == "released" { 2 } else { 1 });
        loaded.completes(name, attempt).await;
    }
}

async fn check_delayed(loaded: &Loaded) {
    let tasks = &loaded.tasks;
    for name in ["delayed", "retried"] {
        assert!(tasks.claim(loaded.key(name)).await.unwrap().is_none(), "its start has not come");
        let cancelled = tasks.request_cancel(loaded.key(name)).await.unwrap();
        assert_eq!(cancelled.task.status, TaskStatus::Cancelled);
    }
}

async fn check_dead(loaded: &Loaded) {
    let (tasks, key) = (&loaded.tasks, loaded.key("dead"));
    let dead = tasks.dead_tasks(None).await.unwrap().tasks;
    assert_eq!(dead.iter().map(|stored| &stored.key).collect::<Vec<_>>(), [key]);
    assert_eq!((&dead[0].task.error, dead[0].task.gave_up_after), (&Some(error()), Some(1)));
    let requeued = tasks.requeue(key).await.unwrap();
    let (_, attempt) = tasks.claim(&requeued.key).await.unwrap().expect("the new task can be claimed");
    attempt.complete(json!(1)).await.unwrap();
    assert!(tasks.delete(&requeued.key).await.is_ok());
}

async fn check_others(engine: &Arc<dyn Agenda>, loaded: &Loaded) {
    let tasks = &loaded.tasks;
    let key = loaded.key("without a worker");
    assert_eq!(tasks.deliver_inputs(key, answer()).await.unwrap().task.status, TaskStatus::Working);
    assert_eq!(tasks.complete(key, json!(1)).await.unwrap().task.status, TaskStatus::Completed);
    // New tasks are newer than those of the dump.
    let newest = tasks.create(&alice(), plain()).await.unwrap();
    let page = tasks.list(&alice(), PageRequest::new(100)).await.unwrap().tasks;
    assert_eq!(page[0].key, newest.key);
    assert_eq!(page.len(), loaded.by_name.len() + 1);
    for stored in page {
        assert!(tasks.delete(&stored.key).await.is_ok());
    }
    assert!(engine.list(&alice(), PageRequest::new(1)).await.unwrap().records.is_empty());
}

//! The life of one task: its calls, their outcomes, and whether the stored task holds every acknowledged change.

use std::cell::Cell;
use std::collections::BTreeMap;

use mcp_task_store::{Payload, StoredTask, Task, TaskError, TaskKey, TaskStatus, Version};
use serde_json::{Value, json};

use super::{Tasks, call};
use crate::support::owner;

/// How many calls each of the two workers of a task makes to set variables.
const STEPS: u64 = 5;

/// How many calls on one task had each outcome.
#[derive(Default)]
pub struct Outcomes {
    pub acknowledged: Cell<u64>,
    pub unknown: Cell<u64>,
    pub refused: Cell<u64>,
}

impl Outcomes {
    /// Makes a call, and repeats it while it certainly had no effect. Returns `None` if its outcome is unknown. Any other error
    /// fails the test: only the workers end the task, so such an error would come from an earlier copy of their own write.
    async fn call<T>(&self, call: impl AsyncFn() -> Result<T, TaskError>) -> Option<T> {
        loop {
            match call().await {
                Ok(done) => {
                    self.acknowledged.update(|calls| calls + 1);
                    return Some(done);
                }
                Err(error) if error.outcome_unknown() => {
                    self.unknown.update(|calls| calls + 1);
                    return None;
                }
                Err(error) => assert!(error.is_retryable(), "{error:?}"),
            }
            self.refused.update(|calls| calls + 1);
        }
    }
}

/// The acknowledged changes of one task.
#[derive(Default)]
pub struct Worked {
    pub outcomes: Outcomes,
    /// The key, if the creation was acknowledged.
    pub key: Option<TaskKey>,
    /// The variables whose update was acknowledged.
    variables: Vec<String>,
    /// For each worker, the last of its values whose update was acknowledged.
    last: BTreeMap<&'static str, u64>,
    was_asked: bool,
    was_answered: bool,
    /// The result, if the end was acknowledged.
    pub result: Option<Value>,
}

/// How many calls change a task: its creation, the steps of two workers, a question, its answer and the end.
pub const CALLS: u64 = 1 + 2 * STEPS + 3;

/// Runs one of two workers of a task. Each overwrites one variable and adds others. Returns the acknowledged steps.
async fn take_steps(
    tasks: &Tasks,
    created: &StoredTask,
    name: &'static str,
    outcomes: &Outcomes,
) -> Vec<u64> {
    let (mut held, mut acknowledged) = (created.clone(), Vec::new());
    for step in 0..STEPS {
        let variables = [(name.to_owned(), json!(step)), (format!("{name} {step}"), json!(true))];
        let set = async || match step % 2 {
            0 => tasks.set_variables(&held.key, variables.clone()).await,
            _ => tasks.set_variables(&held, variables.clone()).await,
        };
        if let Some(written) = outcomes.call(set).await {
            assert_eq!(written.task.variables[name], json!(step));
            held = written;
            acknowledged.push(step);
        }
    }
    acknowledged
}

/// Runs the life of one task, on several instances.
pub async fn work(number: usize, instances: &[Tasks]) -> Worked {
    let instance = |turn: usize| &instances[(number + turn) % instances.len()];
    let owner = owner(&format!("owner {}", number % 7));
    let mut worked = Worked::default();
    let outcomes = &worked.outcomes;
    let Some(created) = outcomes.call(async || instance(0).create(&owner, call()).await).await else {
        return worked;
    };
    assert_eq!(created.version, Version::FIRST);
    let key = &created.key;
    let one = take_steps(instance(1), &created, "one", outcomes);
    let two = take_steps(instance(2), &created, "two", outcomes);
    // A worker may overwrite the write id by which the other one learns its outcome, so only half of the workers race.
    let (one, two) = if number % 2 == 1 { tokio::join!(one, two) } else { (one.await, two.await) };
    for (name, steps) in [("one", one), ("two", two)] {
        worked.variables.extend(steps.iter().map(|step| format!("{name} {step}")));
        worked.last.extend(steps.last().map(|last| (name, *last)));
    }
    let ask = async || instance(3).request_input(key, [("name", json!({}))]).await;
    let asked = outcomes.call(ask).await;
    let answer = async || match &asked {
        Some(asked) => instance(4).deliver_inputs(asked, [("name", json!("alice"))]).await,
        None => instance(4).deliver_inputs(key, [("name", json!("alice"))]).await,
    };
    let answered = outcomes.call(answer).await;
    worked.was_asked = asked.is_some();
    // The store ignores an answer without a question, so only a stored answer counts.
    worked.was_answered = answered.as_ref().is_some_and(|task| !task.task.input_responses.is_empty());
    assert!(worked.was_answered || asked.is_none() || answered.is_none());
    let result = json!({ "number": number });
    if let Some(done) = outcomes.call(async || instance(5).complete(key, result.clone()).await).await {
        assert_eq!(
            (done.task.status, &done.task.result),
            (TaskStatus::Completed, &Some(result.clone().into()))
        );
        worked.result = Some(result);
    }
    worked.key = Some(created.key);
    worked
}

/// Asserts that the task holds everything that was acknowledged.
pub fn check_task(worked: &Worked, task: &Task) {
    for name in &worked.variables {
        assert_eq!(task.variables.get(name), Some(&json!(true)), "{name} of {task:?}");
    }
    for (name, last) in &worked.last {
        assert!(task.variables[*name].as_u64().unwrap() >= *last, "{name} of {task:?}");
    }
    if worked.was_answered {
        assert_eq!(task.input_responses.get("name"), Some(&json!("alice")), "{task:?}");
    } else if worked.was_asked && !task.status.is_terminal() {
        assert!(task.input_requests.contains_key("name") || !task.input_responses.is_empty(), "{task:?}");
    }
    match &worked.result {
        Some(result) => {
            assert_eq!(
                (task.status, task.result.as_ref().and_then(Payload::as_inline)),
                (TaskStatus::Completed, Some(result)),
                "{task:?}"
            );
        }
        None => assert!(worked.outcomes.unknown.get() > 0),
    }
    assert!(!matches!(task.status, TaskStatus::Failed | TaskStatus::Cancelled), "{task:?}");
}

//! Any sequence of operations on a task with stored payloads.

use std::collections::BTreeMap;

use mcp_task_store::TaskRef;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::*;

const CALLS: usize = 24;

/// How a call names the task.
#[derive(Clone, Copy, Debug)]
enum By {
    Key,
    Copy,
    /// By the copy that the create returned.
    FirstCopy,
}

#[derive(Clone, Debug)]
enum Call {
    Get,
    List,
    Wait,
    SetStatusMessage(By),
    RequestInput(By, u8),
    DeliverInputs(By, u8),
    SetVariables(By, u8),
    RequestCancel(By),
    Complete(By, usize),
    Fail(By),
    Cancel(By),
    Renew,
    Read,
    NextAttempt,
    SetCheckpoint(usize),
    RequestInputAsWorker(u8),
    SetStatusMessageAsWorker,
    SetVariablesAsWorker(u8),
    CompleteAsWorker(usize),
    FailAsWorker,
    CancelAsWorker,
}

fn bytes() -> impl Strategy<Value = usize> {
    prop_oneof![2 => 3_usize..100, 1 => INLINE - 1..=INLINE + 1, 3 => INLINE + 2..20_000]
}

fn calls() -> impl Strategy<Value = Call> {
    let by = || prop_oneof![3 => Just(By::Key), 3 => Just(By::Copy), 1 => Just(By::FirstCopy)];
    let going_on = prop_oneof![
        Just(Call::Get),
        Just(Call::List),
        Just(Call::Wait),
        by().prop_map(Call::SetStatusMessage),
        (by(), 0_u8..6).prop_map(|(by, name)| Call::RequestInput(by, name)),
        (by(), 0_u8..6).prop_map(|(by, name)| Call::DeliverInputs(by, name)),
        (by(), 0_u8..3).prop_map(|(by, name)| Call::SetVariables(by, name)),
        Just(Call::Renew),
        Just(Call::Read),
        Just(Call::NextAttempt),
        (0_u8..6).prop_map(Call::RequestInputAsWorker),
        Just(Call::SetStatusMessageAsWorker),
        (0_u8..3).prop_map(Call::SetVariablesAsWorker),
    ];
    let ending = prop_oneof![
        by().prop_map(Call::RequestCancel),
        (by(), bytes()).prop_map(|(by, bytes)| Call::Complete(by, bytes)),
        by().prop_map(Call::Fail),
        by().prop_map(Call::Cancel),
        bytes().prop_map(Call::CompleteAsWorker),
        Just(Call::FailAsWorker),
        Just(Call::CancelAsWorker),
    ];
    prop_oneof![16 => going_on, 6 => bytes().prop_map(Call::SetCheckpoint), 1 => ending]
}

/// A task, and the values that its payloads were set to.
struct Life {
    tasks: Tasks,
    attempt: Working,
    first: StoredTask,
    last: StoredTask,
    expected: BTreeMap<&'static str, Value>,
}

fn name(kind: PayloadKind) -> &'static str {
    match kind {
        PayloadKind::Input => "input",
        PayloadKind::Output => "output",
        _ => "checkpoint",
    }
}

impl Life {
    async fn make(&mut self, call: &Call) -> Result<StoredTask, TaskError> {
        let (tasks, attempt) = (&self.tasks, &self.attempt);
        let task = |by: &By| match by {
            By::Key => TaskRef::Key(&self.last.key),
            By::Copy => TaskRef::Stored(&self.last),
            By::FirstCopy => TaskRef::Stored(&self.first),
        };
        let entry = |name: &u8| [(name.to_string(), json!({ "n": name }))];
        let error = || RpcError::new(1, "broken");
        match call {
            Call::Get => tasks.get(&self.last.key).await,
            Call::List => {
                let page = tasks.list(&self.last.key.owner, PageRequest::new(1)).await?;
                Ok(page.tasks[0].clone())
            }
            Call::Wait if self.last.task.status == TaskStatus::Working => tasks.get(&self.last.key).await,
            Call::Wait => tasks.wait(&self.last.key).await,
            Call::SetStatusMessage(by) => tasks.set_status_message(task(by), "on it").await,
            Call::RequestInput(by, name) => tasks.request_input(task(by), entry(name)).await,
            Call::DeliverInputs(by, name) => tasks.deliver_inputs(task(by), entry(name)).await,
            Call::SetVariables(by, name) => tasks.set_variables(task(by), entry(name)).await,
            Call::RequestCancel(by) => tasks.request_cancel(task(by)).await,
            Call::Complete(by, bytes) => tasks.complete(task(by), sized(*bytes, 'o')).await,
            Call::Fail(by) => tasks.fail(task(by), error()).await,
            Call::Cancel(by) => tasks.cancel(task(by)).await,
            Call::Renew => attempt.renew().await,
            Call::Read => attempt.read().await,
            Call::NextAttempt => {
                let released = attempt.release().await?;
                if let Some((_, next)) = tasks.claim(&released.key).await? {
                    self.attempt = next;
                }
                self.attempt.read().await
            }
            Call::SetCheckpoint(bytes) => attempt.set_checkpoint(sized(*bytes, 'c')).await,
            Call::RequestInputAsWorker(name) => {
                attempt.request_input(name.to_string(), json!({ "n": name })).await
            }
            Call::SetStatusMessageAsWorker => attempt.set_status_message("on it").await,
            Call::SetVariablesAsWorker(name) => attempt.set_variables(entry(name)).await,
            Call::CompleteAsWorker(bytes) => attempt.complete(sized(*bytes, 'o')).await,
            Call::FailAsWorker => attempt.fail(error()).await,
            Call::CancelAsWorker => attempt.cancel().await,
        }
    }

    /// Records what a successful call has set.
    fn record_values(&mut self, call: &Call) {
        match call {
            Call::SetCheckpoint(bytes) => drop(self.expected.insert("checkpoint", sized(*bytes, 'c'))),
            Call::Complete(_, bytes) | Call::CompleteAsWorker(bytes) => {
                self.expected.insert("output", sized(*bytes, 'o'));
            }
            _ => {}
        }
        if self.last.task.status.is_terminal() {
            self.expected.remove("checkpoint");
        }
    }

    /// Returns whether the call may change a part in this way. A call may set the part of its argument, and may clear
    /// the checkpoint if it ends the task or replaces the checkpoint.
    fn may_change(&self, call: &Call, part: &PartName, change: &PartChange) -> bool {
        let is = |bytes: &usize, letter| {
            let value = sized(*bytes, letter);
            *bytes > INLINE && *change == PartChange::Set(value.to_string().into())
        };
        match (call, part.as_str()) {
            (Call::SetCheckpoint(bytes), "checkpoint") => {
                is(bytes, 'c') || *bytes <= INLINE && *change == PartChange::Clear
            }
            (Call::Complete(_, bytes) | Call::CompleteAsWorker(bytes), "output") => is(bytes, 'o'),
            (_, "checkpoint") => self.last.task.status.is_terminal() && *change == PartChange::Clear,
            _ => false,
        }
    }

    async fn check(&self) {
        for kind in KINDS {
            let value = self.expected.get(name(kind));
            assert_payload(&self.tasks, &self.last, kind, value).await;
            // The first copy of the task has none of the changes, and must still load the arguments.
            if kind == PayloadKind::Input {
                assert_eq!(self.tasks.payload(&self.first, kind).await.unwrap().as_ref(), value);
            }
        }
    }
}

async fn run_calls(engine: Engine, input: usize, calls: &[Call]) {
    let (_store, recording, tasks) = open(engine).await;
    let new = call().arguments(sized(input, 'i'));
    let (first, attempt) = tasks.start(&owner("alice"), new).await.unwrap();
    let expected = BTreeMap::from([("input", sized(input, 'i'))]);
    let mut life = Life { tasks, attempt, last: first.clone(), first, expected };
    life.check().await;
    recording.sent();
    for call in calls {
        let made = life.make(call).await;
        let is_made = made.is_ok();
        match made {
            Ok(last) => life.last = last,
            // A rejected call of several steps may have completed its first step.
            Err(_) => life.last = life.tasks.get(&life.last.key).await.unwrap(),
        }
        for sent in recording.sent() {
            for (part, change) in &sent.parts {
                assert!(life.may_change(call, part, change), "{call:?} did this to {part}: {change:?}");
            }
        }
        if is_made {
            life.record_values(call);
        }
        life.check().await;
    }
}

#[apply(on_every_engine)]
fn no_call_changes_a_part_of_another_payload_and_every_payload_is_loaded_as_it_was_set(
    #[case] engine: Engine,
) {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(64);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let outcome = TestRunner::new(config).run(&(bytes(), vec(calls(), CALLS)), |(input, calls)| {
        runtime.block_on(run_calls(engine, input, &calls));
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
}

//! `mcp-tasks answer`

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, IsTerminal, Read, Write};

use mcp_task_console::operator::{Question, complete};
use mcp_task_store::{StoredTask, TaskStatus};
use serde_json::Value;

use crate::args::AnswerArgs;
use crate::engine::Store;
use crate::failure::Failure;
use crate::input_form::ask;
use crate::key;
use crate::output::text;

type Answers = BTreeMap<String, Value>;

pub async fn run(store: &Store, args: &AnswerArgs) -> Result<(), Failure> {
    let key = key::parse(args.task.owner.as_ref(), &args.task.task)?;
    let given = args.json.as_deref().map(read_answers).transpose()?;
    let stored = store.get(&key).await.map_err(|error| Failure::of_task(&error, &key))?;
    if stored.task.status != TaskStatus::InputRequired {
        let status = stored.task.status;
        return Err(Failure::failed(format!("task {} is {status} and asks nothing", key::display(&key))));
    }
    let answers = match given {
        Some(answers) => check(&stored, answers)?,
        None => tokio::task::block_in_place(|| ask_all(&stored))?,
    };
    let answered = answers.len();
    let delivered = store.deliver_inputs(&stored.key, answers.clone()).await;
    let delivered = delivered.map_err(|error| Failure::of_task(&error, &key))?;
    let task = &delivered.task;
    // Somebody else may have answered meanwhile, or the task may have ended.
    if let Some((question, _)) =
        answers.iter().find(|(key, answer)| task.input_responses.get(*key) != Some(answer))
    {
        return Err(Failure::failed(format!(
            "task {} no longer asks {}; it is {}",
            key::display(&key),
            text::cut(question, 80),
            task.status
        )));
    }
    let (questions, open) = (text::count(answered as u64, "question"), task.input_requests.len());
    let left = if open == 0 { String::new() } else { format!(", {open} still open") };
    Ok(writeln!(
        io::stdout(),
        "{}: answered {questions}{left}; the task is {}",
        key::display(&key),
        task.status
    )?)
}

/// Reads the value of `--json`.
fn read_answers(given: &str) -> Result<Answers, Failure> {
    let json = match given.strip_prefix('@') {
        _ if given == "-" => {
            let mut json = String::new();
            let read = io::stdin().read_to_string(&mut json);
            read.map_err(|error| Failure::failed(format!("stdin cannot be read: {error}")))?;
            json
        }
        Some(file) => fs::read_to_string(file)
            .map_err(|error| Failure::failed(format!("{file} cannot be read: {error}")))?,
        None => given.to_owned(),
    };
    serde_json::from_str(&json).map_err(|error| {
        Failure::usage(format!("the answers are not a JSON object with an answer for each key: {error}"))
    })
}

/// Returns the answers in the form of the protocol, if each belongs to an open question and suits it.
fn check(stored: &StoredTask, answers: Answers) -> Result<Answers, Failure> {
    let open = &stored.task.input_requests;
    let answer = |(key, answer): (String, Value)| match open.get(&key) {
        Some(request) => {
            let answer = complete(request, answer);
            match Question::of(request).mistakes(&answer) {
                mistakes if mistakes.is_empty() => Ok((key, answer)),
                mistakes => {
                    Err(Failure::usage(format!("the answer to {key:?} is invalid: {}", listed(mistakes))))
                }
            }
        }
        None => {
            let keys: Vec<&str> = open.keys().map(String::as_str).collect();
            Err(Failure::usage(format!(
                "the task has no open question {key:?}; its open questions: {}",
                keys.join(", ")
            )))
        }
    };
    if answers.is_empty() {
        return Err(Failure::usage("the JSON object has no answer"));
    }
    answers.into_iter().map(answer).collect()
}

/// Lists what is wrong with an answer. A mistake without a field is about the answer as a whole.
fn listed(mistakes: Vec<(String, String)>) -> String {
    let sentence = |(field, mistake): (String, String)| match field.is_empty() {
        true => mistake,
        false => format!("{field}: {mistake}"),
    };
    mistakes.into_iter().map(sentence).collect::<Vec<_>>().join("; ")
}

/// Asks every open question on the terminal.
fn ask_all(stored: &StoredTask) -> Result<Answers, Failure> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(Failure::usage("there is no terminal to ask on; pass the answers with --json"));
    }
    let mut answers = Answers::new();
    for (key, request) in &stored.task.input_requests {
        answers.extend(ask(key, request)?.map(|answer| (key.clone(), answer)));
    }
    match answers.is_empty() {
        true => Err(Failure::failed("every question was left open; nothing was changed")),
        false => Ok(answers),
    }
}

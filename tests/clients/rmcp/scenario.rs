//! What the scenarios share.

use std::error::Error;
use std::fmt::Display;
use std::process::Command;
use std::time::Duration;

use rmcp::model::CallToolResult;
use serde_json::json;
use tokio::time::{sleep, timeout};

use crate::connection::{Connection, Server};
use crate::{Mode, with_tasks, without_tasks};

pub type Failure = Box<dyn Error>;

pub const SCENARIOS: [&str; 7] = ["quick", "slow", "question", "longer", "cancel", "limit", "killed"];

/// How long the client waits for a call in the scenario "limit". The call takes longer.
pub const OWN_LIMIT: Duration = Duration::from_secs(1);
const SCENARIO_LIMIT: Duration = Duration::from_secs(60);
pub const POLL: Duration = Duration::from_millis(100);
/// After this time, a call whose server was killed, or a call that was cancelled, is taken to go on.
pub const SEEN_WITHIN: Duration = Duration::from_secs(4);
/// After this time, a connection to a server that was killed is taken to be lost.
const RECOVERS_WITHIN: Duration = Duration::from_secs(2);

/// Plays a scenario. Returns what the client got.
pub async fn play(scenario: &str, mode: Mode, server: &Server) -> Result<String, Failure> {
    let connection = Connection::open(server, mode).await?;
    let played = async {
        match mode {
            Mode::Tasks => with_tasks::play(scenario, connection, server).await,
            Mode::Legacy | Mode::Plain => without_tasks::play(scenario, connection, server, mode).await,
        }
    };
    timeout(SCENARIO_LIMIT, played).await.map_err(|_| "it takes longer than a minute")?
}

/// Checks whether the server lists its companion tools.
pub async fn expect_companions(connection: &Connection, are_listed: bool) -> Result<(), Failure> {
    let tools = connection.client.list_all_tools().await?;
    for companion in ["task_result", "task_list", "task_answer", "task_cancel"] {
        expect(tools.iter().any(|tool| tool.name == companion) == are_listed, &tools)?;
    }
    expect(!tools.is_empty(), &tools)
}

/// Checks the result of `work`.
pub fn worked(result: &CallToolResult, seconds: f64) -> Result<&'static str, Failure> {
    let text = format!("worked for {seconds} s");
    let is_expected = result.structured_content == Some(json!({ "seconds": seconds }));
    expect(is_expected && text_of(result) == text, result)?;
    Ok("result")
}

/// Checks the result of `survive`.
pub fn survived(result: &CallToolResult, process: &str) -> Result<(), Failure> {
    expect(text_of(result) == format!("survived process {process} in attempt 2"), result)
}

pub fn text_of(result: &CallToolResult) -> &str {
    result.content.first().and_then(|content| content.as_text()).map_or("", |text| &text.text)
}

pub fn expect(condition: bool, got: impl std::fmt::Debug) -> Result<(), Failure> {
    if condition { Ok(()) } else { Err(format!("unexpected: {got:?}").into()) }
}

/// Kills the process that the message of a task names. Returns its id.
pub fn kill(message: &str) -> Result<String, Failure> {
    let process = message.strip_prefix("in process ").ok_or("the message names no process")?;
    expect(Command::new("kill").args(["-KILL", process]).status()?.success(), process)?;
    Ok(process.to_owned())
}

/// Returns a connection to a server again: the same, or a new one; and whether it is new.
pub async fn recover(
    connection: Connection,
    server: &Server,
    mode: Mode,
) -> Result<(Connection, bool), Failure> {
    let reached = succeeds(|| connection.call("process", json!({})));
    if timeout(RECOVERS_WITHIN, reached).await.is_ok() {
        return Ok((connection, false));
    }
    connection.close().await?;
    Ok((succeeds(|| Connection::open(server, mode)).await, true))
}

/// Tries until it succeeds: the first tries may still reach the process that was killed.
async fn succeeds<T, E: Display, F: Future<Output = Result<T, E>>>(attempt: impl Fn() -> F) -> T {
    loop {
        match attempt().await {
            Ok(result) => return result,
            Err(error) => eprintln!("not yet: {error}"),
        }
        sleep(POLL).await;
    }
}

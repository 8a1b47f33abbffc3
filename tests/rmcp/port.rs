//! A server on the task manager of the SDK, and the same server on `TaskServer`. The guide shows what differs.

mod after;
mod before;

use std::path::Path;
use std::process::Command;

use mcp_task_store::{RedisBackend, StorageError};
use rmcp::ServerHandler;
use rmcp::model::*;
use rmcp::service::ServiceError;
use serde_json::json;

use crate::support::redis::Namespace;
use crate::support::rmcp::{connect as connect_client, newest, said, within};

/// How many lines the author of a server adds or changes at most.
const MOST_ADDED: usize = 9;
/// The guide shows the first lines of a longer removal.
const SHOWN_OF_A_REMOVAL: usize = 3;

tokio::task_local! {
    /// The store of the test. The guide shows a connection in its place.
    static BACKEND: RedisBackend;
}

async fn connect(_url: &str) -> Result<RedisBackend, StorageError> {
    Ok(BACKEND.get())
}

/// Returns what differs between the two servers.
fn difference() -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rmcp/port");
    let diff =
        Command::new("diff").args(["-U1", "before.rs", "after.rs"]).current_dir(folder).output().unwrap();
    let diff = String::from_utf8(diff.stdout).unwrap();
    let lines = diff.lines().filter(|line| !line.starts_with("@@")).skip(2);
    lines.map(|line| line.replace("super::connect", "RedisBackend::connect") + "\n").collect()
}

/// Cuts each removal to its first lines.
fn cut(difference: &str) -> String {
    let lines = Vec::from_iter(difference.lines());
    let mut shown = String::new();
    for block in lines.chunk_by(|one, next| one.starts_with('-') && next.starts_with('-')) {
        let cut = if block.len() > 2 * SHOWN_OF_A_REMOVAL { SHOWN_OF_A_REMOVAL } else { block.len() };
        block[..cut].iter().for_each(|line| shown.extend([line, "\n"]));
        if cut < block.len() {
            shown.push_str(&format!("-    ({} more lines)\n", block.len() - cut));
        }
    }
    shown
}

#[test]
fn a_port_from_the_task_manager_of_the_sdk_adds_under_ten_lines_and_the_guide_shows_them() {
    let difference = difference();
    let count = |sign| difference.lines().filter(|line| line.starts_with(sign)).count();
    let (added, removed) = (count('+'), count('-'));
    assert!((1..=MOST_ADDED).contains(&added), "{added} lines:\n{difference}");
    let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/guide/rmcp.md");
    let guide = std::fs::read_to_string(guide).unwrap();
    let block = format!("```diff\n{}```\n", cut(&difference));
    for shown in [format!("The port adds {added} lines and removes {removed}."), block] {
        assert!(guide.contains(&shown), "docs/guide/rmcp.md lacks this:\n{shown}");
    }
}

/// Calls `add` as a client with these capabilities. Returns the sum, and whether the call became a task.
async fn sum(
    server: impl ServerHandler,
    capabilities: ClientCapabilities,
) -> Result<(String, bool), ServiceError> {
    let client = connect_client(server, capabilities, newest()).await;
    let pi = client.call_tool_once(CallToolRequestParams::new("pi")).await?;
    assert!(matches!(pi, CallToolResponse::Complete(_)), "{pi:?}");
    let arguments = JsonObject::from_iter([("a".to_owned(), json!(2)), ("b".to_owned(), json!(3))]);
    match client.call_tool_once(CallToolRequestParams::new("add").with_arguments(arguments)).await? {
        CallToolResponse::Complete(result) => Ok((result.content[0].as_text().unwrap().text.clone(), false)),
        CallToolResponse::Task(created) => loop {
            let task = client.get_task(GetTaskParams::new(&created.task.task_id)).await?.task;
            if task.status().is_terminal() {
                return Ok((said(&task.payload), true));
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        },
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn both_servers_add_in_a_task_and_the_port_also_serves_clients_without_tasks() {
    let namespace = Namespace::new();
    BACKEND.scope(namespace.backend().await, within(add_on_both())).await;
}

async fn add_on_both() {
    let with_tasks = || ClientCapabilities::builder().enable_tasks().build();
    let in_a_task = ("5".to_owned(), true);
    assert_eq!(sum(before::server().await.unwrap(), with_tasks()).await.unwrap(), in_a_task);
    assert_eq!(sum(after::server().await.unwrap(), with_tasks()).await.unwrap(), in_a_task);

    let without = ClientCapabilities::default;
    let refused = sum(before::server().await.unwrap(), without()).await.unwrap_err();
    let ServiceError::McpError(refused) = refused else { panic!("{refused:?}") };
    assert_eq!(refused.code, ErrorCode::MISSING_REQUIRED_CLIENT_CAPABILITY);
    let held = ("5".to_owned(), false);
    assert_eq!(sum(after::server().await.unwrap(), without()).await.unwrap(), held);
}

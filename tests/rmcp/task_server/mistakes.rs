//! Mistakes of an author are errors when the server is created.

use std::time::Duration;

use mcp_task_store::{Expiry, OwnerSource, Retry, TaskContext, TaskError, TaskServer, TaskTools};
use rmcp::model::CallToolResult;
use rmcp::task_manager::TaskExit;
use rstest::rstest;

use super::{Render, Router, in_memory, nothing};
use crate::support::rmcp::{alice, text};

async fn of_a_number(_: TaskContext, _: u64) -> Result<CallToolResult, TaskExit> {
    Ok(text("a number"))
}

const RETRY: Retry = Retry::exponential(3, Duration::from_secs(1), Duration::from_secs(60));
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

#[rstest]
#[case::a_name_twice(TaskTools::new().tool("a", "A", nothing).tool("a", "B", nothing), "the tool \"a\" exists twice")]
#[case::a_name_of_the_handler(TaskTools::new().tool("echo", "A", nothing), "the tool \"echo\" exists twice")]
#[case::an_empty_name(TaskTools::new().tool("", "A", nothing), "empty name")]
#[case::a_long_name(TaskTools::new().tool("n".repeat(1000), "A", nothing), "cannot have this name")]
#[case::arguments_that_are_no_object(TaskTools::new().tool("a", "A", of_a_number), "are no JSON object")]
#[case::a_setting_without_a_tool(TaskTools::new().resumable().tool("a", "A", nothing), "belongs to no tool")]
#[case::attempts_of_a_tool_that_cannot_resume(TaskTools::new().tool("a", "A", nothing).attempts(2), "has no effect")]
#[case::no_attempts(TaskTools::new().tool("a", "A", nothing).resumable().attempts(0), "\"a\" has no attempts")]
#[case::retry_of_a_tool_that_cannot_resume(TaskTools::new().tool("a", "A", nothing).retry(RETRY), "\"retry\" of the tool \"a\" has no effect")]
#[case::predicate_of_a_tool_that_cannot_resume(TaskTools::new().tool("a", "A", nothing).retry_if(|_| true), "\"retry_if\" of the tool \"a\" has no effect")]
#[case::attempts_and_retry(TaskTools::new().tool("a", "A", nothing).resumable().attempts(2).retry(RETRY), "both state the number of attempts")]
#[case::an_invalid_retry(
    TaskTools::new().tool("a", "A", nothing).resumable().retry(Retry::exponential(0, YEAR, YEAR)),
    "0 attempts"
)]
#[case::no_retention(TaskTools::new().tool("a", "A", nothing).retention(Duration::ZERO), "a retention of 0ns")]
#[case::a_long_retention(TaskTools::new().tool("a", "A", nothing).retention(YEAR * 101), "between 1 ms and 100 years")]
#[case::a_long_life(TaskTools::new().tool("a", "A", nothing).retention(Expiry::MAX), "over 100 years together")]
#[case::no_place(TaskTools::new().tool("a", "A", nothing).concurrency(0), "\"a\" cannot run 0 calls at once")]
#[case::many_places(TaskTools::new().tool("a", "A", nothing).concurrency(usize::MAX), "calls at once: choose 1 to")]
#[case::a_long_ttl(TaskTools::new().tool("a", "A", nothing).ttl(YEAR), "the store refuses a setting of the tool \"a\"")]
#[case::a_long_poll_interval(TaskTools::new().tool("a", "A", nothing).poll_interval(YEAR), "a poll interval of")]
#[case::a_key_of_another_type(
    TaskTools::new().tool("a", "A", nothing).unique_by(|render: &Render| render.frames),
    "the key of the tool \"a\" is derived from rmcp::task_server::Render, but its function takes rmcp::model::EmptyObject"
)]
#[case::a_key_without_a_tool(TaskTools::new().unique_by(|render: &Render| render.frames), "belongs to no tool")]
#[tokio::test]
async fn a_mistake_in_the_tools_is_an_error_when_the_server_is_created(
    #[case] tools: TaskTools,
    #[case] expected: &str,
) {
    let created = TaskServer::new(Router, in_memory(), OwnerSource::fixed(alice()), tools);
    let Err(TaskError::InvalidArgument { reason }) = created else { panic!("{created:?}") };
    assert!(reason.contains(expected), "{reason}");
}

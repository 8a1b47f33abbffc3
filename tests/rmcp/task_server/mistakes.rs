//! Mistakes of an author are errors when the server is created.

use mcp_task_store::{OwnerSource, TaskContext, TaskError, TaskServer, TaskTools};
use rmcp::model::CallToolResult;
use rmcp::task_manager::TaskExit;
use rstest::rstest;

use super::{Router, in_memory, nothing};
use crate::support::rmcp::{alice, text};

async fn of_a_number(_: TaskContext, _: u64) -> Result<CallToolResult, TaskExit> {
    Ok(text("a number"))
}

#[rstest]
#[case::a_name_twice(TaskTools::new().tool("a", "A", nothing).tool("a", "B", nothing), "the tool \"a\" exists twice")]
#[case::a_name_of_the_handler(TaskTools::new().tool("echo", "A", nothing), "the tool \"echo\" exists twice")]
#[case::an_empty_name(TaskTools::new().tool("", "A", nothing), "empty name")]
#[case::a_long_name(TaskTools::new().tool("n".repeat(1000), "A", nothing), "cannot have this name")]
#[case::arguments_that_are_no_object(TaskTools::new().tool("a", "A", of_a_number), "are no JSON object")]
#[case::a_setting_without_a_tool(TaskTools::new().resumable().tool("a", "A", nothing), "belongs to no tool")]
#[case::attempts_of_a_tool_that_cannot_resume(TaskTools::new().tool("a", "A", nothing).attempts(2), "has no effect")]
#[tokio::test]
async fn a_mistake_in_the_tools_is_an_error_when_the_server_is_created(
    #[case] tools: TaskTools,
    #[case] expected: &str,
) {
    let created = TaskServer::new(Router, in_memory(), OwnerSource::fixed(alice()), tools);
    let Err(TaskError::InvalidArgument { reason }) = created else { panic!("{created:?}") };
    assert!(reason.contains(expected), "{reason}");
}

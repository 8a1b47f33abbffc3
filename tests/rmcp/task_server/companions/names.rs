//! The names of the companions, and who sees them.

use mcp_task_store::TaskError;
use rmcp::RoleServer;
use rmcp::ServerHandler;
use rmcp::service::RequestContext;

use super::super::with_tasks;
use super::*;

const DEFAULT: [&str; 4] = ["task_result", "task_list", "task_answer", "task_cancel"];

fn serve_with(companions: Companions) -> Server {
    serve_for(alice(), &in_memory(), TaskServerConfig::new().companions(companions))
}

async fn listed(server: Server, client: ClientCapabilities, lifecycle: ClientLifecycleMode) -> Vec<Tool> {
    let client = connect(server, client, lifecycle).await;
    let tools = client.list_all_tools().await.unwrap();
    client.cancel().await.unwrap();
    tools
}

fn names(tools: &[Tool]) -> Vec<&str> {
    tools.iter().map(|tool| &*tool.name).collect()
}

#[rstest]
#[tokio::test]
async fn only_clients_without_the_tasks_extension_see_the_companions(
    #[values(newest(), ClientLifecycleMode::Initialize)] lifecycle: ClientLifecycleMode,
) {
    let server = serve_with(Companions::new());
    let tools = listed(server.clone(), ClientCapabilities::default(), lifecycle.clone()).await;
    assert_eq!(names(&tools), ["nothing", "task_result", "task_list", "task_answer", "task_cancel", "echo"]);
    let [_, result, list, answer, cancel, _] = &tools[..] else { unreachable!() };
    for tool in [result, answer, cancel] {
        assert_eq!(tool.input_schema["required"], json!(["taskId"]), "{tool:?}");
        assert!(tool.description.as_ref().unwrap().contains("Call it when"), "{tool:?}");
    }
    assert!(list.input_schema.get("required").is_none());
    let hints = |tool: &Tool| {
        let hints = tool.annotations.clone().unwrap();
        (hints.read_only_hint, hints.destructive_hint)
    };
    assert_eq!([hints(result), hints(list)], [(Some(true), None); 2]);
    assert_eq!((hints(answer), hints(cancel)), ((Some(false), Some(false)), (Some(false), Some(true))));
    assert_eq!(names(&listed(server, with_tasks(), lifecycle).await), ["nothing", "echo"]);
}

#[tokio::test]
async fn the_transport_finds_the_companions_by_their_names() {
    let server = serve_with(Companions::new());
    for name in DEFAULT {
        assert_eq!(server.get_tool(name).unwrap().name, name);
    }
    assert!(server.get_tool("echo").is_some() && server.get_tool("task_pause").is_none());
}

#[tokio::test]
async fn the_companions_have_the_names_that_the_author_chooses_also_in_texts() {
    let companions = Companions::new().prefix("render_").cancel_name("stop");
    let tools = listed(serve_with(companions.clone()), ClientCapabilities::default(), newest()).await;
    assert_eq!(names(&tools)[1..5], ["render_result", "render_list", "render_answer", "stop"]);
    assert!(!serde_json::to_string(&tools).unwrap().contains("task_"), "{tools:?}");
    let single = Companions::new().result_name("a").list_name("b").answer_name("c").cancel_name("d");
    let tools = listed(serve_with(single), ClientCapabilities::default(), newest()).await;
    assert_eq!(names(&tools)[1..5], ["a", "b", "c", "d"]);

    let tasks = in_memory();
    let config = TaskServerConfig::new()
        .hold_for(Duration::ZERO)
        .hold_for_with_progress(Duration::ZERO)
        .companions(companions);
    let client = plain(serve_for(alice(), &tasks, config)).await;
    let task_id = running(&tasks).await;
    let result = call(&client, "render_result", json!({ "taskId": task_id })).await;
    assert!(said_in(&result).contains("call render_result"), "{result:?}");
    call(&client, "stop", json!({ "taskId": task_id })).await;
    assert!(matches!(ended(&tasks, &task_id).await, TaskPayload::Cancelled));
    client.cancel().await.unwrap();
}

#[tokio::test]
async fn companions_that_are_off_are_no_tools() {
    let server = serve_with(Companions::off());
    assert!(server.get_tool("task_result").is_none());
    let client = plain(server).await;
    assert_eq!(names(&client.list_all_tools().await.unwrap()), ["nothing", "echo"]);
    let error = respond(&client, "task_result", json!({ "taskId": "t1" })).await.unwrap_err();
    assert!(!error.message.contains("taskId"), "the handler answers: {error:?}");
    client.cancel().await.unwrap();
}

#[rstest]
#[case::of_a_task_tool(Companions::new().list_name("nothing"), "\"nothing\" exists twice")]
#[case::of_the_handler(Companions::new().answer_name("echo"), "\"echo\" exists twice")]
#[case::of_another_companion(Companions::new().list_name("task_cancel"), "\"task_cancel\" exists twice")]
#[case::that_is_empty(Companions::new().result_name(""), "empty name")]
#[tokio::test]
async fn a_name_is_an_error_when_the_server_is_created(
    #[case] companions: Companions,
    #[case] expected: &str,
) {
    let create = |companions| {
        let tools = TaskTools::new().tool("nothing", "Does nothing", nothing);
        let config = TaskServerConfig::new().companions(companions);
        TaskServer::with_config(Router, in_memory(), OwnerSource::fixed(alice()), tools, config)
    };
    let Err(TaskError::InvalidArgument { reason }) = create(companions) else { panic!("it is created") };
    assert!(reason.contains(expected), "{reason}");
    create(Companions::off().list_name("nothing")).unwrap();
}

/// Reveals its tool only in its list.
struct Hidden;

impl ServerHandler for Hidden {
    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        Ok(ListToolsResult::with_all_items(vec![Tool::new("task_list", "of the handler", JsonObject::new())]))
    }
}

#[tokio::test]
async fn a_companion_hides_no_tool_that_the_handler_reveals_only_in_its_list() {
    for client in [ClientCapabilities::default(), with_tasks()] {
        let server =
            TaskServer::new(Hidden, in_memory(), OwnerSource::fixed(alice()), TaskTools::new()).unwrap();
        let client = connect(server, client, newest()).await;
        let Err(ServiceError::McpError(error)) = client.list_all_tools().await else {
            panic!("the list is refused")
        };
        assert!(error.message.contains("\"task_list\" exists twice"), "{error:?}");
        client.cancel().await.unwrap();
    }
}

//! The list of all tools.

use std::time::Duration;

use mcp_task_store::{TaskContext, TaskTools};
use rmcp::model::*;
use rmcp::service::{RequestContext, ServiceError};
use rmcp::task_manager::TaskExit;
use rmcp::{ClientLifecycleMode, ErrorData, RoleServer, ServerHandler};
use rstest::rstest;
use serde_json::{Value, json};

use super::raw::{Kind, RawClient};
use super::{Render, Router, in_memory, nothing, render, serve, until_cancelled, with_tasks};
use crate::support::rmcp::{connect, key, newest};

/// Lists one tool a page, and does not implement `get_tool`.
struct Paged(&'static [&'static str]);

impl ServerHandler for Paged {
    async fn list_tools(
        &self,
        request: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let cursor = request.and_then(|request| request.cursor);
        let page: usize = cursor.map_or(0, |cursor| cursor.parse().unwrap());
        let tool = Tool::new(self.0[page], "of the handler", JsonObject::new());
        let mut listed = ListToolsResult::with_all_items(vec![tool]);
        listed.next_cursor = (page + 1 < self.0.len()).then(|| (page + 1).to_string());
        Ok(listed)
    }
}

fn names(tools: &[Tool]) -> Vec<&str> {
    tools.iter().map(|tool| &*tool.name).collect()
}

#[tokio::test]
async fn the_first_page_has_the_task_tools_and_the_cursors_are_those_of_the_handler() {
    let tools = TaskTools::new().tool("render", "Renders", render).tool("nothing", "Does nothing", nothing);
    for lifecycle in [newest(), ClientLifecycleMode::Initialize] {
        let server = serve(Paged(&["a", "b", "c"]), &in_memory(), tools.clone());
        let client = connect(server, with_tasks(), lifecycle).await;
        let first = client.list_tools(None).await.unwrap();
        assert_eq!(
            (names(&first.tools), first.next_cursor.as_deref()),
            (vec!["render", "nothing", "a"], Some("1"))
        );
        let second = PaginatedRequestParams::default().with_cursor(Some("1".to_owned()));
        let second = client.list_tools(Some(second)).await.unwrap();
        assert_eq!((names(&second.tools), second.next_cursor.as_deref()), (vec!["b"], Some("2")));
        let all = client.list_all_tools().await.unwrap();
        assert_eq!(names(&all), ["render", "nothing", "a", "b", "c"]);
        client.cancel().await.unwrap();
    }
}

#[tokio::test]
async fn a_handler_without_tools_adds_none_and_a_call_of_an_unknown_tool_says_so() {
    struct NoTools;
    impl ServerHandler for NoTools {}
    let server = serve(NoTools, &in_memory(), TaskTools::new().tool("nothing", "Does nothing", nothing));
    let client = connect(server, with_tasks(), newest()).await;
    let listed = client.list_tools(None).await.unwrap();
    assert_eq!((names(&listed.tools), listed.next_cursor), (vec!["nothing"], None));

    let called = client.call_tool_once(CallToolRequestParams::new("no\nthing")).await;
    let Err(ServiceError::McpError(error)) = called else { panic!("{called:?}") };
    let message = "tool not found: \"no\\nthing\"; call tools/list for the names of the tools";
    assert_eq!(error, ErrorData::invalid_params(message, None));
    client.cancel().await.unwrap();
}

#[tokio::test]
async fn no_task_tool_hides_a_tool_that_the_handler_reveals_only_in_its_list() {
    let tools = TaskTools::new().tool("b", "Does nothing", nothing);
    let client = connect(serve(Paged(&["a", "b"]), &in_memory(), tools), with_tasks(), newest()).await;
    assert_eq!(names(&client.list_tools(None).await.unwrap().tools), ["b", "a"]);
    let Err(ServiceError::McpError(error)) = client.list_all_tools().await else {
        panic!("the list is refused")
    };
    assert_eq!(error.code, ErrorCode::INTERNAL_ERROR);
    assert!(error.message.contains("\"b\" exists twice"), "{error:?}");
    client.cancel().await.unwrap();
}

#[derive(serde::Serialize, rmcp::schemars::JsonSchema)]
#[schemars(crate = "rmcp::schemars")]
struct Film {
    minutes: u64,
}

#[tokio::test]
async fn a_setting_changes_the_tool_before_it_and_no_other() {
    let tools = TaskTools::new()
        .tool("render", "Renders", until_cancelled::<Render>)
        .annotations(ToolAnnotations::with_title("Render").idempotent(true))
        .output_schema::<Film>()
        .resumable()
        .attempts(5)
        .ttl(Duration::from_secs(60))
        .poll_interval(Duration::from_millis(250))
        .tool("nothing", "Does nothing", until_cancelled::<EmptyObject>);
    let tasks = in_memory();
    let client = connect(serve(Router, &tasks, tools), with_tasks(), newest()).await;
    let listed = client.list_all_tools().await.unwrap();
    let [first, second, echo] = &listed[..] else { panic!("{listed:?}") };
    let input = Value::Object((*first.input_schema).clone());
    assert_eq!((&input["type"], &input["required"]), (&json!("object"), &json!(["frames"])));
    assert_eq!(input["properties"]["frames"]["description"], "The number of frames");
    assert_eq!(first.output_schema.as_ref().unwrap()["required"], json!(["minutes"]));
    let annotations = serde_json::to_value(&first.annotations).unwrap();
    assert_eq!(annotations, json!({ "title": "Render", "idempotentHint": true }));
    assert_eq!((&second.annotations, &second.output_schema), (&None, &None));
    assert_eq!((&*echo.name, echo.description.as_deref()), ("echo", Some("Echoes")));

    let call = |name: &'static str, arguments| {
        client.call_tool_once(CallToolRequestParams::new(name).with_arguments(arguments))
    };
    let arguments = serde_json::to_value(Render { frames: 3 }).unwrap();
    let Value::Object(arguments) = arguments else { unreachable!() };
    let CallToolResponse::Task(of_render) = call("render", arguments).await.unwrap() else { panic!() };
    let CallToolResponse::Task(of_nothing) = call("nothing", JsonObject::new()).await.unwrap() else {
        panic!()
    };
    assert_eq!((of_render.task.ttl_ms, of_render.task.poll_interval_ms), (Some(60_000), Some(250)));
    assert_eq!((of_nothing.task.ttl_ms, of_nothing.task.poll_interval_ms), (Some(3_600_000), Some(1_000)));
    let stored = async |id: &str| tasks.store().get(&key(id)).await.unwrap().task;
    let (of_render, of_nothing) =
        (stored(&of_render.task.task_id).await, stored(&of_nothing.task.task_id).await);
    assert_eq!((of_render.operation.as_deref(), of_render.max_attempts), (Some("render"), Some(5)));
    assert_eq!(of_render.arguments, json!({ "frames": 3 }).into());
    assert_eq!((of_nothing.operation.as_deref(), of_nothing.max_attempts), (Some("nothing"), None));
    assert_eq!(of_nothing.arguments, Value::Null.into());
    client.cancel().await.unwrap();
}

#[rstest]
#[tokio::test]
async fn only_a_client_that_may_receive_the_state_of_a_task_sees_it_in_the_output_schema(
    #[values(newest(), ClientLifecycleMode::Initialize)] lifecycle: ClientLifecycleMode,
) {
    let tools = TaskTools::new()
        .tool("film", "Renders", render)
        .output_schema::<Film>()
        .tool("required", "Renders", render)
        .output_schema::<Film>()
        .required()
        .tool("nothing", "Does nothing", nothing);
    let tasks = in_memory();
    for (capabilities, sees_state) in [(with_tasks(), false), (ClientCapabilities::default(), true)] {
        let client = connect(serve(Router, &tasks, tools.clone()), capabilities, lifecycle.clone()).await;
        let listed = client.list_all_tools().await.unwrap();
        let schemas: Vec<_> = listed.iter().map(|tool| tool.output_schema.as_deref()).collect();
        let own = |schema: &JsonObject| schema["required"] == json!(["minutes"]);
        assert!(own(schemas[1].unwrap()));
        assert_eq!(schemas[2], None);
        let film = schemas[0].unwrap();
        if sees_state {
            assert_eq!(film["type"], "object");
            assert_eq!(film["anyOf"][0]["required"], json!(["minutes"]));
            assert_eq!(film["anyOf"][1]["required"], json!(["taskId", "status"]));
        } else {
            assert!(own(film));
        }
        client.cancel().await.unwrap();
    }
}

#[tokio::test]
async fn a_list_that_differs_by_client_is_not_for_shared_caches() {
    struct Cached(Option<CacheScope>);
    impl ServerHandler for Cached {
        async fn list_tools(
            &self,
            _: Option<PaginatedRequestParams>,
            _: RequestContext<RoleServer>,
        ) -> Result<ListToolsResult, ErrorData> {
            let mut listed = ListToolsResult::with_all_items(Vec::new()).with_ttl_ms(60_000);
            listed.cache_scope = self.0;
            Ok(listed)
        }
    }
    for scope in [Some(CacheScope::Public), None] {
        let tools = TaskTools::new().tool("render", "Renders", render);
        let server = serve(Cached(scope), &in_memory(), tools);
        let client = connect(server, ClientCapabilities::default(), newest()).await;
        let listed = client.list_tools(None).await.unwrap();
        assert_eq!((listed.ttl_ms, listed.cache_scope), (Some(60_000), Some(CacheScope::Private)));
        client.cancel().await.unwrap();
    }
}

async fn scenes(_: TaskContext, _: Render) -> Result<CallToolResult, TaskExit> {
    Ok(CallToolResult::structured(json!(["first", "second"])))
}

#[tokio::test]
async fn structured_content_that_is_no_object_matches_the_schema_that_its_client_sees() {
    let tools = TaskTools::new().tool("scenes", "Lists scenes", scenes).output_schema::<Vec<String>>();
    for kind in [Kind::Tasks, Kind::Plain, Kind::Old] {
        let mut client = RawClient::connect(serve(Router, &in_memory(), tools.clone()), kind).await;
        let listed = client.request("tools/list", json!({})).await;
        let schema = &listed["result"]["tools"][0]["outputSchema"];
        let response = client.call("scenes", json!({ "frames": 1 })).await;
        let content = &response["result"]["structuredContent"];
        if kind == Kind::Old {
            // Structured content of older protocols is an object. The SDK removes both.
            assert_eq!((schema, content), (&Value::Null, &Value::Null));
            continue;
        }
        assert_eq!(content, &json!(["first", "second"]));
        let accepts_arrays = |schema: &Value| schema["type"] == "array";
        match kind {
            Kind::Tasks => assert!(accepts_arrays(schema), "{schema}"),
            _ => assert!(schema["type"].is_null() && accepts_arrays(&schema["anyOf"][0]), "{schema}"),
        }
    }
}

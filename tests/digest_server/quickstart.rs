//! `examples/quickstart.rs`: a server over stdio on a SQLite file, used by clients of the SDK.

use std::time::Duration;

use rmcp::model::*;
use rmcp::service::{RunningService, ServiceError};
use rmcp::{ClientLifecycleMode, ClientServiceExt, RoleClient};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};

use super::*;

/// The limit of a whole test. The lease of a server that was killed lapses within 45 s.
const LIMIT: Duration = Duration::from_secs(300);

fn quickstart(file: &Path) -> Command {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    let mut command = Command::new(PROGRAM.get_or_init(|| build("quickstart")));
    command.arg(file).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// A server, and the client that started it.
struct Session {
    server: Child,
    client: RunningService<RoleClient, ClientConfig>,
}

impl Session {
    async fn start(file: &Path, capabilities: ClientCapabilities) -> Self {
        let mut server = quickstart(file).spawn().unwrap();
        let transport = (server.stdout.take().unwrap(), server.stdin.take().unwrap());
        let client = ClientConfig::new(capabilities, Implementation::new("test", "1"));
        let newest =
            ClientLifecycleMode::Discover { preferred_versions: vec![ProtocolVersion::V_2026_07_28] };
        Self { server, client: client.serve_with_lifecycle(transport, newest).await.unwrap() }
    }

    async fn with_tasks(file: &Path) -> Self {
        Self::start(file, ClientCapabilities::builder().enable_tasks().build()).await
    }

    async fn render(&self, frames: Value) -> Result<CallToolResponse, ServiceError> {
        let arguments = JsonObject::from_iter([("frames".to_owned(), frames)]);
        self.client.call_tool_once(CallToolRequestParams::new("render").with_arguments(arguments)).await
    }

    /// Calls the tool for five seconds of work. Returns the id of the task.
    async fn begin(&self) -> String {
        match self.render(json!(50)).await.unwrap() {
            CallToolResponse::Task(created) => created.task.task_id,
            other => panic!("{other:?}"),
        }
    }

    /// Polls until the task has this status.
    async fn poll(&self, id: &str, status: TaskStatus) -> DetailedTask {
        loop {
            let task = self.client.get_task(GetTaskParams::new(id)).await.unwrap().task;
            if task.status() == status {
                return task;
            }
            assert_eq!(task.status(), TaskStatus::Working, "{task:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Polls until the task is completed. Returns the text of its result.
    async fn rendered(&self, id: &str) -> String {
        match self.poll(id, TaskStatus::Completed).await.payload {
            TaskPayload::Completed { result } => text(serde_json::from_value(Value::Object(result)).unwrap()),
            other => panic!("{other:?}"),
        }
    }
}

/// Asserts that a server ends without an error, and that it has written no log.
async fn assert_ended(mut server: Child) {
    assert_eq!(server.wait().await.unwrap().code(), Some(0));
    let mut stderr = String::new();
    server.stderr.take().unwrap().read_to_string(&mut stderr).await.unwrap();
    assert_eq!(stderr, "");
}

fn text(result: CallToolResult) -> String {
    result.content[0].as_text().unwrap().text.clone()
}

async fn within<T>(test: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, test).await.expect("the test ends in time")
}

#[tokio::test]
async fn a_task_of_a_killed_server_completes_on_the_next_server() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("tasks.db");
    within(async {
        let mut killed = Session::with_tasks(&file).await;
        let id = killed.begin().await;
        killed.poll(&id, TaskStatus::Working).await;
        killed.server.kill().await.unwrap();
        let next = Session::with_tasks(&file).await;
        assert_eq!(next.rendered(&id).await, "rendered 50 frames in attempt 2");
    })
    .await;
}

/// Returns the record of the only task in a file.
fn record(file: &Path) -> Value {
    let file = rusqlite::Connection::open(file).unwrap();
    let data: Vec<u8> = file.query_row("SELECT data FROM records", [], |row| row.get(0)).unwrap();
    serde_json::from_slice(&data).unwrap()
}

/// How a server ends.
#[derive(Clone, Copy)]
enum End {
    ClosedStdin,
    /// The client keeps stdin open.
    Signal(&'static str),
}

#[rstest::rstest]
#[case::closed_stdin(End::ClosedStdin)]
#[case::sigterm(End::Signal("TERM"))]
#[case::ctrl_c(End::Signal("INT"))]
#[tokio::test]
async fn a_server_that_ends_releases_its_task_to_the_next_server(#[case] end: End) {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("tasks.db");
    within(async {
        let first = Session::with_tasks(&file).await;
        let id = first.begin().await;
        let Session { server, client } = first;
        let client = match end {
            End::ClosedStdin => {
                client.cancel().await.unwrap();
                None
            }
            End::Signal(name) => {
                let kill = format!("kill -s {name} {}", server.id().unwrap());
                assert!(Command::new("sh").args(["-c", &kill]).status().await.unwrap().success());
                Some(client)
            }
        };
        assert_ended(server).await;
        drop(client);
        let record = record(&file);
        let (status, holder) = (&record["status"], &record["lease"]["holder"]);
        assert!(status == "working" && holder.is_null(), "the task was not released: {record}");
        let next = Session::with_tasks(&file).await;
        assert_eq!(next.rendered(&id).await, "rendered 50 frames in attempt 2");
    })
    .await;
}

#[tokio::test]
async fn a_client_without_tasks_receives_the_result() {
    let folder = TempDir::new().unwrap();
    within(async {
        let session = Session::start(&folder.path().join("tasks.db"), ClientCapabilities::default()).await;
        match session.render(json!(5)).await.unwrap() {
            CallToolResponse::Complete(result) => {
                assert_eq!(text(result), "rendered 5 frames in attempt 1");
            }
            other => panic!("{other:?}"),
        }
        session.client.cancel().await.unwrap();
        assert_ended(session.server).await;
    })
    .await;
}

#[tokio::test]
async fn a_call_with_other_arguments_is_refused_and_the_server_serves_the_next_call() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("tasks.db");
    within(async {
        let session = Session::with_tasks(&file).await;
        for frames in [json!("many"), json!(-1), json!(null)] {
            let Err(ServiceError::McpError(refused)) = session.render(frames).await else {
                panic!("the call was accepted")
            };
            assert_eq!(refused.code, ErrorCode::INVALID_PARAMS);
            assert!(
                refused.message.starts_with("the arguments of the tool \"render\" are invalid"),
                "{refused:?}"
            );
        }
        let id = session.begin().await;
        assert_eq!(session.rendered(&id).await, "rendered 50 frames in attempt 1");
        let unknown = session.client.get_task(GetTaskParams::new("no such task")).await.unwrap_err();
        assert!(unknown.to_string().contains("task not found"), "{unknown}");
    })
    .await;
}

#[tokio::test]
async fn a_file_that_cannot_be_opened_is_an_error_on_stderr_only() {
    let folder = TempDir::new().unwrap();
    let output = within(quickstart(&folder.path().join("missing/tasks.db")).output()).await.unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("check that its folder exists"), "{text}");
}

/// Returns the commands for a shell in a section of the guide, one text for each block.
fn commands(section: &str) -> Vec<String> {
    let guide =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/guide/rmcp.md")).unwrap();
    let section = guide.split("\n## ").find(|text| text.starts_with(section)).unwrap();
    let blocks = section.split("```sh\n").skip(1);
    blocks.map(|block| block.split("```").next().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn the_commands_of_the_guide_call_the_tool_and_resume_its_task() {
    let folder = TempDir::new().unwrap();
    let server = quickstart(Path::new("tasks.db")).as_std().get_program().to_owned();
    let [request, call, poll] = commands("A first server").try_into().unwrap();
    let run = |commands: &str| {
        let commands = format!("{request}{commands}")
            .replace("cargo build\n", "")
            .replace("cargo run --quiet", "\"$SERVER\"")
            // A slow machine needs longer than the reader's.
            .replace("sleep 15", "sleep 45");
        Command::new("sh")
            .args(["-euc", &commands])
            .env("SERVER", &server)
            .current_dir(folder.path())
            .output()
    };
    within(async {
        let called = run(&call).await.unwrap();
        assert!(called.status.success(), "{called:?}");
        let response: Value = serde_json::from_slice(&called.stdout).unwrap();
        let id = response["result"]["taskId"].as_str().unwrap();
        assert!(poll.contains("the-task-id"), "{poll}");
        let polled = run(&poll.replace("the-task-id", id)).await.unwrap();
        assert!(polled.status.success(), "{polled:?}");
        let [first, second] = [0, 1].map(|number| -> Value {
            serde_json::from_str(stdout(&polled).lines().nth(number).unwrap()).unwrap()
        });
        assert_eq!(first["result"]["status"], "working", "{first}");
        let said = &second["result"]["result"]["content"][0]["text"];
        assert_eq!(said, "rendered 100 frames in attempt 2", "{second}");
    })
    .await;
}

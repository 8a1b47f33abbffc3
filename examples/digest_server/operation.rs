//! The operation behind the tool. It digests a folder, asks the user to confirm, reports progress, and can be cancelled.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use mcp_task_store::TaskContext;
use rmcp::ErrorData;
use rmcp::model::{
    CallToolResult, ContentBlock, ElicitRequest, ElicitRequestParams, ElicitationSchema, InputRequest,
};
use rmcp::schemars::{self, JsonSchema};
use rmcp::task_manager::TaskExit;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until};

use crate::Failure;
use crate::digest::{self, FolderDigest};

/// The arguments of the tool. The record of the task holds them, so another instance can resume the task.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
pub struct Arguments {
    /// The folder to digest.
    pub folder: PathBuf,
    /// The minimum time per file in milliseconds; at most a minute.
    #[serde(default)]
    pub pace: f64,
    /// Whether to ask the user before the work begins.
    #[serde(default)]
    pub confirm: bool,
}

impl Arguments {
    pub fn read(arguments: Value) -> Result<Self, ErrorData> {
        let invalid = |reason: String| ErrorData::invalid_params(reason, None);
        let arguments: Self =
            serde_json::from_value(arguments).map_err(|error| invalid(error.to_string()))?;
        match arguments.pace {
            0.0..=60_000.0 => Ok(arguments),
            pace => Err(invalid(format!("the pace is {pace} ms; choose 0 to 60000 ms"))),
        }
    }
}

/// The result of the tool.
#[derive(Serialize, Deserialize)]
pub struct Digested {
    pub sha256: String,
    pub files: usize,
    /// The name of the server that did the work.
    pub server: String,
    pub attempt: u32,
}

/// The progress of an operation. Its text is the status message of the task.
#[derive(Clone, PartialEq, Eq)]
pub struct Progress {
    pub done: usize,
    pub files: usize,
    pub server: String,
    pub attempt: u32,
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { done, files, server, attempt } = self;
        write!(f, "{done} of {files} files (server {server}, attempt {attempt})")
    }
}

impl FromStr for Progress {
    type Err = Failure;

    fn from_str(message: &str) -> Result<Self, Failure> {
        let parts = || {
            let (done, rest) = message.split_once(" of ")?;
            let (files, rest) = rest.split_once(" files (server ")?;
            let (server, attempt) = rest.strip_suffix(')')?.split_once(", attempt ")?;
            Some((done, files, server, attempt))
        };
        let (done, files, server, attempt) =
            parts().ok_or("the status message does not state the progress")?;
        let server = server.to_owned();
        Ok(Self { done: done.parse()?, files: files.parse()?, server, attempt: attempt.parse()? })
    }
}

/// Digests a folder. The next attempt starts from the beginning. That is safe, because the operation only reads.
pub async fn digest_folder(
    arguments: Value,
    server: String,
    task: TaskContext,
) -> Result<CallToolResult, TaskExit> {
    let arguments = Arguments::read(arguments)?;
    if arguments.confirm && !confirmed(&task, &arguments.folder).await? {
        return Ok(tool_error("the user did not confirm"));
    }
    let folder = arguments.folder.clone();
    let files =
        match spawn_blocking(move || digest::files(&folder)).await.map_err(|error| internal(&error))? {
            Ok(files) => files,
            Err(error) => return Ok(tool_error(error.to_string())),
        };
    let mut progress = Progress { done: 0, files: files.len(), server, attempt: task.attempt() };
    match digest_files(&arguments, files, &mut progress, &task).await? {
        Ok(sha256) => {
            let Progress { done: files, server, attempt, .. } = progress;
            let digested = Digested { sha256, files, server, attempt };
            let digested = serde_json::to_value(digested).map_err(|error| internal(&error))?;
            Ok(CallToolResult::structured(digested))
        }
        Err(error) => Ok(tool_error(error)),
    }
}

/// Asks the user. Each attempt makes the same request under the same key, so a later attempt receives the answer to an earlier
/// request.
async fn confirmed(task: &TaskContext, folder: &Path) -> Result<bool, TaskExit> {
    let question = ElicitRequestParams::FormElicitationParams {
        meta: None,
        message: format!("Digest the files under {}?", folder.display()),
        requested_schema: ElicitationSchema::new(BTreeMap::new()),
    };
    let question = InputRequest::Elicitation(ElicitRequest::new(question));
    Ok(task.request_input("confirm", question).await?["action"] == "accept")
}

/// Returns the digest of these files, or why a file cannot be read.
async fn digest_files(
    arguments: &Arguments,
    files: Vec<PathBuf>,
    progress: &mut Progress,
    task: &TaskContext,
) -> Result<Result<String, String>, TaskExit> {
    let pace = Duration::from_secs_f64(arguments.pace / 1000.0);
    let mut digest = FolderDigest::default();
    let mut next_at = Instant::now();
    for file in files {
        task.set_status_message(progress.to_string());
        next_at += pace;
        let hashing = async {
            let (folder, file) = (arguments.folder.clone(), file.clone());
            let hashed = spawn_blocking(move || digest::sha256(&folder, &file)).await;
            sleep_until(next_at).await;
            hashed
        };
        let hashed = tokio::select! {
            hashed = hashing => hashed.map_err(|error| internal(&error))?,
            () = task.cancelled() => {
                task.set_status_message(format!("stopped after {} of {} files", progress.done, progress.files));
                return Err(TaskExit::Cancelled);
            }
        };
        match hashed {
            Ok(sha256) => digest.add(&file, &sha256),
            Err(error) => return Ok(Err(error)),
        }
        progress.done += 1;
    }
    Ok(Ok(digest.finish()))
}

/// Returns an error of the tool. Such an error is a result that the client's model can read, and the task is `completed`.
fn tool_error(message: impl Into<String>) -> CallToolResult {
    CallToolResult::error(vec![ContentBlock::text(message)])
}

fn internal(error: &dyn fmt::Display) -> ErrorData {
    ErrorData::internal_error(error.to_string(), None)
}

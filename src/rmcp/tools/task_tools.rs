//! The builder of the tools whose calls become tasks.

use std::any::{TypeId, type_name};
use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt::Display;
use std::time::Duration;

use rmcp::ErrorData;
use rmcp::handler::server::tool::schema_for_input;
use rmcp::model::{CallToolResult, Tool, ToolAnnotations};
use rmcp::schemars::JsonSchema;
use rmcp::task_manager::TaskExit;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::arguments::bind;
use super::retry_if::RetryIf;
use super::settings::Settings;
use super::task_tool::TaskTool;
use super::unique_by::unique_by;
use crate::backend::{Agenda, Priority, Queue};
use crate::rmcp::context::TaskContext;
use crate::rmcp::places::Places;
use crate::store::{Retry, TaskError, TaskStore, Ttl};

/// Tools that are written once, as an async function, and whose calls become tasks.
///
/// [`tool`](Self::tool) adds a tool. Each other method is a setting of the tool that was added last. A
/// [`TaskServer`](crate::TaskServer) serves the tools, and reports mistakes in them.
///
/// # Examples
/// ```
/// use std::time::Duration;
///
/// use mcp_task_store::{TaskContext, TaskTools};
/// use rmcp::model::{CallToolResult, ContentBlock, EmptyObject};
/// use rmcp::schemars;
/// use rmcp::task_manager::TaskExit;
///
/// #[derive(serde::Deserialize, schemars::JsonSchema)]
/// struct Render {
///     /// The number of frames
///     frames: u64,
/// }
///
/// async fn render(task: TaskContext, render: Render) -> Result<CallToolResult, TaskExit> {
///     for frame in 1..=render.frames {
///         task.progress(frame, render.frames, format!("rendering frame {frame}"));
///     }
///     Ok(CallToolResult::success(vec![ContentBlock::text("rendered")]))
/// }
///
/// async fn publish(_task: TaskContext, _: EmptyObject) -> Result<CallToolResult, TaskExit> {
///     Ok(CallToolResult::success(vec![ContentBlock::text("published")]))
/// }
///
/// let tools = TaskTools::new()
///     .tool("render", "Renders a scene", render)
///     .resumable()
///     .ttl(Duration::from_secs(24 * 3600))
///     .tool("publish", "Publishes the scene", publish);
/// ```
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct TaskTools {
    tools: Vec<TaskTool>,
    /// The first mistake of the author.
    mistake: Option<String>,
}

impl TaskTools {
    /// Returns no tools.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a tool that runs an async function. The description tells a model what the tool does.
    ///
    /// The input schema of the tool is that of the type `A`, which must be an object. A call whose arguments do not have
    /// this type fails with `-32602` before anything is stored. A tool without arguments takes
    /// [`EmptyObject`](rmcp::model::EmptyObject).
    ///
    /// When its worker is lost, the task of a call fails, unless the tool is [`resumable`](Self::resumable).
    pub fn tool<A, F, R>(
        mut self,
        name: impl Into<Cow<'static, str>>,
        description: impl Into<Cow<'static, str>>,
        function: F,
    ) -> Self
    where
        A: DeserializeOwned + JsonSchema + Send + 'static,
        F: Fn(TaskContext, A) -> R + Send + Sync + 'static,
        R: Future<Output = Result<CallToolResult, TaskExit>> + Send + 'static,
    {
        let name = name.into();
        let schema = schema_for_input::<A>().unwrap_or_else(|reason| {
            self.note(|| {
                format!("the arguments of the tool {name:?} are no JSON object: {reason} Use a struct.")
            });
            Default::default()
        });
        self.tools.push(TaskTool::new::<A>(Tool::new(name, description, schema), bind(function)));
        self
    }

    /// Lets another instance run a call of the tool again when its worker is lost or shuts down. The record of the task
    /// keeps the name of the tool and the arguments. Every instance must serve the tool.
    ///
    /// Every attempt starts from the beginning, or from the [checkpoint](TaskContext::checkpoint) of an earlier attempt. What
    /// the function does outside of the store may overlap with an earlier attempt that has not yet detected the loss of
    /// its lease. Make the function idempotent.
    pub fn resumable(self) -> Self {
        self.set("resumable", |settings| settings.is_resumable = true)
    }

    /// Sets the number of attempts at which a call of the tool fails, at least 1; by default as
    /// [configured](crate::StoreConfig::max_attempts). Only a tool that is [`resumable`](Self::resumable) has more than
    /// one attempt.
    pub fn attempts(self, max: u32) -> Self {
        self.set("attempts", |settings| settings.attempts = Some(max))
    }

    /// Sets how many attempts a call of the tool has, and how long it waits before each further one. The tool must be
    /// [`resumable`](Self::resumable), and must not have [`attempts`](Self::attempts) of its own.
    ///
    /// The policy applies to lost workers, and to errors that the function marks with [`TaskContext::retry`]. Every other error
    /// ends the call, unless [`retry_if`](Self::retry_if) accepts it. A panic ends the call: it is a defect of the function.
    ///
    /// The task of a call that ends at once with an error to retry is stored first, so the client gets its task, or waits for it.
    ///
    /// # Examples
    /// ```
    /// use std::time::Duration;
    ///
    /// use mcp_task_store::{Retry, TaskContext, TaskTools};
    /// use rmcp::model::{CallToolResult, EmptyObject, ErrorCode};
    /// use rmcp::task_manager::TaskExit;
    ///
    /// # async fn render(_task: TaskContext, _: EmptyObject) -> Result<CallToolResult, TaskExit> { Ok(CallToolResult::success(vec![])) }
    /// let retry = Retry::exponential(5, Duration::from_secs(1), Duration::from_secs(60)).jittered();
    /// let tools = TaskTools::new()
    ///     .tool("render", "Renders a scene", render)
    ///     .resumable()
    ///     .retry(retry)
    ///     .retry_if(|error| error.code == ErrorCode::INTERNAL_ERROR);
    /// ```
    pub fn retry(self, retry: Retry) -> Self {
        self.set("retry", |settings| settings.retry = Some(retry))
    }

    /// Retries the errors that `predicate` accepts, next to those that the function marks with [`TaskContext::retry`]. The tool
    /// must be [`resumable`](Self::resumable). Without [`retry`](Self::retry), the second attempt begins at once, and the third
    /// after 10 s.
    pub fn retry_if(self, predicate: impl Fn(&ErrorData) -> bool + Send + Sync + 'static) -> Self {
        self.set("retry_if", |settings| settings.retry_if = Some(RetryIf::new(predicate)))
    }

    /// Sets how long a call of the tool may run; by default as [configured](crate::StoreConfig::default_ttl).
    pub fn ttl(self, ttl: impl Into<Ttl>) -> Self {
        self.set("ttl", |settings| settings.ttl = ttl.into())
    }

    /// Sets how long the record of a call stays readable after the call has ended, from 1 ms to 100 years. By default it stays
    /// readable for the TTL and the [configured](crate::StoreConfig::retention) retention, whenever the call ends. If a held
    /// call itself delivers the result, the record stays readable for at most 5 more minutes.
    pub fn retention(self, retention: Duration) -> Self {
        self.set("retention", |settings| settings.retention = Some(retention))
    }

    /// Sets how many calls of the tool run in this process at once, at least 1; by default any number. Further calls wait for
    /// a place before the function runs, in the order of their arrival. A call that waits is answered like any other call
    /// that takes long, and stops waiting when it is cancelled.
    ///
    /// A call keeps its place until its function returns, also while it waits for the client's input. A task that waits for a
    /// worker stays in its queue while this process has no place for it, so another instance can claim it. Clones of the tools
    /// share the places.
    pub fn concurrency(mut self, max: usize) -> Self {
        let places = Places::new(max);
        if let (None, Some(tool)) = (&places, self.tools.last()) {
            let limit = Places::MAX;
            let mistake =
                format!("the tool {:?} cannot run {max} calls at once: choose 1 to {limit}", tool.name());
            self.note(|| mistake);
        }
        self.set("concurrency", |settings| settings.places = places)
    }

    /// Sets which of the calls that wait for a worker are claimed first; [`Priority::Normal`] by default. It applies to calls of a
    /// server that only [enqueues](crate::TaskServerConfig::enqueue_only) them, and between two attempts.
    pub fn priority(self, priority: Priority) -> Self {
        self.set("priority", |settings| settings.priority = priority)
    }

    /// Lets an owner have at most one open task of the tool for each key. `key` derives the key from the arguments of a call. A
    /// call whose key has an open task joins that task instead of starting another one, on any instance. For example, a client
    /// that has lost its connection finds its task again when it repeats the call.
    ///
    /// The argument of `key` must have the type that the tool's function takes. The key may be any value that can be printed.
    /// The store keeps only its hash. The task of a call is stored before the function runs.
    ///
    /// # Examples
    /// ```
    /// # use mcp_task_store::{TaskContext, TaskTools};
    /// # use rmcp::model::CallToolResult;
    /// # use rmcp::schemars;
    /// # use rmcp::task_manager::TaskExit;
    /// #[derive(serde::Deserialize, schemars::JsonSchema)]
    /// struct Render {
    ///     scene: String,
    /// }
    ///
    /// async fn render(_task: TaskContext, _: Render) -> Result<CallToolResult, TaskExit> {
    ///     Ok(CallToolResult::success(vec![]))
    /// }
    ///
    /// let tools = TaskTools::new()
    ///     .tool("render", "Renders a scene", render)
    ///     .unique_by(|render: &Render| render.scene.clone());
    /// ```
    pub fn unique_by<A, K>(mut self, key: impl Fn(&A) -> K + Send + Sync + 'static) -> Self
    where
        A: DeserializeOwned + 'static,
        K: Display,
    {
        let (given, given_name) = (TypeId::of::<A>(), type_name::<A>());
        let other = self.tools.last().filter(|tool| tool.arguments.0 != given);
        if let Some(mistake) = other.map(|tool| {
            format!(
                "the key of the tool {:?} is derived from {given_name}, but its function takes {}: use that type",
                tool.name(),
                tool.arguments.1
            )
        }) {
            self.note(|| mistake);
        }
        self.change("unique_by", |tool| tool.unique_by = Some(unique_by(key)))
    }

    /// Sets how long a client should wait between two polls; by default as
    /// [configured](crate::StoreConfig::default_poll_interval).
    pub fn poll_interval(self, interval: Duration) -> Self {
        self.set("poll_interval", |settings| settings.poll_interval = Some(interval))
    }

    /// Refuses calls of clients that do not declare the tasks extension with `-32021` (missing required client
    /// capability), before anything runs or is stored.
    pub fn required(self) -> Self {
        self.set("required", |settings| settings.is_required = true)
    }

    /// Asks the task of a call to cancel when the client cancels the call (`notifications/cancelled`) before it has the
    /// answer. An operation whose task is not stored yet is asked to stop. By default the task runs on.
    pub fn cancel_with_request(self) -> Self {
        self.set("cancel_with_request", |settings| settings.cancels_with_request = true)
    }

    /// Sets the annotations of the tool: hints for clients, for instance a title, or that the tool only reads.
    pub fn annotations(self, annotations: ToolAnnotations) -> Self {
        self.change("annotations", |tool| tool.tool.annotations = Some(annotations))
    }

    /// Sets the output schema of the tool: the type of the structured content in its results.
    pub fn output_schema<T: JsonSchema + 'static>(self) -> Self {
        self.change("output_schema", |tool| tool.tool = tool.tool.clone().with_output_schema::<T>())
    }

    fn set(self, setting: &str, set: impl FnOnce(&mut Settings)) -> Self {
        self.change(setting, |tool| set(&mut tool.settings))
    }

    /// Changes the tool that was added last.
    fn change(mut self, setting: &str, change: impl FnOnce(&mut TaskTool)) -> Self {
        match self.tools.last_mut() {
            Some(tool) => change(tool),
            None => self.note(|| format!("the setting {setting:?} belongs to no tool: call it after `tool`")),
        }
        self
    }

    /// Keeps a mistake, unless there was one before.
    fn note(&mut self, mistake: impl FnOnce() -> String) {
        self.mistake.get_or_insert_with(mistake);
    }

    /// Returns the tools, in the order in which they were added.
    ///
    /// # Errors
    /// `InvalidArgument` for a mistake of the author: a name that exists twice or is no name of a tool, arguments that are
    /// no object, a setting without effect, or one that the store does not accept.
    pub(in crate::rmcp) fn checked<B: Agenda>(
        self,
        store: &TaskStore<B>,
    ) -> Result<Vec<TaskTool>, TaskError> {
        let mut names = HashSet::new();
        let mistakes = self.tools.iter().map(|tool| mistake(tool, names.insert(tool.name()), store));
        match self.mistake.or_else(|| mistakes.flatten().next()) {
            Some(reason) => Err(TaskError::InvalidArgument { reason }),
            None => Ok(self.tools),
        }
    }
}

/// Returns the mistake in a tool.
fn mistake<B: Agenda>(tool: &TaskTool, is_first_of_its_name: bool, store: &TaskStore<B>) -> Option<String> {
    let name = tool.name();
    if !is_first_of_its_name {
        return Some(format!("the tool {name:?} exists twice: rename one of the two"));
    }
    if name.is_empty() {
        return Some("a tool has an empty name: name it".to_owned());
    }
    if let Err(error) = Queue::work(name, tool.settings.priority) {
        return Some(format!("the tool {name:?} cannot have this name: {error}"));
    }
    let Settings { is_resumable, attempts, retry, retry_if, .. } = &tool.settings;
    let set =
        [("attempts", attempts.is_some()), ("retry", retry.is_some()), ("retry_if", retry_if.is_some())];
    let without_effect = set.into_iter().find(|(_, is_set)| *is_set && !is_resumable);
    if let Some((setting, _)) = without_effect {
        return Some(format!(
            "the setting {setting:?} of the tool {name:?} has no effect: make the tool resumable, or remove the setting"
        ));
    }
    if attempts.is_some() && retry.is_some() {
        return Some(format!(
            "the settings \"attempts\" and \"retry\" of the tool {name:?} both state the number of attempts: remove \"attempts\""
        ));
    }
    if *attempts == Some(0) {
        return Some(format!("the tool {name:?} has no attempts: choose 1 or more"));
    }
    let refused = store.check_options(&tool.new_task(Value::Null)).err()?;
    Some(format!("the store refuses a setting of the tool {name:?}: {refused}"))
}

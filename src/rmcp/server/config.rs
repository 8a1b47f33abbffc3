//! The settings of a server with task tools.

use std::time::Duration;

use super::client::Client;
use super::companion_names::Companions;
use crate::rmcp::call_run::CallLimits;

/// The longest limit. The clock of a process cannot add every duration.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// The settings of a [`TaskServer`](crate::TaskServer). Every setting has a default; each method replaces one. A limit of more than
/// 365 days counts as 365 days.
///
/// # Examples
/// ```
/// use std::time::Duration;
///
/// use mcp_task_store::TaskServerConfig;
///
/// // A gateway in front of this server ends requests after 30 seconds.
/// let config = TaskServerConfig::new().hold_for(Duration::from_secs(25));
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct TaskServerConfig {
    pub(super) answer_within: Duration,
    pub(super) hold_for: Duration,
    pub(super) hold_for_with_progress: Duration,
    pub(super) drain: Duration,
    pub(super) companions: Companions,
    pub(super) only_enqueues: bool,
}

impl Default for TaskServerConfig {
    fn default() -> Self {
        Self {
            answer_within: Duration::from_millis(200),
            hold_for: Duration::from_secs(50),
            hold_for_with_progress: Duration::from_secs(600),
            drain: Duration::from_secs(10),
            companions: Companions::default(),
            only_enqueues: false,
        }
    }
}

impl TaskServerConfig {
    /// Returns the default settings.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets how long a call may run before its task is stored. A call that ends sooner is answered directly and is never
    /// stored. A client with tasks receives a task after this time. The default is 200 ms.
    pub fn answer_within(mut self, limit: Duration) -> Self {
        self.answer_within = limit.min(LONGEST);
        self
    }

    /// Sets how long a call of a client without tasks is held. A call that takes longer is answered with the state and the id
    /// of its task, and the task goes on. The default is 50 s, because a common limit of clients and HTTP gateways is 60 s.
    ///
    /// It also limits how long a call is held whose task cannot be stored, for every client. The operation of such a
    /// call is then stopped, and the call fails. Storing a task may take at least a second, also after this limit.
    pub fn hold_for(mut self, limit: Duration) -> Self {
        self.hold_for = limit.min(LONGEST);
        self
    }

    /// Sets how long a call of a client without tasks is held if the client asks for notifications about its progress
    /// (`progressToken`). The client receives one at least every 5 s, and several clients then wait longer. The default is 10
    /// minutes.
    pub fn hold_for_with_progress(mut self, limit: Duration) -> Self {
        self.hold_for_with_progress = limit.min(LONGEST);
        self
    }

    /// Sets how long a call may still take once a [shutdown](crate::DurableTaskManager::shutdown) has begun. Then a held call is
    /// answered with the state of its task. A call whose task is not stored fails, and its operation is stopped. The default is
    /// 10 s.
    pub fn drain(mut self, limit: Duration) -> Self {
        self.drain = limit.min(LONGEST);
        self
    }

    /// Sets the names of the tools that the server adds for clients without tasks, or switches these tools off. By default they are
    /// `task_result`, `task_list`, `task_answer` and `task_cancel`.
    pub fn companions(mut self, companions: Companions) -> Self {
        self.companions = companions;
        self
    }

    /// Runs no operation in this process. Each call is stored at once, and a [`Worker`](crate::Worker) runs it, in any process. The
    /// clients see no difference: a call that ends within [`answer_within`](Self::answer_within) is answered with its result.
    ///
    /// Without a worker of a tool, its calls wait until their TTL elapses.
    pub fn enqueue_only(mut self) -> Self {
        self.only_enqueues = true;
        self
    }

    /// Returns how long a call of this client is held.
    pub(super) fn hold_limit(&self, client: &Client) -> Duration {
        match client.progress_token {
            _ if client.has_tasks() => self.answer_within,
            Some(_) => self.hold_for_with_progress,
            None => self.hold_for,
        }
    }

    pub(super) fn call_limits(&self) -> CallLimits {
        let Self { answer_within, hold_for, drain, .. } = *self;
        CallLimits { answer_within: answer_within.min(hold_for), hold_for, drain }
    }
}

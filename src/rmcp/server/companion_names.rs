//! The companion tools, and their names.

use std::borrow::Cow;
use std::collections::HashSet;

use crate::store::TaskError;

/// A companion tool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Companion {
    Result,
    List,
    Answer,
    Cancel,
}

impl Companion {
    pub(super) const ALL: [Self; 4] = [Self::Result, Self::List, Self::Answer, Self::Cancel];

    /// The last part of the name.
    const fn suffix(self) -> &'static str {
        match self {
            Self::Result => "result",
            Self::List => "list",
            Self::Answer => "answer",
            Self::Cancel => "cancel",
        }
    }
}

/// Four small tools that a [`TaskServer`](crate::TaskServer) adds for clients that do not declare the tasks extension. The model
/// of such a client reaches its tasks with them.
///
/// | tool | what it does |
/// |---|---|
/// | `task_result` | waits for a task, and returns its result or its state |
/// | `task_list` | lists the tasks of the caller, newest first |
/// | `task_answer` | answers the open questions of a task |
/// | `task_cancel` | asks a task to stop |
///
/// # Examples
/// ```
/// use mcp_task_store::{Companions, TaskServerConfig};
///
/// // The tools are render_result, render_list, render_answer and stop_rendering.
/// let companions = Companions::new().prefix("render_").cancel_name("stop_rendering");
/// let config = TaskServerConfig::new().companions(companions);
///
/// let without = TaskServerConfig::new().companions(Companions::off());
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Companions {
    is_on: bool,
    /// In the order of [`Companion`].
    names: [Cow<'static, str>; 4],
}

impl Default for Companions {
    fn default() -> Self {
        Self { is_on: true, names: Default::default() }.prefix("task_")
    }
}

impl Companions {
    /// Returns the tools under their default names: `task_result`, `task_list`, `task_answer` and `task_cancel`.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns no tools. The model of a client without the tasks extension then cannot reach the task of a call that takes
    /// longer than [`hold_for`](crate::TaskServerConfig::hold_for).
    pub fn off() -> Self {
        Self { is_on: false, ..Self::default() }
    }

    /// Sets the first part of all four names, instead of `task_`.
    pub fn prefix(mut self, prefix: &str) -> Self {
        self.names = Companion::ALL.map(|companion| format!("{prefix}{}", companion.suffix()).into());
        self
    }

    /// Sets the name of the tool that waits for a result, instead of `task_result`.
    pub fn result_name(self, name: impl Into<Cow<'static, str>>) -> Self {
        self.rename(Companion::Result, name.into())
    }

    /// Sets the name of the tool that lists tasks, instead of `task_list`.
    pub fn list_name(self, name: impl Into<Cow<'static, str>>) -> Self {
        self.rename(Companion::List, name.into())
    }

    /// Sets the name of the tool that answers questions, instead of `task_answer`.
    pub fn answer_name(self, name: impl Into<Cow<'static, str>>) -> Self {
        self.rename(Companion::Answer, name.into())
    }

    /// Sets the name of the tool that cancels a task, instead of `task_cancel`.
    pub fn cancel_name(self, name: impl Into<Cow<'static, str>>) -> Self {
        self.rename(Companion::Cancel, name.into())
    }

    fn rename(mut self, companion: Companion, name: Cow<'static, str>) -> Self {
        self.names[companion as usize] = name;
        self
    }

    /// Returns the name of a companion; `None` if the companions are switched off.
    pub(super) fn name(&self, companion: Companion) -> Option<&str> {
        self.is_on.then(|| &*self.names[companion as usize])
    }

    /// Returns the companion of this name.
    pub(super) fn find(&self, name: &str) -> Option<Companion> {
        Companion::ALL.into_iter().find(|companion| self.name(*companion) == Some(name))
    }

    /// Checks the names. `is_taken` returns whether another tool of the server has a name.
    ///
    /// # Errors
    /// `InvalidArgument` for a name that is empty or exists twice.
    pub(super) fn check(&self, is_taken: impl Fn(&str) -> bool) -> Result<(), TaskError> {
        let mut names = HashSet::new();
        let mistake = |name: &str, is_first: bool| {
            if name.is_empty() {
                return Some("a companion tool has an empty name: name it".to_owned());
            }
            let is_twice = !is_first || is_taken(name);
            is_twice.then(|| {
                format!(
                    "the tool {name:?} exists twice: the server adds a companion tool of this name; rename one of the two, or switch the companions off with Companions::off"
                )
            })
        };
        let companions = Companion::ALL.into_iter().filter_map(|companion| self.name(companion));
        match companions.map(|name| mistake(name, names.insert(name))).find_map(|mistake| mistake) {
            Some(reason) => Err(TaskError::InvalidArgument { reason }),
            None => Ok(()),
        }
    }
}

//! Why a command ends with an exit code other than 0.

use std::error::Error;
use std::fmt;
use std::io;
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use mcp_task_store::{Printable, StorageError, TaskError, TaskKey};

use crate::key;

const ERROR: Style = AnsiColor::Red.on_default().bold();

/// Why a command did not succeed.
#[derive(Debug)]
pub enum Failure {
    /// The command line is wrong. Exit code 2.
    Usage(String),
    /// The command failed. Exit code 1.
    Failed(String),
    /// The command has already said why. Exit code 1.
    Reported,
    /// The command has reported something red. Exit code 2.
    ReportedRed,
    /// The reader of the output has closed it, as `head` does. Exit code 0.
    OutputClosed,
}

impl Failure {
    pub fn failed(reason: impl fmt::Display) -> Self {
        Self::Failed(reason.to_string())
    }

    pub fn usage(reason: impl fmt::Display) -> Self {
        Self::Usage(reason.to_string())
    }

    /// Returns the failure of a call about one task.
    pub fn of_task(error: &TaskError, key: &TaskKey) -> Self {
        Self::Failed(task_error(error, key))
    }

    /// Prints the failure. Returns the exit code.
    pub fn report(self) -> ExitCode {
        let (text, code) = match self {
            Self::Usage(text) => (text, 2),
            Self::Failed(text) => (text, 1),
            Self::Reported => return ExitCode::from(1),
            Self::ReportedRed => return ExitCode::from(2),
            Self::OutputClosed => return ExitCode::SUCCESS,
        };
        anstream::eprintln!("{ERROR}error:{ERROR:#} {}", Printable::new(&text));
        ExitCode::from(code)
    }
}

impl From<TaskError> for Failure {
    fn from(error: TaskError) -> Self {
        Self::Failed(with_causes(&error))
    }
}

impl From<StorageError> for Failure {
    fn from(error: StorageError) -> Self {
        Self::Failed(with_causes(&error))
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::OutputClosed,
            _ => Self::Failed(format!("cannot write the output: {error}")),
        }
    }
}

impl From<dialoguer::Error> for Failure {
    fn from(error: dialoguer::Error) -> Self {
        let dialoguer::Error::IO(error) = error;
        match error.kind() {
            io::ErrorKind::Interrupted => Self::Failed("interrupted; nothing was changed".to_owned()),
            _ => Self::Failed(format!("cannot ask on the terminal: {error}")),
        }
    }
}

/// Returns what failed, with the key of the task.
pub fn task_error(error: &TaskError, task: &TaskKey) -> String {
    match error {
        TaskError::NotFound { .. } => format!(
            "task {} was not found: it never existed, has expired or was deleted; `mcp-tasks list` shows the tasks that there are",
            key::display(task)
        ),
        TaskError::Unreadable { .. } => format!(
            "{} ({}); if the store is encrypted, pass --keys FILE",
            with_causes(error),
            key::display(task)
        ),
        error => format!("{} ({})", with_causes(error), key::display(task)),
    }
}

/// Returns an error and its causes in one line. Leaves out a cause that the error above it already contains.
pub fn with_causes(error: &dyn Error) -> String {
    let mut above = error.to_string();
    let (mut text, mut cause) = (above.clone(), error.source());
    while let Some(error) = cause {
        let next = error.to_string();
        if !above.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        above = next;
        cause = error.source();
    }
    text
}

//! What an operator can do with a task, and with the questions of a task. The console and `mcp-tasks` share it.

mod action;
mod question;

pub use action::{Action, Outcome};
pub use question::{Choice, Field, FieldKind, Question, complete, reply};

//! Tools that are written once, as an async function, and whose calls become tasks.

mod arguments;
mod retry_if;
mod settings;
mod task_tool;
mod task_tools;
mod unique_by;

pub(super) use task_tool::TaskTool;
pub use task_tools::TaskTools;

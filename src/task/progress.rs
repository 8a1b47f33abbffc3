//! How much of the work of a task is done.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// How much of the work of a task is done, in a unit that the operation chooses, for example files or frames.
///
/// ```
/// use mcp_task_store::Progress;
///
/// let progress = Progress::new(3, 240);
/// assert_eq!((progress.done, progress.total), (3, Some(240)));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Progress {
    /// How much is done.
    pub done: u64,
    /// How much there is to do; `None` if the operation does not know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    /// Fields of later versions of this crate. They stay until the operation reports again.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Progress {
    /// Returns this progress.
    pub fn new(done: u64, total: impl Into<Option<u64>>) -> Self {
        Self { done, total: total.into(), extra: Map::new() }
    }
}

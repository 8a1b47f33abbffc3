//! What an adapter for another SDK keeps with a task.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

#[cfg(feature = "pmcp")]
use super::Task;
use super::present;

/// The state that an SDK knows and the lifecycle of this crate does not. The status machine changes it, as it changes
/// everything else in a task.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AdapterState {
    /// All requests that the SDK made of the client, answered and withdrawn ones included. `None` until it makes some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) requests: Option<BTreeMap<String, Value>>,
    /// The error as the SDK set it, if it is not exactly the [`RpcError`](super::RpcError) of the task.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub(crate) error: Option<Value>,
    /// Fields of later versions of this crate.
    #[serde(flatten)]
    pub(crate) extra: Map<String, Value>,
}

impl AdapterState {
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(feature = "pmcp")]
impl Task {
    /// Returns every request of the task that the record knows: open, answered and withdrawn ones.
    pub(crate) fn all_requests(&self) -> BTreeMap<String, Value> {
        let recorded = self.adapter.requests.iter().flatten();
        recorded
            .chain(&self.answered_requests)
            .chain(&self.input_requests)
            .map(|(key, request)| (key.clone(), request.clone()))
            .collect()
    }

    /// Returns the error as it was set; `None` if the task has none.
    pub(crate) fn error_as_set(&self) -> Option<Value> {
        match &self.adapter.error {
            Some(error) => Some(error.clone()),
            None => serde_json::to_value(self.error.as_ref()?).ok(),
        }
    }
}

//! State that an adapter for another SDK stores with a task.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

#[cfg(feature = "pmcp")]
use super::Task;
use super::present;
use super::secret::Secret;

/// State of an SDK that the lifecycle of this crate does not use. The status machine changes it, like every other
/// field of a task.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AdapterState {
    /// All requests that the SDK has made to the client, including answered and withdrawn requests; `None` before the
    /// first request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) requests: Option<BTreeMap<String, Value>>,
    /// The error as the SDK set it, if it is not exactly the [`RpcError`](super::RpcError) of the task.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub(crate) error: Option<Value>,
    /// With it a server seals the states that clients return with their answers. An ended task has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) secret: Option<Secret>,
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
    /// Returns every request in the record: open, answered and withdrawn.
    pub(crate) fn all_requests(&self) -> BTreeMap<String, Value> {
        let recorded = self.adapter.requests.iter().flatten();
        recorded
            .chain(&self.answered_requests)
            .chain(&self.input_requests)
            .map(|(key, request)| (key.clone(), request.clone()))
            .collect()
    }

    /// Returns the error as the SDK set it; `None` if the task has no error.
    pub(crate) fn error_as_set(&self) -> Option<Value> {
        match &self.adapter.error {
            Some(error) => Some(error.clone()),
            None => serde_json::to_value(self.error.as_ref()?).ok(),
        }
    }
}

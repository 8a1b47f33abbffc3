//! Derives the key of a unique call from its arguments.

use std::fmt::Display;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value;

/// Derives the text of the key from the arguments of a call.
pub(super) type UniqueBy = Arc<dyn Fn(&Value) -> Result<String, serde_json::Error> + Send + Sync>;

/// Returns how to derive the text of the key with a function of the decoded arguments.
pub(super) fn unique_by<A, K>(key: impl Fn(&A) -> K + Send + Sync + 'static) -> UniqueBy
where
    A: DeserializeOwned,
    K: Display,
{
    Arc::new(move |arguments| A::deserialize(arguments).map(|arguments| key(&arguments).to_string()))
}

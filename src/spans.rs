//! The spans of the library in distributed traces (feature `otel`): kinds, names, attributes, parents and links.
//!
//! Names of attributes are those of the OpenTelemetry semantic conventions 1.42.0, the version of the crate
//! `opentelemetry-semantic-conventions` 0.33. No attribute holds arguments, results or the text of an error.

// Call sites have no `cfg`: without the feature, the functions do nothing.
#[cfg(feature = "otel")]
mod otel;
#[cfg(not(feature = "otel"))]
mod silent;

#[cfg(feature = "otel")]
pub(crate) use otel::*;
#[cfg(not(feature = "otel"))]
pub(crate) use silent::*;

use crate::backend::TaskId;

/// Creates the span of a call of an engine, at debug level. Only the feature `otel` sets its kind and its name.
#[cfg(any(feature = "postgres", feature = "redis", feature = "sqlite"))]
macro_rules! engine_span {
    ($call:literal $(, $($field:tt)+)?) => {
        tracing::debug_span!(
            $call,
            otel.kind = tracing::field::Empty,
            otel.name = tracing::field::Empty,
            $($($field)+)?
        )
    };
}
#[cfg(any(feature = "postgres", feature = "redis", feature = "sqlite"))]
pub(crate) use engine_span;

/// A task as a message from the process that enqueues it to the process that runs it.
#[cfg_attr(not(feature = "otel"), expect(dead_code, reason = "only a trace shows it"))]
pub(crate) struct Message<'a> {
    /// The id; `None` while the task has none.
    pub(crate) task: Option<&'a TaskId>,
    pub(crate) operation: Option<&'a str>,
    /// The `traceparent` of the task: the span that created it.
    pub(crate) traceparent: Option<&'a str>,
}

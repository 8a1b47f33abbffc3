//! The functions of a build without the feature `otel`: they do nothing.

use tracing::Span;

use super::Message;
#[cfg(any(feature = "postgres", feature = "redis", feature = "sqlite"))]
use crate::backend::StorageError;

/// A database as the spans of its calls describe it.
#[cfg(any(feature = "postgres", feature = "redis", feature = "sqlite"))]
#[derive(Clone)]
pub(crate) struct Database;

#[cfg(any(feature = "postgres", feature = "redis", feature = "sqlite"))]
impl Database {
    #[cfg(feature = "redis")]
    pub(crate) fn redis(_: &str, _: Option<i64>) -> Self {
        Self
    }

    #[cfg(feature = "postgres")]
    pub(crate) fn postgres(_: &[(String, u16)], _: Option<&str>) -> Self {
        Self
    }

    #[cfg(feature = "sqlite")]
    pub(crate) fn sqlite(_: &std::path::Path) -> Self {
        Self
    }
}

#[cfg(any(feature = "postgres", feature = "redis", feature = "sqlite"))]
pub(crate) fn engine_call(_: &Span, _: &Database) {}

#[cfg(any(feature = "postgres", feature = "redis", feature = "sqlite"))]
pub(crate) fn engine_answered<T>(_: &Span, _: &Result<T, StorageError>) {}

pub(crate) fn inherited(given: Option<String>) -> Option<String> {
    given
}

pub(crate) fn traceparent(_: &Span) -> Option<String> {
    None
}

pub(crate) fn enqueue(_: &Span, _: &Message<'_>) {}

#[cfg(feature = "rmcp")]
pub(crate) fn attempt(_: &Span, _: &Message<'_>, _: u32, _: Option<&str>) {}

#[cfg(feature = "rmcp")]
pub(crate) fn unused_attempt(_: &Span) {}

#[cfg(feature = "rmcp")]
pub(crate) fn tool_call(_: &str, _: Option<&str>) -> Span {
    Span::none()
}

#[cfg(feature = "rmcp")]
pub(crate) fn failed(_: &Span, _: &dyn std::fmt::Display) {}

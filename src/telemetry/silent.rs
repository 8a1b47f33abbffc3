//! The functions of a build without the feature `metrics`: they do nothing.

use futures_core::stream::BoxStream;

use super::EngineCall;
use crate::backend::StorageError;
use crate::task::Task;
#[cfg(feature = "rmcp")]
use crate::task::TaskStatus;

pub(crate) struct CallTimer;

impl CallTimer {
    pub(crate) fn start(_: EngineCall) -> Self {
        Self
    }

    pub(crate) fn answered<T>(&mut self, _: &Result<T, StorageError>) {}
}

#[derive(Debug)]
pub(crate) struct RunningAttempt;

impl RunningAttempt {
    pub(crate) fn begin() -> Self {
        Self
    }
}

pub(crate) fn events(_: &Task, _: usize) {}

#[cfg(feature = "rmcp")]
pub(crate) fn ended(_: TaskStatus, _: Option<&str>) {}

pub(crate) fn conflict() {}

#[cfg(any(feature = "postgres", feature = "redis", feature = "sqlite"))]
pub(crate) fn batch(_: &'static str, _: usize) {}

#[cfg(feature = "redis")]
pub(crate) fn reconnected() {}

pub(crate) fn watched<T: 'static>(changes: BoxStream<'static, T>) -> BoxStream<'static, T> {
    changes
}

#[cfg(feature = "rmcp")]
pub(crate) fn register_tool(_: &str) {}

//! Repeats calls of the store while the engine fails.

use std::pin::Pin;

use tokio::time::sleep;

use crate::printable::Chain;
use crate::rmcp::error_class::ErrorClass;
use crate::store::{BackOff, TaskError};

/// Calls the store until the call succeeds, fails with an error that no later call can avoid, or `limit` is ready.
///
/// # Errors
/// The last error of the call.
pub(super) async fn while_engine_fails<T, F>(
    call: impl Fn() -> F,
    mut limit: Pin<&mut impl Future<Output = ()>>,
) -> Result<T, TaskError>
where
    F: Future<Output = Result<T, TaskError>>,
{
    let mut back_off = BackOff::new();
    loop {
        let error = match call().await {
            Err(error) if ErrorClass::of(&error) == ErrorClass::Transient => error,
            ended => return ended,
        };
        tracing::debug!(error = %Chain(&error), "the engine has failed during a held call");
        tokio::select! {
            biased;
            () = limit.as_mut() => return Err(error),
            () = sleep(back_off.next_pause()) => {}
        }
    }
}

//! How long one call of the engine may take while a lease must be kept.

use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::backend::Agenda;
use crate::store::TaskStore;

/// The longest pause before a run repeats a failed write.
pub(super) const MAX_RETRY_DELAY: Duration = Duration::from_millis(200);
/// The shortest time limit of one write. The sum of this limit and [`MAX_RETRY_DELAY`] is shorter than the
/// observation of a lapsed lease. So after an outage, a worker renews its lapsed lease before other instances declare
/// the worker lost.
const MIN_CALL_TIMEOUT: Duration = Duration::from_millis(700);

/// Returns the time limit of one call under a lease that lasts for `left`. While much of the lease is left, the limit
/// is long: on a slow engine a short limit makes every call fail.
pub(super) fn call_timeout(lease: Duration, left: Option<Duration>) -> Duration {
    // After the engine's clock stepped back, a lease seems to last for longer than it does.
    left.map_or(MIN_CALL_TIMEOUT, |left| MIN_CALL_TIMEOUT.max(left.min(lease) / 2))
}

/// Returns the time limit of a write that must not delay the next renewal for long.
pub(super) fn short_call_timeout(lease: Duration) -> Duration {
    MIN_CALL_TIMEOUT.max(lease / 3)
}

/// Returns how long a lease with this deadline still lasts; `None` if it has lapsed.
pub(super) fn lease_left<B: Agenda>(
    store: &TaskStore<B>,
    deadline: Option<DateTime<Utc>>,
) -> Option<Duration> {
    (deadline? - store.backend().now()).to_std().ok().filter(|left| !left.is_zero())
}

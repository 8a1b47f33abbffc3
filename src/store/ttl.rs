//! How long a task may run, and how long its record lives.

use std::time::Duration;

use chrono::TimeDelta;

use super::config::StoreConfig;
use super::durations::millis;
use super::error::TaskError;
use crate::backend::Expiry;

/// How long a task may run, counted from its creation.
///
/// ```
/// use std::time::Duration;
/// use mcp_task_store::{NewTask, Ttl};
///
/// let ten_minutes = NewTask::new("tools/call").ttl(Duration::from_secs(600));
/// let unlimited = NewTask::new("tools/call").ttl(Ttl::Unlimited);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ttl {
    /// The [default](StoreConfig::default_ttl) of the store.
    #[default]
    Default,
    /// This duration, rounded up to whole milliseconds.
    After(Duration),
    /// Unlimited. The store rejects it unless the store's [maximum](StoreConfig::max_ttl) is `None`.
    Unlimited,
}

impl From<Duration> for Ttl {
    fn from(ttl: Duration) -> Self {
        Self::After(ttl)
    }
}

/// Returns the TTL of a task; `None` is unlimited.
pub(super) fn resolve_ttl(requested: Ttl, config: &StoreConfig) -> Result<Option<Duration>, TaskError> {
    let over = |actual: String, max: Duration| TaskError::LimitExceeded {
        what: "TTL in milliseconds".to_owned(),
        actual,
        limit: millis(max).to_string(),
    };
    let ttl = match (requested, config.max_ttl) {
        (Ttl::Default, None) => config.default_ttl,
        (Ttl::Default, Some(max)) => Some(config.default_ttl.map_or(max, |ttl| ttl.min(max))),
        (Ttl::After(ttl), Some(max)) if ttl > max => return Err(over(millis(ttl).to_string(), max)),
        (Ttl::After(ttl), _) => Some(ttl),
        (Ttl::Unlimited, Some(max)) => return Err(over("unlimited".to_owned(), max)),
        (Ttl::Unlimited, None) => None,
    };
    match ttl {
        Some(ttl) if ttl < Duration::from_millis(1) => {
            let reason = format!(
                "a TTL of {ttl:?} is under 1 ms; raise the TTL of the task, or StoreConfig::default_ttl and max_ttl if the task states none"
            );
            Err(TaskError::InvalidArgument { reason })
        }
        ttl => Ok(ttl),
    }
}

/// Returns when the record of a task expires: after the TTL and the retention, which count from the creation. Without a retention
/// of the task, that of the store counts. The age of the task is negative if the engine's clock was set back since the creation.
///
/// # Errors
/// `InvalidArgument` if the TTL has already elapsed.
pub(super) fn expiry(
    ttl: Option<Duration>,
    age: TimeDelta,
    retention: Option<Duration>,
    config: &StoreConfig,
) -> Result<Expiry, TaskError> {
    let Some(ttl) = ttl else { return Ok(Expiry::Never) };
    if age.to_std().is_ok_and(|age| ttl <= age) {
        let reason = format!(
            "a TTL of {ttl:?} has already elapsed, because the task is {} ms old; choose a longer TTL, or cancel the task",
            age.num_milliseconds()
        );
        return Err(TaskError::InvalidArgument { reason });
    }
    let lives = ttl.saturating_add(retention.or(config.retention).unwrap_or(ttl));
    let left = match age.to_std() {
        Ok(age) => lives.saturating_sub(age),
        Err(_) => lives.saturating_add((-age).to_std().unwrap_or_default()),
    };
    Ok(Expiry::After(left))
}

/// Returns when the record of a task expires that ends now, and is of use for `keep_for`: then, or after the TTL and the
/// retention if that is sooner.
pub(super) fn expiry_after_end(
    ttl: Option<Duration>,
    age: TimeDelta,
    retention: Option<Duration>,
    config: &StoreConfig,
    keep_for: Duration,
) -> Expiry {
    match expiry(ttl, age, retention, config) {
        Ok(Expiry::After(left)) => Expiry::After(left.min(keep_for)),
        Ok(_) => Expiry::After(keep_for),
        // The TTL has elapsed. The next reader ends the task.
        Err(_) => Expiry::Keep,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_of_an_ended_task_lives_no_longer_than_it_is_of_use_or_than_it_would_anyway() {
        let (seconds, config) = (Duration::from_secs, StoreConfig::new().retention(Duration::from_secs(5)));
        let after = |ttl: Option<u64>, age| {
            expiry_after_end(ttl.map(seconds), TimeDelta::seconds(age), None, &config, seconds(30))
        };
        assert_eq!(after(Some(60), 10), Expiry::After(seconds(30)));
        assert_eq!(after(Some(60), 50), Expiry::After(seconds(15)));
        assert_eq!(after(None, 50), Expiry::After(seconds(30)));
        assert_eq!(after(Some(60), 61), Expiry::Keep);
    }

    #[test]
    fn a_record_lives_for_the_ttl_and_the_retention_from_the_creation_on() {
        let seconds = Duration::from_secs;
        let config = StoreConfig::new().retention(seconds(5));
        let after = |age: i64, config: &StoreConfig| {
            expiry(Some(seconds(60)), TimeDelta::seconds(age), None, config).unwrap()
        };
        assert_eq!(after(0, &config), Expiry::After(seconds(65)));
        assert_eq!(after(59, &config), Expiry::After(seconds(6)));
        assert_eq!(after(59, &StoreConfig::new()), Expiry::After(seconds(61)));
        // The task has a retention of its own.
        let of_task = expiry(Some(seconds(60)), TimeDelta::seconds(9), Some(seconds(7)), &config).unwrap();
        assert_eq!(of_task, Expiry::After(seconds(58)));
        // The clock was set back by ten seconds after the creation.
        assert_eq!(after(-10, &config), Expiry::After(seconds(75)));
        assert_eq!(expiry(None, TimeDelta::seconds(9), None, &config).unwrap(), Expiry::Never);
        for age in [60, 3600] {
            let elapsed = expiry(Some(seconds(60)), TimeDelta::seconds(age), None, &config);
            assert!(matches!(elapsed, Err(TaskError::InvalidArgument { .. })), "{elapsed:?}");
        }
    }
}

//! Conversions between durations, an engine's clock and `DateTime`.

use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::backend::error::StorageError;
use crate::backend::record::Expiry;

/// Converts a time of an engine's clock, in milliseconds since the Unix epoch. A time beyond the range of `DateTime`
/// becomes the last `DateTime`.
pub fn from_millis(millis: u64) -> DateTime<Utc> {
    i64::try_from(millis).ok().and_then(DateTime::from_timestamp_millis).unwrap_or(DateTime::<Utc>::MAX_UTC)
}

/// Converts a time of an engine's clock, in microseconds since the Unix epoch. A time beyond the range of `DateTime`
/// becomes the last `DateTime`.
pub fn from_micros(micros: u64) -> DateTime<Utc> {
    i64::try_from(micros).ok().and_then(DateTime::from_timestamp_micros).unwrap_or(DateTime::<Utc>::MAX_UTC)
}

/// Converts the expiry of a write to whole milliseconds, rounded up; `None` for `Keep` and `Never`.
///
/// A clock that counts whole milliseconds does not show how much of the current millisecond has passed. An engine
/// with such a clock adds 1 to the result. Otherwise a record could expire up to 1 ms early.
///
/// # Errors
/// [`StorageError::InvalidExpiry`] for a duration outside 1 ms to 100 years.
pub fn expiry_millis(expiry: Expiry) -> Result<Option<u64>, StorageError> {
    expiry.check()?;
    let Expiry::After(given) = expiry else {
        return Ok(None);
    };
    Ok(Some(given.as_nanos().div_ceil(1_000_000) as u64))
}

/// Converts the delay of a timer to whole milliseconds, rounded down: a timer never fires later than asked.
///
/// # Errors
/// [`StorageError::InvalidExpiry`] for more than 100 years.
pub fn delay_millis(after: Duration) -> Result<u64, StorageError> {
    if after > Expiry::MAX {
        return Err(StorageError::InvalidExpiry { given: after });
    }
    Ok(after.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::shortest(Duration::from_millis(1), 1)]
    #[case::rounded_up(Duration::from_micros(1_001), 2)]
    #[case::longest(Expiry::MAX, 3_155_760_000_000)]
    fn an_expiry_becomes_whole_milliseconds(#[case] given: Duration, #[case] millis: u64) {
        assert_eq!(expiry_millis(Expiry::After(given)).unwrap(), Some(millis));
    }

    #[rstest]
    #[case::too_short(Duration::from_micros(999))]
    #[case::zero(Duration::ZERO)]
    #[case::too_long(Expiry::MAX + Duration::from_nanos(1))]
    #[case::longest_duration(Duration::MAX)]
    fn an_expiry_outside_1_ms_to_100_years_is_refused(#[case] given: Duration) {
        assert!(matches!(expiry_millis(Expiry::After(given)), Err(StorageError::InvalidExpiry { .. })));
    }
}

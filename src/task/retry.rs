//! The delay between two attempts at a task, as its record states it.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::is_false;
use crate::backend::Expiry;

/// How long a task waits before its next attempt. The record states it, so every instance can apply it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct RetryDelay {
    /// How many milliseconds the task waits before its second attempt. Each further attempt doubles the delay.
    pub first_ms: u64,
    /// The longest delay, in milliseconds.
    pub max_ms: u64,
    /// Each delay is a random part of the whole one.
    #[serde(default, skip_serializing_if = "is_false")]
    pub jittered: bool,
    /// Fields of later versions of this crate. Every write keeps them.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl RetryDelay {
    pub(crate) fn new(first_ms: u64, max_ms: u64, jittered: bool) -> Self {
        Self { first_ms, max_ms, jittered, extra: Map::new() }
    }

    /// Returns the delay after this number of used attempts. `random` chooses a jittered delay.
    pub(crate) fn delay_after(&self, used: u32, random: u64) -> Duration {
        let doublings = used.saturating_sub(1);
        let whole_ms = self.first_ms.saturating_mul(2_u64.saturating_pow(doublings)).min(self.max_ms);
        let ms = match (self.jittered, whole_ms.checked_add(1)) {
            (true, Some(choices)) => random % choices,
            _ => whole_ms,
        };
        Duration::from_millis(ms).min(Expiry::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms_after(delay: &RetryDelay, used: u32, random: u64) -> u128 {
        delay.delay_after(used, random).as_millis()
    }

    #[test]
    fn the_delay_doubles_with_each_attempt_up_to_the_longest() {
        let delay = RetryDelay::new(500, 6_000, false);
        let delays = [1, 2, 3, 4, 5, 40, u32::MAX].map(|used| ms_after(&delay, used, 7));
        assert_eq!(delays, [500, 1_000, 2_000, 4_000, 6_000, 6_000, 6_000]);
    }

    #[test]
    fn a_jittered_delay_is_any_part_of_the_whole_one() {
        let delay = RetryDelay::new(500, 6_000, true);
        for used in [1, 2, 5] {
            let whole = u64::try_from(ms_after(&RetryDelay::new(500, 6_000, false), used, 0)).unwrap();
            assert_eq!(ms_after(&delay, used, 0), 0);
            assert_eq!(ms_after(&delay, used, whole), u128::from(whole));
            assert_eq!(ms_after(&delay, used, whole + 1), 0);
            assert!(
                (0..1_000)
                    .all(|n: u64| ms_after(&delay, used, n.wrapping_mul(0x9e37_79b9_7f4a_7c15))
                        <= whole.into())
            );
        }
    }

    #[test]
    fn a_delay_that_no_version_writes_stays_within_a_hundred_years() {
        let delay = RetryDelay::new(u64::MAX, u64::MAX, false);
        assert_eq!(delay.delay_after(u32::MAX, 0), Expiry::MAX);
        let jittered = RetryDelay::new(u64::MAX, u64::MAX, true);
        assert_eq!(jittered.delay_after(1, u64::MAX), Expiry::MAX);
    }
}

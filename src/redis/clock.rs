//! The server's clock as this process knows it.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

use redis::Value;

use crate::scripts::micros;

/// Carries the server's clock on between replies by the monotonic clock of this process. It may lag
/// behind the server, it never leads: a reply shows a time that the server's clock had reached before the
/// reply arrived.
#[derive(Debug)]
pub(super) struct Clock {
    started: Instant,
    /// Server time less the time since `started`, both in microseconds.
    offset: AtomicI64,
}

/// A moment of this process, in microseconds since the clock was made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment(i64);

impl Clock {
    /// A clock that lags until the first reply is observed.
    pub(super) fn new() -> Self {
        Self { started: Instant::now(), offset: AtomicI64::new(0) }
    }

    pub(super) fn moment(&self) -> Moment {
        Moment(i64::try_from(self.started.elapsed().as_micros()).unwrap_or(i64::MAX))
    }

    /// Takes the time that the server showed in reply to a call that was sent at `sent`.
    ///
    /// The server's clock stood at `server_us` at some moment between `sent` and now, which bounds the
    /// offset from both sides. An offset within the bounds stays. One below lags more than it must; one
    /// above says that the server's clock was set back, or that another server answers: both follow.
    pub(super) fn observe(&self, server_us: u64, sent: Moment) {
        let server_us = i64::try_from(server_us).unwrap_or(i64::MAX);
        // The monotonic clock is read in whole microseconds, rounded down.
        let lowest = server_us.saturating_sub(self.moment().0 + 1);
        let highest = server_us.saturating_sub(sent.0);
        let follow = |offset| (!(lowest..=highest).contains(&offset)).then_some(lowest);
        // An error means that the offset was within the bounds.
        let _ = self.offset.fetch_update(Ordering::Relaxed, Ordering::Relaxed, follow);
    }

    /// Microseconds since the epoch.
    pub(super) fn now_us(&self) -> u64 {
        let now = self.offset.load(Ordering::Relaxed).saturating_add(self.moment().0);
        u64::try_from(now).unwrap_or(0)
    }
}

/// The reply of `TIME` in microseconds.
pub(super) fn server_time(reply: &Value) -> Option<u64> {
    match reply {
        Value::Array(parts) => micros(parts.first()?, parts.get(1)?),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const EPOCH: u64 = 1_795_000_000_000_000;
    const HOUR: u64 = 3_600_000_000;

    /// A server whose clock stood at `EPOCH` when it was made.
    struct Server(Instant);

    impl Server {
        fn us(&self) -> u64 {
            EPOCH + u64::try_from(self.0.elapsed().as_micros()).unwrap()
        }
    }

    #[test]
    fn it_never_leads_the_server() {
        let (clock, server) = (Clock::new(), Server(Instant::now()));
        for delay_us in [0, 300, 5, 2_000, 1] {
            let sent = clock.moment();
            let shown = server.us();
            std::thread::sleep(Duration::from_micros(delay_us));
            clock.observe(shown, sent);
            let ours = clock.now_us();
            assert!(ours <= server.us());
        }
    }

    #[test]
    fn a_slow_reply_does_not_make_it_lag_more() {
        let (clock, server) = (Clock::new(), Server(Instant::now()));
        clock.observe(server.us(), clock.moment());
        let lag = clock.offset.load(Ordering::Relaxed);
        let sent = clock.moment();
        let shown = server.us();
        std::thread::sleep(Duration::from_millis(5));
        clock.observe(shown, sent);
        // It was set right a little at the most, and not set back by what the reply took.
        assert!(clock.offset.load(Ordering::Relaxed) >= lag);
    }

    #[test]
    fn it_follows_a_server_whose_clock_is_set_back_or_forward() {
        let clock = Clock::new();
        for server_us in [EPOCH, EPOCH - HOUR, EPOCH + HOUR, EPOCH] {
            clock.observe(server_us, clock.moment());
            assert!(clock.now_us() < server_us + HOUR / 2);
            assert!(clock.now_us() > server_us - HOUR / 2);
        }
    }
}

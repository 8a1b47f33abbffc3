//! The server's clock as this process knows it.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

/// The server's clock, advanced between replies by the monotonic clock of this process. It may lag behind the server.
/// It is not ahead of the server, because the server's clock reached the time in a reply before the reply arrived.
#[derive(Debug)]
pub(crate) struct Clock {
    started: Instant,
    /// Server time minus the time since `started`, both in microseconds.
    offset: AtomicI64,
}

/// A moment of this process, in microseconds since the creation of the clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment(i64);

impl Clock {
    /// Creates a clock. It shows the Unix epoch until it observes the first reply.
    pub(crate) fn new() -> Self {
        Self { started: Instant::now(), offset: AtomicI64::new(0) }
    }

    pub(crate) fn moment(&self) -> Moment {
        Moment(i64::try_from(self.started.elapsed().as_micros()).unwrap_or(i64::MAX))
    }

    /// Observes the server's time in the reply to a call that was sent at `sent`.
    ///
    /// The server's clock was at `server_us` at some moment between `sent` and now, which bounds the offset on both
    /// sides. An offset within the bounds stays. With an offset below the bounds, this clock lags more than necessary.
    /// An offset above them means that the server's clock stepped back, or that another server replies. In both cases
    /// the offset becomes the lower bound.
    pub(crate) fn observe(&self, server_us: u64, sent: Moment) {
        let server_us = i64::try_from(server_us).unwrap_or(i64::MAX);
        // The monotonic clock is read in whole microseconds, rounded down.
        let lowest = server_us.saturating_sub(self.moment().0 + 1);
        let highest = server_us.saturating_sub(sent.0);
        let follow = |offset| (!(lowest..=highest).contains(&offset)).then_some(lowest);
        // An error means that the offset was within the bounds.
        let _ = self.offset.fetch_update(Ordering::Relaxed, Ordering::Relaxed, follow);
    }

    /// Microseconds since the epoch.
    pub(crate) fn now_us(&self) -> u64 {
        let now = self.offset.load(Ordering::Relaxed).saturating_add(self.moment().0);
        u64::try_from(now).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const EPOCH: u64 = 1_795_000_000_000_000;
    const HOUR: u64 = 3_600_000_000;

    /// A server whose clock was at `EPOCH` at its creation.
    struct Server(Instant);

    impl Server {
        fn us(&self) -> u64 {
            EPOCH + u64::try_from(self.0.elapsed().as_micros()).unwrap()
        }
    }

    #[test]
    fn the_clock_is_never_ahead_of_the_server() {
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
    fn a_slow_reply_does_not_make_the_clock_lag_more() {
        let (clock, server) = (Clock::new(), Server(Instant::now()));
        clock.observe(server.us(), clock.moment());
        let lag = clock.offset.load(Ordering::Relaxed);
        let sent = clock.moment();
        let shown = server.us();
        std::thread::sleep(Duration::from_millis(5));
        clock.observe(shown, sent);
        // The offset may grow a little. The time that the reply took must not reduce it.
        assert!(clock.offset.load(Ordering::Relaxed) >= lag);
    }

    #[test]
    fn the_clock_follows_a_server_whose_clock_steps_back_or_forward() {
        let clock = Clock::new();
        for server_us in [EPOCH, EPOCH - HOUR, EPOCH + HOUR, EPOCH] {
            clock.observe(server_us, clock.moment());
            assert!(clock.now_us() < server_us + HOUR / 2);
            assert!(clock.now_us() > server_us - HOUR / 2);
        }
    }
}

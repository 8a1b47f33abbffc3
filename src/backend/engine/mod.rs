//! Building blocks for engines: everything that an implementation of
//! [`StorageBackend`](crate::StorageBackend) or [`Agenda`](crate::Agenda) needs in addition to its storage.
//!
//! | an engine must | it calls |
//! |---|---|
//! | refuse data and parts that are too large before it writes | [`check_size`], [`check_parts`], [`check_part_count`] |
//! | decide whether a write may replace the record | [`WriteMode`] |
//! | turn a duration into whole milliseconds | [`expiry_millis`], [`delay_millis`] |
//! | turn its clock into a `DateTime` | [`from_millis`], [`from_micros`] |
//! | check a page request and continue a walk | [`PageBounds`], [`cursor`] |
//! | stream the changes of a record | [`watch_by_polling`], or [`Watchers`] with [`watch_by_notifications`] |
//! | keep timers in the memory of the process | [`Timers`] |
//!
//! The memory engine (`src/memory.rs`) uses only this module. So does the example `examples/custom_engine`.

#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod checked_put;
mod mode;
mod on_drop;
mod pages;
mod sizes;
mod time;
mod timers;
mod wakers;
mod watch;
mod watchers;

#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(crate) use checked_put::{CheckedPut, MaxSizes};
pub use mode::WriteMode;
pub use on_drop::{OnDrop, on_drop};
pub use pages::{PageBounds, cursor};
pub use sizes::{check_part_count, check_parts, check_size};
pub use time::{delay_millis, expiry_millis, from_micros, from_millis};
pub use timers::{MAX_TAKEN, Timers};
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(crate) use timers::{timer_cursor, timer_position};
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(crate) use wakers::Wakers;
pub use watch::{watch_by_notifications, watch_by_polling};
pub use watchers::{Change, Subscription, Watchers};

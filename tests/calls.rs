//! One call of a task store: what it is made of, how long it takes at most, and what it leaves to others.

#[macro_use]
mod support;

#[path = "calls/copies.rs"]
mod copies;
#[path = "calls/deadlines.rs"]
mod deadlines;
#[path = "calls/double.rs"]
mod double;
#[path = "calls/lanes.rs"]
mod lanes;
#[path = "calls/log.rs"]
mod log;
#[path = "calls/queries.rs"]
mod queries;
#[path = "calls/reserve.rs"]
mod reserve;
#[cfg(feature = "redis-tests")]
#[path = "calls/truncated.rs"]
mod truncated;

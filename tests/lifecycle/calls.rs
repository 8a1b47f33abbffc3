//! One call of a task store: what it is made of, how long it takes at most, and what it leaves to others.

mod copies;
mod deadlines;
mod double;
mod lanes;
mod log;
mod queries;
mod reserve;
#[cfg(feature = "redis-tests")]
mod truncated;

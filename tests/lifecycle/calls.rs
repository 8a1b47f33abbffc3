//! One call of a task store: its reads and writes, its time limit, and its log.

mod copies;
mod deadlines;
mod double;
mod log;
mod priorities;
mod queries;
mod reserve;
#[cfg(feature = "redis-tests")]
mod truncated;

//! `mcp-tasks` as a person and a script use it: in a pseudo-terminal and in a pipe, on SQLite and on Redis.

mod answering;
mod changing;
mod doctor;
#[cfg(feature = "redis-tests")]
mod doctor_redis;
mod doctor_sqlite;
mod hostile;
mod looking;
#[cfg(feature = "redis-tests")]
mod monitoring;
mod moving;
mod opening;
mod operating;
mod output;
mod rotating;
mod serving;
mod terminal;
#[cfg(feature = "redis-tests")]
mod topologies;
mod watching;
mod workers;

mod support;

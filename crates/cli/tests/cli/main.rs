//! `mcp-tasks` as a person and a script use it: in a pseudo-terminal and in a pipe, on SQLite and on Redis.

mod answering;
mod changing;
mod hostile;
mod looking;
mod opening;
mod output;
mod serving;
mod terminal;
#[cfg(feature = "redis-tests")]
mod topologies;
mod watching;

mod support;

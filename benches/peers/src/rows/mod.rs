//! The rows of the table, by subject.

pub mod agenda;
pub mod client;
pub mod in_process;
pub mod lists;
pub mod memory;
pub mod parts;
pub mod records;
pub mod scripts;
pub mod sweeps;
pub mod tasks;
pub mod watch;

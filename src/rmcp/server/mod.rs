//! A server that adds task tools to a handler of the SDK.

mod call;
mod capabilities;
mod client;
mod handler;
mod listing;
mod task_server;

pub use task_server::TaskServer;

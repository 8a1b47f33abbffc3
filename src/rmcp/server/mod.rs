//! A server that adds task tools to a handler of the SDK.

mod answers;
mod call;
mod capabilities;
mod client;
mod config;
mod handler;
mod held;
mod listing;
mod notifications;
mod output_schema;
mod state_content;
mod task_server;

pub use config::TaskServerConfig;
pub use task_server::TaskServer;

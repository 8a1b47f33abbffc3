//! A server that adds task tools to a handler of the SDK.

mod answers;
mod call;
mod call_error;
mod call_settings;
mod capabilities;
mod client;
mod companion_names;
mod companions;
mod config;
mod delivery;
mod handler;
mod held;
mod listing;
mod notifications;
mod output_schema;
mod questions;
mod retry;
mod state_content;
mod task_server;

pub use companion_names::Companions;
pub use config::TaskServerConfig;
pub use task_server::TaskServer;

//! The properties of the key schema, of reading a record's hash, and of the errors of servers.

mod errors;
mod hashes;
mod keys;

pub use errors::script_error;
pub use hashes::record;
pub use keys::key;

//! Who may see the console, and what a browser may do with its pages.

mod access;
pub(crate) mod audit;
pub(crate) mod csrf;
pub(crate) mod guard;
pub(crate) mod headers;
pub(crate) mod login;
pub(crate) mod sessions;
mod users;

pub use access::{Access, AccessError};

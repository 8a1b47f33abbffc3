//! The guide: how to use the library in a server, how to operate it, and how to write an engine.
//!
//! * [`rmcp`]: servers on the official SDK
//! * [`pmcp`]: servers on the SDK `pmcp`, or on `pmcp-tasks`
//! * [`workers`]: leases, lost workers, retries
//! * [`engine`]: an engine of your own
//! * [`operations`]: settings, the ACL rule, keys, backup, upgrades, credentials
//! * [`failures`]: what a call reports when a server fails
//! * [`scale`]: what one Redis holds

// A page links to other pages by file name. The first definition of a link counts, so here these links lead to modules.
// The page is shown whatever the features are. Its examples are compiled only with the features that they need.

/// [workers.md]: crate::guide::workers
/// [operations.md]: crate::guide::operations
/// [failures.md]: crate::guide::failures
#[cfg_attr(any(not(doctest), all(feature = "redis", feature = "rmcp")), doc = include_str!("../docs/guide/rmcp.md"))]
pub mod rmcp {}

/// [operations.md]: crate::guide::operations
#[cfg_attr(any(not(doctest), all(feature = "redis", feature = "pmcp")), doc = include_str!("../docs/guide/pmcp.md"))]
pub mod pmcp {}

/// [rmcp.md]: crate::guide::rmcp
/// [operations.md]: crate::guide::operations
/// [failures.md]: crate::guide::failures
#[cfg_attr(any(not(doctest), all(feature = "redis", feature = "rmcp")), doc = include_str!("../docs/guide/workers.md"))]
pub mod workers {}

/// [operations.md]: crate::guide::operations
/// [failures.md]: crate::guide::failures
#[doc = include_str!("../docs/guide/engine.md")]
pub mod engine {}

/// [failures.md]: crate::guide::failures
/// [scale.md]: crate::guide::scale
/// [guide/rmcp.md]: crate::guide::rmcp
#[cfg_attr(
    any(not(doctest), all(feature = "redis-cluster", feature = "redis-sentinel")),
    doc = include_str!("../docs/operations.md")
)]
pub mod operations {}

/// [operations.md]: crate::guide::operations
#[doc = include_str!("../docs/failures.md")]
pub mod failures {}

/// [operations.md]: crate::guide::operations
#[doc = include_str!("../docs/scale.md")]
pub mod scale {}

#[cfg(test)]
mod tests;

//! The guide: how to use the library in a server, how to operate such a server, and how to write an engine.
//!
//! * [`rmcp`]: servers on the official SDK
//! * [`clients`]: what the TypeScript and Python clients, FastMCP and rmcp get from such a server
//! * [`pmcp`]: servers on the SDK `pmcp`, or on `pmcp-tasks`
//! * [`workers`]: leases, lost workers, retries
//! * [`engine`]: how to write an engine
//! * [`encryption`]: encryption at rest, keys, rotation
//! * [`operations`]: settings, the ACL rule, keys, backup, upgrades, credentials
//! * [`cli`]: the command `mcp-tasks`, for operators
//! * [`console`]: the console for the browser
//! * [`operating`]: an incident, step by step
//! * [`failures`]: which error a call returns when a Redis or Valkey server fails
//! * [`scale`]: how many tasks one Redis holds

// A page links to other pages by file name. The first definition of a link wins, so the definitions here lead to modules.
// rustdoc shows a page with any set of features. A doctest run includes a page only with the features that its examples need.

/// [clients.md]: crate::guide::clients
/// [workers.md]: crate::guide::workers
/// [operations.md]: crate::guide::operations
/// [failures.md]: crate::guide::failures
#[cfg_attr(any(not(doctest), all(feature = "redis", feature = "rmcp", feature = "sqlite")), doc = include_str!("../docs/guide/rmcp.md"))]
pub mod rmcp {}

/// [rmcp.md]: crate::guide::rmcp
#[doc = include_str!("../docs/guide/clients.md")]
pub mod clients {}

/// [operations.md]: crate::guide::operations
#[cfg_attr(any(not(doctest), all(feature = "redis", feature = "pmcp")), doc = include_str!("../docs/guide/pmcp.md"))]
pub mod pmcp {}

/// [rmcp.md]: crate::guide::rmcp
/// [operations.md]: crate::guide::operations
/// [failures.md]: crate::guide::failures
/// [cli.md]: crate::guide::cli
#[cfg_attr(any(not(doctest), all(feature = "redis", feature = "rmcp")), doc = include_str!("../docs/guide/workers.md"))]
pub mod workers {}

/// [operations.md]: crate::guide::operations
/// [failures.md]: crate::guide::failures
#[doc = include_str!("../docs/guide/engine.md")]
pub mod engine {}

/// [cli.md]: crate::guide::cli
#[cfg_attr(
    any(not(doctest), all(feature = "encryption", feature = "sqlite")),
    doc = include_str!("../docs/guide/encryption.md")
)]
pub mod encryption {}

/// [failures.md]: crate::guide::failures
/// [scale.md]: crate::guide::scale
/// [guide/rmcp.md]: crate::guide::rmcp
/// [guide/workers.md]: crate::guide::workers
/// [guide/console.md]: crate::guide::console
/// [guide/encryption.md]: crate::guide::encryption
#[cfg_attr(
    any(not(doctest), all(feature = "redis-cluster", feature = "redis-sentinel")),
    doc = include_str!("../docs/operations.md")
)]
pub mod operations {}

/// [encryption.md]: crate::guide::encryption
/// [operations.md]: crate::guide::operations
/// [console.md]: crate::guide::console
/// [operating.md]: crate::guide::operating
/// [workers.md]: crate::guide::workers
#[doc = include_str!("../docs/guide/cli.md")]
pub mod cli {}

/// [cli.md]: crate::guide::cli
/// [operations.md]: crate::guide::operations
/// [workers.md]: crate::guide::workers
#[doc = include_str!("../docs/guide/console.md")]
pub mod console {}

/// [cli.md]: crate::guide::cli
/// [console.md]: crate::guide::console
/// [operations.md]: crate::guide::operations
/// [workers.md]: crate::guide::workers
#[doc = include_str!("../docs/guide/operating.md")]
pub mod operating {}

/// [operations.md]: crate::guide::operations
/// [guide/encryption.md]: crate::guide::encryption
#[doc = include_str!("../docs/failures.md")]
pub mod failures {}

/// [operations.md]: crate::guide::operations
#[doc = include_str!("../docs/scale.md")]
pub mod scale {}

#[cfg(test)]
mod tests;

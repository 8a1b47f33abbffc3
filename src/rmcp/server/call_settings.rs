//! What all calls of a server share.

use super::config::TaskServerConfig;
use crate::rmcp::manager::DurableTaskManager;
use crate::rmcp::owner::OwnerSource;

/// What all calls of a server share.
pub(super) struct CallSettings<'a, B> {
    pub(super) tasks: &'a DurableTaskManager<B>,
    pub(super) owners: &'a OwnerSource,
    pub(super) config: &'a TaskServerConfig,
}

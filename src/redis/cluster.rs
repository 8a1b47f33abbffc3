//! Connections to a Redis Cluster.
//!
//! A command goes to the master that serves its slot. The backend asks the nodes regularly which master serves which
//! slot. It follows redirections at once: a node replies with a redirection *instead of* running a command whose slot
//! another node serves
//! (<https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#redirection-and-resharding>). Each node
//! has its own connections, so a node that is silent or lost delays only the calls to it.

mod address;
mod connection;
mod node;
mod nodes;
mod refresh;
mod slot;
mod slot_map;
mod view;

use std::sync::Arc;

use super::clock::Clock;
use super::dialer::Dialer;
use super::generation::Generation;
use super::notifications::PubsubProbe;
use crate::backend::StorageError;
use address::NodeAddress;
use connection::ClusterConnection;
use nodes::Nodes;
use refresh::Refresher;

/// Connects to the cluster that these nodes belong to. Returns the connections for calls, and those for pages and parts. The
/// caller sets the time limit.
///
/// # Errors
/// If no node replies with its view of the cluster: the error of one of them, preferably an error that is not
/// temporary.
pub(super) async fn connect(
    seeds: Vec<(String, u16)>,
    dialer: Dialer,
    clock: Arc<Clock>,
    generation: Arc<Generation>,
    probe: Option<PubsubProbe>,
) -> Result<(ClusterConnection, ClusterConnection), StorageError> {
    let seeds = seeds.into_iter().map(|(host, port)| NodeAddress { host, port }).collect();
    let nodes = Arc::new(Nodes::new(seeds, dialer, clock, generation, probe));
    let refresher = Arc::new(Refresher::new(Arc::clone(&nodes)));
    refresher.first_refresh().await?;
    refresher.keep_running();
    let connection =
        |is_bulk| ClusterConnection { nodes: Arc::clone(&nodes), refresher: Arc::clone(&refresher), is_bulk };
    Ok((connection(false), connection(true)))
}

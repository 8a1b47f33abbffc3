//! The nodes of a cluster that the backend knows.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::address::NodeAddress;
use super::node::Node;
use super::slot_map::SlotMap;
use super::view::{View, trusted};
use crate::redis::clock::Clock;
use crate::redis::connection::MasterOfSlots;
use crate::redis::connector::Connector;
use crate::redis::dialer::Dialer;
use crate::redis::generation::Generation;
use crate::redis::master::Master;
use crate::redis::notifications::PubsubProbe;

/// How long a node stays known if a redirection led to it and no view contains it. Such a node has no slots yet, and
/// imports some.
const REMEMBERED: Duration = Duration::from_secs(10);

/// The nodes of a cluster, and which master serves which slot.
pub(super) struct Nodes {
    dialer: Dialer,
    clock: Arc<Clock>,
    /// The generation of all connections and of the slot map.
    generation: Arc<Generation>,
    /// How to probe the Pub/Sub commands of each node; `None` if notifications are off.
    probe: Option<PubsubProbe>,
    /// The nodes that the caller named. They stay known even if they leave the cluster.
    seeds: Vec<NodeAddress>,
    state: RwLock<State>,
    /// Receives a notification whenever the master of a slot changes.
    changes: watch::Sender<()>,
}

struct State {
    slots: SlotMap,
    /// The masters, by their index in the slot map.
    masters: Vec<Arc<Node>>,
    known: BTreeMap<NodeAddress, Arc<Node>>,
}

impl Nodes {
    pub(super) fn new(
        seeds: Vec<NodeAddress>,
        dialer: Dialer,
        clock: Arc<Clock>,
        generation: Arc<Generation>,
        probe: Option<PubsubProbe>,
    ) -> Self {
        let state = State { slots: SlotMap::unknown(), masters: Vec::new(), known: BTreeMap::new() };
        let changes = watch::Sender::new(());
        Self { dialer, clock, generation, probe, seeds, state: RwLock::new(state), changes }
    }

    /// Locks the state. No code panics while it holds the lock, so the data behind a poisoned lock is consistent.
    fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation.get()
    }

    /// Returns the master that serves a slot; `None` if no master is known.
    pub(super) fn master(&self, slot: u16) -> Option<Arc<Node>> {
        let state = self.state();
        state.slots.index(slot).and_then(|index| state.masters.get(index)).cloned()
    }

    /// Returns the masters, in the order of their slots.
    pub(super) fn masters(&self) -> Vec<MasterOfSlots> {
        let state = self.state();
        let masters = state.slots.lowest_slots();
        masters.map(|(slot, node)| MasterOfSlots { slot, host: node.host.clone(), port: node.port }).collect()
    }

    /// Returns the node at this address. Adds it if it is new.
    pub(super) fn node(&self, address: &NodeAddress) -> Arc<Node> {
        self.node_in(&mut self.state_mut(), address)
    }

    fn node_in(&self, state: &mut State, address: &NodeAddress) -> Arc<Node> {
        if let Some(node) = state.known.get(address) {
            return Arc::clone(node);
        }
        let server = self.dialer.address(&address.host, address.port);
        let (clock, generation) = (Arc::clone(&self.clock), Arc::clone(&self.generation));
        let connector = Connector::to_address(server, self.dialer.clone(), clock, generation);
        let master = Arc::new(Master::new(connector, self.probe.clone()));
        let node = Arc::new(Node::new(address.clone(), master));
        state.known.insert(address.clone(), Arc::clone(&node));
        node
    }

    /// Returns all nodes that are known.
    pub(super) fn all(&self) -> Vec<Arc<Node>> {
        self.state().known.values().cloned().collect()
    }

    /// Returns the nodes that the caller named.
    pub(super) fn seeds(&self) -> Vec<Arc<Node>> {
        self.seeds.iter().map(|address| self.node(address)).collect()
    }

    /// Receives a notification whenever the master of a slot changes.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// Returns the node that a redirection leads to.
    pub(super) fn redirected(&self, address: &NodeAddress) -> Arc<Node> {
        self.generation.grow();
        let node = self.node(address);
        node.set_redirected();
        node
    }

    /// Sends the commands for a slot to this master from now on.
    pub(super) fn set_master(&self, slot: u16, master: &NodeAddress) {
        let mut state = self.state_mut();
        let slots = state.slots.with_master(slot, master);
        self.set_slots(&mut state, slots);
    }

    fn set_slots(&self, state: &mut State, slots: SlotMap) {
        let is_changed = !slots.has_same_masters(&state.slots);
        if is_changed {
            // The generation must grow before a command travels to the new master.
            self.generation.grow();
            state.masters = slots.masters.iter().map(|address| self.node_in(state, address)).collect();
        }
        state.slots = slots;
        if is_changed {
            self.changes.send_replace(());
        }
    }

    /// Updates the nodes and the slot map from these views. `is_complete`: all nodes that can be asked have replied. Returns
    /// whether the cluster is healthy: a majority agrees, each slot has a master, and no master is lost.
    pub(super) fn update(&self, views: &[View], is_complete: bool) -> bool {
        let mut state = self.state_mut();
        let has_majority = views.iter().any(|view| view.is_ok);
        let slots = SlotMap::of_views(views, &state.slots);
        let is_outdated = slots.as_ref().is_none_or(|slots| slots.epoch < state.slots.epoch);
        // Some nodes may be outdated or cut off from the majority, but not all of them.
        let is_used = is_complete && (has_majority || !is_outdated) || has_majority && !is_outdated;
        if let Some(slots) = slots.filter(|_| is_used) {
            self.set_slots(&mut state, slots);
            self.set_known(&mut state, views);
        }
        let has_lost = state.masters.iter().any(|master| master.lost().is_some());
        has_majority && !is_outdated && !has_lost && state.slots.is_complete()
    }

    fn set_known(&self, state: &mut State, views: &[View]) {
        let viewed: Vec<_> = trusted(views).into_iter().flat_map(View::nodes).cloned().collect();
        for address in viewed.iter().chain(&self.seeds) {
            self.node_in(state, address);
        }
        let now = Instant::now();
        state.known.retain(|address, node| {
            let stays = viewed.contains(address)
                || self.seeds.contains(address)
                || now.saturating_duration_since(node.redirected()) < REMEMBERED;
            if !stays {
                tracing::debug!(node = node.name, "a node has left the cluster");
                // This voids the connections to the node that are still in use.
                let epochs = node.master.epochs();
                epochs.end(epochs.current());
            }
            stays
        });
    }
}

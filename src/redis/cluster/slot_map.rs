//! Which master serves which slot.

use std::collections::HashMap;

use super::address::NodeAddress;
use super::slot::SLOTS;
use super::view::{View, trusted};

/// The index of a slot that no master serves.
const UNSERVED: u16 = u16::MAX;

/// Which master serves which slot. Two maps with the same epoch and the same masters are equal, however they were made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SlotMap {
    /// The epoch of the views that the map is made from.
    pub(super) epoch: u64,
    /// The masters, in the order of the lowest slot that each serves.
    pub(super) masters: Vec<NodeAddress>,
    /// The index of the master, by slot.
    indices: Vec<u16>,
}

impl SlotMap {
    /// Returns a map in which no slot is served.
    pub(super) fn unknown() -> Self {
        Self { epoch: 0, masters: Vec::new(), indices: vec![UNSERVED; usize::from(SLOTS)] }
    }

    /// Returns the index of the slot's master among the [`masters`](Self::masters).
    pub(super) fn index(&self, slot: u16) -> Option<usize> {
        let index = self.indices.get(usize::from(slot)).filter(|index| **index != UNSERVED);
        index.map(|index| usize::from(*index))
    }

    fn master(&self, slot: u16) -> Option<&NodeAddress> {
        self.index(slot).and_then(|index| self.masters.get(index))
    }

    /// Returns whether each slot has the same master in both maps.
    pub(super) fn has_same_masters(&self, other: &Self) -> bool {
        self.masters == other.masters && self.indices == other.indices
    }

    /// Returns whether each slot has a master.
    pub(super) fn is_complete(&self) -> bool {
        !self.indices.contains(&UNSERVED)
    }

    /// Returns the masters, each with the lowest slot that it serves.
    pub(super) fn lowest_slots(&self) -> impl Iterator<Item = (u16, &NodeAddress)> {
        let lowest = |index| self.indices.iter().position(|of| usize::from(*of) == index).unwrap_or_default();
        self.masters.iter().enumerate().map(move |(index, node)| (lowest(index) as u16, node))
    }

    /// Returns the same map with another master of one slot.
    pub(super) fn with_master(&self, slot: u16, master: &NodeAddress) -> Self {
        Self::of(self.epoch, |of| if of == slot { Some(master) } else { self.master(of) })
    }

    fn of<'a>(epoch: u64, master: impl Fn(u16) -> Option<&'a NodeAddress>) -> Self {
        let mut map = Self { epoch, ..Self::unknown() };
        let mut known: HashMap<&NodeAddress, u16> = HashMap::new();
        for (slot, index) in (0..SLOTS).zip(&mut map.indices) {
            let Some(node) = master(slot) else { continue };
            *index = *known.entry(node).or_insert_with(|| {
                map.masters.push(node.clone());
                (map.masters.len() - 1) as u16
            });
        }
        map
    }

    fn of_view(view: &View) -> Self {
        let mut by_slot = vec![None; usize::from(SLOTS)];
        for (slots, node) in &view.masters {
            for slot in slots.clone() {
                by_slot[usize::from(slot)] = Some(node);
            }
        }
        Self::of(view.epoch, |slot| by_slot[usize::from(slot)])
    }

    /// Returns the map that these views show; `None` if there is no view.
    ///
    /// A node of the minority reports that the cluster is down once it has detected that. Until then its epoch is lower than
    /// that of the nodes that have elected another master. Where the remaining views disagree about a slot, the majority
    /// decides. If there is a tie, the slot keeps its master.
    pub(super) fn of_views(views: &[View], current: &Self) -> Option<Self> {
        let views = trusted(views);
        let epoch = views.first()?.epoch;
        let votes: Vec<Self> = views.into_iter().map(Self::of_view).collect();
        let first = votes.first()?;
        if votes.iter().all(|vote| vote == first) {
            return Some(first.clone());
        }
        Some(Self::of(epoch, |slot| {
            let count =
                |node: Option<&NodeAddress>| votes.iter().filter(|vote| vote.master(slot) == node).count();
            let stays = |node: &Option<&NodeAddress>| *node == current.master(slot);
            let candidates = votes.iter().map(|vote| vote.master(slot));
            candidates.max_by_key(|node| (count(*node), stays(node))).flatten()
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::ops::RangeInclusive;

    use super::*;

    fn node(port: u16) -> NodeAddress {
        NodeAddress { host: "10.0.0.1".to_owned(), port }
    }

    fn view(is_ok: bool, epoch: u64, masters: &[(RangeInclusive<u16>, u16)]) -> View {
        let masters = masters.iter().map(|(slots, port)| (slots.clone(), node(*port))).collect();
        View { is_ok, epoch, masters, replicas: Vec::new() }
    }

    fn masters(views: &[View], current: &SlotMap, slots: [u16; 2]) -> [Option<u16>; 2] {
        let map = SlotMap::of_views(views, current).unwrap();
        slots.map(|slot| map.master(slot).map(|node| node.port))
    }

    #[test]
    fn the_majority_counts_first_and_then_the_latest_views_and_then_the_most_votes() {
        let none = SlotMap::unknown();
        let deposed = view(false, 9, &[(0..=16383, 1)]);
        let before = view(true, 3, &[(0..=16383, 1)]);
        let elected = view(true, 4, &[(0..=99, 2), (100..=16383, 1)]);
        let late = view(true, 4, &[(0..=16383, 1)]);
        let at = [0, 100];
        assert_eq!(masters(&[deposed.clone(), elected.clone()], &none, at), [Some(2), Some(1)]);
        assert_eq!(masters(&[before.clone(), before, elected.clone()], &none, at), [Some(2), Some(1)]);
        assert_eq!(masters(&[late.clone(), elected.clone(), elected.clone()], &none, at), [Some(2), Some(1)]);
        // A tie: the slot keeps its master.
        for views in [[late.clone(), elected.clone()], [elected.clone(), late.clone()]] {
            assert_eq!(masters(&views, &SlotMap::of_view(&late), at), [Some(1), Some(1)]);
            assert_eq!(masters(&views, &SlotMap::of_view(&elected), at), [Some(2), Some(1)]);
        }
        // Nodes that all report that the cluster is down still know the masters.
        assert_eq!(masters(&[deposed], &none, at), [Some(1), Some(1)]);
        assert!(SlotMap::of_views(&[], &none).is_none());
    }

    #[test]
    fn maps_with_the_same_masters_are_equal_however_they_were_made() {
        let of_views =
            SlotMap::of_views(&[view(true, 4, &[(0..=0, 2), (1..=16383, 1)])], &SlotMap::unknown());
        let whole = SlotMap::of_views(&[view(true, 4, &[(0..=16383, 1)])], &SlotMap::unknown()).unwrap();
        let corrected = whole.with_master(0, &node(2));
        assert_eq!(Some(&corrected), of_views.as_ref());
        assert_eq!(corrected.with_master(0, &node(1)), whole);
        let lowest: Vec<(u16, &NodeAddress)> = corrected.lowest_slots().collect();
        assert_eq!(lowest, [(0, &node(2)), (1, &node(1))]);
        assert!(corrected.is_complete() && !SlotMap::unknown().is_complete());
        assert_eq!(SlotMap::unknown().master(5), None);
    }
}

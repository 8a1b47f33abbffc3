//! Which node of a cluster keeps which slot.
//!
//! See <https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#key-distribution-model>.

use std::collections::HashMap;
use std::fmt;
use std::ops::RangeInclusive;

use redis::{ErrorKind, RedisError, RedisResult, Value};

const SLOTS: u16 = 16384;

/// Stands for a node where no node keeps the slot.
const NOBODY: u16 = u16::MAX;

/// The address of a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Node {
    pub(super) host: String,
    pub(super) port: u16,
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl Node {
    /// The node that `by` names with this host and port. A cluster without preferred endpoints leaves the host out. It is then
    /// the host of the node that answered.
    fn named(host: &str, port: u16, by: &Self) -> Self {
        let host = if host.is_empty() || host == "?" { &by.host } else { host };
        Self { host: host.to_owned(), port }
    }

    /// The node in `MOVED slot host:port` or `ASK slot host:port`, by what follows the code.
    pub(super) fn of_redirection(detail: &str, by: &Self) -> Option<Self> {
        let mut words = detail.split_ascii_whitespace();
        let slot: u16 = words.next()?.parse().ok()?;
        let (host, port) = words.next()?.rsplit_once(':')?;
        let port = port.parse().ok().filter(|port| *port != 0)?;
        (slot < SLOTS).then(|| Self::named(host, port, by))
    }
}

/// The slot of a key.
pub(super) fn slot(key: &str) -> u16 {
    let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag);
    let hashed = tag.filter(|tag| !tag.is_empty()).unwrap_or(key);
    crc16::State::<crc16::XMODEM>::calculate(hashed.as_bytes()) % SLOTS
}

/// What one node says about the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct View {
    /// Whether the node belongs to the majority, and every slot has a master, as far as the configuration requires it.
    pub(super) is_ok: bool,
    /// The highest epoch that the node has heard of. It grows with each election and each slot that moves.
    pub(super) epoch: u64,
    keepers: Vec<(RangeInclusive<u16>, Node)>,
    replicas: Vec<Node>,
}

impl View {
    /// Reads the replies of the node `by` to `CLUSTER SLOTS` and `CLUSTER INFO`.
    pub(super) fn read(slots: &Value, info: Value, by: &Node) -> RedisResult<Self> {
        let unreadable = || unexpected("the reply is none to CLUSTER SLOTS");
        let (mut keepers, mut replicas) = (Vec::new(), Vec::new());
        for range in array(slots).ok_or_else(unreadable)? {
            let (slots, nodes) = range_of(range, by).ok_or_else(unreadable)?;
            let mut nodes = nodes.into_iter();
            keepers.push((slots, nodes.next().ok_or_else(unreadable)?));
            replicas.extend(nodes);
        }
        let info: String = redis::from_redis_value(info)?;
        let field = |name: &str| {
            let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.map(str::trim)
        };
        let no_epoch = || unexpected("the reply is none to CLUSTER INFO");
        let epoch = field("cluster_current_epoch").and_then(|epoch| epoch.parse().ok());
        let is_ok = field("cluster_state") == Some("ok");
        Ok(Self { is_ok, epoch: epoch.ok_or_else(no_epoch)?, keepers, replicas })
    }

    /// All nodes that it names.
    pub(super) fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.keepers.iter().map(|(_, node)| node).chain(&self.replicas)
    }
}

fn unexpected(what: &'static str) -> RedisError {
    (ErrorKind::UnexpectedReturnType, what).into()
}

fn array(value: &Value) -> Option<&[Value]> {
    match value {
        Value::Array(values) => Some(values),
        _ => None,
    }
}

/// A range of slots, and its nodes, the master first.
fn range_of(range: &Value, by: &Node) -> Option<(RangeInclusive<u16>, Vec<Node>)> {
    let [Value::Int(first), Value::Int(last), nodes @ ..] = array(range)? else { return None };
    let slot = |number: i64| u16::try_from(number).ok().filter(|slot| *slot < SLOTS);
    let nodes: Option<Vec<Node>> = nodes.iter().map(|node| node_of(node, by)).collect();
    Some((slot(*first)?..=slot(*last)?, nodes?))
}

fn node_of(node: &Value, by: &Node) -> Option<Node> {
    let [host, Value::Int(port), ..] = array(node)? else { return None };
    let host = match host {
        Value::BulkString(host) => std::str::from_utf8(host).ok()?,
        Value::SimpleString(host) => host,
        Value::Nil => "",
        _ => return None,
    };
    Some(Node::named(host, u16::try_from(*port).ok()?, by))
}

/// Which node keeps which slot. Equal layouts are equal values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// The epoch of the views that it was taken from.
    pub(super) epoch: u64,
    /// The masters that keep slots, by the lowest of these.
    pub(super) masters: Vec<Node>,
    /// By the slot, the place of its master.
    places: Vec<u16>,
}

impl Layout {
    /// No node keeps any slot.
    pub(super) fn unknown() -> Self {
        Self { epoch: 0, masters: Vec::new(), places: vec![NOBODY; usize::from(SLOTS)] }
    }

    /// The place of the slot's master among the [`masters`](Self::masters).
    pub(super) fn place(&self, slot: u16) -> Option<usize> {
        self.places.get(usize::from(slot)).filter(|place| **place != NOBODY).map(|place| usize::from(*place))
    }

    fn keeper(&self, slot: u16) -> Option<&Node> {
        self.place(slot).and_then(|place| self.masters.get(place))
    }

    /// Whether each slot has the same keeper in both.
    pub(super) fn keeps_as(&self, other: &Self) -> bool {
        self.masters == other.masters && self.places == other.places
    }

    /// Whether each slot has a keeper.
    pub(super) fn is_complete(&self) -> bool {
        !self.places.contains(&NOBODY)
    }

    /// The masters, each with the lowest slot that it keeps.
    pub(super) fn lowest_slots(&self) -> impl Iterator<Item = (u16, &Node)> {
        let lowest = |place| self.places.iter().position(|of| usize::from(*of) == place).unwrap_or_default();
        self.masters.iter().enumerate().map(move |(place, node)| (lowest(place) as u16, node))
    }

    /// Returns the same layout with another keeper of one slot.
    pub(super) fn corrected(&self, slot: u16, keeper: &Node) -> Self {
        Self::of(self.epoch, |of| if of == slot { Some(keeper) } else { self.keeper(of) })
    }

    fn of<'a>(epoch: u64, keeper: impl Fn(u16) -> Option<&'a Node>) -> Self {
        let mut layout = Self { epoch, ..Self::unknown() };
        let mut known: HashMap<&Node, u16> = HashMap::new();
        for (slot, place) in (0..SLOTS).zip(&mut layout.places) {
            let Some(node) = keeper(slot) else { continue };
            *place = *known.entry(node).or_insert_with(|| {
                layout.masters.push(node.clone());
                (layout.masters.len() - 1) as u16
            });
        }
        layout
    }

    /// The layout that these views show; `None` if there is no view.
    ///
    /// A node of the minority reports that the cluster is down once it has detected that. Until then its epoch is lower than
    /// that of the nodes that have elected another master. Where the remaining views disagree about a slot, the majority
    /// decides. If there is a tie, the slot keeps its master.
    pub(super) fn of_views(views: &[View], current: &Self) -> Option<Self> {
        let views = trusted(views);
        let epoch = views.first()?.epoch;
        let votes: Vec<Self> = views.iter().map(|view| view.layout()).collect();
        let first = votes.first()?;
        if votes.iter().all(|vote| vote == first) {
            return Some(first.clone());
        }
        Some(Self::of(epoch, |slot| {
            let count = |node: Option<&Node>| votes.iter().filter(|vote| vote.keeper(slot) == node).count();
            let stays = |node: &Option<&Node>| *node == current.keeper(slot);
            let named = votes.iter().map(|vote| vote.keeper(slot));
            named.max_by_key(|node| (count(*node), stays(node))).flatten()
        }))
    }
}

/// The views that count: those of the majority, if there is one, and of these the ones with the highest epoch.
pub(super) fn trusted(views: &[View]) -> Vec<&View> {
    let has_majority = views.iter().any(|view| view.is_ok);
    let views = || views.iter().filter(|view| view.is_ok || !has_majority);
    let latest = views().map(|view| view.epoch).max();
    views().filter(|view| Some(view.epoch) == latest).collect()
}

impl View {
    fn layout(&self) -> Layout {
        let mut by_slot = vec![None; usize::from(SLOTS)];
        for (slots, node) in &self.keepers {
            for slot in slots.clone() {
                by_slot[usize::from(slot)] = Some(node);
            }
        }
        Layout::of(self.epoch, |slot| by_slot[usize::from(slot)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn node(port: u16) -> Node {
        Node { host: "10.0.0.1".to_owned(), port }
    }

    fn view(is_ok: bool, epoch: u64, keepers: &[(RangeInclusive<u16>, u16)]) -> View {
        let keepers = keepers.iter().map(|(slots, port)| (slots.clone(), node(*port))).collect();
        View { is_ok, epoch, keepers, replicas: Vec::new() }
    }

    fn keepers(views: &[View], current: &Layout, slots: [u16; 2]) -> [Option<u16>; 2] {
        let layout = Layout::of_views(views, current).unwrap();
        slots.map(|slot| layout.keeper(slot).map(|node| node.port))
    }

    #[rstest]
    #[case::whole_key("123456789", 0x31C3)]
    #[case::tag("pmcp:tasks:{alice}:t1", slot("alice"))]
    #[case::first_tag("{alice}{bob}", slot("alice"))]
    #[case::tag_with_an_opening_brace("x{{alice}", slot("{alice"))]
    #[case::an_empty_tag_is_none("pmcp:{}:t1", crc16::State::<crc16::XMODEM>::calculate(b"pmcp:{}:t1") % SLOTS)]
    #[case::an_open_tag_is_none("pmcp:{t1", crc16::State::<crc16::XMODEM>::calculate(b"pmcp:{t1") % SLOTS)]
    fn a_slot_is_the_checksum_of_the_hash_tag(#[case] key: &str, #[case] expected: u16) {
        assert_eq!(slot(key), expected);
    }

    #[rstest]
    #[case::plain("3999 10.0.0.2:6381", Some(("10.0.0.2", 6381)))]
    #[case::name("3999 redis-2.internal:6381", Some(("redis-2.internal", 6381)))]
    #[case::ipv6("3999 fd00::2:6381", Some(("fd00::2", 6381)))]
    #[case::unknown_endpoint("3999 :6381", Some(("10.0.0.1", 6381)))]
    #[case::unknown_name("3999 ?:6381", Some(("10.0.0.1", 6381)))]
    #[case::no_node("3999", None)]
    #[case::no_port("3999 10.0.0.2", None)]
    #[case::port_zero("3999 10.0.0.2:0", None)]
    #[case::port_too_large("3999 10.0.0.2:65536", None)]
    #[case::no_slot("10.0.0.2:6381", None)]
    #[case::slot_too_large("16384 10.0.0.2:6381", None)]
    #[case::nothing("", None)]
    fn a_redirection_names_a_node_or_is_malformed(
        #[case] detail: &str,
        #[case] expected: Option<(&str, u16)>,
    ) {
        let named = Node::of_redirection(detail, &node(1));
        let expected = expected.map(|(host, port)| Node { host: host.to_owned(), port });
        assert_eq!(named, expected);
    }

    fn text(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    #[test]
    fn a_view_is_read_with_hosts_that_are_missing_replaced_by_that_of_the_node_that_answers() {
        let of =
            |host: Value, port| Value::Array(vec![host, Value::Int(port), text("id"), Value::Array(vec![])]);
        let slots = Value::Array(vec![
            Value::Array(vec![Value::Int(0), Value::Int(99), of(Value::Nil, 1), of(text("?"), 4)]),
            Value::Array(vec![Value::Int(100), Value::Int(16383), of(text(""), 2), of(text("h"), 5)]),
        ]);
        let info = text("cluster_enabled:1\r\ncluster_state:ok\r\ncluster_current_epoch:7\r\n");
        let read = View::read(&slots, info, &node(9)).unwrap();
        let expected = view(true, 7, &[(0..=99, 1), (100..=16383, 2)]);
        let replicas = vec![node(4), Node { host: "h".to_owned(), port: 5 }];
        assert_eq!(read, View { replicas, ..expected });
    }

    #[rstest]
    #[case::no_array(text("OK"), "cluster_state:ok\r\ncluster_current_epoch:7")]
    #[case::slot_too_large(
        Value::Array(vec![Value::Array(vec![Value::Int(0), Value::Int(16384), Value::Nil])]),
        "cluster_current_epoch:7"
    )]
    #[case::no_master(
        Value::Array(vec![Value::Array(vec![Value::Int(0), Value::Int(1)])]),
        "cluster_current_epoch:7"
    )]
    #[case::no_epoch(Value::Array(vec![]), "cluster_state:ok")]
    fn replies_that_are_no_view_are_an_error(#[case] slots: Value, #[case] info: &str) {
        assert!(View::read(&slots, text(info), &node(9)).is_err());
    }

    #[test]
    fn views_of_the_majority_count_first_then_the_latest_then_what_most_say() {
        let none = Layout::unknown();
        let deposed = view(false, 9, &[(0..=16383, 1)]);
        let before = view(true, 3, &[(0..=16383, 1)]);
        let elected = view(true, 4, &[(0..=99, 2), (100..=16383, 1)]);
        let late = view(true, 4, &[(0..=16383, 1)]);
        let at = [0, 100];
        assert_eq!(keepers(&[deposed.clone(), elected.clone()], &none, at), [Some(2), Some(1)]);
        assert_eq!(keepers(&[before.clone(), before, elected.clone()], &none, at), [Some(2), Some(1)]);
        assert_eq!(keepers(&[late.clone(), elected.clone(), elected.clone()], &none, at), [Some(2), Some(1)]);
        // A tie: the slot keeps its master.
        for views in [[late.clone(), elected.clone()], [elected.clone(), late.clone()]] {
            assert_eq!(keepers(&views, &late.layout(), at), [Some(1), Some(1)]);
            assert_eq!(keepers(&views, &elected.layout(), at), [Some(2), Some(1)]);
        }
        // Nodes that all say that the cluster is down still know who is there.
        assert_eq!(keepers(&[deposed], &none, at), [Some(1), Some(1)]);
        assert!(Layout::of_views(&[], &none).is_none());
    }

    #[test]
    fn equal_layouts_are_equal_however_they_came_about() {
        let of_views = Layout::of_views(&[view(true, 4, &[(0..=0, 2), (1..=16383, 1)])], &Layout::unknown());
        let whole = Layout::of_views(&[view(true, 4, &[(0..=16383, 1)])], &Layout::unknown()).unwrap();
        let corrected = whole.corrected(0, &node(2));
        assert_eq!(Some(&corrected), of_views.as_ref());
        assert_eq!(corrected.corrected(0, &node(1)), whole);
        let lowest: Vec<(u16, &Node)> = corrected.lowest_slots().collect();
        assert_eq!(lowest, [(0, &node(2)), (1, &node(1))]);
        assert!(corrected.is_complete() && !Layout::unknown().is_complete());
        assert_eq!(Layout::unknown().keeper(5), None);
    }
}

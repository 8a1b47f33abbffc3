//! What one node reports about the cluster.

use std::ops::RangeInclusive;

use redis::{ErrorKind, RedisError, RedisResult, Value};

use super::address::NodeAddress;
use super::slot::SLOTS;

/// What one node reports about the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct View {
    /// Whether the node reports that the cluster is up: it belongs to the majority, and the slots have the masters that
    /// the configuration of the cluster requires.
    pub(super) is_ok: bool,
    /// The highest epoch that the node knows. Each election and each slot that moves increases it.
    pub(super) epoch: u64,
    pub(super) masters: Vec<(RangeInclusive<u16>, NodeAddress)>,
    pub(super) replicas: Vec<NodeAddress>,
}

impl View {
    /// Reads the replies of the node `by` to `CLUSTER SLOTS` and `CLUSTER INFO`.
    pub(super) fn read(slots: &Value, info: Value, by: &NodeAddress) -> RedisResult<Self> {
        let malformed = || unexpected("the reply to CLUSTER SLOTS is malformed");
        let (mut masters, mut replicas) = (Vec::new(), Vec::new());
        for range in array(slots).ok_or_else(malformed)? {
            let (slots, nodes) = range_of(range, by).ok_or_else(malformed)?;
            let mut nodes = nodes.into_iter();
            masters.push((slots, nodes.next().ok_or_else(malformed)?));
            replicas.extend(nodes);
        }
        let info: String = redis::from_redis_value(info)?;
        let field = |name: &str| {
            let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.map(str::trim)
        };
        let epoch = field("cluster_current_epoch").and_then(|epoch| epoch.parse().ok());
        let epoch = epoch.ok_or_else(|| unexpected("the reply to CLUSTER INFO is malformed"))?;
        Ok(Self { is_ok: field("cluster_state") == Some("ok"), epoch, masters, replicas })
    }

    /// Returns all nodes in the view.
    pub(super) fn nodes(&self) -> impl Iterator<Item = &NodeAddress> {
        self.masters.iter().map(|(_, node)| node).chain(&self.replicas)
    }
}

/// Returns the views to use: the views of nodes in the majority (`is_ok`), or all views if no node is in the majority. Of
/// these, it returns only the views with the highest epoch.
pub(super) fn trusted(views: &[View]) -> Vec<&View> {
    let has_majority = views.iter().any(|view| view.is_ok);
    let views = || views.iter().filter(|view| view.is_ok || !has_majority);
    let latest = views().map(|view| view.epoch).max();
    views().filter(|view| Some(view.epoch) == latest).collect()
}

fn unexpected(reason: &'static str) -> RedisError {
    (ErrorKind::UnexpectedReturnType, reason).into()
}

fn array(value: &Value) -> Option<&[Value]> {
    match value {
        Value::Array(values) => Some(values),
        _ => None,
    }
}

/// Reads a range of slots and its nodes, the master first.
fn range_of(range: &Value, by: &NodeAddress) -> Option<(RangeInclusive<u16>, Vec<NodeAddress>)> {
    let [Value::Int(first), Value::Int(last), nodes @ ..] = array(range)? else { return None };
    let slot = |number: i64| u16::try_from(number).ok().filter(|slot| *slot < SLOTS);
    let nodes: Option<Vec<NodeAddress>> = nodes.iter().map(|node| address_of(node, by)).collect();
    Some((slot(*first)?..=slot(*last)?, nodes?))
}

fn address_of(node: &Value, by: &NodeAddress) -> Option<NodeAddress> {
    let [host, Value::Int(port), ..] = array(node)? else { return None };
    let host = match host {
        Value::BulkString(host) => std::str::from_utf8(host).ok()?,
        Value::SimpleString(host) => host,
        Value::Nil => "",
        _ => return None,
    };
    Some(NodeAddress::reported(host, u16::try_from(*port).ok()?, by))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn node(port: u16) -> NodeAddress {
        NodeAddress { host: "10.0.0.1".to_owned(), port }
    }

    fn text(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    #[test]
    fn a_host_that_a_node_leaves_out_is_the_host_of_that_node() {
        let of =
            |host: Value, port| Value::Array(vec![host, Value::Int(port), text("id"), Value::Array(vec![])]);
        let slots = Value::Array(vec![
            Value::Array(vec![Value::Int(0), Value::Int(99), of(Value::Nil, 1), of(text("?"), 4)]),
            Value::Array(vec![Value::Int(100), Value::Int(16383), of(text(""), 2), of(text("h"), 5)]),
        ]);
        let info = text("cluster_enabled:1\r\ncluster_state:ok\r\ncluster_current_epoch:7\r\n");
        let expected = View {
            is_ok: true,
            epoch: 7,
            masters: vec![(0..=99, node(1)), (100..=16383, node(2))],
            replicas: vec![node(4), NodeAddress { host: "h".to_owned(), port: 5 }],
        };
        assert_eq!(View::read(&slots, info, &node(9)).unwrap(), expected);
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
    fn malformed_replies_are_an_error(#[case] slots: Value, #[case] info: &str) {
        assert!(View::read(&slots, text(info), &node(9)).is_err());
    }
}

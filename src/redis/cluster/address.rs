//! The address of a node, as nodes report it.

use std::fmt;

use super::slot::SLOTS;

/// The address of a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct NodeAddress {
    pub(super) host: String,
    pub(super) port: u16,
}

impl fmt::Display for NodeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl NodeAddress {
    /// Returns the address that the node `by` reports with this host and port. A cluster without preferred endpoints leaves
    /// the host out. It is then the host of `by`.
    pub(super) fn reported(host: &str, port: u16, by: &Self) -> Self {
        let host = if host.is_empty() || host == "?" { &by.host } else { host };
        Self { host: host.to_owned(), port }
    }

    /// Returns the address in `MOVED slot host:port` or `ASK slot host:port`. `detail` is the text after the code.
    pub(super) fn of_redirection(detail: &str, by: &Self) -> Option<Self> {
        let mut words = detail.split_ascii_whitespace();
        let slot: u16 = words.next()?.parse().ok()?;
        let (host, port) = words.next()?.rsplit_once(':')?;
        let port = port.parse().ok().filter(|port| *port != 0)?;
        (slot < SLOTS).then(|| Self::reported(host, port, by))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

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
    fn a_redirection_has_an_address_or_is_malformed(
        #[case] detail: &str,
        #[case] expected: Option<(&str, u16)>,
    ) {
        let by = NodeAddress { host: "10.0.0.1".to_owned(), port: 1 };
        let expected = expected.map(|(host, port)| NodeAddress { host: host.to_owned(), port });
        assert_eq!(NodeAddress::of_redirection(detail, &by), expected);
    }
}

//! The servers that sentinels report as the master.

use std::cmp::Reverse;
use std::fmt;

/// A server that sentinels report as the master.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::redis) struct Candidate {
    pub(super) host: String,
    pub(super) port: u16,
    /// The number of the latest failover that elected it; 0 if no sentinel reports the number.
    pub(super) config_epoch: u64,
    /// How many sentinels report it.
    pub(super) votes: usize,
}

impl Candidate {
    pub(in crate::redis) fn is_at(&self, other: &Self) -> bool {
        (&self.host, self.port) == (&other.host, other.port)
    }
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Adds the answer of a sentinel. The order stays: the latest failover first, then the most votes.
pub(super) fn count(candidates: &mut Vec<Candidate>, answer: Candidate) {
    match candidates.iter_mut().find(|candidate| candidate.is_at(&answer)) {
        Some(known) => {
            known.votes += answer.votes;
            known.config_epoch = known.config_epoch.max(answer.config_epoch);
        }
        None => candidates.push(answer),
    }
    candidates.sort_by_key(|candidate| Reverse((candidate.config_epoch, candidate.votes)));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(host: &str, config_epoch: u64, votes: usize) -> Candidate {
        Candidate { host: host.to_owned(), port: 6379, config_epoch, votes }
    }

    fn counted(answers: &[(&str, u64)]) -> Vec<Candidate> {
        let mut candidates = Vec::new();
        for (host, config_epoch) in answers {
            count(&mut candidates, candidate(host, *config_epoch, 1));
        }
        candidates
    }

    #[test]
    fn the_latest_failover_comes_first_and_then_the_server_that_most_sentinels_report() {
        let after_a_failover = counted(&[("old", 1), ("old", 1), ("new", 2)]);
        assert_eq!(after_a_failover, [candidate("new", 2, 1), candidate("old", 1, 2)]);
        let of_one_failover = counted(&[("a", 3), ("b", 3), ("b", 3)]);
        assert_eq!(of_one_failover, [candidate("b", 3, 2), candidate("a", 3, 1)]);
        // The users of some sentinels lack the permission to read the number of the failover. The other sentinels
        // report it.
        let partly_denied = counted(&[("old", 0), ("new", 2), ("new", 0)]);
        assert_eq!(partly_denied, [candidate("new", 2, 2), candidate("old", 0, 1)]);
    }
}

//! The version of a record.

use std::fmt;

/// The number of writes of a record since it was created: 1, 2, 3, …, exact up to 2^53 - 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(u64);

impl Version {
    /// No record. As the expected version of [`put_if_version`](crate::StorageBackend::put_if_version) it means "create".
    pub const ABSENT: Self = Self(0);
    /// The version of a new record.
    pub const FIRST: Self = Self(1);
    /// The last version, 2^53 - 1: the largest integer that every engine stores exactly.
    pub const MAX: Self = Self((1 << 53) - 1);

    /// Returns the version as a number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Returns the next version; `None` after [`MAX`](Self::MAX).
    pub const fn next(self) -> Option<Self> {
        if self.0 < Self::MAX.0 { Some(Self(self.0 + 1)) } else { None }
    }
}

impl From<u64> for Version {
    fn from(version: u64) -> Self {
        Self(version)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_end_at_2_to_the_53_less_1() {
        assert_eq!(Version::from(9_007_199_254_740_990).next(), Some(Version::MAX));
        assert_eq!(Version::MAX.next(), None);
    }
}

//! Named parts of a record: bytes that the engine stores next to the record's data. An update of the data neither
//! sends nor reads the parts.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;

use super::error::StorageError;
use super::version::Version;

/// The maximum number of parts of a record.
pub const MAX_PARTS: usize = 4;

/// The default maximum size of a part, in bytes.
pub const DEFAULT_MAX_PART_BYTES: usize = 4 * 1024 * 1024;

/// The longest name of a part, in bytes.
const MAX_NAME_BYTES: usize = 32;

/// The name of a part: 1 to 32 of `a`-`z`, `0`-`9` and `_`.
///
/// ```
/// use mcp_task_store::PartName;
///
/// const OUTPUT: PartName = PartName::from_static("output");
/// assert_eq!(OUTPUT, PartName::try_from("output".to_owned())?);
/// # Ok::<(), mcp_task_store::StorageError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartName(Cow<'static, str>);

impl PartName {
    /// Creates a name at compile time.
    ///
    /// # Panics
    /// If the name is invalid. For a constant, the compiler reports the panic as an error.
    pub const fn from_static(name: &'static str) -> Self {
        assert!(
            is_legal(name.as_bytes()),
            "the name of a part must be 1 to 32 characters of a-z, 0-9 and '_'"
        );
        Self(Cow::Borrowed(name))
    }

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

const fn is_legal(name: &[u8]) -> bool {
    let mut at = 0;
    while at < name.len() {
        if !matches!(name[at], b'a'..=b'z' | b'0'..=b'9' | b'_') {
            return false;
        }
        at += 1;
    }
    !name.is_empty() && name.len() <= MAX_NAME_BYTES
}

impl TryFrom<String> for PartName {
    type Error = StorageError;

    /// # Errors
    /// [`StorageError::InvalidKey`] for an invalid name.
    fn try_from(name: String) -> Result<Self, StorageError> {
        if is_legal(name.as_bytes()) {
            return Ok(Self(Cow::Owned(name)));
        }
        Err(StorageError::InvalidKey {
            reason: format!(
                "the part name {name:?} must be 1 to {MAX_NAME_BYTES} characters of a-z, 0-9 and '_'"
            ),
        })
    }
}

impl fmt::Display for PartName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a write does to one part of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PartChange {
    /// Stores these bytes as the part. They replace any earlier bytes.
    Set(Bytes),
    /// Removes the part. Has no effect if the record does not have the part.
    Clear,
}

/// What a write does to the parts of a record, by name. Parts without a change stay as they are.
pub type PartChanges = BTreeMap<PartName, PartChange>;

/// The names and sizes in bytes of the parts that a record has.
pub type PartSizes = BTreeMap<PartName, usize>;

/// A part, as an engine returns it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Part {
    /// The bytes, as they were written.
    pub data: Bytes,
    /// The version of the record that the bytes belong to.
    pub version: Version,
}

impl Part {
    /// Creates a part. Engines return it.
    pub fn new(data: impl Into<Bytes>, version: Version) -> Self {
        Self { data: data.into(), version }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::empty("")]
    #[case::too_long(&"x".repeat(33))]
    #[case::upper_case("Output")]
    #[case::separator("a=b")]
    #[case::not_ascii("é")]
    fn an_illegal_name_is_refused(#[case] name: &str) {
        assert!(matches!(PartName::try_from(name.to_owned()), Err(StorageError::InvalidKey { .. })));
    }

    #[test]
    fn a_legal_name_is_accepted() {
        for name in ["a", "check_point2", &"x".repeat(32)] {
            assert_eq!(PartName::try_from(name.to_owned()).unwrap().as_str(), name);
        }
    }
}

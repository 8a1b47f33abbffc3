//! A secret that a task keeps in its record.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A secret of one task, with which a server seals what a client later returns. Every instance reads it from the record.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Secret(String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

#[cfg(feature = "rmcp")]
impl Secret {
    /// Returns 32 bytes in hexadecimal. They are two random UUIDs: 244 bits from the random number generator of the operating
    /// system.
    pub(crate) fn random() -> Self {
        let [first, second] = [uuid::Uuid::new_v4(), uuid::Uuid::new_v4()].map(uuid::Uuid::simple);
        Self(format!("{first}{second}"))
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

#[cfg(all(test, feature = "rmcp"))]
mod tests {
    use super::*;

    #[test]
    fn secrets_differ_and_do_not_show() {
        let (one, other) = (Secret::random(), Secret::random());
        assert_ne!(one, other);
        assert_eq!((one.as_bytes().len(), format!("{one:?}")), (64, "Secret(..)".to_owned()));
    }
}

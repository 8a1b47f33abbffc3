//! The columns of a record, and their checks.

use rusqlite::Row;
use rusqlite::types::ValueRef;

use crate::backend::engine::from_millis;
use crate::backend::{PartName, PartSizes, Record, Version};

/// A row of `records` without its data. A text says which column cannot be read, and why.
pub(super) struct Fields {
    pub(super) version: Version,
    pub(super) created_at: u64,
    /// Milliseconds since the epoch.
    pub(super) expires_at: Option<u64>,
    pub(super) parts: PartSizes,
}

/// What a row of `records` holds at these columns.
pub(super) enum Stored {
    Readable(Fields),
    Damaged { expires_at: Option<u64>, created_at: u64, reason: String },
}

impl Stored {
    /// Reads the columns `version`, `created_at`, `expires_at` and `parts`, of which the first has this place in the row.
    pub(super) fn read(row: &Row<'_>, place: usize) -> rusqlite::Result<Self> {
        let integer = |place: usize| -> rusqlite::Result<Option<u64>> {
            Ok(row.get_ref(place)?.as_i64().ok().and_then(|value| u64::try_from(value).ok()))
        };
        let (version, created_at) = (integer(place)?, integer(place + 1)?);
        let never = row.get_ref(place + 2)? == ValueRef::Null;
        let expires_at = integer(place + 2)?;
        let parts = match row.get_ref(place + 3)? {
            ValueRef::Text(text) => std::str::from_utf8(text).ok().and_then(parse_parts),
            _ => None,
        };
        let damaged = |column: &str| Self::Damaged {
            expires_at,
            created_at: created_at.unwrap_or(0),
            reason: format!("the column {column} cannot be read"),
        };
        let version =
            version.map(Version::from).filter(|version| (Version::FIRST..=Version::MAX).contains(version));
        Ok(match (version, created_at, parts) {
            (None, ..) => damaged("version"),
            (_, None, _) => damaged("created_at"),
            (.., None) => damaged("parts"),
            _ if expires_at.is_none() && !never => damaged("expires_at"),
            (Some(version), Some(created_at), Some(parts)) => {
                Self::Readable(Fields { version, created_at, expires_at, parts })
            }
        })
    }

    pub(super) fn is_live(&self, now_ms: u64) -> bool {
        let (Self::Readable(Fields { expires_at, .. }) | Self::Damaged { expires_at, .. }) = self;
        expires_at.is_none_or(|at| now_ms < at)
    }
}

impl Fields {
    pub(super) fn into_record(self, data: &[u8]) -> Record {
        let data = bytes::Bytes::copy_from_slice(data);
        Record::new(data, self.version, self.expires_at.map(from_millis), self.parts)
    }
}

/// Writes the names and sizes of parts: `checkpoint=5000 output=123`.
pub(super) fn write_parts(parts: &PartSizes) -> String {
    let each: Vec<String> = parts.iter().map(|(name, size)| format!("{name}={size}")).collect();
    each.join(" ")
}

fn parse_parts(text: &str) -> Option<PartSizes> {
    let mut parts = PartSizes::new();
    for part in text.split(' ').filter(|part| !part.is_empty()) {
        let (name, size) = part.split_once('=')?;
        parts.insert(PartName::try_from(name.to_owned()).ok()?, size.parse().ok()?);
    }
    Some(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_read_as_they_were_written() {
        let [input, output] = ["input", "output"].map(|name| PartName::try_from(name.to_owned()).unwrap());
        for parts in [
            PartSizes::new(),
            PartSizes::from([(input.clone(), 0)]),
            PartSizes::from([(input, 4_194_304), (output, 1)]),
        ] {
            assert_eq!(parse_parts(&write_parts(&parts)), Some(parts));
        }
        for damaged in ["input", "input=", "input=x", "input=-1", "Input=1", "=1"] {
            assert_eq!(parse_parts(damaged), None, "{damaged}");
        }
    }
}

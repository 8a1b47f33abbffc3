//! The error codes of the scripts' own, sent through `redis.error_reply`.

use crate::Version;

/// Why a script refused. It wrote nothing.
///
/// Each code is followed by a detail, needed or not: Redis 7 puts `ERR` in front of a code that stands alone.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    NotFound,
    VersionConflict { actual: Version },
    VersionExhausted,
    CapacityExceeded { live: u64 },
    Corrupt { field: String },
}

impl Refusal {
    /// Reads the code of an error reply and what follows it; `None` for errors that are not the scripts'.
    pub(crate) fn parse(code: &str, detail: Option<&str>) -> Option<Self> {
        let detail = detail.unwrap_or_default();
        match code {
            "NOTFOUND" => Some(Self::NotFound),
            "VERSIONCONFLICT" => {
                let actual = detail.parse::<u64>().ok()?.into();
                Some(Self::VersionConflict { actual })
            }
            "VERSIONEXHAUSTED" => Some(Self::VersionExhausted),
            "CAPACITYEXCEEDED" => Some(Self::CapacityExceeded { live: detail.parse().ok()? }),
            "CORRUPT" => Some(Self::Corrupt { field: detail.to_owned() }),
            _ => None,
        }
    }
}

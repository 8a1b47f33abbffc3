//! The error codes of the scripts' own, sent through `redis.error_reply`.

use super::exact;
use crate::Version;

/// Why a script refused. It wrote nothing.
///
/// Each code is followed by a detail, needed or not: Redis 7 puts `ERR` in front of a code that stands alone.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Found(Found),
    CapacityExceeded { live: u64 },
}

/// What a write found in place of the record that it wanted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// None that is live.
    Nothing,
    /// A live record at this version.
    Live(Version),
    /// One that cannot be read because of this field.
    Corrupt(&'static str),
}

impl Refusal {
    /// Reads the code of an error reply and what follows it; `None` for errors that are not the scripts'.
    pub(crate) fn parse(code: &str, detail: Option<&str>) -> Option<Self> {
        let detail = detail?;
        match code {
            "FOUND" => Found::parse(detail).map(Self::Found),
            "CAPACITYEXCEEDED" => Some(Self::CapacityExceeded { live: detail.parse().ok()? }),
            _ => None,
        }
    }
}

impl Found {
    fn parse(detail: &str) -> Option<Self> {
        let mut parts = detail.splitn(5, ' ');
        let (has_data, is_live) = (flag(parts.next()?)?, flag(parts.next()?)?);
        let (version, expires_at) = (length(parts.next()?)?, length(parts.next()?)?);
        let (version, expires_at) = fields(version, expires_at, parts.next()?)?;
        if version.is_none() && expires_at.is_none() && !has_data {
            return Some(Self::Nothing);
        }
        Some(match (version.and_then(exact), expires_at.map(exact)) {
            (_, Some(None)) => Self::Corrupt("expires_at"),
            _ if !is_live => Self::Nothing,
            (None, _) => Self::Corrupt("version"),
            _ if !has_data => Self::Corrupt("data"),
            (Some(version), _) => Self::Live(version.into()),
        })
    }
}

/// Two fields that stand in one text, by their lengths.
fn fields(first: Option<usize>, second: Option<usize>, text: &str) -> Option<(Option<&str>, Option<&str>)> {
    let (head, tail) = text.split_at_checked(first.unwrap_or(0))?;
    (tail.len() == second.unwrap_or(0)).then_some((first.map(|_| head), second.map(|_| tail)))
}

/// A length, -1 for a field that is missing.
fn length(text: &str) -> Option<Option<usize>> {
    if text == "-1" { Some(None) } else { text.parse().ok().map(Some) }
}

fn flag(text: &str) -> Option<bool> {
    match text {
        "0" => Some(false),
        "1" => Some(true),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::nothing("0 1 -1 -1 ", Some(Found::Nothing))]
    #[case::expired("1 0 1 13 31795000000000", Some(Found::Nothing))]
    #[case::expired_and_damaged("0 0 1 13 ?1795000000000", Some(Found::Nothing))]
    #[case::live("1 1 1 13 71795000000000", Some(Found::Live(Version::from(7))))]
    #[case::live_for_ever("1 1 16 -1 9007199254740991", Some(Found::Live(Version::MAX)))]
    #[case::unreadable_version("1 1 2 -1 ??", Some(Found::Corrupt("version")))]
    #[case::version_too_large("1 1 16 -1 9007199254740992", Some(Found::Corrupt("version")))]
    #[case::no_version("1 1 -1 -1 ", Some(Found::Corrupt("version")))]
    #[case::empty_version_alone("0 1 0 -1 ", Some(Found::Corrupt("version")))]
    #[case::unreadable_expires_at("1 1 1 3 71?5", Some(Found::Corrupt("expires_at")))]
    #[case::empty_expires_at("1 1 1 0 7", Some(Found::Corrupt("expires_at")))]
    #[case::expires_at_counts_first("0 1 1 1 ??", Some(Found::Corrupt("expires_at")))]
    #[case::no_data("0 1 1 -1 7", Some(Found::Corrupt("data")))]
    #[case::a_part_too_few("1 1 1 7", None)]
    #[case::shorter_than_it_says("1 1 3 -1 7", None)]
    #[case::longer_than_it_says("1 1 1 -1 75", None)]
    #[case::no_flag("1 yes 1 -1 7", None)]
    fn what_a_write_found_is_told_from_the_fields(#[case] detail: &str, #[case] found: Option<Found>) {
        assert_eq!(Refusal::parse("FOUND", Some(detail)), found.map(Refusal::Found));
    }
}

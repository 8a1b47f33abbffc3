//! The error codes of the scripts, which `redis.error_reply` returns.

use serde_json::Value;

use super::exact;
use crate::backend::Version;

/// Why a script refused a write. The script wrote nothing.
///
/// A detail follows each code, because Redis 7 adds `ERR` in front of a code without one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Found(Found),
    CapacityExceeded { live: u64 },
    TooManyParts { count: usize },
}

/// The record that a refused write found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// No live record.
    Nothing,
    /// A live record at this version.
    Live(Version),
    /// A record that cannot be read because of this field.
    Corrupt(&'static str),
}

impl Refusal {
    /// Reads the code and the detail of an error reply; `None` for an error that no script returns.
    pub(crate) fn parse(code: &str, detail: Option<&str>) -> Option<Self> {
        let detail = detail?;
        match code {
            "FOUND" => Found::parse(detail).map(Self::Found),
            "TOOMANYPARTS" => Some(Self::TooManyParts { count: detail.parse().ok()? }),
            "CAPACITYEXCEEDED" => Some(Self::CapacityExceeded { live: detail.parse().ok()? }),
            _ => None,
        }
    }
}

impl Found {
    fn parse(detail: &str) -> Option<Self> {
        // A missing field is `false`.
        type Fields = (Value, Value, u8, Value, bool);
        let (version, expires_at, has_data, is_live, has_parts): Fields =
            serde_json::from_str(detail).ok()?;
        if !is_there(&version) && !is_there(&expires_at) && has_data == 0 {
            return Some(Self::Nothing);
        }
        let number = |field: &Value| field.as_str().and_then(exact);
        Some(match number(&version) {
            _ if is_there(&expires_at) && number(&expires_at).is_none() => Self::Corrupt("expires_at"),
            _ if !is_there(&is_live) => Self::Nothing,
            None => Self::Corrupt("version"),
            _ if has_data == 0 => Self::Corrupt("data"),
            _ if !has_parts => Self::Corrupt("parts"),
            Some(version) => Self::Live(version.into()),
        })
    }
}

/// Returns whether the value is true in Lua.
fn is_there(value: &Value) -> bool {
    !matches!(value, Value::Bool(false) | Value::Null)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::nothing(r#"[false,false,0,true,true]"#, Some(Found::Nothing))]
    #[case::expired(r#"["3","1795000000000",1,false,true]"#, Some(Found::Nothing))]
    #[case::expired_and_damaged(r#"["?","1795000000000",0,false,true]"#, Some(Found::Nothing))]
    #[case::live(r#"["7","1795000000000",1,true,true]"#, Some(Found::Live(Version::from(7))))]
    #[case::live_without_expiry(r#"["9007199254740991",false,1,true,true]"#, Some(Found::Live(Version::MAX)))]
    #[case::unreadable_version(r#"["\u0000?",false,1,true,true]"#, Some(Found::Corrupt("version")))]
    #[case::version_too_large(r#"["9007199254740992",false,1,true,true]"#, Some(Found::Corrupt("version")))]
    #[case::no_version(r#"[false,false,1,true,true]"#, Some(Found::Corrupt("version")))]
    #[case::empty_version_alone(r#"["",false,0,true,true]"#, Some(Found::Corrupt("version")))]
    #[case::unreadable_expires_at(r#"["7","1e5",1,true,true]"#, Some(Found::Corrupt("expires_at")))]
    #[case::empty_expires_at(r#"["7","",1,true,true]"#, Some(Found::Corrupt("expires_at")))]
    #[case::expires_at_counts_first(r#"["?","?",0,false,true]"#, Some(Found::Corrupt("expires_at")))]
    #[case::no_data(r#"["7",false,0,true,true]"#, Some(Found::Corrupt("data")))]
    #[case::unreadable_parts(r#"["7",false,1,true,false]"#, Some(Found::Corrupt("parts")))]
    #[case::a_field_too_few(r#"["7",false,1,true]"#, None)]
    #[case::a_field_too_many(r#"["7",false,1,true,true,1]"#, None)]
    #[case::no_json("many", None)]
    fn the_fields_say_which_record_a_write_found(#[case] detail: &str, #[case] found: Option<Found>) {
        assert_eq!(Refusal::parse("FOUND", Some(detail)), found.map(Refusal::Found));
    }
}

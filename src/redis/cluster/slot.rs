//! The hash slots of a cluster.
//!
//! See <https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#key-distribution-model>.

/// The number of slots.
pub(super) const SLOTS: u16 = 16384;

/// Returns the slot of a key.
pub(super) fn slot(key: &str) -> u16 {
    let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag);
    checksum(tag.filter(|tag| !tag.is_empty()).unwrap_or(key))
}

fn checksum(hashed: &str) -> u16 {
    crc16::State::<crc16::XMODEM>::calculate(hashed.as_bytes()) % SLOTS
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::whole_key("123456789", 0x31C3)]
    #[case::tag("pmcp:tasks:{alice}:t1", checksum("alice"))]
    #[case::first_tag("{alice}{bob}", checksum("alice"))]
    #[case::tag_with_an_opening_brace("x{{alice}", checksum("{alice"))]
    #[case::an_empty_tag_is_none("pmcp:{}:t1", checksum("pmcp:{}:t1"))]
    #[case::an_open_tag_is_none("pmcp:{t1", checksum("pmcp:{t1"))]
    fn a_slot_is_the_checksum_of_the_hash_tag(#[case] key: &str, #[case] expected: u16) {
        assert_eq!(slot(key), expected);
    }
}

//! Conversions from text to ids and keys. Each conversion checks the text.

use std::str::FromStr;
use std::sync::Arc;

use super::{MAX_ID_BYTES, OwnerId, TaskId, TaskKey, unescape};
use crate::backend::error::StorageError;

fn checked(id: String, what: &'static str) -> Result<Arc<str>, StorageError> {
    match id.len() {
        0 => Err(StorageError::InvalidKey { reason: format!("the {what} id is empty") }),
        1..=MAX_ID_BYTES => Ok(id.into()),
        length => Err(StorageError::InvalidKey {
            reason: format!("the {what} id has {length} bytes, but at most {MAX_ID_BYTES} are allowed"),
        }),
    }
}

macro_rules! conversions {
    ($name:ident, $what:literal) => {
        impl TryFrom<String> for $name {
            type Error = StorageError;

            fn try_from(id: String) -> Result<Self, StorageError> {
                checked(id, $what).map(Self)
            }
        }

        impl TryFrom<&str> for $name {
            type Error = StorageError;

            fn try_from(id: &str) -> Result<Self, StorageError> {
                checked(id.to_owned(), $what).map(Self)
            }
        }

        impl FromStr for $name {
            type Err = StorageError;

            fn from_str(id: &str) -> Result<Self, StorageError> {
                Self::try_from(id)
            }
        }
    };
}

conversions!(OwnerId, "owner");
conversions!(TaskId, "task");

impl TaskKey {
    /// Creates a key from two ids.
    ///
    /// # Errors
    /// [`StorageError::InvalidKey`] if an id is empty or longer than [`MAX_ID_BYTES`].
    pub fn new(owner: &str, task: &str) -> Result<Self, StorageError> {
        Ok(Self { owner: owner.try_into()?, task: task.try_into()? })
    }
}

impl FromStr for TaskKey {
    type Err = StorageError;

    /// # Errors
    /// [`StorageError::InvalidKey`] for text that `Display` does not write.
    fn from_str(text: &str) -> Result<Self, StorageError> {
        let ids = text.split_once(':').and_then(|(owner, task)| Some((unescape(owner)?, unescape(task)?)));
        match ids {
            Some((owner, task)) => Ok(Self { owner: owner.try_into()?, task: task.try_into()? }),
            None => {
                Err(StorageError::InvalidKey { reason: format!("{text:?} is not of the form owner:task") })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;

    #[rstest]
    #[case::plain("alice", "t1", "alice:t1")]
    #[case::colons("a:b", "c", "a%3Ab:c")]
    #[case::colons_elsewhere("a", "b:c", "a:b%3Ac")]
    #[case::percent("50%", "%3A", "50%25:%253A")]
    #[case::braces("{a}", "b}{", "%7Ba%7D:b%7D%7B")]
    #[case::control("a\0b", "line\nbreak", "a%00b:line%0Abreak")]
    #[case::c1_control("a\u{85}", "\u{7f}", "a%C2%85:%7F")]
    #[case::spaces_and_emoji_stay("a b", "🦀", "a b:🦀")]
    fn a_key_is_written_unambiguously(#[case] owner: &str, #[case] task: &str, #[case] text: &str) {
        assert_eq!(TaskKey::new(owner, task).unwrap().to_string(), text);
    }

    #[rstest]
    #[case::empty("")]
    #[case::too_long(&"x".repeat(257))]
    #[case::too_long_in_bytes(&"é".repeat(129))]
    fn an_id_outside_1_to_256_bytes_is_refused(#[case] id: &str) {
        assert!(matches!(OwnerId::try_from(id), Err(StorageError::InvalidKey { .. })));
        assert!(matches!(TaskId::try_from(id), Err(StorageError::InvalidKey { .. })));
    }

    #[rstest]
    #[case::no_task("alice")]
    #[case::no_owner(":t1")]
    #[case::a_colon_too_many("a:b:c")]
    #[case::not_encoded_as_written("a%62:t1")]
    #[case::lower_case("a%3a:t1")]
    #[case::cut_off("a%3:t1")]
    #[case::not_utf8("a%FF:t1")]
    fn text_that_display_does_not_write_is_refused(#[case] text: &str) {
        assert!(matches!(text.parse::<TaskKey>(), Err(StorageError::InvalidKey { .. })));
    }

    #[test]
    fn an_id_of_256_bytes_is_accepted() {
        TaskKey::new(&"x".repeat(256), &"é".repeat(128)).unwrap();
    }

    proptest! {
        #[test]
        fn two_keys_never_share_a_text(a in "[a:%{}\\x00]{1,6}", b in "[a:%{}\\x00]{1,6}",
                                       c in "[a:%{}\\x00]{1,6}", d in "[a:%{}\\x00]{1,6}") {
            let (left, right) = (TaskKey::new(&a, &b).unwrap(), TaskKey::new(&c, &d).unwrap());
            prop_assert_eq!(left == right, left.to_string() == right.to_string());
        }

        #[test]
        fn from_str_reads_the_text_of_any_key(owner in "[a:%{}\\x00é🦀\\x7f]{1,6}", task in "[a:%{}\\x00 \\u{85}]{1,6}") {
            let key = TaskKey::new(&owner, &task).unwrap();
            prop_assert_eq!(key.to_string().parse::<TaskKey>().unwrap(), key);
        }
    }
}

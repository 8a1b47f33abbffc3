//! Page requests and cursors, for engines whose listing position is one number.

use crate::backend::error::StorageError;
use crate::backend::key::{OwnerId, stable_hash};
use crate::backend::page::{Cursor, MAX_PAGE_LIMIT, PageRequest};

/// The bounds of a page, from a request that was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PageBounds {
    /// How many records the page may hold, 1 to [`MAX_PAGE_LIMIT`].
    pub limit: usize,
    /// The approximate maximum of data in the page, in bytes. The page ends before the record that would exceed the
    /// maximum, but holds at least one record if there is one.
    pub max_bytes: usize,
    /// The page holds only records whose position is lower; `None` for the first page.
    pub below: Option<u64>,
}

impl PageBounds {
    /// Checks a page request for this owner.
    ///
    /// # Errors
    /// [`StorageError::InvalidPage`] for a limit outside 1 to [`MAX_PAGE_LIMIT`], and for a cursor that is malformed or
    /// belongs to another owner.
    pub fn check(request: &PageRequest, owner: &OwnerId) -> Result<Self, StorageError> {
        let PageRequest { limit, max_bytes, after } = request;
        if !(1..=MAX_PAGE_LIMIT).contains(limit) {
            let reason = format!("a limit of {limit} is not between 1 and {MAX_PAGE_LIMIT}");
            return Err(StorageError::InvalidPage { reason });
        }
        let below = after.as_ref().map(|cursor| position(cursor, owner)).transpose()?;
        Ok(Self { limit: *limit, max_bytes: *max_bytes, below })
    }
}

/// Creates the cursor that continues a listing after the record of `owner` at `position`. The position is usually the
/// creation time.
pub fn cursor(owner: &OwnerId, position: u64) -> Cursor {
    Cursor::from(format!("{position:x}.{:016x}", check_sum(owner, position)))
}

fn position(after: &Cursor, owner: &OwnerId) -> Result<u64, StorageError> {
    let position = after.as_str().split('.').next().unwrap_or_default();
    u64::from_str_radix(position, 16).ok().filter(|position| cursor(owner, *position) == *after).ok_or_else(
        || StorageError::InvalidPage {
            reason: "the cursor is malformed or belongs to another listing".to_owned(),
        },
    )
}

/// Returns the checksum of a cursor. It detects mistakes, not attacks. A forged cursor still lists only records of the
/// owner that uses it.
fn check_sum(owner: &OwnerId, position: u64) -> u64 {
    stable_hash(owner.as_str().bytes().chain(position.to_be_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn owner(id: &str) -> OwnerId {
        id.try_into().unwrap()
    }

    #[test]
    fn a_cursor_contains_its_position() {
        let text = cursor(&owner("alice"), 1_795_000_000_000_000).to_string();
        let bounds = PageBounds::check(&PageRequest::new(1).after(text), &owner("alice")).unwrap();
        assert_eq!((bounds.limit, bounds.below), (1, Some(1_795_000_000_000_000)));
    }

    #[rstest]
    #[case::empty("")]
    #[case::no_check_sum("ff")]
    #[case::not_a_number("zz.0000000000000000")]
    #[case::wrong_check_sum("ff.0000000000000000")]
    #[case::signed("+ff.0000000000000000")]
    fn a_malformed_cursor_is_refused(#[case] text: &str) {
        let refused = PageBounds::check(&PageRequest::new(1).after(text), &owner("alice"));
        assert!(matches!(refused, Err(StorageError::InvalidPage { .. })));
    }

    #[test]
    fn a_cursor_of_another_owner_is_refused() {
        let page = PageRequest::new(1).after(cursor(&owner("alice"), 7));
        let refused = PageBounds::check(&page, &owner("bob"));
        assert!(matches!(refused, Err(StorageError::InvalidPage { .. })));
    }

    #[test]
    fn a_cursor_is_the_same_text_in_every_version_of_the_crate() {
        assert_eq!(cursor(&owner("alice"), 255).as_str(), "ff.75024796edaab566");
    }
}

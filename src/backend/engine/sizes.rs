//! Limits on the size of data and parts. An engine checks them before it writes or sends anything.

use bytes::Bytes;

use crate::backend::error::StorageError;
use crate::backend::parts::{MAX_PARTS, PartChange, PartChanges};

/// Checks the size of a record's data against the engine's configured maximum.
///
/// # Errors
/// [`StorageError::TooLarge`] when `data` has more than `max` bytes.
pub fn check_size(data: &Bytes, max: usize) -> Result<(), StorageError> {
    check("bytes of data", data.len(), max)
}

/// Checks the parts that a write sets: the size of each against the engine's configured maximum, and their number.
///
/// # Errors
/// [`StorageError::TooLarge`] when a part has more than `max` bytes, or the write sets more than [`MAX_PARTS`] parts.
pub fn check_parts(parts: &PartChanges, max: usize) -> Result<(), StorageError> {
    let mut set = 0;
    for (name, change) in parts {
        let PartChange::Set(data) = change else { continue };
        set += 1;
        check(&format!("bytes of the part {name}"), data.len(), max)?;
    }
    check_part_count(set)
}

/// Checks how many parts a record would have after a write.
///
/// # Errors
/// [`StorageError::TooLarge`] for more than [`MAX_PARTS`] parts.
pub fn check_part_count(count: usize) -> Result<(), StorageError> {
    check("parts of a record", count, MAX_PARTS)
}

fn check(what: &str, size: usize, max: usize) -> Result<(), StorageError> {
    if size > max {
        return Err(StorageError::TooLarge { what: what.to_owned(), size, max });
    }
    Ok(())
}

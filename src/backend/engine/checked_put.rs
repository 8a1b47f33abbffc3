//! A write of a record whose arguments were checked.

use bytes::Bytes;

use super::mode::WriteMode;
use super::sizes::{check_parts, check_size};
use super::time::expiry_millis;
use crate::backend::error::StorageError;
use crate::backend::key::TaskKey;
use crate::backend::parts::PartChanges;
use crate::backend::record::{Expiry, PutOptions};

/// A write of a record whose arguments were checked.
pub(crate) struct CheckedPut {
    pub(crate) key: TaskKey,
    pub(crate) data: Bytes,
    pub(crate) mode: WriteMode,
    pub(crate) expiry: Expiry,
    /// The duration of `expiry` in whole milliseconds.
    pub(crate) expiry_ms: Option<u64>,
    pub(crate) parts: PartChanges,
    pub(crate) quota: Option<u64>,
    pub(crate) notifies: bool,
}

/// The maximum sizes that an engine is configured to accept, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MaxSizes {
    pub(crate) value: usize,
    pub(crate) part: usize,
}

impl MaxSizes {
    /// Checks a write before it is sent.
    pub(crate) fn check(
        self,
        key: &TaskKey,
        data: Bytes,
        options: PutOptions,
        mode: WriteMode,
    ) -> Result<CheckedPut, StorageError> {
        check_size(&data, self.value)?;
        check_parts(&options.parts, self.part)?;
        let (expiry_ms, notifies) = (expiry_millis(options.expiry)?, options.notifies());
        let PutOptions { expiry, quota, parts, .. } = options;
        Ok(CheckedPut { key: key.clone(), data, mode, expiry, expiry_ms, parts, quota, notifies })
    }
}

//! Encrypts one stored record under the current key.

use std::time::Duration;

use bytes::Bytes;

use super::backend::Encrypted;
use super::envelope::{Envelope, Field, Unopened, open, seal};
use crate::backend::{Expiry, PutOptions, Record, StorageBackend, StorageError, TaskKey};

/// How often to read a record again after another writer has changed it.
const MAX_CONFLICTS: u32 = 10;
/// The longest pause after a conflict.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// What became of a record.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It is encrypted under the current key now.
    Rotated,
    /// It was encrypted under the current key before.
    Current,
    /// It was deleted or has expired.
    Gone,
    /// It stays as it is.
    Failed(StorageError),
}

/// Encrypts a record under the current key, unless all its fields already are. `record` holds the stored bytes.
///
/// # Errors
/// The engine failed. Errors that concern only this record are an [`Outcome`].
pub(super) async fn rotate<B: StorageBackend>(
    encrypted: &Encrypted<B>,
    key: &TaskKey,
    mut record: Record,
    encrypts_plain: bool,
) -> Result<Outcome, StorageError> {
    let (engine, mut conflicts) = (encrypted.engine(), 0);
    loop {
        let written = match renew(encrypted, key, &record, encrypts_plain).await {
            Ok(Some((data, options))) => engine.put_if_version(key, data, options, record.version).await,
            Ok(None) => return Ok(Outcome::Current),
            Err(error) => Err(error),
        };
        match written {
            Ok(_) => return Ok(Outcome::Rotated),
            Err(StorageError::VersionConflict { .. }) if conflicts < MAX_CONFLICTS => {}
            Err(error) => return of_record(error),
        }
        conflicts += 1;
        tokio::time::sleep(Duration::from_millis(1 << conflicts).min(LONGEST_PAUSE)).await;
        record = match engine.get(key).await {
            Ok(record) => record,
            Err(error) => return of_record(error),
        };
    }
}

/// Sorts the errors that concern one record from those that concern the engine.
fn of_record(error: StorageError) -> Result<Outcome, StorageError> {
    match error {
        StorageError::NotFound { .. } => Ok(Outcome::Gone),
        StorageError::Corrupt { .. }
        | StorageError::MissingKey { .. }
        | StorageError::TooLarge { .. }
        | StorageError::VersionConflict { .. }
        | StorageError::VersionExhausted { .. } => Ok(Outcome::Failed(error)),
        _ => Err(error),
    }
}

/// Returns the data of a record under the current key, and the options of its write; `None` if all fields are under this key.
async fn renew<B: StorageBackend>(
    encrypted: &Encrypted<B>,
    key: &TaskKey,
    record: &Record,
    encrypts_plain: bool,
) -> Result<Option<(Bytes, PutOptions)>, StorageError> {
    // The content stays the same, so the write sends no notification to subscribers.
    let mut options = PutOptions::new(Expiry::Keep).quiet();
    for name in record.parts.keys() {
        // If another writer has changed or cleared the part since the record was read, the write finds another version.
        let Some(part) = encrypted.engine().part(key, name).await? else { continue };
        if let Some(renewed) = renew_field(encrypted, key, Field::Part(name), &part.data, encrypts_plain)? {
            options = options.set_part(name.clone(), renewed);
        }
    }
    let data = renew_field(encrypted, key, Field::Data, &record.data, encrypts_plain)?;
    let is_current = data.is_none() && options.parts.is_empty();
    Ok((!is_current).then(|| (data.unwrap_or_else(|| record.data.clone()), options)))
}

/// Encrypts a field under the current key; `None` if it already is.
fn renew_field<B: StorageBackend>(
    encrypted: &Encrypted<B>,
    key: &TaskKey,
    field: Field<'_>,
    stored: &Bytes,
    encrypts_plain: bool,
) -> Result<Option<Bytes>, StorageError> {
    let keyring = encrypted.keyring();
    let plain = match Envelope::parse(stored) {
        Ok(envelope) if envelope.key_id == keyring.current_id() => return Ok(None),
        Err(Unopened::Plain) if encrypts_plain => stored.clone(),
        _ => open(keyring, key, field, stored)?,
    };
    seal(keyring, key, field, &plain).map(Some)
}

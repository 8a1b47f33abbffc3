//! Encrypts one stored record under the current key.

use std::time::Duration;

use bytes::Bytes;

use super::backend::Encrypted;
use super::envelope::{Envelope, Field, Unopened, open, seal};
use crate::backend::{Expiry, PutOptions, Record, StorageBackend, StorageError, TaskKey};

/// How often to read a record again after another writer has changed it.
const MAX_CONFLICTS: u32 = 12;
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
    let engine = encrypted.engine();
    for conflicts in 0..MAX_CONFLICTS {
        if conflicts > 0 {
            tokio::time::sleep(Duration::from_millis(1 << conflicts).min(LONGEST_PAUSE)).await;
            record = match engine.get(key).await {
                Ok(record) => record,
                Err(error) => return of_record(error),
            };
        }
        let (data, options) = match renew(encrypted, key, &record, encrypts_plain).await {
            Ok(Renewed::Changed(data, options)) => (data, options),
            Ok(Renewed::Unchanged) => return Ok(Outcome::Current),
            Ok(Renewed::Conflict) => continue,
            Err(error) => return of_record(error),
        };
        match engine.put_if_version(key, data, options, record.version).await {
            Ok(_) => return Ok(Outcome::Rotated),
            Err(StorageError::VersionConflict { .. }) => {}
            Err(error) => return of_record(error),
        }
    }
    Ok(Outcome::Failed(StorageError::VersionConflict {
        key: key.clone(),
        expected: record.version,
        actual: record.version.next().unwrap_or(record.version),
    }))
}

/// Sorts the errors that concern one record from those that concern the engine.
fn of_record(error: StorageError) -> Result<Outcome, StorageError> {
    match error {
        StorageError::NotFound { .. } => Ok(Outcome::Gone),
        StorageError::Corrupt { .. }
        | StorageError::MissingKey { .. }
        | StorageError::TooLarge { .. }
        | StorageError::VersionExhausted { .. } => Ok(Outcome::Failed(error)),
        _ => Err(error),
    }
}

/// What a record becomes under the current key.
enum Renewed {
    Changed(Bytes, PutOptions),
    Unchanged,
    /// Another writer has changed the record since it was read.
    Conflict,
}

async fn renew<B: StorageBackend>(
    encrypted: &Encrypted<B>,
    key: &TaskKey,
    record: &Record,
    encrypts_plain: bool,
) -> Result<Renewed, StorageError> {
    // The content stays the same, so the write sends no notification to subscribers.
    let mut options = PutOptions::new(Expiry::Keep).quiet();
    for name in record.parts.keys() {
        let part = match encrypted.engine().part(key, name).await? {
            Some(part) if part.version == record.version => part,
            _ => return Ok(Renewed::Conflict),
        };
        let field = Field::Part(name);
        if let Some(renewed) = renew_field(encrypted, key, field, &part.data, encrypts_plain)? {
            options = options.set_part(name.clone(), renewed);
        }
    }
    let data = renew_field(encrypted, key, Field::Data, &record.data, encrypts_plain)?;
    if data.is_none() && options.parts.is_empty() {
        return Ok(Renewed::Unchanged);
    }
    Ok(Renewed::Changed(data.unwrap_or_else(|| record.data.clone()), options))
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

//! The envelope: what is stored instead of the data of a record, or of a part.
//!
//! | bytes | field |
//! |---|---|
//! | 1 | the version of the envelope: 1 |
//! | 16 | the id of the key, padded with zero bytes |
//! | 24 | the nonce: random bytes |
//! | as many as the plain bytes | the ciphertext |
//! | 16 | the tag of Poly1305 |
//!
//! The length of an envelope depends only on the length of the plain bytes, so the size of a part is known without reading it.

use bytes::Bytes;
use chacha20poly1305::aead::Generate;
use chacha20poly1305::{AeadInOut, XNonce};

use super::keyring::{KeyId, Keyring, MAX_KEY_ID_BYTES};
use crate::backend::{BoxError, PartName, StorageError, TaskKey};

const VERSION: u8 = 1;
/// The versions that later versions of the crate may use. No JSON text begins with one of these bytes.
const LATER_VERSIONS: std::ops::RangeInclusive<u8> = 2..=8;

const NONCE_BYTES: usize = 24;
const TAG_BYTES: usize = 16;
const NONCE_AT: usize = 1 + MAX_KEY_ID_BYTES;
const CIPHERTEXT_AT: usize = NONCE_AT + NONCE_BYTES;

/// How many bytes longer the stored data of an [`Encrypted`](crate::Encrypted) record is than the plain data. The same is true of
/// each part.
pub const ENVELOPE_BYTES: usize = CIPHERTEXT_AT + TAG_BYTES;

/// A field of a record that is encrypted.
#[derive(Clone, Copy)]
pub(super) enum Field<'a> {
    Data,
    Part(&'a PartName),
}

impl Field<'_> {
    fn describe(self) -> String {
        match self {
            Self::Data => "its data".to_owned(),
            Self::Part(name) => format!("its part {name}"),
        }
    }
}

/// Why an envelope cannot be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unopened {
    /// The bytes are not an envelope.
    Plain,
    /// A later version of the crate has written the envelope.
    LaterVersion(u8),
    /// The bytes begin like an envelope and are not one.
    Malformed,
    /// The keyring does not have the key.
    MissingKey(KeyId),
    /// The tag does not match.
    Refused(KeyId),
}

impl Unopened {
    /// Converts into the error of a call about this record.
    pub(super) fn error(self, key: &TaskKey, field: Field<'_>) -> StorageError {
        let what = field.describe();
        let reason = match self {
            Self::MissingKey(key_id) => {
                return StorageError::MissingKey { key: key.clone(), key_id: key_id.to_string() };
            }
            Self::Plain => format!(
                "{what} is not encrypted; if it was stored before encryption was enabled, run a rotation that encrypts plain records"
            ),
            Self::LaterVersion(version) => format!(
                "{what} has an envelope of version {version}, which this version of the crate cannot read; upgrade this instance"
            ),
            Self::Malformed => format!("{what} is no complete envelope"),
            Self::Refused(key_id) => format!(
                "{what} fails authentication under the key {key_id:?}: it was altered, or moved here from another record or \
                 part, or another key with this id encrypted it; compare the keyrings of all instances"
            ),
        };
        StorageError::Corrupt { key: key.clone(), reason, source: None }
    }
}

/// An envelope whose fields are legal.
pub(super) struct Envelope<'a> {
    pub(super) key_id: KeyId,
    nonce: &'a [u8; NONCE_BYTES],
    /// The ciphertext and the tag.
    sealed: &'a [u8],
}

impl<'a> Envelope<'a> {
    /// Reads the fields of an envelope, and does not decrypt it.
    pub(super) fn parse(stored: &'a [u8]) -> Result<Self, Unopened> {
        match stored.first() {
            Some(&VERSION) => {}
            Some(&version) if LATER_VERSIONS.contains(&version) => {
                return Err(Unopened::LaterVersion(version));
            }
            _ => return Err(Unopened::Plain),
        }
        let (key_id, rest) = stored[1..].split_first_chunk().ok_or(Unopened::Malformed)?;
        let key_id = KeyId::from_padded(*key_id).ok_or(Unopened::Malformed)?;
        let (nonce, sealed) = rest.split_first_chunk().ok_or(Unopened::Malformed)?;
        if sealed.len() < TAG_BYTES {
            return Err(Unopened::Malformed);
        }
        Ok(Self { key_id, nonce, sealed })
    }

    /// Decrypts the envelope, and checks that it belongs to this field of this record.
    fn open(&self, keys: &Keyring, key: &TaskKey, field: Field<'_>) -> Result<Bytes, Unopened> {
        let cipher = keys.cipher(self.key_id).ok_or(Unopened::MissingKey(self.key_id))?;
        let refused = Unopened::Refused(self.key_id);
        let (ciphertext, tag) = self.sealed.split_last_chunk::<TAG_BYTES>().ok_or(refused)?;
        let associated = associated_data(self.key_id, key, field);
        let mut plain = ciphertext.to_vec();
        cipher
            .decrypt_inout_detached(
                &XNonce::from(*self.nonce),
                &associated,
                plain.as_mut_slice().into(),
                &(*tag).into(),
            )
            .map_err(|_| refused)?;
        Ok(plain.into())
    }
}

/// Decrypts what is stored as a field of a record.
pub(super) fn open(
    keys: &Keyring,
    key: &TaskKey,
    field: Field<'_>,
    stored: &[u8],
) -> Result<Bytes, StorageError> {
    let opened = Envelope::parse(stored).and_then(|envelope| envelope.open(keys, key, field));
    opened.map_err(|unopened| unopened.error(key, field))
}

/// Encrypts a field of a record under the current key.
pub(super) fn seal(
    keys: &Keyring,
    key: &TaskKey,
    field: Field<'_>,
    plain: &[u8],
) -> Result<Bytes, StorageError> {
    let key_id = keys.current_id();
    let nonce = XNonce::try_generate()
        .map_err(|error| failed("the operating system returned no random bytes", error.into()))?;
    let cipher = keys.cipher(key_id).ok_or_else(|| Unopened::MissingKey(key_id).error(key, field))?;
    let mut sealed = Vec::with_capacity(ENVELOPE_BYTES + plain.len());
    sealed.push(VERSION);
    sealed.extend_from_slice(key_id.padded());
    sealed.extend_from_slice(&nonce);
    sealed.extend_from_slice(plain);
    let tag = cipher
        .encrypt_inout_detached(
            &nonce,
            &associated_data(key_id, key, field),
            (&mut sealed[CIPHERTEXT_AT..]).into(),
        )
        .map_err(|_| failed("the cipher cannot encrypt this many bytes", "over 256 GiB".into()))?;
    sealed.extend_from_slice(&tag);
    Ok(sealed.into())
}

fn failed(reason: &str, source: BoxError) -> StorageError {
    StorageError::Backend {
        address: "Encrypted".to_owned(),
        reason: reason.to_owned(),
        outcome_unknown: false,
        source: Some(source),
    }
}

/// Returns the associated data: what the tag protects in addition to the ciphertext. No two fields of any two records have the
/// same associated data, because the lengths of both ids precede them.
fn associated_data(key_id: KeyId, key: &TaskKey, field: Field<'_>) -> Vec<u8> {
    let mut data = Vec::with_capacity(64 + key.owner.as_str().len() + key.task.as_str().len());
    data.push(VERSION);
    data.extend_from_slice(key_id.padded());
    for id in [key.owner.as_str(), key.task.as_str()] {
        // An id has at most 256 bytes.
        data.extend_from_slice(&(id.len() as u16).to_be_bytes());
        data.extend_from_slice(id.as_bytes());
    }
    match field {
        Field::Data => data.push(0),
        Field::Part(name) => {
            data.push(1);
            data.extend_from_slice(name.as_str().as_bytes());
        }
    }
    data
}

#[cfg(test)]
mod tests;

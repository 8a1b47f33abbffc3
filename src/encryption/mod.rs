//! Encryption at rest, over any engine.
//!
//! Each module depends only on those above it in this list:
//!
//! * `keyring` holds the keys, and `keyring_text` parses them;
//! * `envelope` encrypts and decrypts one field of a record;
//! * `backend` is the engine that encrypts what another engine stores;
//! * `rotation` walks over all records, and `rotated_record` encrypts one of them under the current key.

mod backend;
mod envelope;
#[cfg(any(fuzzing, test))]
pub(crate) mod fuzzing;
mod keyring;
mod keyring_text;
mod rotated_record;
mod rotation;

pub use backend::Encrypted;
pub use envelope::ENVELOPE_BYTES;
pub use keyring::{Keyring, KeyringError};
pub use rotation::{FailedRotation, RotatedPage, Rotation, RotationCounts, RotationPosition};

//! The keys of an encrypted store.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use chacha20poly1305::{Key, KeyInit, XChaCha20Poly1305};
use zeroize::{Zeroize, Zeroizing};

use crate::backend::BoxError;
use crate::printable::Printable;

/// The length of a key, in bytes.
const KEY_BYTES: usize = 32;

/// The longest id of a key, in bytes.
pub(super) const MAX_KEY_ID_BYTES: usize = 16;

/// The id of a key: 1 to 16 of `A-Z`, `a-z`, `0-9`, `.`, `_` and `-`, padded with zero bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct KeyId([u8; MAX_KEY_ID_BYTES]);

impl KeyId {
    /// Returns `None` if the text is not a legal id.
    fn new(text: &str) -> Option<Self> {
        let mut padded = [0; MAX_KEY_ID_BYTES];
        padded.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
        Self::from_padded(padded)
    }

    /// Reads the field of an envelope. Returns `None` if the field is not a legal id with its padding.
    pub(super) fn from_padded(padded: [u8; MAX_KEY_ID_BYTES]) -> Option<Self> {
        let length = padded.iter().position(|&byte| byte == 0).unwrap_or(MAX_KEY_ID_BYTES);
        let (id, padding) = padded.split_at(length);
        let is_legal = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        let is_id = !id.is_empty() && id.iter().all(is_legal) && padding.iter().all(|&byte| byte == 0);
        is_id.then_some(Self(padded))
    }

    pub(super) fn padded(&self) -> &[u8; MAX_KEY_ID_BYTES] {
        &self.0
    }

    fn as_str(&self) -> &str {
        let length = self.0.iter().position(|&byte| byte == 0).unwrap_or(MAX_KEY_ID_BYTES);
        // An id is ASCII.
        std::str::from_utf8(&self.0[..length]).unwrap_or_default()
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// The keys of an [`Encrypted`](crate::Encrypted) store. Every write uses the *current* key, which is the first one. A
/// read uses the key that the record names.
///
/// A key is 32 random bytes with an id of 1 to 16 characters out of `A-Z`, `a-z`, `0-9`, `.`, `_` and `-`. The id is
/// stored in the clear with everything that the key encrypts. An id always stands for the same key: give a new key a
/// new id, for instance its month.
///
/// Take the keys from one of these:
///
/// * a file, with [`from_file`](Self::from_file);
/// * an environment variable, with [`from_variable`](Self::from_variable);
/// * a callback, for instance one that decrypts them with a key management service, with
///   [`from_callback`](Self::from_callback);
/// * bytes, with [`new`](Self::new).
///
/// A file and a variable have the same form: `ID:KEY` with the key in base64, separated by line breaks or commas.
/// Blank lines and lines that begin with `#` are ignored. `openssl rand -base64 32` creates a key.
///
/// ```text
/// # The first key is the current one.
/// 2026-11:GlgEDfs5k9zpNQkxL0qxZQp2VNY+p7PhBbLyGn6ZT4M=
/// 2025-11:0OGcmXJmNqYH+PWdXGB4a6m6CbcFSxdGZ3XQ7XhYvG4=
/// ```
///
/// A clone shares the keys. When the last clone is dropped, their memory is overwritten with zeros. So are the buffers from which
/// the keys were read, but not the memory of an environment variable. `Debug` shows the ids only.
///
/// # Examples
/// ```
/// use mcp_task_store::{Encrypted, Keyring, MemoryBackend, TaskStore};
///
/// # fn main() -> Result<(), mcp_task_store::KeyringError> {
/// # let (new_key, old_key) = (vec![1; 32], vec![2; 32]);
/// let keyring = Keyring::new([("2026-11", new_key), ("2025-11", old_key)])?;
/// assert_eq!(keyring.current(), "2026-11");
/// let store = TaskStore::new(Encrypted::new(MemoryBackend::new(), keyring));
/// # let _ = store;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Keyring(Arc<Keys>);

struct Keys {
    current: KeyId,
    /// Each cipher has an allocation of its own, so that a change of the map does not copy the key.
    ciphers: BTreeMap<KeyId, Box<XChaCha20Poly1305>>,
}

impl Keyring {
    /// Creates a keyring. The first key is the current one. The bytes of each key are overwritten with zeros.
    ///
    /// # Errors
    /// `Empty`, `InvalidId`, `WrongLength` and `DuplicateId`.
    pub fn new<I: AsRef<str>>(keys: impl IntoIterator<Item = (I, Vec<u8>)>) -> Result<Self, KeyringError> {
        let (mut current, mut ciphers) = (None, BTreeMap::new());
        for (index, (id, key)) in keys.into_iter().enumerate() {
            let (position, key) = (index + 1, Zeroizing::new(key));
            let id = KeyId::new(id.as_ref()).ok_or(KeyringError::InvalidId { position })?;
            let mut bytes: Key = <[u8; KEY_BYTES]>::try_from(key.as_slice())
                .map_err(|_| KeyringError::WrongLength { position, bytes: key.len() })?
                .into();
            let cipher = Box::new(XChaCha20Poly1305::new(&bytes));
            bytes.as_mut_slice().zeroize();
            if ciphers.insert(id, cipher).is_some() {
                return Err(KeyringError::DuplicateId { position });
            }
            current = current.or(Some(id));
        }
        let current = current.ok_or(KeyringError::Empty)?;
        Ok(Self(Arc::new(Keys { current, ciphers })))
    }

    /// Asks a callback for the bytes of each key, one after the other. The first id is that of the current key.
    ///
    /// The callback runs only in this call. So an instance that cannot get its keys fails when it starts, and no read of a
    /// record waits for a key management service.
    ///
    /// # Errors
    /// `Callback` if the callback fails, and the errors of [`new`](Self::new).
    ///
    /// # Cancellation safety
    /// Dropping the future has no effect.
    ///
    /// # Examples
    /// ```no_run
    /// # async fn unwrap(id: &str) -> Result<Vec<u8>, std::io::Error> { Ok(vec![0; 32]) }
    /// # async fn example() -> Result<(), mcp_task_store::KeyringError> {
    /// use mcp_task_store::Keyring;
    ///
    /// let keyring = Keyring::from_callback(["2026-11", "2025-11"], |id| unwrap(id)).await?;
    /// # let _ = keyring;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn from_callback<'a, F, R, E>(
        ids: impl IntoIterator<Item = &'a str>,
        mut key: F,
    ) -> Result<Self, KeyringError>
    where
        F: FnMut(&'a str) -> R,
        R: Future<Output = Result<Vec<u8>, E>>,
        E: Into<BoxError>,
    {
        let mut keys = Vec::new();
        for (index, id) in ids.into_iter().enumerate() {
            let failed = |error: E| KeyringError::Callback { position: index + 1, source: error.into() };
            keys.push((id, Zeroizing::new(key(id).await.map_err(failed)?)));
        }
        // The bytes move, and `new` overwrites them.
        Self::new(keys.into_iter().map(|(id, mut key)| (id, std::mem::take(&mut *key))))
    }

    /// Returns the id of the key that encrypts every write.
    pub fn current(&self) -> &str {
        self.0.current.as_str()
    }

    /// Returns the ids of all keys, sorted.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.0.ciphers.keys().map(KeyId::as_str)
    }

    pub(super) fn current_id(&self) -> KeyId {
        self.0.current
    }

    pub(super) fn cipher(&self, id: KeyId) -> Option<&XChaCha20Poly1305> {
        self.0.ciphers.get(&id).map(|cipher| &**cipher)
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyring")
            .field("current", &self.0.current)
            .field("ids", &self.0.ciphers.keys().collect::<Vec<_>>())
            .finish()
    }
}

/// The keys of a [`Keyring`] are missing or invalid. No variant contains a key, or text that could be one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyringError {
    /// There is no key.
    #[error("the keyring has no key; add one as ID:KEY, with a key of 32 bytes in base64")]
    Empty,
    /// An id is missing or invalid.
    #[error(
        "key {position} of the keyring has no valid id; write it as ID:KEY, with an id of 1 to {MAX_KEY_ID_BYTES} characters \
         of A-Z, a-z, 0-9, '.', '_' and '-'"
    )]
    InvalidId {
        /// Which key, counted from 1.
        position: usize,
    },
    /// A key is not base64.
    #[error("key {position} of the keyring is not valid base64; create a key with `openssl rand -base64 32`")]
    InvalidBase64 {
        /// Which key, counted from 1.
        position: usize,
    },
    /// A key does not have 32 bytes.
    #[error(
        "key {position} of the keyring has {bytes} bytes instead of {KEY_BYTES}; create a key with `openssl rand -base64 32`"
    )]
    WrongLength {
        /// Which key, counted from 1.
        position: usize,
        /// How many bytes it has.
        bytes: usize,
    },
    /// Two keys have the same id.
    #[error("key {position} of the keyring has the id of an earlier key; give each key an id of its own")]
    DuplicateId {
        /// Which key, counted from 1.
        position: usize,
    },
    /// The file cannot be read.
    #[error("the keys cannot be read from {}; check the path and its permissions", Printable(&path.display().to_string()))]
    File {
        /// The path of the file.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// The permissions of the file let other users of the machine read or change the keys.
    #[error(
        "the permissions {mode:03o} of {path} let other users read or change the keys; run `chmod 600` on it",
        path = Printable(&path.display().to_string())
    )]
    Permissions {
        /// The path of the file.
        path: PathBuf,
        /// The permissions of the file.
        mode: u32,
    },
    /// The environment variable is not set, or is not text.
    #[error("the environment variable {} is not set, or is not valid UTF-8; set it to ID:KEY", Printable(.name))]
    Variable {
        /// The name of the variable.
        name: String,
    },
    /// The callback failed.
    #[error("the callback returned no bytes for key {position} of the keyring")]
    Callback {
        /// Which key, counted from 1.
        position: usize,
        /// The error of the callback.
        source: BoxError,
    },
}

#[cfg(test)]
mod tests;

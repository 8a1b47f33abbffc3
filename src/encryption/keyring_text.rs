//! Reads the keys of a keyring from text: a file, or an environment variable.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_PAD_INDIFFERENT;
use zeroize::Zeroizing;

use super::keyring::{Keyring, KeyringError};

/// The largest file of keys, in bytes: more than a thousand keys.
const MAX_FILE_BYTES: usize = 64 * 1024;

/// The permissions that a file of keys must not have: any for other users, and writing for the group.
const FORBIDDEN_MODE: u32 = 0o027;

impl FromStr for Keyring {
    type Err = KeyringError;

    /// Parses keys: `ID:KEY` with the key in base64, separated by line breaks or commas.
    fn from_str(text: &str) -> Result<Self, KeyringError> {
        let entries = text.split(['\n', ',']).map(str::trim);
        let entries = entries.filter(|entry| !entry.is_empty() && !entry.starts_with('#'));
        let mut keys = Vec::new();
        for (index, entry) in entries.enumerate() {
            let position = index + 1;
            let (id, key) = entry.split_once(':').ok_or(KeyringError::InvalidId { position })?;
            // The error of the decoder contains a byte of the key.
            let key = STANDARD_PAD_INDIFFERENT
                .decode(key.trim())
                .map_err(|_| KeyringError::InvalidBase64 { position })?;
            keys.push((id.trim(), Zeroizing::new(key)));
        }
        // The bytes move, and `new` overwrites them.
        Self::new(keys.into_iter().map(|(id, mut key)| (id, std::mem::take(&mut *key))))
    }
}

impl Keyring {
    /// Reads the keys from a file. See [`Keyring`] for its form.
    ///
    /// On Unix, the file must not be readable for other users, nor writable for its group: `chmod 600`.
    ///
    /// # Errors
    /// `File` and `Permissions`, and the errors of a malformed or invalid key.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, KeyringError> {
        let path = path.as_ref();
        let failed = |source| KeyringError::File { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        check_permissions(&file, path)?;
        // The buffer never grows, because that would leave copies of the keys behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_FILE_BYTES + 1));
        let read = file.take(MAX_FILE_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
        if read > MAX_FILE_BYTES {
            let reason = format!("the file has more than {MAX_FILE_BYTES} bytes");
            return Err(failed(io::Error::new(io::ErrorKind::InvalidData, reason)));
        }
        std::str::from_utf8(&bytes)
            .map_err(|_| failed(io::Error::new(io::ErrorKind::InvalidData, "the file is not valid UTF-8")))?
            .parse()
    }

    /// Reads the keys from an environment variable. See [`Keyring`] for its form.
    ///
    /// Other processes of the same user can read the variable while this process runs.
    ///
    /// # Errors
    /// `Variable`, and the errors of a malformed or invalid key.
    pub fn from_variable(name: &str) -> Result<Self, KeyringError> {
        // The error of `var` contains the value.
        let text = std::env::var(name).map_err(|_| KeyringError::Variable { name: name.to_owned() })?;
        Zeroizing::new(text).parse()
    }
}

#[cfg(unix)]
fn check_permissions(file: &File, path: &Path) -> Result<(), KeyringError> {
    use std::os::unix::fs::PermissionsExt;
    let metadata = file.metadata().map_err(|source| KeyringError::File { path: path.to_owned(), source })?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & FORBIDDEN_MODE != 0 {
        return Err(KeyringError::Permissions { path: path.to_owned(), mode });
    }
    Ok(())
}

#[cfg(not(unix))]
fn check_permissions(_: &File, _: &Path) -> Result<(), KeyringError> {
    Ok(())
}

//! The users of a users file, with the hashes of their passwords.

use std::collections::HashMap;
use std::sync::Arc;

use argon2::password_hash::PasswordVerifier;
use argon2::password_hash::phc::PasswordHash;
use argon2::{Argon2, Params};

use super::access::AccessError;

/// The users by name, with their hashes in PHC format.
#[derive(Clone)]
pub(crate) struct Users(Arc<HashMap<String, String>>);

impl Users {
    pub(crate) fn read(file: &str) -> Result<Self, AccessError> {
        let mut users = HashMap::new();
        for (at, line) in file.lines().map(str::trim).enumerate() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let user = line.split_once(':').filter(|(name, hash)| !name.is_empty() && is_argon2id(hash));
            let (name, hash) = user.ok_or(AccessError::InvalidUser { line: at + 1 })?;
            users.insert(name.to_owned(), hash.to_owned());
        }
        if users.is_empty() { Err(AccessError::NoUser) } else { Ok(Self(Arc::new(users))) }
    }

    /// Returns whether this is the password of this user. It takes the time of one hash, also for an unknown name.
    pub(crate) fn verify(&self, name: &str, password: &str) -> bool {
        let known = self.0.get(name);
        let Some(hash) = known.or_else(|| self.0.values().next()) else { return false };
        let is_right = PasswordHash::new(hash)
            .is_ok_and(|hash| Argon2::default().verify_password(password.as_bytes(), &hash).is_ok());
        is_right && known.is_some()
    }
}

/// Returns whether a password can be verified by the hash: its parameters are within the bounds of argon2id.
fn is_argon2id(hash: &str) -> bool {
    PasswordHash::new(hash).is_ok_and(|hash| {
        let is_complete = hash.salt.is_some() && hash.hash.is_some();
        hash.algorithm.as_str() == "argon2id" && is_complete && Params::try_from(&hash).is_ok()
    })
}

//! Who may see the console.

use std::fmt;

use axum::http::HeaderName;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::users::Users;

/// How many characters a token has at least.
const MIN_TOKEN_CHARS: usize = 16;

/// Who may see the console.
///
/// The console shows the tasks of all owners, with their arguments and results, except to [tenants](Self::tenants). So each form of
/// access but [`unprotected`](Self::unprotected) refuses requests that it does not know.
#[derive(Clone)]
pub struct Access(pub(crate) AccessKind);

#[derive(Clone)]
pub(crate) enum AccessKind {
    Loopback,
    Unprotected,
    /// The hash of the token.
    Token([u8; 32]),
    Users(Users),
    TrustedHeader(HeaderName),
    /// The headers that name the user, and the only owner that the user sees.
    Tenants {
        user: HeaderName,
        owner: HeaderName,
    },
}

/// Why an access cannot be set up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AccessError {
    /// The token can be guessed.
    #[error(
        "the token has fewer than {MIN_TOKEN_CHARS} characters; use a random one, for example from `openssl rand -hex 32`"
    )]
    ShortToken,
    /// A line of the users file is not a name and a hash.
    #[error(
        "line {line} of the users file is not NAME:HASH with an argon2id hash, for example from `argon2 SALT -id -e`"
    )]
    InvalidUser {
        /// The number of the line, from 1.
        line: usize,
    },
    /// The users file names nobody.
    #[error("the users file has no user; write a line NAME:HASH for each")]
    NoUser,
    /// The name is not that of a header.
    #[error("{name:?} is not the name of an HTTP header")]
    InvalidHeader {
        /// The given name.
        name: String,
    },
}

impl Access {
    /// Admits everybody who reaches a server that listens on a loopback address: every user of this machine.
    ///
    /// Requests whose `Host` is not `localhost` or a loopback address are refused, so that a web site cannot read the console
    /// through a name that resolves to this machine (DNS rebinding).
    pub fn loopback() -> Self {
        Self(AccessKind::Loopback)
    }

    /// Admits every request. Use it only behind a middleware of your own that authenticates operators.
    pub fn unprotected() -> Self {
        Self(AccessKind::Unprotected)
    }

    /// Admits whoever knows a token: in the form of the login page, or as `Authorization: Bearer TOKEN`.
    ///
    /// # Errors
    /// [`ShortToken`](AccessError::ShortToken) for fewer than 16 characters.
    pub fn token(token: &str) -> Result<Self, AccessError> {
        match token.chars().count() >= MIN_TOKEN_CHARS {
            true => Ok(Self(AccessKind::Token(hash(token)))),
            false => Err(AccessError::ShortToken),
        }
    }

    /// Admits the users of a users file, through the login page. Each line of the file is `NAME:HASH`, with an argon2id hash in
    /// PHC format (`$argon2id$v=19$…`). Empty lines, and lines that begin with `#`, are ignored.
    ///
    /// # Errors
    /// [`InvalidUser`](AccessError::InvalidUser) and [`NoUser`](AccessError::NoUser).
    pub fn users(file: &str) -> Result<Self, AccessError> {
        Users::read(file).map(|users| Self(AccessKind::Users(users)))
    }

    /// Admits requests with this header, which names the user. A reverse proxy must authenticate users, set the header, and remove
    /// it from requests of clients. Whoever reaches the console without the proxy can send the header too, so only the proxy
    /// may reach it.
    ///
    /// # Errors
    /// [`InvalidHeader`](AccessError::InvalidHeader)
    pub fn trusted_header(name: &str) -> Result<Self, AccessError> {
        header(name).map(|header| Self(AccessKind::TrustedHeader(header)))
    }

    /// Admits requests with two headers: one names the user, the other the owner of tasks that this user may see. Pages, counts,
    /// live streams and actions are then about the tasks of that owner only. A task of another owner does not exist for the user.
    ///
    /// Use it behind a reverse proxy that knows its tenants. The proxy sets both headers, under the conditions of
    /// [`trusted_header`](Self::trusted_header). The console refuses requests without an owner, and requests with a header twice.
    ///
    /// # Errors
    /// [`InvalidHeader`](AccessError::InvalidHeader)
    pub fn tenants(user_header: &str, owner_header: &str) -> Result<Self, AccessError> {
        Ok(Self(AccessKind::Tenants { user: header(user_header)?, owner: header(owner_header)? }))
    }
}

fn header(name: &str) -> Result<HeaderName, AccessError> {
    name.parse().map_err(|_| AccessError::InvalidHeader { name: name.to_owned() })
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.0 {
            AccessKind::Loopback => "Access(loopback)",
            AccessKind::Unprotected => "Access(unprotected)",
            AccessKind::Token(_) => "Access(token)",
            AccessKind::Users(_) => "Access(users)",
            AccessKind::TrustedHeader(_) => "Access(trusted header)",
            AccessKind::Tenants { .. } => "Access(tenants)",
        })
    }
}

pub(crate) fn hash(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

/// Compares in constant time.
pub(crate) fn is_secret(hash_of_secret: &[u8; 32], given: &str) -> bool {
    hash(given).ct_eq(hash_of_secret).into()
}

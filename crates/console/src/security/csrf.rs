//! The tokens that prove that the console has shown a form to the visitor who sends it.

use axum::http::HeaderMap;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use super::guard::{Visitor, cookie};
use super::sessions::random;
use crate::frame::{Base, Frame};

/// The cookie that tells visitors without a session apart.
const COOKIE: &str = "mcp-tasks-visitor";

/// Makes and checks the tokens. They are valid until the process ends.
pub(crate) struct Csrf {
    key: Hmac<Sha256>,
}

/// What a form needs.
pub(crate) struct FormToken {
    pub(crate) token: String,
    /// The cookie to set, if the visitor is new.
    pub(crate) cookie: Option<String>,
}

impl Csrf {
    pub(crate) fn new() -> Self {
        // An HMAC key may have any length.
        Self { key: Hmac::new(&random_block()) }
    }

    /// Returns a token for the visitor of a request. It is bound to the session, or else to a cookie.
    pub(crate) fn token(&self, frame: &Frame, headers: &HeaderMap) -> FormToken {
        let visitor = &frame.visitor;
        match visitor.session.as_deref().or_else(|| visitor_id(headers)) {
            Some(id) => FormToken { token: self.sign(visitor, id), cookie: None },
            None => {
                let id = random();
                let cookie = set_cookie(COOKIE, &id, &frame.base, headers);
                FormToken { token: self.sign(visitor, &id), cookie: Some(cookie) }
            }
        }
    }

    /// Returns whether the console gave this token to this visitor. Takes the same time for each token.
    pub(crate) fn is_valid(&self, token: &str, visitor: &Visitor, headers: &HeaderMap) -> bool {
        let id = visitor.session.as_deref().or_else(|| visitor_id(headers));
        id.is_some_and(|id| self.sign(visitor, id).as_bytes().ct_eq(token.as_bytes()).into())
    }

    fn sign(&self, visitor: &Visitor, id: &str) -> String {
        let name = visitor.name.as_deref().unwrap_or_default();
        let owner = visitor.owner.as_ref().map_or("", |owner| owner.as_str());
        let mut mac = self.key.clone();
        for part in [id, name, owner] {
            // With its length before it, no part can be taken for another.
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part.as_bytes());
        }
        mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

fn random_block() -> hmac::digest::Key<Hmac<Sha256>> {
    let mut key = hmac::digest::Key::<Hmac<Sha256>>::default();
    for (byte, random) in key.iter_mut().zip(random().bytes()) {
        *byte = random;
    }
    key
}

fn visitor_id(headers: &HeaderMap) -> Option<&str> {
    cookie(headers, COOKIE).filter(|id| id.len() == 64)
}

/// Returns the header that sets a cookie, which scripts cannot read and other sites cannot send.
pub(crate) fn set_cookie(name: &str, value: &str, base: &Base, headers: &HeaderMap) -> String {
    let is_https = headers.get("x-forwarded-proto").is_some_and(|scheme| scheme == "https");
    let secure = if is_https { "; Secure" } else { "" };
    format!("{name}={value}; Path={}; HttpOnly; SameSite=Strict{secure}", base.cookie_path())
}

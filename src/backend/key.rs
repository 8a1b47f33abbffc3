//! The typed key of a record: an owner id and a task id.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::printable::Printable;

mod parse;

/// The maximum length of an owner id or a task id, in bytes of UTF-8.
pub const MAX_ID_BYTES: usize = 256;

/// Percent-encodes `:`, `%`, `{`, `}` and control characters of an id, so that colons can separate ids. Two different ids
/// never have the same text.
pub(crate) fn escape(id: &str) -> Cow<'_, str> {
    // The control characters beyond ASCII, U+0080 to U+009F, begin with the byte 0xC2.
    let may_need = |byte: u8| matches!(byte, b':' | b'%' | b'{' | b'}' | 0xC2) || byte.is_ascii_control();
    // Most ids need no encoding. A loop that never ends early compiles to vector instructions.
    if !id.bytes().fold(false, |found, byte| found | may_need(byte)) {
        return Cow::Borrowed(id);
    }
    let special = |c: char| matches!(c, ':' | '%' | '{' | '}') || c.is_control();
    let mut escaped = String::with_capacity(id.len() + 8);
    for c in id.chars() {
        if special(c) {
            for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                escaped.push('%');
                escaped.push(char::from(b"0123456789ABCDEF"[usize::from(byte >> 4)]));
                escaped.push(char::from(b"0123456789ABCDEF"[usize::from(byte & 15)]));
            }
        } else {
            escaped.push(c);
        }
    }
    Cow::Owned(escaped)
}

/// Decodes the output of [`escape`]; `None` for any other text.
pub(crate) fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok().filter(|id| escape(id) == text)
}

/// Returns the 64-bit FNV-1a hash (<http://www.isthe.com/chongo/tech/comp/fnv/>) of these bytes. The hash is the same
/// on every instance and in every version of the crate.
pub(crate) fn stable_hash(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

macro_rules! id {
    ($(#[$docs:meta])* $name:ident, $what:literal) => {
        $(#[$docs])*
        ///
        /// Any non-empty UTF-8 of up to [`MAX_ID_BYTES`] bytes is legal, including colons, braces, spaces, NUL and emoji. An
        /// id is cheap to clone. `Display` writes the id unchanged.
        ///
        /// # Errors
        /// The conversions refuse an empty or overlong id with
        /// [`StorageError::InvalidKey`](crate::StorageError::InvalidKey).
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Returns the id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// Returns the id in a form that is safe in a log line.
            pub(crate) fn printable(&self) -> Printable<'_> {
                Printable(&self.0)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.as_str().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    };
}

id! {
    /// The owner of a task: the subject that the server has authenticated.
    OwnerId, "owner"
}

id! {
    /// The id of one of an owner's tasks. [`TaskStore`](crate::TaskStore) creates random UUIDs (version 4).
    TaskId, "task"
}

impl TaskId {
    /// Creates a random UUIDv4 (122 random bits), so that nobody can guess the id of another task.
    pub fn random() -> Self {
        Self::of_uuid(uuid::Uuid::new_v4())
    }

    pub(crate) fn of_uuid(id: uuid::Uuid) -> Self {
        Self(id.to_string().into())
    }
}

/// The key of one record: an owner and one of its tasks.
///
/// A key always has an owner, so no call can reach a record of another owner. `Display` writes `owner:task`, with
/// `:`, `%`, `{`, `}` and control characters of the ids percent-encoded. The text is unambiguous and safe in a log
/// line. `FromStr` parses it.
///
/// ```
/// use mcp_task_store::TaskKey;
///
/// let key = TaskKey::new("alice", "t:1")?;
/// assert_eq!(key.to_string(), "alice:t%3A1");
/// # Ok::<(), mcp_task_store::StorageError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskKey {
    /// The owner of the task.
    pub owner: OwnerId,
    /// The id of the task.
    pub task: TaskId,
}

impl From<(OwnerId, TaskId)> for TaskKey {
    fn from((owner, task): (OwnerId, TaskId)) -> Self {
        Self { owner, task }
    }
}

impl fmt::Display for TaskKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", escape(self.owner.as_str()), escape(self.task.as_str()))
    }
}

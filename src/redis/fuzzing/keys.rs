//! The properties of the key schema.

use std::collections::HashMap;

use crate::backend::key::escape;
use crate::backend::{MAX_ID_BYTES, OwnerId, TaskId, TaskKey};
use crate::fuzzing::fields::fields;
use crate::redis::schema::Schema;

/// Fields: four ids, a prefix.
///
/// Every key decodes to its ids, its kind and its prefix, so no two sets of ids have one key. With hash tags, a cluster
/// hashes exactly the owner. Without them, it hashes whole keys.
pub fn key(input: &[u8]) {
    let [a, b, c, d, prefix] = fields(input).map(|field| String::from_utf8_lossy(field).into_owned());
    let prefix = if prefix_is_legal(&prefix) { &prefix } else { "pmcp" };
    // Also ids that would reach the keys of another owner if ids were not escaped.
    let (ab, bc) = (format!("{a}:{b}"), format!("{b}:{c}"));
    let (tagged, escaped) = (format!("{{{a}}}"), escape(&a).into_owned());
    for id in [&a, &b, &c, &d, &ab, &tagged, &escaped] {
        check_escape(id);
        let is_legal = (1..=MAX_ID_BYTES).contains(&id.len());
        assert_eq!(OwnerId::try_from(id.as_str()).is_ok(), is_legal);
        assert_eq!(TaskId::try_from(id.as_str()).is_ok(), is_legal);
    }
    let pairs = [
        (&a, &b),
        (&c, &d),
        (&a, &bc),
        (&ab, &c),
        (&tagged, &b),
        (&escaped, &b),
        (&b, &tagged),
        (&b, &escaped),
    ];

    let mut keys = Keys::default();
    for (owner, task) in pairs {
        let Ok(key) = TaskKey::new(owner, task) else { continue };
        check_text(&key);
        for hash_tag in [false, true] {
            keys.add_all(&key, prefix, hash_tag);
        }
    }
}

/// Checks that the text of a task's key decodes to its ids.
fn check_text(key: &TaskKey) {
    let text = key.to_string();
    let (owner, task) = text.split_once(':').expect("a colon between the ids");
    assert_eq!(unescape(owner).as_deref(), Some(key.owner.as_str()));
    assert_eq!(unescape(task).as_deref(), Some(key.task.as_str()));
}

/// The Redis keys so far, and the parts of each.
#[derive(Default)]
struct Keys(HashMap<String, Decoded>);

impl Keys {
    /// Adds the keys of one record.
    fn add_all(&mut self, key: &TaskKey, prefix: &str, hash_tag: bool) {
        let schema = Schema::new(prefix, hash_tag).expect("a legal prefix");
        let parts = |kind: &str, task: Option<&TaskId>| Decoded {
            prefix: prefix.to_owned(),
            kind: kind.to_owned(),
            hash_tag,
            owner: key.owner.as_str().to_owned(),
            task: task.map(|task| task.as_str().to_owned()),
        };
        let keys = schema.keys(key);
        assert_eq!(keys.idx, schema.idx(&key.owner));
        self.add(keys.task, parts("tasks", Some(&key.task)));
        self.add(keys.idx, parts("idx", None));
    }

    fn add(&mut self, key: String, parts: Decoded) {
        assert_eq!(decode(&key).as_ref(), Some(&parts), "{key}");
        let hashed = if parts.hash_tag { escape(&parts.owner) } else { key.as_str().into() };
        assert_eq!(hash_slot_part(&key), hashed);
        let before = self.0.entry(key).or_insert_with(|| parts.clone());
        assert_eq!(*before, parts, "two sets of ids have one key");
    }
}

fn prefix_is_legal(prefix: &str) -> bool {
    let is_legal = (1..=64).contains(&prefix.len())
        && prefix.chars().all(|c| matches!(c, 'A'..='Z' | 'a'..='z' | '0'..='9' | '.' | '_' | '-'));
    assert_eq!(Schema::new(prefix, false).is_ok(), is_legal, "{prefix:?}");
    is_legal
}

/// The parts of a key by the documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Decoded {
    prefix: String,
    kind: String,
    hash_tag: bool,
    owner: String,
    task: Option<String>,
}

fn decode(key: &str) -> Option<Decoded> {
    let parts: Vec<_> = key.split(':').collect();
    let (prefix, kind, owner, task) = match parts[..] {
        [prefix, kind, owner] => (prefix, kind, owner, None),
        [prefix, kind, owner, task] => (prefix, kind, owner, Some(unescape(task)?)),
        _ => return None,
    };
    let tagged = owner.strip_prefix('{').and_then(|owner| owner.strip_suffix('}'));
    Some(Decoded {
        prefix: prefix.to_owned(),
        kind: kind.to_owned(),
        hash_tag: tagged.is_some(),
        owner: unescape(tagged.unwrap_or(owner))?,
        task,
    })
}

fn must_be_escaped(c: char) -> bool {
    matches!(c, ':' | '%' | '{' | '}' | '\0'..='\u{1f}' | '\u{7f}'..='\u{9f}')
}

/// Decodes percent-encoded text without using the code of the schema; `None` for text that encodes no id.
fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let mut digit = || match rest.next()? {
                digit @ b'0'..=b'9' => Some(digit - b'0'),
                digit @ b'A'..=b'F' => Some(digit - b'A' + 10),
                _ => None,
            };
            bytes.push(digit()? << 4 | digit()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

fn check_escape(id: &str) {
    let escaped = escape(id);
    assert!(!escaped.contains(|c| c != '%' && must_be_escaped(c)), "{escaped:?}");
    assert_eq!(unescape(&escaped).as_deref(), Some(id));
    let added: usize = id.chars().filter(|c| must_be_escaped(*c)).map(|c| 2 * c.len_utf8()).sum();
    assert_eq!(escaped.len(), id.len() + added, "{escaped:?} escapes more than it must");
}

/// Returns the part of a key that a cluster hashes (<https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#hash-tags>).
fn hash_slot_part(key: &str) -> &str {
    let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag);
    tag.filter(|tag| !tag.is_empty()).unwrap_or(key)
}

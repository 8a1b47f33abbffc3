//! Properties of the code that writes keys and parses text from outside. Each function is one property, and panics if
//! an input violates it.
//!
//! The fuzz targets of `fuzz/` call these functions. On a stable toolchain the tests below call them with the same
//! seed corpus. The byte 0xFF, which no UTF-8 text contains, separates the fields of an input.

pub(crate) mod fields;

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use fields::fields;

use crate::backend::engine::{PageBounds, cursor as engine_cursor};
use crate::backend::{Cursor, OwnerId, PageRequest, PutOptions, StorageBackend, StorageError, TaskId};
use crate::memory::MemoryBackend;

#[cfg(feature = "encryption")]
pub use crate::encryption::fuzzing::envelope;
#[cfg(feature = "redis")]
pub use crate::redis::fuzzing::{key, record, script_error};

/// The fields of the input are an owner, another owner, a position, an edit (the index and the new byte), and a
/// cursor as a client sends it.
///
/// Any text is either a valid cursor of this owner, which has the same text again, or is rejected with `InvalidPage`.
/// A cursor is valid for its owner only, and invalid after any change of one character.
pub fn cursor(input: &[u8]) {
    let [owner, other, position, edit, text] = fields(input);
    let id = |field, instead| {
        OwnerId::try_from(String::from_utf8_lossy(field).into_owned())
            .or_else(|_| OwnerId::try_from(instead))
            .expect("a legal id")
    };
    let (owner, other) = (id(owner, "alice"), id(other, "bob"));
    let position = std::str::from_utf8(position).ok().and_then(|text| text.parse().ok()).unwrap_or(u64::MAX);
    let text = String::from_utf8_lossy(text);

    let listing = ListingOfTwo::of(&owner);
    match position_of(&owner, &text) {
        Some(position) => {
            assert_eq!(engine_cursor(&owner, position).as_str(), text);
            assert!(owner == other || position_of(&other, &text).is_none());
            assert!(listing.page(&owner, &*text).is_ok());
        }
        None => assert!(matches!(listing.page(&owner, &*text), Err(StorageError::InvalidPage { .. }))),
    }

    let given = engine_cursor(&owner, position);
    assert_eq!(position_of(&owner, given.as_str()), Some(position));
    assert_eq!(position_of(&other, given.as_str()), (owner == other).then_some(position));

    if let [place, instead, ..] = *edit {
        let place = usize::from(place) % given.as_str().len();
        let (before, after) = given.as_str().split_at(place);
        let edited = format!("{before}{}{}", char::from(instead), &after[1..]);
        assert!(edited == given.as_str() || position_of(&owner, &edited).is_none(), "{edited} passes");
    }

    let next = listing.next.clone();
    assert_eq!(listing.page(&owner, next.clone()).expect("the owner's own cursor"), ["older"]);
    assert_eq!(listing.page(&other, next).is_ok(), owner == other);
}

/// Returns the position of a cursor; `None` if the text is no cursor of this owner.
fn position_of(owner: &OwnerId, text: &str) -> Option<u64> {
    match PageBounds::check(&PageRequest::new(1).after(text), owner) {
        Ok(PageBounds { limit, below, .. }) => {
            assert_eq!(limit, 1);
            assert!(below.is_some(), "a cursor without a position");
            below
        }
        Err(StorageError::InvalidPage { reason }) => {
            assert!(!reason.is_empty());
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Two records of an owner, and the cursor between them.
struct ListingOfTwo {
    engine: MemoryBackend,
    next: Cursor,
}

impl ListingOfTwo {
    fn of(owner: &OwnerId) -> Self {
        let engine = MemoryBackend::new();
        for task in ["older", "newer"] {
            let key = (owner.clone(), TaskId::try_from(task).expect("a legal id")).into();
            ready(engine.put(&key, Bytes::new(), PutOptions::default())).expect("room for two records");
        }
        let first = ready(engine.list(owner, PageRequest::new(1))).expect("the first page");
        Self { engine, next: first.next.expect("a second page") }
    }

    fn page(&self, owner: &OwnerId, after: impl Into<Cursor>) -> Result<Vec<String>, StorageError> {
        let page = ready(self.engine.list(owner, PageRequest::new(1).after(after)))?;
        Ok(page.records.into_iter().map(|record| record.task.to_string()).collect())
    }
}

/// Returns the output of a call of the memory engine. Such a call never waits.
fn ready<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("the memory engine waits"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::select;
    use rstest::rstest;
    use std::path::Path;

    type Property = fn(&[u8]);

    #[rstest]
    #[case::cursor("cursor", cursor)]
    #[cfg_attr(feature = "encryption", case::envelope("envelope", envelope))]
    #[cfg_attr(feature = "redis", case::key("key", key))]
    #[cfg_attr(feature = "redis", case::record("record", record))]
    #[cfg_attr(feature = "redis", case::script_error("script_error", script_error))]
    fn a_property_holds_for_its_seed_corpus(#[case] target: &str, #[case] property: Property) {
        let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
        if !fuzz.exists() {
            return; // The published crate has no seed corpus.
        }
        let seeds: Vec<_> = fuzz.join("corpus").join(target).read_dir().unwrap().collect();
        assert!(!seeds.is_empty());
        for seed in seeds {
            let seed = seed.unwrap().path();
            println!("{}", seed.display());
            property(&std::fs::read(seed).unwrap());
        }
    }

    /// Generates inputs, mostly of words that the property distinguishes.
    fn inputs(words: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
        let word = prop_oneof![
            3 => select(words).prop_map(|word| word.as_bytes().to_vec()),
            2 => Just(vec![0xFF]),
            1 => vec(any::<u8>(), 1..4),
        ];
        vec(word, 0..16).prop_map(|words| words.concat())
    }

    proptest! {
        #[test]
        fn any_cursor_is_sound(input in inputs(&["alice", "bob", "7", "ff.", "75024796edaab566", "0000"])) {
            cursor(&input);
        }
    }

    #[cfg(feature = "encryption")]
    proptest! {
        #[test]
        fn any_envelope_is_opened_or_refused(input in inputs(&[
            "\u{1}", "\u{2}", "k1", "k2", "k3", "\0\0\0\0\0\0\0\0\0\0\0\0\0\0", "{\"a\":1}", "012345678901234567890123", "0123456789abcdef",
        ])) {
            envelope(&input);
        }
    }

    #[cfg(feature = "redis")]
    proptest! {
        #[test]
        fn any_key_is_sound(input in inputs(&["a", ":", "%", "{", "}", "%3A", "\0", "\u{85}", "🦀"])) {
            key(&input);
        }

        #[test]
        fn any_record_is_decoded_without_a_panic(input in inputs(&[
            "*3\r\n", "$1\r\n7\r\n", "$-1\r\n", ":1\r\n", "1", "0", "9007199254740991", "1795000000000", "$", "*", "input=4097 ", "a=",
        ])) {
            record(&input);
        }

        #[test]
        fn any_script_error_is_decoded_without_a_panic(input in inputs(&[
            "FOUND", "FOUND [\"7\",false,1,true,true]", "false", "TOOMANYPARTS", "\"", ",", "CAPACITYEXCEEDED", "ERR", "@user_script", "OOM", "READONLY",
            "NOPERM", "MOVED", "WRONGTYPE", " ", "7", "-", "\r\n",
        ])) {
            script_error(&input);
        }
    }
}

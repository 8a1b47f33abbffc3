//! The property of the decoder of envelopes. See [`crate::fuzzing`].

use bytes::Bytes;

use super::envelope::{ENVELOPE_BYTES, Field, open, seal};
use super::keyring::Keyring;
use crate::backend::{PartName, StorageError, TaskKey};
use crate::fuzzing::fields::fields;

static OUTPUT: PartName = PartName::from_static("output");

/// The fields of the input are plain bytes, an edit (the index and the new byte), and stored bytes.
///
/// Any stored bytes are decrypted or refused without a panic, and bytes that no key of the ring has encrypted are refused. What was
/// encrypted is decrypted to the same bytes, and refused after any change of one byte, at any shorter length, and as another field.
///
/// # Panics
/// If the input violates the property.
pub fn envelope(input: &[u8]) {
    let [plain, edit, stored] = fields(input);
    let keyring = Keyring::new([("k1", vec![1; 32]), ("k2", vec![2; 32])]).expect("two keys");
    let key = TaskKey::new("alice", "t1").expect("a legal key");
    let opened = |field, stored: &[u8]| open(&keyring, &key, field, stored);
    let is_refused = |opened: Result<Bytes, StorageError>| match opened {
        Err(StorageError::Corrupt { reason, .. }) => !reason.is_empty(),
        Err(StorageError::MissingKey { key_id, .. }) => !["", "k1", "k2"].contains(&&*key_id),
        _ => false,
    };

    assert!(is_refused(opened(Field::Data, stored)));
    let sealed = seal(&keyring, &key, Field::Data, plain).expect("random bytes");
    assert_eq!(sealed.len(), plain.len() + ENVELOPE_BYTES);
    assert_eq!(opened(Field::Data, &sealed).expect("the same key"), plain);
    assert!(is_refused(opened(Field::Part(&OUTPUT), &sealed)));
    if let [place, instead, ..] = *edit {
        let place = usize::from(place) % sealed.len();
        assert!(is_refused(opened(Field::Data, &sealed[..place])));
        let mut edited = sealed.to_vec();
        edited[place] = instead;
        assert!(edited == sealed || is_refused(opened(Field::Data, &edited)));
    }
}

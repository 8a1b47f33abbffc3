use std::collections::HashSet;

use super::*;

static OUTPUT: PartName = PartName::from_static("output");

fn keyring(keys: &[(&str, u8)]) -> Keyring {
    Keyring::new(keys.iter().map(|(id, byte)| (id, vec![*byte; 32]))).unwrap()
}

fn key(owner: &str, task: &str) -> TaskKey {
    TaskKey::new(owner, task).unwrap()
}

fn corrupt(opened: Result<Bytes, StorageError>) -> String {
    match opened {
        Err(StorageError::Corrupt { reason, source: None, .. }) => reason,
        other => panic!("expected Corrupt, got {other:?}"),
    }
}

/// The envelope of `{"taskId":"t1"}`, as this version of the crate stored it.
const STORED: &str = "\
    01323032362d3131000000000000000000db7121221f95e66a03f94d950c3e9cbfdf2299d6cd44d674550add2c11d5af4a87\
    e28426593af46ea7143063c6e24cf22db2a5f8314bdd";

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn every_version_of_the_crate_reads_this_envelope() {
    let stored = unhex(STORED);
    let opened = open(&keyring(&[("2026-11", 7)]), &key("alice", "t1"), Field::Data, &stored);
    assert_eq!(opened.unwrap(), r#"{"taskId":"t1"}"#);
}

#[test]
fn an_envelope_has_the_documented_fields_and_57_bytes_more_than_its_content() {
    let (keys, key) = (keyring(&[("2026-11", 7)]), key("alice", "t1"));
    assert_eq!(ENVELOPE_BYTES, 57);
    for plain in ["", "x", "a large result"] {
        let sealed = seal(&keys, &key, Field::Data, plain.as_bytes()).unwrap();
        assert_eq!(sealed.len(), plain.len() + 57);
        assert_eq!(sealed[0], 1);
        assert_eq!(&sealed[1..17], b"2026-11\0\0\0\0\0\0\0\0\0");
        assert!(plain.is_empty() || sealed[41..].windows(plain.len()).all(|bytes| bytes != plain.as_bytes()));
        assert_eq!(open(&keys, &key, Field::Data, &sealed).unwrap(), plain);
    }
}

#[test]
fn each_envelope_has_a_nonce_of_its_own() {
    let (keys, key) = (keyring(&[("k1", 1)]), key("alice", "t1"));
    let nonces: HashSet<Vec<u8>> =
        (0..1000).map(|_| seal(&keys, &key, Field::Data, b"same").unwrap()[17..41].to_vec()).collect();
    assert_eq!(nonces.len(), 1000);
}

#[test]
fn an_envelope_with_any_byte_changed_is_refused() {
    let (keys, key) = (keyring(&[("k1", 1), ("k2", 2)]), key("alice", "t1"));
    let sealed = seal(&keys, &key, Field::Data, b"content").unwrap();
    for at in 0..sealed.len() {
        for change in [1, 0x80, 0xFF] {
            let mut changed = sealed.to_vec();
            changed[at] ^= change;
            match open(&keys, &key, Field::Data, &changed).unwrap_err() {
                StorageError::Corrupt { key: of, reason, .. } => assert!(of == key && !reason.is_empty()),
                StorageError::MissingKey { .. } => assert!((1..17).contains(&at)),
                error => panic!("byte {at}: {error:?}"),
            }
        }
    }
    // The other key of the ring cannot open it either.
    let mut other_key = sealed.to_vec();
    other_key[2] = b'2';
    assert!(corrupt(open(&keys, &key, Field::Data, &other_key)).contains(r#"under the key "k2""#));
}

#[test]
fn an_envelope_that_is_truncated_or_longer_is_refused() {
    let (keys, key) = (keyring(&[("k1", 1)]), key("alice", "t1"));
    let sealed = seal(&keys, &key, Field::Data, b"content").unwrap();
    for length in 0..sealed.len() {
        let reason = corrupt(open(&keys, &key, Field::Data, &sealed[..length]));
        let says = match length {
            0 => "is not encrypted",
            1..57 => "is no complete envelope",
            _ => "fails authentication",
        };
        assert!(reason.contains(says), "{length}: {reason}");
    }
    corrupt(open(&keys, &key, Field::Data, &[&sealed[..], b"x"].concat()));
}

#[test]
fn an_envelope_is_refused_as_any_other_field_of_any_other_record() {
    let keys = keyring(&[("k1", 1)]);
    let data = PartName::from_static("data");
    let fields = [Field::Data, Field::Part(&OUTPUT), Field::Part(&data)];
    let records =
        [key("alice", "t1"), key("alice", "t2"), key("alic", "et1"), key("alicet", "1"), key("bob", "t1")];
    let places: Vec<_> = records.iter().flat_map(|key| fields.map(|field| (key, field))).collect();
    for (at, (key, field)) in places.iter().enumerate() {
        let sealed = seal(&keys, key, *field, b"content").unwrap();
        for (other, (key, field)) in places.iter().enumerate() {
            let opened = open(&keys, key, *field, &sealed);
            if at == other {
                assert_eq!(opened.unwrap(), "content");
            } else {
                assert!(corrupt(opened).contains("moved here from another record or part"));
            }
        }
    }
}

#[test]
fn a_missing_key_is_named_and_another_key_with_its_id_is_corrupt() {
    let key = key("alice", "t1");
    let sealed = seal(&keyring(&[("2025-11", 1)]), &key, Field::Data, b"content").unwrap();
    let missing = open(&keyring(&[("2026-11", 1)]), &key, Field::Data, &sealed).unwrap_err();
    assert!(matches!(&missing, StorageError::MissingKey { key_id, .. } if key_id == "2025-11"));
    assert!(missing.to_string().contains("add this key to the keyring"), "{missing}");
    assert!(!missing.is_retryable() && !missing.outcome_unknown());
    let reason = corrupt(open(&keyring(&[("2025-11", 2)]), &key, Field::Data, &sealed));
    assert!(reason.contains("compare the keyrings"), "{reason}");
}

#[test]
fn bytes_that_are_not_an_envelope_are_refused() {
    let (keys, key) = (keyring(&[("k1", 1)]), key("alice", "t1"));
    for plain in
        [&b""[..], b"{\"taskId\":\"t1\"}", b"[1]", b"\"text\"", b"7", b"null", b" {}", b"\n", b"\xff"]
    {
        let reason = corrupt(open(&keys, &key, Field::Part(&OUTPUT), plain));
        assert!(reason.starts_with("its part output is not encrypted; "), "{reason}");
    }
    let later = corrupt(open(&keys, &key, Field::Data, &[2; 80]));
    assert!(later.contains("version 2") && later.contains("upgrade this instance"), "{later}");
    for id in [&b"\0"[..], b"k1\0x", b"k 1", b"\xff"] {
        let mut sealed = seal(&keys, &key, Field::Data, b"content").unwrap().to_vec();
        sealed[1..17].fill(0);
        sealed[1..1 + id.len()].copy_from_slice(id);
        assert!(corrupt(open(&keys, &key, Field::Data, &sealed)).contains("is no complete envelope"));
    }
}

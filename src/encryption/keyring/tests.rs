use std::error::Error;
use std::fs;

use rstest::rstest;
use zeroize::ZeroizeOnDrop;

use super::*;

/// 32 bytes in base64.
const KEY: &str = "GlgEDfs5k9zpNQkxL0qxZQp2VNY+p7PhBbLyGn6ZT4M=";
const OTHER: &str = "0OGcmXJmNqYH+PWdXGB4a6m6CbcFSxdGZ3XQ7XhYvG4=";

fn refused(keys: &str) -> KeyringError {
    keys.parse::<Keyring>().unwrap_err()
}

/// Prints an error with its causes, in every format.
fn printed(error: &KeyringError) -> String {
    let source = error.source().map(|source| format!("{source} {source:?}"));
    format!("{error} {error:?} {error:#?} {source:?}")
}

fn file(text: &[u8], mode: u32) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), text).unwrap();
    #[cfg(unix)]
    fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    file
}

#[test]
fn text_holds_keys_on_lines_or_after_commas_and_the_first_is_current() {
    let unpadded = KEY.trim_end_matches('=');
    for text in [
        format!("# comment\n\n new : {KEY} \r\nold:{OTHER}\n"),
        format!("new:{KEY},old:{OTHER}"),
        format!("new:{unpadded}\n#off:{KEY}\nold:{OTHER}"),
    ] {
        let keyring: Keyring = text.parse().unwrap();
        assert_eq!(keyring.current(), "new");
        assert_eq!(keyring.ids().collect::<Vec<_>>(), ["new", "old"]);
    }
}

#[rstest]
#[case::empty("", "has no key")]
#[case::only_a_comment("# k1:x", "has no key")]
#[case::no_id(&format!(":{KEY}"), "no valid id")]
#[case::no_colon(KEY, "no valid id")]
#[case::swapped(&format!("{KEY}:k1"), "not valid base64")]
#[case::swapped_key_that_is_base64(&format!("{KEY}:{OTHER}"), "no valid id")]
#[case::long_id(&format!("a2345678901234567:{KEY}"), "no valid id")]
#[case::id_with_a_space(&format!("a b:{KEY}"), "no valid id")]
#[case::id_with_a_zero_byte(&format!("a\0b:{KEY}"), "no valid id")]
#[case::not_base64("k1:GlgEDfs5k9zp?Q", "not valid base64")]
#[case::short("k1:R2xnRURmczVrOXpw", "has 12 bytes instead of 32")]
#[case::long(&format!("k1:AAAA{KEY}"), "has 35 bytes instead of 32")]
#[case::no_key("k1:", "has 0 bytes instead of 32")]
#[case::duplicate(&format!("k1:{KEY}\nk1:{OTHER}"), "key 2 of the keyring has the id of an earlier key")]
#[case::the_same_key_twice(&format!("k1:{KEY},k1:{KEY}"), "the id of an earlier key")]
fn a_keyring_that_is_invalid_is_refused_and_the_error_contains_no_key(
    #[case] keys: &str,
    #[case] says: &str,
) {
    let error = refused(keys);
    assert!(error.to_string().contains(says), "{error}");
    let printed = printed(&error);
    for secret in [&KEY[..8], &OTHER[..8], "GlgE", "R2xnRURm", "Glg"] {
        assert!(!printed.contains(secret), "{printed}");
    }
}

#[test]
fn debug_shows_ids_and_no_key() {
    let keyring = Keyring::new([("k2", vec![171; 32]), ("k1", vec![205; 32])]).unwrap();
    assert_eq!(format!("{keyring:?}"), r#"Keyring { current: "k2", ids: ["k1", "k2"] }"#);
    assert!(!format!("{keyring:#?}").contains("171"));
}

#[test]
fn a_file_is_read_and_an_unreadable_one_is_refused() {
    let good = file(format!("k1:{KEY}").as_bytes(), 0o600);
    assert_eq!(Keyring::from_file(good.path()).unwrap().current(), "k1");
    let invalid = file(&[KEY.as_bytes(), &[0xFF]].concat(), 0o600);
    let huge = file("#".repeat(64 * 1024 + 1).as_bytes(), 0o600);
    for path in [invalid.path(), huge.path(), good.path().join("absent").as_path()] {
        let error = Keyring::from_file(path).unwrap_err();
        assert!(matches!(error, KeyringError::File { .. }), "{error:?}");
        assert!(error.to_string().contains(&path.display().to_string()));
        assert!(!printed(&error).contains(&KEY[..8]));
    }
}

#[cfg(unix)]
#[rstest]
#[case::readable_for_all(0o644, false)]
#[case::readable_for_others(0o604, false)]
#[case::writable_for_others(0o602, false)]
#[case::writable_for_the_group(0o620, false)]
#[case::readable_for_the_group(0o640, true)]
#[case::private(0o600, true)]
#[case::read_only(0o400, true)]
fn a_file_that_other_users_can_read_or_change_is_refused(#[case] mode: u32, #[case] is_accepted: bool) {
    let file = file(format!("k1:{KEY}").as_bytes(), mode);
    match Keyring::from_file(file.path()) {
        Ok(_) => assert!(is_accepted),
        Err(error) => {
            assert!(matches!(error, KeyringError::Permissions { mode: found, .. } if found == mode));
            assert!(!is_accepted && error.to_string().contains(&format!("{mode:03o}")), "{error}");
        }
    }
}

#[test]
fn a_variable_that_is_not_set_is_refused() {
    let error = Keyring::from_variable("MCP_TASKS_NO_SUCH_KEYS").unwrap_err();
    assert!(matches!(&error, KeyringError::Variable { name } if name == "MCP_TASKS_NO_SUCH_KEYS"));
}

/// The variables of this process cannot change while tests run, so a process of its own has another one.
#[test]
#[ignore = "run by a_variable_is_read_and_an_invalid_one_never_shown"]
fn a_process_with_a_variable() {
    match Keyring::from_variable("MCP_TASKS_TEST_KEYS") {
        Ok(keyring) => println!("current: {}", keyring.current()),
        Err(error) => println!("refused: {}", printed(&error)),
    }
}

#[cfg(unix)]
#[test]
fn a_variable_is_read_and_an_invalid_one_never_shown() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    let run = |value: &[u8]| {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--nocapture", "a_process_with_a_variable"])
            .env("MCP_TASKS_TEST_KEYS", OsStr::from_bytes(value))
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(run(format!("k1:{KEY}").as_bytes()).contains("current: k1"));
    let not_text = run(&[b"k1:", KEY.as_bytes(), &[0xFF]].concat());
    assert!(not_text.contains("refused: ") && !not_text.contains(&KEY[..8]), "{not_text}");
}

#[tokio::test]
async fn a_callback_supplies_the_keys_in_order_and_its_failure_names_the_position() {
    let mut asked = Vec::new();
    let keyring = Keyring::from_callback(["new", "old"], |id| {
        asked.push(id);
        async { Ok::<_, std::io::Error>(vec![7; 32]) }
    });
    assert_eq!(keyring.await.unwrap().current(), "new");
    assert_eq!(asked, ["new", "old"]);

    let failing = Keyring::from_callback(["new", "old"], async |id| match id {
        "new" => Ok(vec![7; 32]),
        _ => Err("the service is down"),
    });
    let error = failing.await.unwrap_err();
    assert!(matches!(error, KeyringError::Callback { position: 2, .. }));
    assert_eq!(error.source().unwrap().to_string(), "the service is down");

    let short = Keyring::from_callback(["k1"], async |_| Ok::<_, std::io::Error>(vec![7; 31]));
    assert!(matches!(short.await.unwrap_err(), KeyringError::WrongLength { position: 1, bytes: 31 }));
    let none = Keyring::from_callback([], async |_| Ok::<_, std::io::Error>(vec![7; 32]));
    assert!(matches!(none.await.unwrap_err(), KeyringError::Empty));
}

#[test]
fn a_cipher_overwrites_its_key_when_it_is_dropped() {
    fn overwrites<T: ZeroizeOnDrop>() {}
    overwrites::<XChaCha20Poly1305>();
}

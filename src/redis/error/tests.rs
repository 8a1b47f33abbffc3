use super::classes::WORDS;
use super::*;
use crate::redis::reply::check_reply;
use redis::{ServerError, Value};
use rstest::rstest;
use std::sync::LazyLock;

fn write() -> Context<'static> {
    static T1: LazyLock<TaskKey> = LazyLock::new(|| TaskKey::new("alice", "t1").unwrap());
    Context {
        writes: true,
        expected: Some(Version::FIRST),
        quota: Some(3),
        ..Context::reads("127.0.0.1:6379", "pmcp:tasks:alice:t1").of(&T1)
    }
}

/// Returns the error into which the redis crate parses this line from a server.
fn server_says(line: &str) -> RedisError {
    let reply = redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).unwrap();
    let Value::ServerError(error) = reply else { panic!("{reply:?}") };
    let error: ServerError = error;
    error.into()
}

#[test]
fn the_text_of_each_known_error_names_a_remedy() {
    for (word, class) in WORDS {
        if let Class::Unavailable(reason) | Class::Denied(reason) = class {
            assert!(reason.contains("; "), "{word}: {reason}");
        }
    }
}

fn variant(error: &StorageError) -> &'static str {
    match error {
        StorageError::NotFound { .. } => "NotFound",
        StorageError::VersionConflict { .. } => "VersionConflict",
        StorageError::VersionExhausted { .. } => "VersionExhausted",
        StorageError::CapacityExceeded { quota: Some(_), .. } => "quota",
        StorageError::CapacityExceeded { quota: None, .. } => "memory",
        StorageError::Corrupt { .. } => "Corrupt",
        StorageError::TooLarge { .. } => "TooLarge",
        StorageError::Denied { .. } => "Denied",
        StorageError::Unavailable { .. } => "Unavailable",
        StorageError::Backend { .. } => "Backend",
        _ => "another",
    }
}

#[rstest]
#[case::nothing(r#"FOUND [false,false,0,false,true]"#, "NotFound", false, false)]
#[case::conflict(r#"FOUND ["7",false,1,true,true]"#, "VersionConflict", false, false)]
#[case::exhausted(r#"FOUND ["1",false,1,true,true]"#, "VersionExhausted", false, false)]
#[case::quota("CAPACITYEXCEEDED 3", "quota", true, false)]
#[case::parts("TOOMANYPARTS 5", "TooLarge", false, false)]
#[case::corrupt(r#"FOUND ["?",false,1,true,true]"#, "Corrupt", false, false)]
#[case::oom("OOM command not allowed when used memory > 'maxmemory'.", "memory", true, false)]
#[case::readonly("READONLY You can't write against a read only replica.", "Unavailable", true, false)]
#[case::loading("LOADING Redis is loading the dataset in memory", "Unavailable", true, false)]
#[case::clusterdown("CLUSTERDOWN Hash slot not served", "Unavailable", true, false)]
#[case::tryagain("TRYAGAIN Multiple keys request during rehashing of slot", "Unavailable", true, false)]
#[case::masterdown("MASTERDOWN Link with MASTER is down", "Unavailable", true, false)]
#[case::misconf("MISCONF Redis is configured to save RDB snapshots", "Unavailable", true, false)]
#[case::maxclients("ERR max number of clients reached", "Unavailable", true, false)]
#[case::noauth("NOAUTH Authentication required.", "Denied", false, false)]
#[case::wrongpass("WRONGPASS invalid username-password pair or user is disabled.", "Denied", false, false)]
#[case::noperm("NOPERM this user has no permissions to run the 'eval' command", "Denied", false, false)]
#[case::wrongtype(
    "WRONGTYPE Operation against a key holding the wrong kind of value",
    "Corrupt",
    false,
    false
)]
#[case::moved("MOVED 3999 127.0.0.1:6381", "Backend", false, false)]
#[case::unforeseen("ERR something new", "Backend", false, true)]
#[case::our_code_with_a_strange_detail("FOUND many", "Backend", false, true)]
fn a_servers_error_becomes_the_right_variant(
    #[case] line: &str,
    #[case] expected: &str,
    #[case] retryable: bool,
    #[case] outcome_unknown: bool,
) {
    let error = write().storage_error(CommandError::ErrorReply(server_says(line)));
    assert_eq!(variant(&error), expected, "{error}");
    assert_eq!(error.is_retryable(), retryable, "{error}");
    assert_eq!(error.outcome_unknown(), outcome_unknown, "{error}");
}

#[rstest]
#[case::wrongtype_6_2(
    "ERR Error running script (call to f_3c0): @user_script:9: WRONGTYPE Operation against a key holding the wrong kind of value",
    "Corrupt"
)]
#[case::wrongtype_7(
    "WRONGTYPE Operation against a key holding the wrong kind of value script: 3c0, on @user_script:9.",
    "Corrupt"
)]
#[case::oom_6_2(
    "ERR Error running script (call to f_3c0): @user_script:12: @user_script: 12: -OOM command not allowed when used memory > 'maxmemory'.",
    "memory"
)]
#[case::oom_7(
    "OOM command not allowed when used memory > 'maxmemory'. script: 3c0, on @user_script:12.",
    "memory"
)]
#[case::readonly_6_2(
    "ERR Error running script (call to f_3c0): @user_script:12: -READONLY You can't write against a read only replica.",
    "Unavailable"
)]
#[case::slot_in_migration(
    "ERR Script attempted to access a non local key in a cluster node script: 3c0, on @user_script:9.",
    "Unavailable"
)]
#[case::acl_6_2(
    "ERR Error running script (call to f_3c0): @user_script:9: The user executing the script can't run this command or subcommand",
    "Denied"
)]
#[case::acl_key_6_2(
    "ERR Error running script (call to f_3c0): @user_script:9: The user executing the script can't access at least one of the keys mentioned in the command arguments",
    "Denied"
)]
#[case::acl_caught_6_2(
    "@user_script: 41: The user executing the script can't run this command or subcommand",
    "Denied"
)]
#[case::acl_7(
    "ERR ACL failure in script: User reader has no permissions to run the 'hset' command script: 3c0, on @user_script:9.",
    "Denied"
)]
fn an_error_raised_inside_a_script_becomes_the_right_variant(#[case] line: &str, #[case] expected: &str) {
    let error = write().storage_error(CommandError::ErrorReply(server_says(line)));
    assert_eq!(variant(&error), expected, "{error}");
}

#[rstest]
#[case::redis_7("ERR unknown command 'EVAL', with args beginning with: 'local secret' '2' ")]
#[case::redis_6_2("ERR unknown command `EVAL`, with args beginning with: `local secret`, `2`, ")]
#[case::a_proxy("ERR unsupported command 'eval'")]
fn a_command_that_the_server_does_not_know_has_not_run_and_its_arguments_are_not_repeated(
    #[case] line: &str,
) {
    let failure = check_reply(Ok(Value::ServerError(
        match redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).unwrap() {
            Value::ServerError(error) => error,
            other => panic!("{other:?}"),
        },
    )));
    let error = write().storage_error(failure.unwrap_err());
    assert!(matches!(error, StorageError::Backend { outcome_unknown: false, .. }), "{error:?}");
    assert!(error.to_string().contains("does not know the command EVAL"), "{error}");
    let source = std::error::Error::source(&error).unwrap();
    let printed = format!("{error} {error:?} {source} {source:?}");
    assert!(!printed.contains("secret"), "{printed}");
}

#[rstest]
#[case::script_7(
    "ERR Unknown Redis command called from script script: 3c0, on @user_script:9.",
    ProbeError::UnknownCommand
)]
#[case::script_6_2(
    "ERR Error running script (call to f_3c0): @user_script:9: @user_script: 9: Unknown Redis command called from Lua script",
    ProbeError::UnknownCommand
)]
#[case::valkey(
    "ERR Unknown command called from script script: 3c0, on @user_script:9.",
    ProbeError::UnknownCommand
)]
#[case::alone("ERR unknown command 'SSUBSCRIBE', with args beginning with: 'c' ", ProbeError::UnknownCommand)]
#[case::moved("MOVED 3999 127.0.0.1:6381", ProbeError::WrongNode)]
#[case::not_here("ERR Script attempted to access a non local key in a cluster node", ProbeError::WrongNode)]
#[case::permission("NOPERM this user has no permissions to run the 'ssubscribe' command", ProbeError::Denied)]
#[case::channel("NOPERM this user has no permissions to access one of the channels", ProbeError::Denied)]
#[case::loading("LOADING Redis is loading the dataset in memory", ProbeError::Temporary)]
#[case::oom("OOM command not allowed when used memory > 'maxmemory'.", ProbeError::Temporary)]
#[case::busy("BUSY Redis is busy running a script.", ProbeError::Temporary)]
#[case::replica("READONLY You can't write against a read only replica.", ProbeError::Temporary)]
#[case::odd("ERR what is that", ProbeError::Other)]
fn the_error_reply_to_a_probe_shows_what_is_missing(#[case] line: &str, #[case] expected: ProbeError) {
    assert_eq!(probe_error(&server_says(line)), expected);
}

#[test]
fn the_text_after_an_unknown_code_is_not_searched() {
    let error = write().storage_error(CommandError::ErrorReply(server_says(
        "ODD the words OOM and READONLY are quoted here",
    )));
    assert_eq!(variant(&error), "Backend");
}

#[rstest]
#[case::refused(std::io::ErrorKind::ConnectionRefused)]
#[case::closed(std::io::ErrorKind::BrokenPipe)]
#[case::reset(std::io::ErrorKind::ConnectionReset)]
#[case::timed_out(std::io::ErrorKind::TimedOut)]
fn only_a_write_that_may_have_been_sent_has_an_unknown_outcome(#[case] kind: std::io::ErrorKind) {
    let read = Context { writes: false, ..write() };
    let failed = || RedisError::from(std::io::Error::from(kind));
    for (error, unknown) in [
        (write().storage_error(CommandError::NoReply(failed())), true),
        (write().storage_error(CommandError::NotSent(failed())), false),
        (read.storage_error(CommandError::NoReply(failed())), false),
    ] {
        assert_eq!(variant(&error), "Unavailable");
        assert_eq!(error.outcome_unknown(), unknown, "{error}");
    }
}

#[rstest]
#[case::loading("LOADING Redis is loading the dataset in memory")]
#[case::moved("MOVED 3999 127.0.0.1:6381")]
#[case::denied("NOPERM this user has no permissions to run the 'cluster|slots' command")]
fn an_error_of_the_connection_leaves_the_outcome_of_a_write_unknown(#[case] line: &str) {
    let judged = check_reply(Err(server_says(line))).unwrap_err();
    let error = write().storage_error(judged);
    assert!(error.outcome_unknown() && error.is_retryable(), "{error:?}");
}

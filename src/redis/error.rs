//! What an error of Redis, or of the way to it, means for the caller.

use std::error::Error;
use std::fmt;

use redis::{ErrorKind, RedisError};

use super::dialer::is_provider_error;
use super::reply::{CommandError, InFlight, Unconfirmed, without_arguments};
use crate::backend::{BoxError, MAX_PARTS, StorageError, TaskKey, Version};
use crate::scripts::{Found, Refusal, UnexpectedReply};

/// What a failed call was about, to say so and to judge what became of it.
#[derive(Debug)]
pub(super) struct Context<'a> {
    /// Host and port of the server.
    pub(super) address: &'a str,
    /// The Redis key that the call is about.
    pub(super) key: &'a str,
    /// The task, if the call is about one record.
    pub(super) task: Option<&'a TaskKey>,
    /// Whether the call may have written something if no reply came.
    pub(super) writes: bool,
    /// The version that the caller expects; `None` for any.
    pub(super) expected: Option<Version>,
    /// The owner's quota.
    pub(super) quota: Option<u64>,
    /// Whether the call moves pages or parts, which have connections of their own.
    pub(super) is_bulk: bool,
    pub(super) in_flight: InFlight,
}

/// The classes of errors that a server reports, whatever the code in front.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    OutOfMemory,
    Unavailable(&'static str),
    Denied(&'static str),
    WrongType,
    NodeOfCluster,
    NotACluster,
    NoDatabase,
    Other,
}

const NOT_PERMITTED: Class =
    Class::Denied("the user lacks a permission; grant those that docs/operations.md of mcp-task-store lists");

/// Words in an error's text, and what they mean. Most are codes. A script's `redis.call` may wrap the code
/// into the text of another one (6.2: `ERR Error running script … @user_script: 1: -OOM …`), and what a
/// script may not do has no code on any version, so each is looked for anywhere in the text.
const WORDS: [(&str, Class); 26] = [
    ("OOM ", Class::OutOfMemory),
    ("WRONGTYPE ", Class::WrongType),
    ("READONLY ", Class::Unavailable("the server is a read-only replica; connect to the master")),
    ("LOADING ", Class::Unavailable("the server is loading its data; try again when it is done")),
    (
        "CLUSTERDOWN ",
        Class::Unavailable(
            "the cluster is down or does not serve the key's slot; check that its masters run",
        ),
    ),
    ("TRYAGAIN ", Class::Unavailable("the key's slot is being migrated; try again when it is done")),
    (
        "non local key in a cluster node",
        Class::Unavailable("the key's slot is being migrated; try again when it is done"),
    ),
    (
        "MASTERDOWN ",
        Class::Unavailable("the server is a replica that has lost its master; connect to the master"),
    ),
    ("MISCONF ", Class::Unavailable("the server cannot save its data and refuses writes; see its log")),
    (
        "NOREPLICAS ",
        Class::Unavailable(
            "the server has fewer replicas than its min-replicas-to-write; check that the replicas are connected",
        ),
    ),
    (
        "BUSY ",
        Class::Unavailable(
            "the server is running a long script; try again, or end the script with SCRIPT KILL",
        ),
    ),
    (
        "max number of clients",
        Class::Unavailable("the server accepts no more connections; close some, or raise its maxclients"),
    ),
    (
        "NOAUTH ",
        Class::Denied(
            "the server requires a password and received none; write user and password in front of the host, as in \
             redis://user:password@host",
        ),
    ),
    (
        "WRONGPASS ",
        Class::Denied("the user name or the password is wrong, or the user is disabled; correct them"),
    ),
    (
        "without any password configured",
        Class::Denied("the server has no password set and received one; leave it out"),
    ),
    ("invalid password", Class::Denied("the password is wrong; correct it")),
    ("NOPERM ", NOT_PERMITTED),
    ("ACL failure in script", NOT_PERMITTED),
    ("The user executing the script can't", NOT_PERMITTED),
    ("has no permissions to", NOT_PERMITTED),
    (
        "DENIED ",
        Class::Denied(
            "the server is in protected mode and accepts only connections from its own machine; set a password on it",
        ),
    ),
    ("DB index is out of range", Class::NoDatabase),
    ("MOVED ", Class::NodeOfCluster),
    ("ASK ", Class::NodeOfCluster),
    ("CROSSSLOT ", Class::NodeOfCluster),
    ("cluster support disabled", Class::NotACluster),
];

fn classify(code: &str, detail: &str) -> Class {
    // An error's own code counts first: the text behind it may quote anything.
    let own = WORDS.iter().find(|(word, _)| word.strip_suffix(' ') == Some(code));
    // 6.2 leaves out even the ERR when a script returns what its `redis.pcall` caught.
    let has_no_code = code == "ERR" || code.starts_with("@user_script");
    let inside = || WORDS.iter().find(|(word, _)| has_no_code && detail.contains(word));
    own.or_else(inside).map_or(Class::Other, |(_, class)| *class)
}

/// Why a command failed that the backend tried out while it connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProbeError {
    /// The server does not know the command.
    UnknownCommand,
    /// The user lacks the right to the command, the key or the channel.
    Denied,
    /// Another node of the cluster serves the slot.
    WrongNode,
    /// The server is in a temporary state.
    Temporary,
    Other,
}

pub(super) fn probe_error(error: &RedisError) -> ProbeError {
    let (code, detail) = (error.code().unwrap_or_default(), error.detail().unwrap_or_default());
    // The texts for a command that a script ran, and those of proxies.
    let unknown = ["unknown command", "unknown redis command", "unsupported command"];
    let lowercase = detail.to_lowercase();
    match classify(code, detail) {
        Class::Denied(_) => ProbeError::Denied,
        Class::NodeOfCluster => ProbeError::WrongNode,
        Class::Unavailable(_) if detail.contains("non local key") => ProbeError::WrongNode,
        Class::OutOfMemory | Class::Unavailable(_) => ProbeError::Temporary,
        _ if unknown.iter().any(|words| lowercase.contains(words)) => ProbeError::UnknownCommand,
        _ => ProbeError::Other,
    }
}

/// The command that was sent and that the server does not know, so that it has certainly not run.
fn unknown_command(error: &RedisError) -> Option<String> {
    let detail = error.detail().filter(|_| error.code() == Some("ERR"))?.to_lowercase();
    let rest =
        detail.strip_prefix("unknown command").or_else(|| detail.strip_prefix("unsupported command"))?;
    let is_quote = |c: char| !c.is_ascii_alphanumeric() && c != '.' && c != '_';
    let name = rest.trim_start_matches(is_quote).split(is_quote).next()?;
    Some(name.to_uppercase())
}

/// Whether the connection closed in good order in the middle of a reply, as when a proxy shuts down or the server is
/// killed while it sends. The parser of the redis crate takes what is there for the whole reply. It misses the rest: of
/// bytes that are no reply at all it says which of them it did not expect.
fn is_truncated(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Parse && error.detail().is_some_and(|detail| detail.contains("end of input"))
}

/// Whether the host name was not resolved. The standard library has no kind for this, and its text differs by system.
fn is_of_lookup(error: &RedisError) -> bool {
    let text = error.to_string();
    ["failed to lookup address information", "No such host is known"].iter().any(|words| text.contains(words))
}

impl<'a> Context<'a> {
    /// A call that only reads.
    pub(super) fn reads(address: &'a str, key: &'a str) -> Self {
        Self {
            address,
            key,
            task: None,
            writes: false,
            expected: None,
            quota: None,
            is_bulk: false,
            in_flight: InFlight::default(),
        }
    }

    /// The same call, on the record of this key.
    pub(super) fn of(self, task: &'a TaskKey) -> Self {
        Self { task: Some(task), ..self }
    }

    /// What a failure on the way, or an error in reply, means for the caller.
    pub(super) fn storage_error(&self, failure: CommandError) -> StorageError {
        match failure {
            CommandError::ErrorReply(error) => {
                match Refusal::parse(error.code().unwrap_or_default(), error.detail()) {
                    Some(refusal) => self.refused(refusal),
                    None => self.server_error(error),
                }
            }
            CommandError::NoReply(error) if error.kind() == ErrorKind::Parse && !is_truncated(&error) => {
                self.garbage(error, self.writes)
            }
            CommandError::NoReply(error) if self.writes => {
                let reason = "the connection broke before the reply to a write, which may have been applied; read the \
                              record before you write again";
                self.unavailable(reason, true, Some(cause(error)))
            }
            CommandError::NotSent(error) | CommandError::NoReply(error) => self.connection_error(error),
            #[cfg(feature = "redis-cluster")]
            CommandError::Unreachable(server, error) => {
                Context::reads(&server, self.key).connection_error(error)
            }
            CommandError::TooFewReplicas(Unconfirmed { wanted, acknowledged, within }, error) => {
                let (address, source) = (self.address.to_owned(), error.map(cause));
                StorageError::TooFewReplicas { address, wanted, acknowledged, within, source }
            }
        }
    }

    /// A failure that left nothing behind.
    fn connection_error(&self, error: RedisError) -> StorageError {
        match error.kind() {
            // What the server said to the first words over a new connection.
            ErrorKind::Server(_) | ErrorKind::Extension => self.server_error(error),
            ErrorKind::RESP3NotSupported => self.lacks_hello(error),
            ErrorKind::AuthenticationFailed => {
                self.denied("the user name or the password is wrong or missing; correct it", error)
            }
            ErrorKind::Io if error.is_connection_refusal() => self.unavailable(
                "no server accepts connections there; start it, or correct the address",
                false,
                Some(cause(error)),
            ),
            #[cfg(feature = "redis-tls")]
            ErrorKind::Io if super::tls::is_refusal(&error) => {
                let reason = super::tls::refusal(&error);
                self.denied(reason, error)
            }
            ErrorKind::Parse if is_truncated(&error) => self.unavailable(
                "the connection closed in the middle of a reply; try again",
                false,
                Some(cause(error)),
            ),
            ErrorKind::Client if is_provider_error(&error) => {
                let cause = error.detail().map(|text| BoxError::from(text.to_owned()));
                self.unavailable("the credentials provider failed; the next call asks it again", false, cause)
            }
            ErrorKind::Io if is_of_lookup(&error) => self.unavailable(
                "no address was found for the host name; correct it, or check the name server",
                false,
                Some(cause(error)),
            ),
            ErrorKind::Io | ErrorKind::Client => {
                let reason =
                    "the connection failed; check that the server runs and that no firewall blocks the port";
                self.unavailable(reason, false, Some(cause(error)))
            }
            ErrorKind::MasterNameNotFoundBySentinel => self.unavailable(
                "the sentinels do not know a master of this name; correct the name, or wait until they monitor it",
                false,
                Some(cause(error)),
            ),
            ErrorKind::ClusterConnectionNotFound | ErrorKind::NoValidReplicasFoundBySentinel => {
                let reason =
                    "no server is known that serves this key; check the URLs, and that the servers run";
                self.unavailable(reason, false, Some(cause(error)))
            }
            ErrorKind::Parse => self.garbage(error, false),
            _ => self.backend("the connection cannot be used as it is configured; check the URL and the settings", false, Some(cause(error))),
        }
    }

    fn garbage(&self, error: RedisError, outcome_unknown: bool) -> StorageError {
        let reason = "the reply is not Redis protocol; check that a Redis or Valkey server listens there";
        self.backend(reason, outcome_unknown, Some(cause(error)))
    }

    /// No reply within the time limit of the call.
    pub(super) fn timed_out(&self, limit: std::time::Duration) -> StorageError {
        if !self.in_flight.is_set() {
            return self.unavailable(
                format!("no connection within {limit:?}, so nothing was sent; check that the server can be reached"),
                false,
                None,
            );
        }
        let reason = format!("no reply within {limit:?}; check that the server answers");
        self.unavailable(reason, self.writes, None)
    }

    /// A reply that is none of a script's.
    pub(super) fn unexpected(&self, error: UnexpectedReply) -> StorageError {
        let reason =
            "the reply is none that this crate knows; check that a Redis or Valkey server listens there";
        self.backend(reason, self.writes, Some(error.into()))
    }

    pub(super) fn not_found(&self) -> StorageError {
        match self.task {
            Some(key) => StorageError::NotFound { key: key.clone() },
            None => self.unexpected(UnexpectedReply),
        }
    }

    pub(super) fn corrupt(&self, reason: impl Into<String>, source: Option<BoxError>) -> StorageError {
        let reason = format!("{}: {}", self.key, reason.into());
        match self.task {
            Some(key) => StorageError::Corrupt { key: key.clone(), reason, source },
            None => self.backend(reason, false, source),
        }
    }

    fn refused(&self, refusal: Refusal) -> StorageError {
        match refusal {
            Refusal::Found(Found::Nothing) => self.not_found(),
            Refusal::Found(Found::Live(actual)) => self.version_refused(actual),
            Refusal::Found(Found::Corrupt(field)) => {
                self.corrupt(format!("the field {field} is missing or cannot be read"), None)
            }
            Refusal::TooManyParts { count } => {
                let what = "parts of a record".to_owned();
                StorageError::TooLarge { what, size: count, max: MAX_PARTS }
            }
            Refusal::CapacityExceeded { live } => {
                let quota = self.quota.unwrap_or(live);
                StorageError::CapacityExceeded {
                    reason: format!("the owner of {} has {live} live records of {quota}", self.key),
                    quota: Some(quota),
                    source: None,
                }
            }
        }
    }

    fn version_refused(&self, actual: Version) -> StorageError {
        let Some(key) = self.task.cloned() else { return self.unexpected(UnexpectedReply) };
        match self.expected {
            Some(expected) if expected != actual => StorageError::VersionConflict { key, expected, actual },
            _ => StorageError::VersionExhausted { key },
        }
    }

    fn server_error(&self, error: RedisError) -> StorageError {
        match unknown_command(&error) {
            Some(command) if command == "HELLO" => return self.lacks_hello(error),
            // The first command over a connection.
            Some(command) if command == "TIME" => {
                let reason = "the server does not know the command TIME; connect to a Redis or Valkey server, or, if this is a \
                              sentinel, with connect_sentinel";
                return self.backend(reason, false, Some(cause(error)));
            }
            Some(command) if command == "SENTINEL" => {
                let reason = "a server that is named as a sentinel is none; name the addresses of sentinels, whose usual port is 26379";
                return self.backend(reason, false, Some(cause(without_arguments(error))));
            }
            Some(command) => {
                let reason = format!(
                    "the server does not know the command {command}, or has it disabled; enable it on the server"
                );
                return self.backend(reason, false, Some(cause(error)));
            }
            None => {}
        }
        let code = error.code().unwrap_or_default();
        match classify(code, error.detail().unwrap_or_default()) {
            Class::OutOfMemory => StorageError::CapacityExceeded {
                reason: format!(
                    "{} is out of memory, so nothing was written; raise its maxmemory or delete records",
                    self.address
                ),
                quota: None,
                source: Some(cause(error)),
            },
            Class::WrongType => {
                self.corrupt("this key, or the owner's index, holds another type", Some(cause(error)))
            }
            Class::Unavailable(reason) => self.unavailable(reason, false, Some(cause(error))),
            Class::Denied(reason) => self.denied(reason, error),
            Class::NodeOfCluster => self.backend(
                "the server is a node of a cluster; connect with connect_cluster",
                false,
                Some(cause(error)),
            ),
            Class::NotACluster => self.backend(
                "the server is not a node of a cluster; connect with connect, or enable cluster mode on the server",
                false,
                Some(cause(error)),
            ),
            Class::NoDatabase => self.backend(
                "the server has no database of this number; choose another, or raise `databases` on the server",
                false,
                Some(cause(error)),
            ),
            // An error that nobody foresaw may have come in the middle of a script.
            Class::Other => self.backend(
                "the server replied with an error that this crate does not know; see what it said",
                self.writes,
                Some(cause(error)),
            ),
        }
    }

    fn lacks_hello(&self, error: RedisError) -> StorageError {
        let reason =
            "the server does not know HELLO; add ?protocol=resp2 to the URL, with which watches poll";
        self.backend(reason, false, Some(cause(error)))
    }

    fn denied(&self, reason: &str, error: RedisError) -> StorageError {
        StorageError::Denied {
            address: self.address.to_owned(),
            reason: reason.to_owned(),
            source: Some(cause(error)),
        }
    }

    fn unavailable(
        &self,
        reason: impl Into<String>,
        outcome_unknown: bool,
        source: Option<BoxError>,
    ) -> StorageError {
        let (address, reason) = (self.address.to_owned(), reason.into());
        StorageError::Unavailable { address, reason, outcome_unknown, source }
    }

    fn backend(
        &self,
        reason: impl Into<String>,
        outcome_unknown: bool,
        source: Option<BoxError>,
    ) -> StorageError {
        let (address, reason) = (self.address.to_owned(), reason.into());
        StorageError::Backend { address, reason, outcome_unknown, source }
    }
}

/// An error of the redis crate as the source of one of this crate.
#[derive(Debug)]
struct Cause(RedisError);

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&plain(&self.0))
    }
}

impl Error for Cause {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        // The error right below has the same text.
        self.0.source()?.source()
    }
}

pub(super) fn cause(error: RedisError) -> BoxError {
    Cause(error).into()
}

/// Returns the text of an error of the redis crate without the name of its kind. The text of a server stays as it is.
pub(super) fn plain(error: &RedisError) -> String {
    if let Some(code) = error.code() {
        return match (code, error.detail().unwrap_or_default()) {
            ("", "") => "an error without a text".to_owned(),
            (code, "") => code.to_owned(),
            (code, detail) => format!("{code} {detail}"),
        };
    }
    let text = error.to_string().replacen(&format!(" - {:?}", error.kind()), "", 1);
    // The parser of the redis crate says what it expected in several lines.
    text.lines().filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::super::reply::check_reply;
    use super::*;
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

    /// The error that the redis crate makes of this line from a server.
    fn server_says(line: &str) -> RedisError {
        let reply = redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).unwrap();
        let Value::ServerError(error) = reply else { panic!("{reply:?}") };
        let error: ServerError = error;
        error.into()
    }

    #[test]
    fn each_error_that_a_server_is_known_for_says_what_to_do() {
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
    #[case::wrongpass(
        "WRONGPASS invalid username-password pair or user is disabled.",
        "Denied",
        false,
        false
    )]
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
        let told = format!("{error} {error:?} {source} {source:?}");
        assert!(!told.contains("secret"), "{told}");
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
    #[case::alone(
        "ERR unknown command 'SSUBSCRIBE', with args beginning with: 'c' ",
        ProbeError::UnknownCommand
    )]
    #[case::moved("MOVED 3999 127.0.0.1:6381", ProbeError::WrongNode)]
    #[case::not_here(
        "ERR Script attempted to access a non local key in a cluster node",
        ProbeError::WrongNode
    )]
    #[case::right("NOPERM this user has no permissions to run the 'ssubscribe' command", ProbeError::Denied)]
    #[case::channel("NOPERM this user has no permissions to access one of the channels", ProbeError::Denied)]
    #[case::loading("LOADING Redis is loading the dataset in memory", ProbeError::Temporary)]
    #[case::oom("OOM command not allowed when used memory > 'maxmemory'.", ProbeError::Temporary)]
    #[case::busy("BUSY Redis is busy running a script.", ProbeError::Temporary)]
    #[case::replica("READONLY You can't write against a read only replica.", ProbeError::Temporary)]
    #[case::odd("ERR what is that", ProbeError::Other)]
    fn an_error_in_reply_to_a_trial_says_what_is_lacking(#[case] line: &str, #[case] expected: ProbeError) {
        assert_eq!(probe_error(&server_says(line)), expected);
    }

    #[test]
    fn text_behind_a_code_of_its_own_is_not_searched() {
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
    fn an_error_in_place_of_a_reply_does_not_say_that_a_write_was_left_undone(#[case] line: &str) {
        let judged = check_reply(Err(server_says(line))).unwrap_err();
        let error = write().storage_error(judged);
        assert!(error.outcome_unknown() && error.is_retryable(), "{error:?}");
    }
}

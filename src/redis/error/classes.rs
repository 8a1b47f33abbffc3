//! The classes of errors, by the texts of servers and the kinds of the redis crate.

use redis::{ErrorKind, RedisError};

#[cfg(feature = "redis-tls")]
use crate::redis::tls;

/// The class of an error. The text says what happened and what to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    OutOfMemory,
    Unavailable(&'static str),
    Denied(&'static str),
    WrongType,
    NodeOfCluster,
    Misconfigured(&'static str),
    Other,
}

const NOT_PERMITTED: Class =
    Class::Denied("the user lacks a permission; grant those that docs/operations.md of mcp-task-store lists");

/// Text that an error contains, and the class of that error. Most of these texts are codes.
///
/// `redis.call` in a script may wrap a code into the text of another error (6.2: `ERR Error running script …
/// @user_script: 1: -OOM …`), and a missing permission inside a script has no code in any version. So the backend
/// searches the whole text.
pub(super) const WORDS: [(&str, Class); 26] = [
    ("OOM ", Class::OutOfMemory),
    ("WRONGTYPE ", Class::WrongType),
    ("READONLY ", Class::Unavailable("the server is a read-only replica; connect to the master")),
    ("LOADING ", Class::Unavailable("the server is loading its data; try again after it has finished")),
    (
        "CLUSTERDOWN ",
        Class::Unavailable(
            "the cluster is down or does not serve the key's slot; check that its masters run",
        ),
    ),
    ("TRYAGAIN ", Class::Unavailable("the key's slot is being migrated; try again after the migration")),
    (
        "non local key in a cluster node",
        Class::Unavailable("the key's slot is being migrated; try again after the migration"),
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
        Class::Unavailable(
            "the server accepts no more connections; close some connections, or raise its maxclients",
        ),
    ),
    (
        "NOAUTH ",
        Class::Denied(
            "the server requires a password, but received none; write user and password in front of the host, as in \
             redis://user:password@host",
        ),
    ),
    (
        "WRONGPASS ",
        Class::Denied(
            "the user name or the password is wrong, or the user is disabled; check both, and the user on the server",
        ),
    ),
    (
        "without any password configured",
        Class::Denied("the server has no password set, but received one; remove the password"),
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
    (
        "DB index is out of range",
        Class::Misconfigured(
            "the server has no database of this number; choose another, or raise `databases` on the server",
        ),
    ),
    ("MOVED ", Class::NodeOfCluster),
    ("ASK ", Class::NodeOfCluster),
    ("CROSSSLOT ", Class::NodeOfCluster),
    (
        "cluster support disabled",
        Class::Misconfigured(
            "the server is not a node of a cluster; connect with connect, or enable cluster mode on the server",
        ),
    ),
];

/// Returns the class of an error reply.
pub(super) fn classify(code: &str, detail: &str) -> Class {
    // The code of the error comes first. The text after it may quote anything.
    let own = WORDS.iter().find(|(word, _)| word.strip_suffix(' ') == Some(code));
    // Redis 6.2 leaves out even the ERR if a script returns the error of a `redis.pcall`.
    let has_no_code = code == "ERR" || code.starts_with("@user_script");
    let inside = || WORDS.iter().find(|(word, _)| has_no_code && detail.contains(word));
    own.or_else(inside).map_or(Class::Other, |(_, class)| *class)
}

/// Returns whether an error that refused a whole batch may be about one of its keys. The server then wrote no record.
pub(in crate::redis) fn concerns_one_key(error: &RedisError) -> bool {
    let (code, detail) = (error.code().unwrap_or_default(), error.detail().unwrap_or_default());
    match classify(code, detail) {
        NOT_PERMITTED | Class::WrongType => true,
        Class::Unavailable(_) | Class::NodeOfCluster => {
            matches!(code, "TRYAGAIN" | "CROSSSLOT") || detail.contains("non local key")
        }
        _ => false,
    }
}

/// Why a command of the probe failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::redis) enum ProbeError {
    /// The server does not know the command.
    UnknownCommand,
    /// The user lacks the permission for the command, the key or the channel.
    Denied,
    /// Another node of the cluster serves the slot.
    WrongNode,
    /// The server is in a temporary state.
    Temporary,
    Other,
}

/// Returns why a command of the probe failed.
pub(in crate::redis) fn probe_error(error: &RedisError) -> ProbeError {
    let (code, detail) = (error.code().unwrap_or_default(), error.detail().unwrap_or_default());
    // Servers report an unknown command differently if a script ran it, and proxies have texts of their own.
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

/// Returns the name of a command that the server does not know. Such a command did not run.
pub(super) fn unknown_command(error: &RedisError) -> Option<String> {
    let detail = error.detail().filter(|_| error.code() == Some("ERR"))?.to_lowercase();
    let rest =
        detail.strip_prefix("unknown command").or_else(|| detail.strip_prefix("unsupported command"))?;
    let is_quote = |c: char| !c.is_ascii_alphanumeric() && c != '.' && c != '_';
    let name = rest.trim_start_matches(is_quote).split(is_quote).next()?;
    Some(name.to_uppercase())
}

/// Returns the class of an error that the redis crate itself reports, not a server.
pub(super) fn classify_connection(error: &RedisError) -> Class {
    match error.kind() {
        ErrorKind::AuthenticationFailed => {
            Class::Denied("the user name or the password is wrong or missing; correct it")
        }
        #[cfg(feature = "redis-tls")]
        ErrorKind::Io if !error.is_connection_refusal() && tls::is_refusal(error) => {
            Class::Denied(tls::refusal(error))
        }
        ErrorKind::Io if error.is_connection_refusal() => {
            Class::Unavailable("no server accepts connections there; start it, or correct the address")
        }
        ErrorKind::Io if is_of_lookup(error) => {
            Class::Unavailable("no address was found for the host name; correct it, or check the name server")
        }
        ErrorKind::Io | ErrorKind::Client => Class::Unavailable(
            "the connection failed; check that the server runs and that no firewall blocks the port",
        ),
        ErrorKind::Parse if is_truncated(error) => {
            Class::Unavailable("the connection closed in the middle of a reply; try again")
        }
        ErrorKind::MasterNameNotFoundBySentinel => Class::Unavailable(
            "the sentinels do not know a master of this name; correct the name, or wait until they monitor it",
        ),
        ErrorKind::ClusterConnectionNotFound | ErrorKind::NoValidReplicasFoundBySentinel => {
            Class::Unavailable("no known server serves this key; check the URLs, and that the servers run")
        }
        _ => Class::Misconfigured(
            "the connection cannot be used with this configuration; check the URL and the settings",
        ),
    }
}

/// Returns whether the connection closed in the middle of a reply, for example because a proxy shut down or the server
/// was killed while it sent. The parser of the redis crate then reports an unexpected end of input. For bytes that are
/// no reply, it reports the byte that it did not expect.
pub(super) fn is_truncated(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Parse && error.detail().is_some_and(|detail| detail.contains("end of input"))
}

/// Returns whether the host name was not resolved. The standard library has no kind for this error, and its text
/// differs by system.
fn is_of_lookup(error: &RedisError) -> bool {
    let text = error.to_string();
    ["failed to lookup address information", "No such host is known"].iter().any(|words| text.contains(words))
}

//! Reads the URLs of servers. Unlike the redis crate, it rejects a URL that has an unknown part.

use redis::{ConnectionInfo, IntoConnectionInfo, ProtocolVersion};
use url::Url;

use super::error::plain;
use super::settings::invalid_setting;
use crate::backend::StorageError;

/// The form of a URL.
const FORM: &str = "redis://[user:password@]host[:port][/database][?protocol=resp2]";

/// Characters that must be percent-encoded in the user and password, and their encoded forms.
const ENCODED: [(char, &str); 5] = [('/', "%2F"), ('?', "%3F"), ('#', "%23"), ('@', "%40"), (' ', "%20")];

/// Reads the URL of a server. `what` names it in an error. No error repeats text that may be a part of a password.
///
/// The protocol is RESP3 unless the URL says otherwise. With RESP3, a connection detects at once that it was closed.
pub(super) fn read(url: &str, what: &str) -> Result<ConnectionInfo, StorageError> {
    parse(url).map_err(|reason| invalid_setting(format!("{what} {reason}; its form is {FORM}")))
}

/// Reads the URLs of several servers of one kind. They must have the same user, password and protocol.
#[cfg(any(feature = "redis-cluster", feature = "redis-sentinel"))]
pub(super) fn read_all<S: AsRef<str>>(
    urls: impl IntoIterator<Item = S>,
    what: &str,
) -> Result<Vec<ConnectionInfo>, StorageError> {
    let numbered = |(index, url): (usize, S)| read(url.as_ref(), &format!("the URL of {what} {}", index + 1));
    let servers = urls.into_iter().enumerate().map(numbered).collect::<Result<Vec<_>, _>>()?;
    let says = |info: &ConnectionInfo| {
        let redis = info.redis_settings();
        let credentials = (redis.username().map(str::to_owned), redis.password().map(str::to_owned));
        (credentials, redis.protocol(), redis.db())
    };
    if let Some((index, _)) = servers.iter().enumerate().find(|(_, server)| says(server) != says(&servers[0]))
    {
        let number = index + 1;
        return Err(invalid_setting(format!(
            "the URLs of {what} 1 and {what} {number} differ in user, password, database or protocol; \
             use the same in all of them"
        )));
    }
    if servers.first().is_some_and(|server| server.redis_settings().db() != 0) {
        return Err(invalid_setting(format!(
            "the URL of {what} 1 names a database, and a {what} has only database 0; remove it"
        )));
    }
    Ok(servers)
}

fn parse(url: &str) -> Result<ConnectionInfo, String> {
    if url.trim() != url {
        return Err("begins or ends with a space or a line break; remove it".to_owned());
    }
    let Some((scheme, rest)) = url.split_once("://") else {
        return Err("has no `redis://` in front".to_owned());
    };
    check_scheme(scheme)?;
    let behind = match rest.rsplit_once('@') {
        Some((user, behind)) => {
            check_user(user)?;
            behind
        }
        None => rest,
    };
    if behind.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(
            "has a space, a line break or a control character after the password; remove it".to_owned()
        );
    }
    let host = behind.split(['/', '?', '#']).next().unwrap_or_default();
    if host.is_empty() || host.starts_with(':') {
        return Err("has no host".to_owned());
    }
    let url = Url::parse(url).map_err(|error| match error {
        // The text in place of the port may be a password without a host after it.
        url::ParseError::InvalidPort => {
            "has a port that is not a number from 0 to 65535; if that is part of a password, \
                                         the password ends with `@` and the host follows"
                .to_owned()
        }
        other => format!("cannot be read: {other}"),
    })?;
    check_database(url.path())?;
    let says_protocol = check_query(&url)?;
    if let Some(fragment) = url.fragment() {
        return Err(match fragment {
            "insecure" => "ends with `#insecure`: this crate always checks the certificate of the server; trust a private \
                           authority with `RedisBuilder::root_certificates`"
                .to_owned(),
            _ => "has a fragment (`#…`), which has no meaning; remove it, or write a `#` of the password as `%23`".to_owned(),
        });
    }
    let info = url.into_connection_info().map_err(|error| format!("cannot be used: {}", plain(&error)))?;
    if says_protocol {
        return Ok(info);
    }
    let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
    Ok(info.set_redis_settings(settings))
}

/// Checks the scheme of a URL.
fn check_scheme(scheme: &str) -> Result<(), String> {
    let reason = match scheme {
        "redis" | "valkey" => return Ok(()),
        "rediss" | "valkeys" if cfg!(feature = "redis-tls") => return Ok(()),
        "rediss" | "valkeys" => {
            "asks for TLS, for which the feature `redis-tls` of mcp-task-store must be enabled"
        }
        "unix" | "redis+unix" | "valkey+unix" => {
            "names a Unix socket, which is not supported; connect over TCP, or pass a connection of the redis crate to \
             `RedisBuilder::over`"
        }
        _ => "has a scheme that is neither `redis` nor `rediss`",
    };
    Err(reason.to_owned())
}

/// Checks the text before the last `@`.
fn check_user(user: &str) -> Result<(), String> {
    if let Some((character, encoded)) = ENCODED.iter().find(|(character, _)| user.contains(*character)) {
        return Err(format!(
            "has a `{character}` in the user or password that is not percent-encoded; write it `{encoded}`"
        ));
    }
    if user.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err("has a line break or a control character in the user or password; percent-encode it, or remove it \
                    if it does not belong there"
            .to_owned());
    }
    let is_encoded = |behind: &str| behind.bytes().take(2).filter(u8::is_ascii_hexdigit).count() == 2;
    if !user.split('%').skip(1).all(is_encoded) {
        return Err(
            "has a `%` in the user or password that is not percent-encoded; write it `%25`".to_owned()
        );
    }
    Ok(())
}

fn check_database(path: &str) -> Result<(), String> {
    let database = path.strip_prefix('/').unwrap_or(path);
    let is_number = database.len() <= 9 && database.bytes().all(|byte| byte.is_ascii_digit());
    match is_number {
        true => Ok(()),
        false => Err("has a database that is not a number".to_owned()),
    }
}

/// Returns whether the query names the protocol. It may hold nothing else.
fn check_query(url: &Url) -> Result<bool, String> {
    let mut says_protocol = false;
    for (name, value) in url.query_pairs() {
        match &*name {
            "protocol" if says_protocol => return Err("names the protocol twice".to_owned()),
            "protocol" if matches!(&*value, "2" | "3" | "resp2" | "resp3") => says_protocol = true,
            "protocol" => return Err("has a protocol that is neither `resp2` nor `resp3`".to_owned()),
            "db" | "database" => {
                return Err(format!(
                    "has `{name}` in its query; write the database as a number after the host: `/2`"
                ));
            }
            "user" | "username" | "password" | "pass" => {
                return Err(format!("has `{name}` in its query; write user and password before the host"));
            }
            name => {
                return Err(format!("has `{}` in its query, which is not known", name.escape_debug()));
            }
        }
    }
    Ok(says_protocol)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn refusal(url: &str) -> String {
        let text = read(url, "the URL").unwrap_err().to_string();
        assert!(!text.contains("pass-word"), "{text}");
        text
    }

    #[rstest]
    #[case::empty("", "`redis://`")]
    #[case::no_slashes("redis:user:pass-word@host", "`redis://`")]
    #[case::no_colon("redis//user:pass-word@host", "`redis://`")]
    #[case::another_scheme("http://user:pass-word@host", "scheme")]
    #[case::a_socket("unix:///run/redis.sock", "Unix socket")]
    #[case::no_host("redis://", "no host")]
    #[case::no_host_behind_the_password("redis://user:pass-word@", "no host")]
    #[case::a_port_alone("redis://:6379", "no host")]
    #[case::a_port_that_is_none("redis://user:pass-word@host:port", "port")]
    #[case::a_port_too_large("redis://host:65536", "port")]
    #[case::no_at("redis://user:pass-word", "ends with `@`")]
    #[case::a_database_that_is_none("redis://host/two", "database that is not a number")]
    #[case::a_database_below_zero("redis://host/-1", "database that is not a number")]
    #[case::two_databases("redis://host/1/2", "database that is not a number")]
    #[case::the_database_in_the_query("redis://host?db=2", "`db` in its query")]
    #[case::a_misspelt_protocol("redis://host?protcol=resp2", "`protcol` in its query")]
    #[case::a_password_in_the_query("redis://host?password=pass-word", "`password` in its query")]
    #[case::an_unknown_protocol("redis://host?protocol=resp4", "`resp2` nor `resp3`")]
    #[case::two_protocols("redis://host?protocol=resp2&protocol=resp3", "twice")]
    #[case::insecure("redis://host#insecure", "root_certificates")]
    #[case::another_fragment("redis://host#1", "fragment")]
    #[case::a_slash("redis://user:pass-word/1@host", "`%2F`")]
    #[case::a_question_mark("redis://user:pass-word?protocol=resp2@host", "`%3F`")]
    #[case::a_hash("redis://user:pass-word#@host", "`%23`")]
    #[case::an_at("redis://user:p@pass-word@host", "`%40`")]
    #[case::a_space("redis://user:pass-word @host", "`%20`")]
    #[case::a_line_break("redis://user:pass-word\n@host", "line break")]
    #[case::a_space_in_front(" redis://user:pass-word@host", "begins or ends with a space")]
    #[case::a_line_break_at_the_end("redis://user:pass-word@host\n", "line break")]
    #[case::a_percent("redis://user:pass-word%@host", "`%25`")]
    #[case::a_percent_and_no_digits("redis://user:100%pass-word@host", "`%25`")]
    #[case::no_utf8("redis://user:pass-word%FF@host", "UTF-8")]
    #[case::any_address("redis://0.0.0.0", "wildcard")]
    fn an_invalid_url_is_refused_with_the_part_that_is_wrong_and_the_valid_form(
        #[case] url: &str,
        #[case] part: &str,
    ) {
        let text = refusal(url);
        assert!(text.contains(part) && text.contains(FORM), "{text}");
    }

    #[rstest]
    #[case::plain("redis://host", "host:6379", None, None, 0, true)]
    #[case::valkey("valkey://host", "host:6379", None, None, 0, true)]
    #[case::all("redis://u:p@host:1/2?protocol=resp2", "host:1", Some("u"), Some("p"), 2, false)]
    #[case::resp3("redis://host?protocol=resp3", "host:6379", None, None, 0, true)]
    #[case::a_slash_at_the_end("redis://host/", "host:6379", None, None, 0, true)]
    #[case::an_address("redis://[::1]:7/0", "::1:7", None, None, 0, true)]
    #[case::no_user("redis://:p@host", "host:6379", None, Some("p"), 0, true)]
    #[case::colons("redis://u:p:q@host", "host:6379", Some("u"), Some("p:q"), 0, true)]
    #[case::the_name_of_a_setting(
        "redis://u:protocol=resp2@h",
        "h:6379",
        Some("u"),
        Some("protocol=resp2"),
        0,
        true
    )]
    #[case::encoded("redis://u:%2F%3F%23%40%25@h", "h:6379", Some("u"), Some("/?#@%"), 0, true)]
    #[case::a_name("redis://my_master.1", "my_master.1:6379", None, None, 0, true)]
    fn a_url_sets_the_address_user_password_database_and_protocol(
        #[case] url: &str,
        #[case] address: &str,
        #[case] user: Option<&str>,
        #[case] password: Option<&str>,
        #[case] database: i64,
        #[case] is_resp3: bool,
    ) {
        let info = read(url, "the URL").unwrap();
        let settings = info.redis_settings();
        assert_eq!((info.addr().to_string().as_str(), settings.db()), (address, database));
        assert_eq!((settings.username(), settings.password()), (user, password));
        assert_eq!(settings.protocol().supports_resp3(), is_resp3);
    }

    #[cfg(any(feature = "redis-cluster", feature = "redis-sentinel"))]
    #[rstest]
    #[case::passwords(["redis://:pass-word@a", "redis://:pass-word-2@b"], "node 1 and node 2 differ")]
    #[case::the_second(["redis://a", "redis://b?db=1"], "the URL of node 2")]
    #[case::a_database(["redis://a/1", "redis://b/1"], "has only database 0")]
    fn urls_of_one_deployment_that_differ_are_refused(#[case] urls: [&str; 2], #[case] words: &str) {
        let text = read_all(urls, "node").unwrap_err().to_string();
        assert!(text.contains(words) && !text.contains("pass-word"), "{text}");
    }

    #[cfg(not(feature = "redis-tls"))]
    #[test]
    fn a_url_that_asks_for_tls_names_the_feature_that_is_missing() {
        assert!(refusal("rediss://host").contains("`redis-tls`"));
    }
}

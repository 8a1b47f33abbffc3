//! Errors of the redis crate as sources, with texts for people.

use std::error::Error;
use std::fmt;

use redis::RedisError;

use crate::backend::BoxError;

/// An error of the redis crate as the source of an error of this crate.
#[derive(Debug)]
struct Cause(RedisError);

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&plain(&self.0))
    }
}

impl Error for Cause {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        // The direct source has the same text.
        self.0.source()?.source()
    }
}

/// Returns an error of the redis crate as a source.
pub(in crate::redis) fn cause(error: RedisError) -> BoxError {
    Cause(error).into()
}

/// Returns the text of an error of the redis crate without the name of its kind. The text of a server stays as it is.
pub(in crate::redis) fn plain(error: &RedisError) -> String {
    if let Some(code) = error.code() {
        return match (code, error.detail().unwrap_or_default()) {
            ("", "") => "an error without a text".to_owned(),
            (code, "") => code.to_owned(),
            (code, detail) => format!("{code} {detail}"),
        };
    }
    let text = error.to_string().replacen(&format!(" - {:?}", error.kind()), "", 1);
    // The parser of the redis crate reports what it expected in several lines.
    text.lines().filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}

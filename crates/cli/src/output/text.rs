//! Text of tasks on one line: without control characters, and cut to a length. Ages and sizes for people.

use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use console::{measure_text_width, truncate_str};
use indicatif::HumanCount;
use mcp_task_store::Printable;
use serde_json::Value;

/// Returns text within one line. What a terminal would interpret appears as `\u{…}`.
pub fn plain(text: &str) -> String {
    Printable::new(text).to_string()
}

/// Returns text within one line of at most `width` columns.
pub fn cut(text: &str, width: usize) -> String {
    // A column shows at least one character, and few characters take no column.
    let end = text.char_indices().nth(width.saturating_mul(2) + 1).map_or(text.len(), |(end, _)| end);
    let plain = plain(&text[..end]);
    if end == text.len() && measure_text_width(&plain) <= width {
        return plain;
    }
    let shown = truncate_str(&plain, width.saturating_sub(1), "");
    format!("{shown}…")
}

/// Returns text of several lines, each without control characters. Shows at most this many lines of at most this many columns.
pub fn cut_lines(text: &str, lines: usize, width: usize) -> Vec<String> {
    let mut shown: Vec<String> = text.lines().take(lines).map(|line| cut(line, width)).collect();
    if text.lines().nth(lines).is_some() {
        shown.push("…".to_owned());
    }
    shown
}

/// Returns text within lines of at most `width` columns, and at most this many of them.
pub fn wrap(text: &str, width: usize, lines: usize) -> Vec<String> {
    let mut rest = cut(text, width.saturating_mul(lines));
    let mut wrapped = Vec::new();
    while measure_text_width(&rest) > width {
        let line = truncate_str(&rest, width, "").into_owned();
        if line.is_empty() {
            break;
        }
        rest.drain(..line.len());
        wrapped.push(line);
    }
    wrapped.push(rest);
    wrapped
}

/// Returns JSON in the form for people.
pub fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_else(|_| value.to_string())
}

/// Returns how long ago a time was: `5s`, `3m`, `2h`, `7d`.
pub fn age(from: DateTime<Utc>, now: DateTime<Utc>) -> String {
    duration((now - from).to_std().unwrap_or_default())
}

pub fn duration(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ 0..=119 => format!("{seconds}s"),
        seconds @ 120..=7_199 => format!("{}m", seconds / 60),
        seconds @ 7_200..=172_799 => format!("{}h", seconds / 3_600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

/// Returns a time as the records state it.
pub fn time(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// Returns a number with its noun.
pub fn count(number: u64, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{} {noun}s", with_commas(number)) }
}

pub fn with_commas(number: u64) -> String {
    HumanCount(number).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_to_its_width_whatever_it_holds() {
        assert_eq!(cut("short", 5), "short");
        assert_eq!(cut("too long", 5), "too …");
        assert_eq!(cut("a\u{1b}[31m", 20), "a\\u{1b}[31m");
        for hostile in
            ["\u{1b}".repeat(100), "字".repeat(100), "\u{301}".repeat(100), "a\u{202e}".repeat(100)]
        {
            let shown = cut(&hostile, 10);
            assert!(measure_text_width(&shown) <= 10 && !shown.contains(Printable::escapes), "{shown}");
        }
        assert_eq!(cut_lines("a\nb\nc", 2, 9), ["a", "b", "…"]);
        assert_eq!(wrap("abcdefg", 3, 3), ["abc", "def", "g"]);
        assert_eq!(wrap("abcdefg", 3, 2), ["abc", "de…"]);
        assert_eq!(wrap(&"字".repeat(4), 3, 9), ["字", "字", "字", "字"]);
    }

    #[test]
    fn numbers_and_ages_are_for_people() {
        assert_eq!((count(1, "task"), count(1_234_567, "task")), ("1 task".into(), "1,234,567 tasks".into()));
        let ages = [0, 119, 120, 7_199, 7_200, 172_799, 172_800];
        assert_eq!(
            ages.map(|seconds| duration(Duration::from_secs(seconds))),
            ["0s", "119s", "2m", "119m", "2h", "47h", "2d"]
        );
    }
}

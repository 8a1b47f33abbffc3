//! Text of tasks for a page: without characters that act on the reader's screen, and cut to a length. Ages and sizes for people.

use chrono::{DateTime, SecondsFormat, Utc};
use mcp_task_store::Printable;

/// How many characters of a short field a page shows.
pub(crate) const FIELD: usize = 300;

/// Returns text within one line, of at most `chars` characters before hidden ones are escaped.
pub(crate) fn cut(text: &str, chars: usize) -> String {
    match text.char_indices().nth(chars) {
        None => Printable::new(text).to_string(),
        Some((end, _)) => format!("{}…", Printable::new(&text[..end])),
    }
}

/// Returns a short field.
pub(crate) fn field(text: &str) -> String {
    cut(text, FIELD)
}

/// Returns text of several lines, each without hidden characters, of at most `chars` characters.
pub(crate) fn lines(text: &str, chars: usize) -> String {
    let end = text.char_indices().nth(chars).map(|(end, _)| end);
    let shown: Vec<String> =
        text[..end.unwrap_or(text.len())].split('\n').map(|line| Printable::new(line).to_string()).collect();
    format!("{}{}", shown.join("\n"), if end.is_some() { "\n…" } else { "" })
}

/// Returns how long ago a time was: `5s`, `3m`, `2h`, `7d`.
pub(crate) fn age(from: DateTime<Utc>, now: DateTime<Utc>) -> String {
    match (now - from).num_seconds().max(0) {
        seconds @ 0..=119 => format!("{seconds}s"),
        seconds @ 120..=7_199 => format!("{}m", seconds / 60),
        seconds @ 7_200..=172_799 => format!("{}h", seconds / 3_600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

/// Returns a duration for people: `500 ms`, `30 s`, `1 h 30 min`.
pub(crate) fn duration(millis: u64) -> String {
    let (seconds, minutes, hours, days) =
        (millis / 1_000, millis / 60_000, millis / 3_600_000, millis / 86_400_000);
    match (days, hours, minutes, seconds) {
        (0, 0, 0, 0) => format!("{millis} ms"),
        (0, 0, 0, _) => format!("{seconds} s"),
        (0, 0, _, _) => two(minutes, "min", seconds % 60, "s"),
        (0, _, _, _) => two(hours, "h", minutes % 60, "min"),
        _ => two(days, "d", hours % 24, "h"),
    }
}

fn two(large: u64, unit: &str, small: u64, small_unit: &str) -> String {
    if small == 0 { format!("{large} {unit}") } else { format!("{large} {unit} {small} {small_unit}") }
}

/// Returns a time as the records state it.
pub(crate) fn time(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// Returns the time of the day.
pub(crate) fn clock(time: DateTime<Utc>) -> String {
    time.format("%H:%M:%S UTC").to_string()
}

/// Returns a number with its noun.
pub(crate) fn count(number: u64, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{} {noun}s", with_commas(number)) }
}

pub(crate) fn with_commas(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_and_has_no_hidden_characters() {
        assert_eq!((cut("short", 5), cut("too long", 3)), ("short".into(), "too…".into()));
        assert_eq!(cut("a\u{1b}[31m\u{202e}\nb", 20), "a\\u{1b}[31m\\u{202e}\\u{a}b");
        assert_eq!(lines("a\u{7}\nb\u{202e}", 20), "a\\u{7}\nb\\u{202e}");
        assert_eq!(lines("a\nbc", 3), "a\nb\n…");
    }

    #[test]
    fn numbers_and_durations_are_for_people() {
        assert_eq!((count(1, "task"), count(1_234_567, "task")), ("1 task".into(), "1,234,567 tasks".into()));
        assert_eq!(
            [500, 30_000, 90_000, 5_400_000, 86_400_000].map(duration),
            ["500 ms", "30 s", "1 min 30 s", "1 h 30 min", "1 d"]
        );
    }
}

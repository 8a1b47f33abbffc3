//! Formats text for a line of the log or of a terminal: ids and messages from outside, and an error with its causes.

use std::error::Error;
use std::fmt::{self, Write};

/// Displays text within one line: control characters, invisible characters, and characters that change the direction of
/// writing appear as `\u{…}`. All other characters are unchanged.
///
/// Use it to show text from outside on a terminal or in a log, for example the status message of a task.
///
/// ```
/// use mcp_task_store::Printable;
///
/// assert_eq!(Printable::new("done\u{1b}[2K").to_string(), r"done\u{1b}[2K");
/// ```
#[derive(Clone, Copy)]
pub struct Printable<'a>(pub(crate) &'a str);

impl<'a> Printable<'a> {
    /// Returns the text as a value that can be displayed.
    pub fn new(text: &'a str) -> Self {
        Self(text)
    }

    /// Returns whether a character appears escaped: a control or format character of Unicode, or a separator of lines or paragraphs.
    pub fn escapes(c: char) -> bool {
        is_hidden(c)
    }
}

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Plain(f).write_str(self.0)
    }
}

impl fmt::Debug for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.0, f)
    }
}

/// Writes text as [`Printable`] displays it.
pub(crate) struct Plain<'a, W>(pub(crate) &'a mut W);

impl<W: fmt::Write> fmt::Write for Plain<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut plain_from = 0;
        for (at, c) in text.char_indices() {
            if is_hidden(c) {
                write!(self.0, "{}{}", &text[plain_from..at], c.escape_unicode())?;
                plain_from = at + c.len_utf8();
            }
        }
        self.0.write_str(&text[plain_from..])
    }
}

/// Returns whether a character is a control or format character of Unicode, or separates lines or paragraphs.
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{AD}' | '\u{600}'..='\u{605}' | '\u{61C}' | '\u{6DD}' | '\u{70F}' | '\u{890}'..='\u{891}'
            | '\u{8E2}' | '\u{180E}' | '\u{200B}'..='\u{200F}' | '\u{2028}'..='\u{202E}'
            | '\u{2060}'..='\u{206F}' | '\u{FEFF}' | '\u{FFF9}'..='\u{FFFB}' | '\u{110BD}' | '\u{110CD}'
            | '\u{13430}'..='\u{1343F}' | '\u{1BCA0}'..='\u{1BCA3}' | '\u{1D173}'..='\u{1D17A}'
            | '\u{E0000}'..='\u{E007F}')
}

/// Displays an error and its causes in one line, for the log: `what failed: the cause: its cause`. Leaves out a cause
/// if the text of the error above it already contains the text of the cause.
pub(crate) struct Chain<'a, E: ?Sized>(pub(crate) &'a E);

impl<E: Error + ?Sized> fmt::Display for Chain<'_, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut above = self.0.to_string();
        Plain(f).write_str(&above)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            let text = error.to_string();
            if !above.contains(&text) {
                f.write_str(": ")?;
                Plain(f).write_str(&text)?;
            }
            above = text;
            cause = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::plain("alice", "alice")]
    #[case::other_scripts_and_quotes("O'Brien \"ю\" 🦀 नि", "O'Brien \"ю\" 🦀 नि")]
    #[case::a_line_break("t\n2026 INFO forged", "t\\u{a}2026 INFO forged")]
    #[case::an_escape_sequence("\u{1b}[2K\r", "\\u{1b}[2K\\u{d}")]
    #[case::another_direction("a\u{202e}b\u{2066}", "a\\u{202e}b\\u{2066}")]
    fn text_is_displayed_within_its_line(#[case] text: &str, #[case] displayed: &str) {
        assert_eq!(Printable(text).to_string(), displayed);
    }
}

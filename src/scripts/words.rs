//! The words of a script: what the minifier and the inliner work on.

use std::iter::Peekable;
use std::str::CharIndices;

/// Returns whether the character is part of a name or a number.
pub(super) fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// Returns the names, numbers, strings, operators and line ends of a script. Leaves out comments and other white space.
pub(super) fn words(source: &str) -> impl Iterator<Item = &str> {
    let mut rest = source.char_indices().peekable();
    std::iter::from_fn(move || {
        loop {
            let (start, first) = rest.next()?;
            if first == '-' && source[start..].starts_with("--") {
                skip_while(&mut rest, |c| c != '\n');
                continue;
            }
            match first {
                ' ' | '\t' | '\r' => continue,
                '\'' | '"' => {
                    let mut escaped = false;
                    skip_while(&mut rest, |c| {
                        let inside = escaped || c != first;
                        escaped = c == '\\' && !escaped;
                        inside
                    });
                    rest.next();
                }
                c if is_word(c) => {
                    skip_while(&mut rest, |c| is_word(c) || first.is_ascii_digit() && c == '.')
                }
                '.' => skip_while(&mut rest, |c| c == '.'),
                '=' | '~' | '<' | '>' => skip_while(&mut rest, |c| c == '='),
                _ => {}
            }
            let end = rest.peek().map_or(source.len(), |(end, _)| *end);
            return Some(&source[start..end]);
        }
    })
}

fn skip_while(rest: &mut Peekable<CharIndices<'_>>, mut skipped: impl FnMut(char) -> bool) {
    while rest.next_if(|(_, c)| skipped(*c)).is_some() {}
}

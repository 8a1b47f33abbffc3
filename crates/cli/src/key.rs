//! How a person names a task: `OWNER:TASK`, as the tables show it, or two separate ids.

use mcp_task_store::{OwnerId, Printable, TaskKey};

use crate::failure::Failure;

/// Returns the key as the tables show it: `owner:task`, where `:`, `%`, braces and control characters in an id are
/// percent-encoded, and other characters that a terminal does not show appear as `\u{…}`.
pub fn display(key: &TaskKey) -> String {
    Printable::new(&key.to_string()).to_string()
}

/// Reads a task that the command line names. With an owner, `task` is the id as it is. Without one, it is `OWNER:TASK`, as the
/// tables show it.
pub fn parse(owner: Option<&OwnerId>, task: &str) -> Result<TaskKey, Failure> {
    let key = match owner {
        Some(owner) => task.try_into().map(|task| TaskKey { owner: owner.clone(), task }),
        None => unescape(task).parse(),
    };
    key.map_err(|error| {
        Failure::usage(format!(
            "{error}; name a task as OWNER:TASK, as `mcp-tasks list` shows it, or as --owner OWNER TASK"
        ))
    })
}

/// Replaces each `\u{…}` by its character. An id never shows a brace of its own, so there is only one reading.
fn unescape(text: &str) -> String {
    let mut pieces = text.split(r"\u{");
    let mut plain = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let escaped = piece.split_once('}').and_then(|(digits, rest)| {
            Some((u32::from_str_radix(digits, 16).ok().and_then(char::from_u32)?, rest))
        });
        match escaped {
            Some((character, rest)) => {
                plain.push(character);
                plain.push_str(rest);
            }
            None => {
                plain.push_str(r"\u{");
                plain.push_str(piece);
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_can_be_read_back_as_it_is_displayed() {
        for (owner, task) in [
            ("alice", "t1"),
            ("a:b", "c%d"),
            ("new\nline", "esc\u{1b}[2K"),
            ("right\u{202e}left", "zero\u{200b}width"),
            (r"literal \u{202e}", r"\u{"),
            ("ю 🦀", "{x}"),
        ] {
            let key = TaskKey::new(owner, task).unwrap();
            let shown = display(&key);
            assert!(!shown.contains(Printable::escapes), "{shown}");
            assert_eq!(parse(None, &shown).unwrap(), key, "{shown}");
            assert_eq!(parse(Some(&key.owner), task).unwrap(), key);
        }
    }

    #[test]
    fn a_task_without_an_owner_is_a_mistake_in_the_command_line() {
        assert!(matches!(parse(None, "t1"), Err(Failure::Usage(text)) if text.contains("OWNER:TASK")));
    }
}

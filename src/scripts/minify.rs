//! Shortens the text of a script. Every call sends the text, and the server hashes all of it each time. A kilobyte
//! costs the server as much as several commands.
//!
//! The minifier works on words and ignores the grammar. This is enough for the Lua 5.1 that the scripts of this crate
//! use: no long strings, no long comments, no `goto`, no table keys and methods that a script defines, and no local
//! name that shadows another one.

use std::collections::HashMap;

use super::inline::inline;
use super::words::{is_word, words};

/// Returns the same script without comments and unnecessary white space. Functions that are called once are inlined,
/// and local names become short.
pub(super) fn minify(source: &str) -> String {
    let words = with_alias(inline(words(source).collect()));
    let names = short_names(&words);
    let mut text = String::with_capacity(source.len());
    let (mut before, mut is_new_line) = ("", false);
    for word in words {
        if word == "\n" {
            is_new_line = true;
            continue;
        }
        // The word after a dot or a colon is the name of a field.
        let renamed = names.get(word).filter(|_| !matches!(before, "." | ":"));
        before = word;
        let word = renamed.map_or(word, String::as_str);
        if let Some(space) = separator(&text, word, is_new_line) {
            text.push(space);
        }
        text.push_str(word);
        is_new_line = false;
    }
    text
}

/// Gives `redis.call` a local name if it occurs so often that the text becomes shorter.
fn with_alias(words: Vec<&str>) -> Vec<&str> {
    const CALL: [&str; 3] = ["redis", ".", "call"];
    const DECLARATION: [&str; 7] = ["local", "call", "=", "redis", ".", "call", "\n"];
    if words.windows(CALL.len()).filter(|words| *words == CALL).count() < 3 {
        return words;
    }
    let mut aliased = DECLARATION.to_vec();
    let mut rest = &words[..];
    while let [word, others @ ..] = rest {
        let after = rest.strip_prefix(&CALL[..]);
        aliased.push(if after.is_some() { "call" } else { word });
        rest = after.unwrap_or(others);
    }
    aliased
}

/// Returns the separator that is needed between the text so far and the next word.
fn separator(text: &str, word: &str, is_new_line: bool) -> Option<char> {
    let last = text.chars().next_back()?;
    let first = word.chars().next()?;
    let would_join = is_word(last) && is_word(first)
        || last.is_ascii_digit() && first == '.'
        || last == '-' && first == '-';
    // Lua takes a parenthesis on a new line as the beginning of a statement, and one on the same line as a call.
    let begins_a_statement = first == '(' && (is_word(last) || matches!(last, ')' | ']' | '}' | '\'' | '"'));
    match is_new_line {
        true => (would_join || begins_a_statement).then_some('\n'),
        false => would_join.then_some(' '),
    }
}

/// Returns a short name for each name that is local somewhere. The same name becomes the same short name everywhere, so no
/// scope matters.
fn short_names<'a>(words: &[&'a str]) -> HashMap<&'a str, String> {
    let mut names = HashMap::new();
    let mut words = words.iter().copied().peekable();
    while let Some(word) = words.next() {
        // A list of names follows `local` and `for`. After `function` the list is in parentheses.
        match word {
            "local" => {
                if words.next_if_eq(&"function").is_some() {
                    words.next().into_iter().for_each(|name| add(&mut names, name));
                    words.next_if_eq(&"(");
                }
            }
            "for" => {}
            "function" => drop(words.next_if_eq(&"(")),
            _ => continue,
        }
        while let Some(name) = words.next_if(|word| word.starts_with(is_word)) {
            add(&mut names, name);
            if words.next_if_eq(&",").is_none() {
                break;
            }
        }
    }
    names
}

/// Global names of Lua and Redis. They stay as they are, even where a script makes them local.
const GLOBALS: [&str; 16] = [
    "ARGV", "KEYS", "cjson", "error", "ipairs", "math", "next", "pairs", "pcall", "redis", "select",
    "string", "table", "tonumber", "type", "unpack",
];

fn add<'a>(names: &mut HashMap<&'a str, String>, name: &'a str) {
    if GLOBALS.contains(&name) {
        return;
    }
    const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    let number = names.len();
    names.entry(name).or_insert_with(|| {
        let letter = char::from(LETTERS[number % LETTERS.len()]);
        // No keyword of Lua is a letter, alone or before a digit.
        match number / LETTERS.len() {
            0 => letter.to_string(),
            round => format!("{letter}{round}"),
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::comments("-- a\nlocal key = 1 -- b\n", "local a=1")]
    #[case::comment_sign_in_a_string("return '-- a  b'", "return'-- a  b'")]
    #[case::escaped_quote(r"return 'a\' local b', x", r"return'a\' local b',x")]
    #[case::indentation("if x then\n    return  1\n\n  end\n", "if x then\nreturn 1\nend")]
    #[case::names("local first, second = x.first, first\nreturn second", "local a,b=x.first,a\nreturn b")]
    #[case::local_function(
        "local function twice(what) return what * 2 end",
        "local function a(b)return b*2 end"
    )]
    #[case::function("local f = function(x, y) end", "local a=function(b,c)end")]
    #[case::loops("for i, id in ipairs(all) do use(i, id) end", "for a,b in ipairs(all)do use(a,b)end")]
    #[case::counting("for i = 1, 2 do use(i) end", "for a=1,2 do use(a)end")]
    #[case::no_value("if x then local late end", "if x then local a end")]
    #[case::a_global_made_local("local type, floor = type, math.floor", "local type,a=type,math.floor")]
    #[case::methods("local find = s:find('%d')", "local a=s:find('%d')")]
    #[case::same_name_in_two_scopes(
        "do local x = 1 end\ndo local x = y end",
        "do local a=1 end\ndo local a=y end"
    )]
    #[case::concatenation("return 1 .. x .. 2", "return 1 ..x..2")]
    #[case::signs("return a - -b, a ~= b, a <= b", "return a- -b,a~=b,a<=b")]
    #[case::two_commands("redis.call('A')\nredis.call('B')", "redis.call('A')redis.call('B')")]
    #[case::three_commands(
        "redis.call('A')\nredis.call('B')\nreturn redis.call('C')",
        "local a=redis.call\na('A')a('B')return a('C')"
    )]
    #[case::line_end_behind_a_sign("f()\nlocal x = ''\nreturn x", "f()local a=''return a")]
    #[case::line_end_before_a_sign("return x\n  .. y", "return x..y")]
    #[case::call_on_a_new_line("local a = b\n(f or g)()", "local a=b\n(f or g)()")]
    #[case::numbers("return 1.5e3, 0x1F, 2 ^ 53", "return 1.5e3,0x1F,2^53")]
    fn the_text_is_shortened(#[case] source: &str, #[case] short: &str) {
        assert_eq!(minify(source), short);
    }

    #[test]
    fn each_of_120_local_names_gets_its_own_short_name() {
        let declared: Vec<String> = (0..120).map(|number| format!("name_{number}")).collect();
        let text = minify(&format!("local {}", declared.join(", ")));
        let names: std::collections::HashSet<&str> = text["local ".len()..].split(',').collect();
        assert_eq!(names.len(), declared.len());
    }
}

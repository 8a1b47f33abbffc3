//! Replaces the call of a function by the body of the function, if there is exactly one call. The scripts can use
//! functions with parameters, and the server runs them without the cost of a call.
//!
//! A function is inlined if its body is `return` and one expression, or statements without `return`. Its arguments must
//! not call functions, because the order of evaluation may change. Other functions stay as they are.

use std::ops::Range;

use super::words::is_word;

/// Inlines every function that it can. `words` are the words of a whole script.
pub(super) fn inline(mut words: Vec<&str>) -> Vec<&str> {
    let mut at = 0;
    while at < words.len() {
        match Function::at(&words, at).and_then(|function| function.inlined(&words)) {
            // The words at this position may now begin another function.
            Some(shorter) => words = shorter,
            None => at += 1,
        }
    }
    words
}

/// A `local function`, and its position among the words of the script.
struct Function<'w, 's> {
    whole: Range<usize>,
    name: &'s str,
    parameters: Vec<&'s str>,
    body: &'w [&'s str],
}

/// A call of a function, and its position among the words of the script.
struct Call<'w, 's> {
    whole: Range<usize>,
    arguments: Vec<&'w [&'s str]>,
}

impl<'w, 's> Function<'w, 's> {
    fn at(words: &'w [&'s str], start: usize) -> Option<Self> {
        let ["local", "function", name, "(", rest @ ..] = &words[start..] else { return None };
        let count = rest.iter().position(|word| *word == ")")?;
        let parameters = rest[..count].iter().copied().filter(|word| *word != ",").collect();
        let body = start + 4 + count + 1;
        let end = body + end_of_block(&words[body..])?;
        let body = trimmed(&words[body..end]);
        Some(Self { whole: start..end + 1, name, parameters, body })
    }

    /// Returns the script without the function and with its body in place of the call.
    fn inlined(&self, words: &'w [&'s str]) -> Option<Vec<&'s str>> {
        let mut uses = (0..words.len()).filter(|at| !self.whole.contains(at) && words[*at] == self.name);
        let call = Call::at(words, uses.next()?)?;
        let text = match self.body {
            _ if uses.next().is_some() || self.parameters.contains(&"...") => return None,
            ["return", expression @ ..] => self.as_expression(expression, &call, words)?,
            statements => self.as_statements(statements, &call, words)?,
        };
        let mut shorter = Vec::with_capacity(words.len());
        for (at, word) in words.iter().enumerate() {
            if at == call.whole.start {
                shorter.extend(&text);
            }
            if !self.whole.contains(&at) && !call.whole.contains(&at) {
                shorter.push(*word);
            }
        }
        Some(shorter)
    }

    fn as_expression(
        &self,
        body: &[&'s str],
        call: &Call<'w, 's>,
        words: &[&'s str],
    ) -> Option<Vec<&'s str>> {
        let expression = self.with_arguments(body, call)?;
        if body.contains(&"function") {
            return None;
        }
        let (before, after) = neighbours(words, &call.whole);
        Some(in_parentheses(expression, before, after))
    }

    fn as_statements(
        &self,
        body: &[&'s str],
        call: &Call<'w, 's>,
        words: &[&'s str],
    ) -> Option<Vec<&'s str>> {
        let (before, after) = neighbours(words, &call.whole);
        let is_statement = matches!(before, "\n" | "then" | "do" | "else");
        if !is_statement || body.contains(&"return") || body.contains(&"function") {
            return None;
        }
        let statements = self.with_arguments(body, call)?;
        let is_whole_block = before != "\n" && matches!(after, "end" | "else" | "elseif");
        if is_whole_block || !body.contains(&"local") {
            return Some(statements);
        }
        Some([&["do", "\n"], &statements[..], &["\n", "end"]].concat())
    }

    /// Replaces the parameters by the arguments.
    fn with_arguments(&self, body: &[&'s str], call: &Call<'w, 's>) -> Option<Vec<&'s str>> {
        let is_assigned = |name: &str| body.windows(2).any(|words| words[0] == name && words[1] == "=");
        let is_hidden = |word: &&str| is_local_in(body, word);
        if self.parameters.len() != call.arguments.len()
            || self.parameters.iter().any(|name| is_assigned(name))
            || call.arguments.iter().any(|argument| calls(argument) || argument.iter().any(is_hidden))
        {
            return None;
        }
        let mut text = Vec::new();
        for (at, word) in body.iter().enumerate() {
            let (before, after) = neighbours(body, &(at..at + 1));
            let parameter = self.parameters.iter().position(|name| name == word);
            match parameter.filter(|_| !matches!(before, "." | ":")) {
                Some(number) => {
                    text.extend(in_parentheses(call.arguments[number].to_vec(), before, after));
                }
                None => text.push(*word),
            }
        }
        Some(text)
    }
}

impl<'w, 's> Call<'w, 's> {
    fn at(words: &'w [&'s str], start: usize) -> Option<Self> {
        let ["(", rest @ ..] = words.get(start + 1..)? else { return None };
        let (mut arguments, mut depth, mut from) = (Vec::new(), 0_usize, 0);
        for (at, word) in rest.iter().enumerate() {
            match *word {
                ")" | "]" | "}" if depth > 0 => depth -= 1,
                "(" | "[" | "{" => depth += 1,
                "," | ")" if depth == 0 => {
                    arguments.push(trimmed(&rest[from..at]));
                    from = at + 1;
                }
                _ => {}
            }
            if *word == ")" && from == at + 1 {
                let whole = start..start + 2 + from;
                arguments.retain(|argument| !argument.is_empty());
                return Some(Self { whole, arguments });
            }
        }
        None
    }
}

/// Returns the position of the `end` that closes the block around these words.
fn end_of_block(words: &[&str]) -> Option<usize> {
    let mut depth = 1;
    words.iter().position(|word| {
        match *word {
            "function" | "if" | "do" => depth += 1,
            "end" => depth -= 1,
            _ => {}
        }
        depth == 0
    })
}

fn trimmed<'w, 's>(mut words: &'w [&'s str]) -> &'w [&'s str] {
    while let ["\n", rest @ ..] | [rest @ .., "\n"] = words {
        words = rest;
    }
    words
}

/// Returns the words before and after a place. The word before may be a line end. The word after is a line end only at
/// the end of the script.
fn neighbours<'s>(words: &[&'s str], place: &Range<usize>) -> (&'s str, &'s str) {
    let before = words[..place.start].last();
    let after = words[place.end..].iter().find(|word| **word != "\n");
    (before.unwrap_or(&"\n"), after.unwrap_or(&"\n"))
}

/// Puts an expression in parentheses, unless the words next to it cannot bind to a part of it.
fn in_parentheses<'s>(expression: Vec<&'s str>, before: &str, after: &str) -> Vec<&'s str> {
    // A word that is no operator begins the next statement, or ends the block.
    let is_end = matches!(after, "," | ")" | "\n") || !is_operator(after) && after.starts_with(is_word);
    let stands_alone = matches!(before, "=" | "," | "(" | "return") && is_end;
    let is_name = |word: &str| word.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let is_one_value = match expression[..] {
        [name] => is_name(name) || !matches!(after, ":" | "["),
        [name, "[", _, "]"] => is_name(name),
        _ => false,
    };
    match stands_alone || is_one_value {
        true => expression,
        false => [&["("], &expression[..], &[")"]].concat(),
    }
}

/// Returns whether these words declare the name.
fn is_local_in(words: &[&str], name: &str) -> bool {
    let lists = words.split(|word| matches!(*word, "=" | "in" | "\n"));
    lists.into_iter().any(|list| {
        let declared = list.iter().rposition(|word| matches!(*word, "local" | "for"));
        declared.is_some_and(|at| list[at..].contains(&name))
    })
}

fn is_operator(word: &str) -> bool {
    matches!(word, "and" | "or" | "not")
}

/// Returns whether the expression calls a function. A parenthesis after a value is a call.
fn calls(expression: &[&str]) -> bool {
    expression.windows(2).any(|words| {
        let ends_a_value = |c: char| is_word(c) || matches!(c, ')' | ']' | '}' | '\'');
        words[1] == "(" && !is_operator(words[0]) && words[0].ends_with(ends_a_value)
    })
}

#[cfg(test)]
mod tests {
    use crate::scripts::minify::minify;
    use rstest::rstest;

    #[rstest]
    #[case::expression("local function twice(x) return x * 2 end\nreturn twice(y)", "return y*2")]
    #[case::parentheses(
        "local function sum(x) return x + 1 end\nreturn 2 * sum(y or 3)",
        "return 2*((y or 3)+1)"
    )]
    #[case::an_operator_on_the_next_line(
        "local function f(x) return x or 1 end\nreturn f(y)\n  and z",
        "return(y or 1)and z"
    )]
    #[case::own_parentheses(
        "local function f(x) return g(x) end\nreturn f((y or '') .. z)",
        "return g((y or'')..z)"
    )]
    #[case::element("local function f(x) return x:g() end\nreturn f(ARGV[1])", "return ARGV[1]:g()")]
    #[case::statements(
        "local function f(x)\n  if x then g(x) end\nend\nf(y)\nreturn",
        "if y then g(y)end\nreturn"
    )]
    #[case::locals("local function f(x)\n  local y = x\n  g(y)\nend\nf(z)", "do\nlocal a=z\ng(a)end")]
    #[case::locals_in_a_block_of_their_own(
        "local function f(x)\n  local y = x\n  g(y)\nend\nif z then f(z) end",
        "if z then local a=z\ng(a)end"
    )]
    #[case::no_parameters(
        "local function f() g() end\nif x then f() else h() end",
        "if x then g()else h()end"
    )]
    #[case::a_function_that_another_one_calls(
        "local function f(x) return x + 1 end\nlocal function g(y) return f(y) end\nreturn g(z)",
        "return z+1"
    )]
    fn a_function_that_is_called_once_is_inlined(#[case] source: &str, #[case] short: &str) {
        assert_eq!(minify(source), short);
    }

    #[rstest]
    #[case::two_calls("local function f(x) return x end\nreturn f(1) + f(2)")]
    #[case::no_call("local function f(x) return x end\nreturn f")]
    #[case::early_return("local function f(x)\n  if x then return end\n  g()\nend\nf(y)")]
    #[case::return_behind_statements("local function f(x)\n  g()\n  return x\nend\nreturn f(y)")]
    #[case::an_argument_that_calls("local function f(x) return y and x end\nreturn f(g(1))")]
    #[case::an_argument_whose_name_the_body_declares(
        "local function f(x)\n  local y = 1\n  g(x, y)\nend\nf(y)"
    )]
    #[case::an_argument_whose_name_a_loop_declares(
        "local function f(x)\n  for i, y in z do g(x) end\nend\nf(y)"
    )]
    #[case::a_parameter_that_is_assigned("local function f(x)\n  x = 1\n  g(x)\nend\nf(y)")]
    #[case::too_few_arguments("local function f(x, y) return x end\nreturn f(1)")]
    #[case::any_arguments("local function f(...) return g(...) end\nreturn f(1)")]
    #[case::statements_as_a_value("local function f(x) g(x) end\nreturn f(1)")]
    fn a_function_that_cannot_be_inlined_stays(#[case] source: &str) {
        assert!(minify(source).contains("local function"), "{}", minify(source));
    }
}

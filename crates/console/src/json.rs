//! JSON that a reader folds and unfolds. Hostile values are inert and cut.

use maud::{Markup, html};
use serde_json::Value;

use crate::text;

/// How many values a page shows of one JSON document.
const MAX_VALUES: usize = 1_000;
/// How many characters a page shows of one string, and of the name of a field.
const MAX_STRING: usize = 2_000;
/// How many characters a page shows of one JSON document.
const MAX_CHARS: usize = 100_000;
/// How deep the page goes.
const MAX_DEPTH: usize = 32;
/// The levels that are unfolded at first.
const UNFOLDED: usize = 2;

/// Returns a JSON document as nested lists.
pub(crate) fn tree(value: &Value) -> Markup {
    let mut left = Left { values: MAX_VALUES, chars: MAX_CHARS };
    html! { div.json { (left.show(value, 0)) } }
}

/// What may still be shown.
struct Left {
    values: usize,
    chars: usize,
}

impl Left {
    fn show(&mut self, value: &Value, depth: usize) -> Markup {
        match value {
            Value::Object(fields) if !fields.is_empty() => {
                let fields = fields.iter().map(|(name, value)| (Some(name.as_str()), value));
                self.list(fields, "field", depth)
            }
            Value::Array(elements) if !elements.is_empty() => {
                self.list(elements.iter().map(|value| (None, value)), "element", depth)
            }
            Value::String(string) => html! { span.string { "\"" (self.cut(string)) "\"" } },
            scalar => html! { span.scalar { (self.cut(&scalar.to_string())) } },
        }
    }

    fn list<'a>(
        &mut self,
        values: impl ExactSizeIterator<Item = (Option<&'a str>, &'a Value)>,
        noun: &str,
        depth: usize,
    ) -> Markup {
        let count = text::count(values.len() as u64, noun);
        if depth >= MAX_DEPTH {
            return html! { span.more { (count) ", not shown" } };
        }
        let mut shown = Vec::new();
        let mut rest = 0_u64;
        for (name, value) in values {
            if self.values == 0 || self.chars == 0 {
                rest += 1;
                continue;
            }
            self.values -= 1;
            let name = name.map(|name| self.cut(name));
            shown.push((name, self.show(value, depth + 1)));
        }
        html! {
            details open[depth < UNFOLDED] {
                summary { (count) }
                ul {
                    @for (name, value) in shown {
                        li { @if let Some(name) = name { span.name { (name) } ": " } (value) }
                    }
                    @if rest > 0 { li.more { (text::count(rest, noun)) " more, not shown" } }
                }
            }
        }
    }

    fn cut(&mut self, string: &str) -> String {
        let shown = text::cut(string, MAX_STRING.min(self.chars));
        self.chars = self.chars.saturating_sub(shown.len());
        shown
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_document_of_any_size_and_depth_is_cut() {
        let mut deep = json!("bottom");
        for _ in 0..100 {
            deep = json!([deep]);
        }
        let wide: Value = (0..100_000).collect();
        let long = json!({ "s".repeat(1_000_000): "s".repeat(10_000_000) });
        for (value, mark) in [(deep, "not shown"), (wide, "99,000 elements more, not shown"), (long, "…")] {
            let shown = tree(&value).into_string();
            assert!(shown.len() < 200_000 && shown.contains(mark), "{mark}: {}", shown.len());
            assert!(!shown.contains("bottom"));
        }
    }
}

//! Keeps integers that a [`Value`] cannot hold, so that they survive a rewrite.
//!
//! A `Value` holds the integers from -2^63 to 2^64 - 1. It turns any other integer into a floating point number, and
//! then writes other digits. So a task keeps the digits of such integers when it is decoded, and puts them back into
//! the JSON that it writes.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::sync::Arc;

use serde_json::Value;

/// The length of the shortest integer that a `Value` cannot hold: -9223372036854775809, or 18446744073709551616.
const MIN_LENGTH: usize = 20;

/// A position in the JSON of a record: a hash of the member names and array positions on the path to it. The path
/// does not contain the names, because a record can have many integers below one long name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Path(u64);

impl Path {
    /// The record itself.
    const RECORD: Self = Self(0);

    fn member(self, name: &str) -> Self {
        self.step((true, name))
    }

    fn item(self, position: usize) -> Self {
        self.step((false, position))
    }

    fn step(self, step: impl Hash) -> Self {
        let mut hasher = DefaultHasher::new();
        (self.0, step).hash(&mut hasher);
        Self(hasher.finish())
    }
}

#[derive(Clone, Debug, PartialEq)]
struct Integer {
    path: Path,
    /// The field of the record that contains the integer.
    field: Path,
    digits: String,
    /// The text that a `Value` writes instead.
    altered: String,
}

/// The integers of one record that a `Value` alters, in order of appearance. Almost every record has none.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ExactIntegers(Option<Arc<[Integer]>>);

impl ExactIntegers {
    /// Finds the altered integers of a valid JSON text.
    pub(crate) fn of(json: &[u8]) -> Self {
        if !may_have_any(json) {
            return Self(None);
        }
        let mut found = Vec::new();
        each_number(Path::RECORD, json, |path, field, range| {
            if let Some((digits, altered)) = altered(&json[range]) {
                found.push(Integer { path, field, digits, altered });
            }
        });
        Self((!found.is_empty()).then(|| found.into()))
    }

    /// Puts the digits back into the JSON of a whole record.
    pub(crate) fn restore(&self, json: Vec<u8>) -> Vec<u8> {
        match &self.0 {
            None => json,
            Some(integers) => restore(integers, Path::RECORD, json),
        }
    }

    /// Puts the digits of one field of the record back into the JSON of its value.
    pub(crate) fn restore_field(&self, field: &str, json: Vec<u8>) -> Vec<u8> {
        match &self.0 {
            None => json,
            Some(integers) => {
                let field = Path::RECORD.member(field);
                let own: Vec<_> = integers.iter().filter(|integer| integer.field == field).cloned().collect();
                restore(&own, field, json)
            }
        }
    }
}

/// Returns whether the text has a run of [`MIN_LENGTH`] digits and minus signs, inside a string or not. Every such
/// run includes one of the positions 19, 39, 59, and so on. So the scan looks for a run only around these positions.
fn may_have_any(json: &[u8]) -> bool {
    let is_of_integer = |byte: &&u8| byte.is_ascii_digit() || **byte == b'-';
    (MIN_LENGTH - 1..json.len()).step_by(MIN_LENGTH).any(|at| {
        let after = json[at..].iter().take_while(is_of_integer).count();
        after > 0 && json[..at].iter().rev().take_while(is_of_integer).count() + after >= MIN_LENGTH
    })
}

/// Returns the digits of an integer that a `Value` cannot hold, and the text that the `Value` writes instead.
fn altered(number: &[u8]) -> Option<(String, String)> {
    let text = std::str::from_utf8(number).ok()?;
    let is_integer = number.iter().skip(usize::from(number[0] == b'-')).all(u8::is_ascii_digit);
    if number.len() < MIN_LENGTH || !is_integer || text.parse::<u64>().is_ok() || text.parse::<i64>().is_ok()
    {
        return None;
    }
    let value: Value = serde_json::from_str(text).ok()?;
    Some((text.to_owned(), value.to_string()))
}

/// Puts the digits of each integer back at its path. If an integer has moved within the record, its altered text
/// identifies it. Moved integers with equal altered text get their digits in the order of the record.
fn restore(integers: &[Integer], root: Path, json: Vec<u8>) -> Vec<u8> {
    let by_path: HashMap<Path, usize> =
        integers.iter().enumerate().map(|(number, integer)| (integer.path, number)).collect();
    let mut alike: HashMap<&[u8], VecDeque<usize>> = HashMap::new();
    for (number, integer) in integers.iter().enumerate() {
        alike.entry(integer.altered.as_bytes()).or_default().push_back(number);
    }
    let mut is_used = vec![false; integers.len()];
    let mut written: Vec<(Range<usize>, Option<usize>)> = Vec::new();
    each_number(root, &json, |path, _, range| {
        let text = &json[range.clone()];
        if alike.contains_key(text) {
            let same = by_path.get(&path).copied().filter(|same| integers[*same].altered.as_bytes() == text);
            if let Some(same) = same {
                is_used[same] = true;
            }
            written.push((range, same));
        }
    });
    let (mut restored, mut copied) = (Vec::with_capacity(json.len()), 0);
    for (range, same) in written {
        let number = same.or_else(|| {
            let alike = alike.get_mut(&json[range.clone()])?;
            std::iter::from_fn(|| alike.pop_front()).find(|number| !is_used[*number])
        });
        if let Some(number) = number {
            restored.extend_from_slice(&json[copied..range.start]);
            restored.extend_from_slice(integers[number].digits.as_bytes());
            copied = range.end;
        }
    }
    restored.extend_from_slice(&json[copied..]);
    restored
}

/// An array or object around the current position of a scan.
struct Level {
    path: Path,
    /// The position of the current item; `None` in an object.
    position: Option<usize>,
    /// The path of the current item or member.
    at: Path,
}

/// Calls `found` for each number of a valid JSON text at `root`, with the path of the number and the path of its field.
fn each_number(root: Path, json: &[u8], mut found: impl FnMut(Path, Path, Range<usize>)) {
    let mut levels: Vec<Level> = Vec::new();
    let mut is_name_next = false;
    let mut at = 0;
    while let Some(byte) = json.get(at) {
        let begin = at;
        at += 1;
        match byte {
            b'{' | b'[' => {
                let path = levels.last().map_or(root, |level| level.at);
                is_name_next = *byte == b'{';
                let position = (!is_name_next).then_some(0);
                levels.push(Level { path, position, at: position.map_or(path, |first| path.item(first)) });
            }
            b'}' | b']' => {
                levels.pop();
                is_name_next = false;
            }
            b',' => match levels.last_mut() {
                Some(Level { path, position: Some(position), at }) => {
                    *position += 1;
                    *at = path.item(*position);
                }
                _ => is_name_next = true,
            },
            b'"' => {
                at = end_of_string(json, at);
                if let (true, Some(level)) = (is_name_next, levels.last_mut()) {
                    let name: String = serde_json::from_slice(&json[begin..at]).unwrap_or_default();
                    level.at = level.path.member(&name);
                    is_name_next = false;
                }
            }
            b'-' | b'0'..=b'9' => {
                let is_of_number =
                    |byte: &&u8| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
                at += json[at..].iter().take_while(is_of_number).count();
                let path_of = |level: Option<&Level>| level.map_or(root, |level| level.at);
                found(path_of(levels.last()), path_of(levels.first()), begin..at);
            }
            _ => {}
        }
    }
}

/// Returns the position after a string whose text begins at `at`.
fn end_of_string(json: &[u8], mut at: usize) -> usize {
    while let Some(byte) = json.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    json.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::PartChange;
    use crate::task::{Payload, Task};
    use proptest::prelude::*;
    use serde_json::{Map, json};

    const HEAD: &str = r#"{"taskId":"t1","status":"failed","createdAt":"2026-01-31T12:00:00.000Z","lastUpdatedAt":"2026-01-31T12:00:00.000Z","ttlMs":18446744073709551615,"method":"m""#;

    fn rewritten(json: &str) -> String {
        String::from_utf8(Task::from_json(json.as_bytes()).unwrap().to_json().unwrap()).unwrap()
    }

    #[test]
    fn only_integers_outside_of_i64_and_u64_are_found() {
        let is_altered = |text: &str| !matches!(ExactIntegers::of(text.as_bytes()), ExactIntegers(None));
        for text in
            ["18446744073709551615", "-9223372036854775808", "1000000000000000000", "1e400000000000000000000"]
        {
            assert!(!is_altered(text), "{text}");
        }
        for text in
            ["18446744073709551616", "-9223372036854775809", "-10000000000000000000", "100000000000000000000"]
        {
            assert!(is_altered(text), "{text}");
        }
        let fraction = "0.00000000000000000000000000000000001";
        assert!(!is_altered(fraction));
    }

    #[test]
    fn integers_in_every_field_of_a_record_survive_a_rewrite() {
        let json = format!(
            r#"{HEAD},"arguments":[100000000000000000001,{{"a":100000000000000000002}}],"inputRequests":{{"k":{{"n":100000000000000000003}}}},"inputResponses":{{"k":100000000000000000004}},"answeredRequests":{{"k":-9223372036854775809}},"checkpoint":100000000000000000005,"result":100000000000000000006,"error":{{"code":1,"message":"100000000000000000007","data":100000000000000000008,"retry":100000000000000000009}},"lease":{{"holder":"h","attempt":1,"durationMs":3,"deadline":"2026-01-31T12:00:00.000Z","zone":100000000000000000010}},"variables":{{"100000000000000000011":100000000000000000011}},"later":{{"x":[100000000000000000012]}}}}"#
        );
        assert_eq!(rewritten(&json), json);
    }

    #[test]
    fn an_integer_is_put_back_where_it_was_in_any_order_of_the_fields() {
        // Both integers are the same floating point number.
        let json = r#"{"variables":{"b":100000000000000000002,"a":100000000000000000001},"#.to_owned()
            + &HEAD[1..]
            + "}";
        let mut task = Task::from_json(json.as_bytes()).unwrap();
        let read =
            |task: &Task| serde_json::from_slice::<Map<String, Value>>(&task.to_json().unwrap()).unwrap();
        let written = String::from_utf8(task.to_json().unwrap()).unwrap();
        assert!(written.contains(r#""a":100000000000000000001,"b":100000000000000000002"#), "{written}");
        // The digits of a removed or replaced integer are not put back. The digits of a moved integer are.
        let moved = task.variables.remove("b").unwrap();
        task.variables.insert("a".to_owned(), json!(7));
        task.input_responses.insert("c".to_owned(), moved);
        let written = String::from_utf8(task.to_json().unwrap()).unwrap();
        assert!(written.contains(r#""inputResponses":{"c":10000000000000000000"#), "{written}");
        assert_eq!(read(&task)["variables"], json!({ "a": 7 }));
    }

    #[test]
    fn an_integer_in_a_payload_that_becomes_a_part_survives() {
        let items = format!("[{}1]", "100000000000000000001,".repeat(2_000));
        let json = format!(r#"{HEAD},"arguments":{items}}}"#);
        let mut task = Task::from_json(json.as_bytes()).unwrap();
        let parts = task.store_payloads(crate::task::payload::MAX_INLINE_BYTES).unwrap();
        assert!(matches!(task.arguments, Payload::Stored { .. }));
        let [PartChange::Set(part)] = &parts.into_values().collect::<Vec<_>>()[..] else {
            panic!("one part")
        };
        assert_eq!(std::str::from_utf8(part).unwrap(), items);
    }

    #[test]
    fn a_payload_that_becomes_a_part_receives_no_integer_of_another_field() {
        let json = format!(r#"{HEAD},"arguments":[100000000000000000003]}}"#);
        let mut task = Task::from_json(json.as_bytes()).unwrap();
        let result = json!([1e20, "x".repeat(5_000)]);
        task.result = Some(result.clone().into());
        let parts = task.store_payloads(crate::task::payload::MAX_INLINE_BYTES).unwrap();
        let [PartChange::Set(part)] = &parts.into_values().collect::<Vec<_>>()[..] else {
            panic!("one part")
        };
        assert_eq!(part.as_ref(), serde_json::to_vec(&result).unwrap());
        let written = String::from_utf8(task.to_json().unwrap()).unwrap();
        assert!(written.contains(r#""arguments":[100000000000000000003]"#), "{written}");
    }

    #[test]
    fn many_integers_below_a_long_name_are_restored_within_10_seconds() {
        let (name, integers) = ("n".repeat(500_000), vec!["100000000000000000001"; 20_000].join(","));
        let json = format!(r#"{HEAD},"variables":{{"{name}":[{integers}]}}}}"#);
        let begun = std::time::Instant::now();
        assert_eq!(rewritten(&json), json);
        assert!(begun.elapsed().as_secs() < 10, "{:?}", begun.elapsed());
    }

    /// Strings that look like numbers, or like the end of a string before one.
    fn string() -> impl Strategy<Value = String> {
        prop_oneof![
            "[a-c]{0,3}",
            "-?[1-9][0-9]{18,24}",
            r#"[a"\\:,{\[]{0,4}[1-9][0-9]{19,24}[a"\\:,}\]]{0,4}"#,
            Just("\u{1F600}\u{0}\n".to_owned()),
        ]
    }

    /// A JSON value in which a string such as `@100000000000000000001@` stands for a large integer.
    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            string().prop_map(Value::from),
            // Many of these are the same floating point number.
            "@-?1000000000000000000[0-9]{1,3}@".prop_map(Value::from),
            "@-?[1-9][0-9]{19,60}@".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(string(), inner, 0..4).prop_map(Value::from_iter),
            ]
        })
    }

    /// Puts large integers in the place of the strings that stand for them.
    fn with_integers(json: &str) -> String {
        json.replace("\"@", "").replace("@\"", "")
    }

    /// The same JSON with the members of each object in the opposite order, and spaces in between.
    fn reversed(value: &Value) -> String {
        match value {
            Value::Array(items) => {
                format!("[ {} ]", items.iter().map(reversed).collect::<Vec<_>>().join(" , "))
            }
            Value::Object(members) => {
                let member =
                    |(name, value): (&String, &Value)| format!("{} : {}", json!(name), reversed(value));
                let mut members: Vec<String> = members.iter().map(member).collect();
                members.reverse();
                format!("{{ {} }}", members.join("\n,"))
            }
            plain => plain.to_string(),
        }
    }

    proptest! {
        #[test]
        fn any_record_survives_a_rewrite_digit_by_digit(
            fields in prop::array::uniform5(value()),
            variables in prop::collection::btree_map(string(), value(), 0..4),
        ) {
            let [arguments, answer, data, of_lease, later] = fields;
            let task = json!({
                "taskId": "t1", "status": "working", "createdAt": "2026-01-31T12:00:00.000Z",
                "lastUpdatedAt": "2026-01-31T12:00:00.000Z", "ttlMs": null, "method": "m", "arguments": arguments,
                "inputResponses": { "k": answer }, "error": { "code": 1, "message": "m", "data": data },
                "lease": {
                    "attempt": 1, "durationMs": 3, "deadline": "2026-01-31T12:00:00.000Z", "later": of_lease,
                },
                "variables": variables, "later": later,
            });
            // The placeholders are strings, which every version keeps.
            let json = reversed(&task);
            prop_assert_eq!(rewritten(&with_integers(&json)), with_integers(&rewritten(&json)));
        }

        #[test]
        fn invalid_json_is_scanned_without_a_panic(json in r#"[\[\]{}",:0-9\\.e-]{0,200}"#) {
            let found = ExactIntegers::of(json.as_bytes());
            found.restore(json.into_bytes());
        }
    }
}

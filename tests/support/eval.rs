//! What a script that a client sent writes to each record, by its arguments and its reply.

use redis::Value;

/// An `EVAL` command.
pub struct EvalCommand<'a> {
    pub words: &'a [Vec<u8>],
}

/// What a script did to one record.
pub struct RecordWrite {
    pub key: String,
    /// Empty for a delete.
    pub data: Vec<u8>,
    /// The reply for this record.
    pub reply: Value,
    /// The version of the record after the write, if the server applied it.
    pub version: Option<u64>,
}

impl EvalCommand<'_> {
    fn texts(&self, words: &[Vec<u8>]) -> Vec<String> {
        words.iter().map(|word| String::from_utf8_lossy(word).into_owned()).collect()
    }

    fn key_count(&self) -> usize {
        String::from_utf8_lossy(&self.words[2]).parse().unwrap()
    }

    fn arguments(&self) -> &[Vec<u8>] {
        &self.words[3 + self.key_count()..]
    }

    /// Returns what the script did to each of its records.
    pub fn writes(&self, reply: Value) -> Vec<RecordWrite> {
        let keys = self.texts(&self.words[3..3 + self.key_count()]);
        let tasks: Vec<String> = keys.into_iter().filter(|key| key.contains(":tasks:")).collect();
        let arguments = self.texts(self.arguments());
        match &arguments[..] {
            [publish, ..] if is_publish(publish) => self.swaps(tasks, reply),
            // insert: the numbers of owners and records, the channel, the command to publish with.
            [_, records, _, publish, _, ..] if is_publish(publish) && *records == tasks.len().to_string() => {
                self.inserts(tasks, reply)
            }
            [_, _, _, _] => self.created(tasks, &reply, vec![self.arguments()[1].clone()]),
            _ => vec![self.put_or_delete(tasks, reply)],
        }
    }

    /// `cas_put` and `cas_put_batch`: for each record its data, the version expected, the new version, the channel.
    fn swaps(&self, tasks: Vec<String>, reply: Value) -> Vec<RecordWrite> {
        let replies = match reply {
            Value::Array(values) => values.into_iter().skip(1).collect(),
            reply => vec![reply; tasks.len()],
        };
        let records = self.arguments()[1..].chunks(4).zip(tasks).zip(replies);
        records
            .map(|((record, key), reply)| {
                let is_applied = !matches!(reply, Value::ServerError(_));
                let version = is_applied.then(|| String::from_utf8_lossy(&record[2]).parse().unwrap());
                RecordWrite { key, data: record[0].clone(), reply, version }
            })
            .collect()
    }

    /// `insert`: for each owner its quota, and the number of records; for each record its id, data and expiry; then the timers.
    fn inserts(&self, tasks: Vec<String>, reply: Value) -> Vec<RecordWrite> {
        let mut arguments = &self.arguments()[4..];
        let mut data = Vec::new();
        while let [_quota, count, records @ ..] = arguments
            && data.len() < tasks.len()
        {
            let count: usize = String::from_utf8_lossy(count).parse().unwrap();
            data.extend(records.chunks(3).take(count).map(|record| record[1].clone()));
            arguments = &records[3 * count..];
        }
        self.created(tasks, &reply, data)
    }

    /// `create`, with the arguments id, data, expiry and quota, and `insert`. A record that the script left out was not written.
    fn created(&self, tasks: Vec<String>, reply: &Value, data: Vec<Vec<u8>>) -> Vec<RecordWrite> {
        let left_out = |at: usize| match reply {
            Value::BulkString(line) => {
                String::from_utf8_lossy(line).split(' ').nth(2 + at).is_some_and(|word| word == "0")
            }
            _ => false,
        };
        let is_applied = !matches!(reply, Value::ServerError(_));
        let writes = tasks.into_iter().zip(data).enumerate().filter(|(at, _)| !left_out(*at));
        writes
            .map(|(_, (key, data))| RecordWrite {
                key,
                data,
                reply: reply.clone(),
                version: is_applied.then_some(1),
            })
            .collect()
    }

    /// `put` has the version in its reply, after the time. `delete` has only the task id, the channel and the command that
    /// publishes.
    fn put_or_delete(&self, tasks: Vec<String>, reply: Value) -> RecordWrite {
        let data = if self.arguments().len() > 3 { self.arguments()[1].clone() } else { Vec::new() };
        let version = match &reply {
            Value::BulkString(line) => {
                Some(String::from_utf8_lossy(line).split(' ').nth(2).unwrap().parse().unwrap())
            }
            _ => None,
        };
        RecordWrite { key: tasks.into_iter().next_back().unwrap(), data, reply, version }
    }
}

fn is_publish(word: &str) -> bool {
    matches!(word, "" | "PUBLISH" | "SPUBLISH")
}

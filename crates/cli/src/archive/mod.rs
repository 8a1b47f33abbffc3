//! The file that `export` writes and `import` reads. docs/guide/cli.md describes its format.
//!
//! The file has one JSON object per line: a [`Header`], a [`RecordLine`] for each record, and a [`Footer`] with a checksum. The
//! records of an owner follow each other, newest first. An import reads the file from its end, so it creates the oldest record first.

mod backward;
mod reader;
mod writer;

pub use reader::{Archive, Chunk};
pub use writer::ArchiveWriter;

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, SecondsFormat, Utc};
use mcp_task_store::{ListedRecord, OwnerId, PartName, TaskId, TaskKey};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// What the first line says that the file is.
const FORMAT: &str = "mcp-tasks";
/// The version of the format. A file of a later version is refused.
const VERSION: u64 = 1;
/// The longest line, in bytes. A record with four parts of the default maximum takes a tenth of it.
const MAX_LINE_BYTES: u64 = 256 * 1024 * 1024;
/// How the last line begins.
const FOOTER_PREFIX: &[u8] = br#"{"records":"#;
/// The owners that no file may contain: those of records of the runtime.
const RESERVED_OWNERS: &str = "\0mcp/";

/// The first line.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Header {
    format: String,
    version: u64,
    /// When the export began, by the clock of the store.
    pub exported_at: String,
    /// The engine of the store.
    pub engine: String,
    /// The filters of the command.
    pub filters: serde_json::Value,
}

impl Header {
    pub fn new(exported_at: DateTime<Utc>, engine: &str, filters: serde_json::Value) -> Self {
        let exported_at = exported_at.to_rfc3339_opts(SecondsFormat::Millis, true);
        Self { format: FORMAT.to_owned(), version: VERSION, exported_at, engine: engine.to_owned(), filters }
    }
}

/// The last line.
#[derive(Serialize, Deserialize)]
struct Footer {
    /// How many records there are.
    records: u64,
    /// The SHA-256 of all lines before this one, with their line breaks.
    sha256: String,
}

/// The line of a record.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RecordLine<'a> {
    owner: OwnerId,
    task_id: TaskId,
    created_at: String,
    expires_at: Option<String>,
    /// The data as it is stored, if it is JSON within one line.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    record: Option<&'a RawValue>,
    /// Any other data, in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    data: Option<String>,
    /// The parts by name, in base64.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    parts: BTreeMap<String, String>,
}

/// A record as a file has it.
pub struct ArchivedRecord {
    pub key: TaskKey,
    pub data: Vec<u8>,
    /// When the record expires, by the clock of the store that it was exported from.
    pub expires_at: Option<DateTime<Utc>>,
    pub parts: BTreeMap<PartName, Vec<u8>>,
}

impl ArchivedRecord {
    /// Parses the line of a record.
    fn parse(line: &[u8]) -> Result<Self, String> {
        let line: RecordLine = serde_json::from_slice(line).map_err(|error| error.to_string())?;
        if line.owner.as_str().starts_with(RESERVED_OWNERS) {
            return Err("the owner is reserved for records of the runtime".to_owned());
        }
        let data = match (line.record, &line.data) {
            (Some(record), None) => record.get().as_bytes().to_vec(),
            (None, Some(data)) => decode(data)?,
            _ => return Err("it must have one of the fields record and data".to_owned()),
        };
        time(&line.created_at)?;
        let parts = line.parts.into_iter().map(|(name, part)| {
            Ok((PartName::try_from(name).map_err(|error| error.to_string())?, decode(&part)?))
        });
        Ok(Self {
            key: TaskKey { owner: line.owner, task: line.task_id },
            data,
            expires_at: line.expires_at.as_deref().map(time).transpose()?,
            parts: parts.collect::<Result<_, String>>()?,
        })
    }
}

/// Returns the line of a record, with its line break.
fn record_line(
    owner: &OwnerId,
    listed: &ListedRecord,
    parts: &BTreeMap<PartName, Vec<u8>>,
) -> serde_json::Result<Vec<u8>> {
    let in_one_line = !listed.data.iter().any(|byte| matches!(byte, b'\n' | b'\r'));
    let raw = serde_json::from_slice::<&RawValue>(&listed.data).ok();
    // White space around the value would be lost, and null would be read as an absent field.
    let raw = raw.filter(|raw| in_one_line && raw.get().len() == listed.data.len() && raw.get() != "null");
    let line = RecordLine {
        owner: owner.clone(),
        task_id: listed.task.clone(),
        created_at: listed.created_at.to_rfc3339_opts(SecondsFormat::Micros, true),
        expires_at: listed.expires_at.map(|at| at.to_rfc3339_opts(SecondsFormat::Millis, true)),
        data: raw.is_none().then(|| STANDARD.encode(&listed.data)),
        record: raw,
        parts: parts.iter().map(|(name, part)| (name.to_string(), STANDARD.encode(part))).collect(),
    };
    let mut bytes = serde_json::to_vec(&line)?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn decode(base64: &str) -> Result<Vec<u8>, String> {
    STANDARD.decode(base64).map_err(|error| format!("it contains invalid base64: {error}"))
}

fn time(text: &str) -> Result<DateTime<Utc>, String> {
    let parsed = DateTime::parse_from_rfc3339(text).map(|time| time.to_utc());
    parsed.map_err(|error| format!("it contains an invalid time: {error}"))
}

#[cfg(test)]
mod tests;

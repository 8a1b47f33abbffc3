//! The format of a record's file: one line with the task id, one line with the header, then the bytes of the data and of the parts.

use std::collections::BTreeMap;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use mcp_task_store::backend::engine::from_millis;
use mcp_task_store::{PartChange, PartChanges, PartName, Record, TaskId, Version};
use serde::{Deserialize, Serialize};

/// A record as it is stored.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stored {
    pub(crate) version: Version,
    /// Milliseconds since the Unix epoch; `None` for never.
    pub(crate) expires_at: Option<u64>,
    pub(crate) data: Bytes,
    pub(crate) parts: BTreeMap<PartName, Bytes>,
}

#[derive(Serialize, Deserialize)]
struct Header {
    version: u64,
    expires_at: Option<u64>,
    data: usize,
    /// The names and sizes of the parts, in the order of their bytes in the file.
    parts: Vec<(String, usize)>,
}

impl Stored {
    pub(crate) fn is_live(&self, now_millis: u64) -> bool {
        self.expires_at.is_none_or(|at| now_millis < at)
    }

    pub(crate) fn expires_at(&self) -> Option<DateTime<Utc>> {
        self.expires_at.map(from_millis)
    }

    pub(crate) fn to_record(&self) -> Record {
        let sizes = self.parts.iter().map(|(name, data)| (name.clone(), data.len())).collect();
        Record::new(self.data.clone(), self.version, self.expires_at(), sizes)
    }

    /// Applies the changes of a write. Parts that the write does not name stay as they are.
    pub(crate) fn apply(&mut self, changes: PartChanges) {
        for (name, change) in changes {
            match change {
                PartChange::Set(data) => drop(self.parts.insert(name, data)),
                PartChange::Clear => drop(self.parts.remove(&name)),
            }
        }
    }

    pub(crate) fn encode(&self, task: &TaskId) -> serde_json::Result<Vec<u8>> {
        let header = Header {
            version: self.version.get(),
            expires_at: self.expires_at,
            data: self.data.len(),
            parts: self.parts.iter().map(|(name, data)| (name.to_string(), data.len())).collect(),
        };
        let mut file = serde_json::to_vec(task)?;
        file.push(b'\n');
        serde_json::to_writer(&mut file, &header)?;
        file.push(b'\n');
        file.extend_from_slice(&self.data);
        self.parts.values().for_each(|data| file.extend_from_slice(data));
        Ok(file)
    }

    /// Decodes a file. The error says what is wrong with the file.
    pub(crate) fn decode(file: Bytes) -> Result<Self, &'static str> {
        let (_, rest) = line(&file).ok_or("the first line is missing")?;
        let (header, mut body) = line(&rest).ok_or("the header is missing")?;
        let header: Header = serde_json::from_slice(&header).map_err(|_| "the header cannot be read")?;
        let sizes: usize = header.parts.iter().map(|(_, size)| size).sum();
        if body.len() != header.data + sizes {
            return Err("the length of the file differs from the lengths in its header");
        }
        let data = body.split_to(header.data);
        let parts = header.parts.into_iter().map(|(name, size)| Ok((name.try_into()?, body.split_to(size))));
        let parts: Result<_, mcp_task_store::StorageError> = parts.collect();
        let parts = parts.map_err(|_| "a part has an illegal name")?;
        Ok(Self { version: header.version.into(), expires_at: header.expires_at, data, parts })
    }
}

/// Reads the task id in the first line of a file.
pub(crate) fn task(file: &Bytes) -> Option<TaskId> {
    serde_json::from_slice(&line(file)?.0).ok()
}

/// Splits the bytes after the first line.
fn line(bytes: &Bytes) -> Option<(Bytes, Bytes)> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    Some((bytes.slice(..end), bytes.slice(end + 1..)))
}

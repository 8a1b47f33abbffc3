//! The records of all tasks, read directly from the engine and without the lifecycle of the crate.

use std::collections::{BTreeMap, BTreeSet};

use mcp_task_store::{Agenda, PageRequest, PartName};
use serde_json::Value;

use crate::support::{key, owner};

/// The content of a record.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct End {
    pub status: String,
    pub result: Option<Outcome>,
    pub error: Option<String>,
    /// The record as text, for a report.
    pub record: String,
}

/// The result of a task, which names its attempt.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    pub attempt: u32,
    pub nonce: String,
    pub answer: Option<String>,
}

impl End {
    pub fn is_open(&self) -> bool {
        matches!(self.status.as_str(), "working" | "input_required")
    }
}

/// Reads the records of these owners.
pub async fn read(backend: &dyn Agenda, owners: &BTreeSet<String>) -> BTreeMap<String, End> {
    let mut ends = BTreeMap::new();
    for id in owners {
        let mut request = PageRequest::new(256);
        loop {
            let page = backend.list(&owner(id), request).await.unwrap();
            assert!(page.corrupt.is_empty(), "{:?}", page.corrupt);
            for record in page.records {
                let mut end = end_of(&record.data);
                if end.status == "completed" && end.result.is_none() {
                    let output = PartName::from_static("output");
                    let output =
                        backend.part(&key(id, record.task.as_str()), &output).await.unwrap().unwrap();
                    end.result = outcome(&serde_json::from_slice(&output.data).unwrap());
                }
                ends.insert(record.task.to_string(), end);
            }
            match page.next {
                Some(next) => request = PageRequest::new(256).after(next),
                None => break,
            }
        }
    }
    ends
}

fn end_of(record: &[u8]) -> End {
    let task: Value = serde_json::from_slice(record).unwrap();
    End {
        status: task["status"].as_str().unwrap().to_owned(),
        result: outcome(&task["result"]),
        error: task["error"]["message"].as_str().map(str::to_owned),
        record: String::from_utf8_lossy(record).into_owned(),
    }
}

fn outcome(result: &Value) -> Option<Outcome> {
    let content: Value = serde_json::from_str(result["content"][0]["text"].as_str()?).unwrap();
    Some(Outcome {
        attempt: u32::try_from(content["attempt"].as_u64()?).unwrap(),
        nonce: content["nonce"].as_str()?.to_owned(),
        answer: content["answer"].as_str().map(str::to_owned),
    })
}

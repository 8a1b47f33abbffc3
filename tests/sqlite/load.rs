//! Writers that tell what was acknowledged, and the check of a file against it.

use std::collections::HashMap;

use mcp_task_store::{PartName, PutOptions, SqliteBackend, StorageBackend, StorageError, TaskKey, Version};

use crate::support::sqlite::Folder;
use crate::support::{keep, key};

/// All writers write these records.
const SHARED: [&str; 3] = ["s1", "s2", "s3"];
const OUTPUT: PartName = PartName::from_static("output");
/// The writer deletes each record whose number has this remainder.
const DELETED: u64 = 3;

/// The options of a write that stores the same text as data and as a part. A half of it would show.
fn twice(text: &str) -> PutOptions {
    keep().set_part(OUTPUT, text.to_owned())
}

/// Creates records of its own, and increments the shared ones by compare-and-swap, without end. Calls `acknowledged` after each
/// write, with the version; 0 after a delete.
pub async fn write(
    store: SqliteBackend,
    process: String,
    writer: u64,
    acknowledged: impl Fn(&TaskKey, Version),
) {
    let life = std::process::id();
    for number in 0_u64.. {
        let own = key(&format!("owner-{process}"), &format!("{life}-{writer}-{number}"));
        let text = number.to_string();
        let written = store.put_if_version(&own, text.clone().into(), twice(&text), Version::ABSENT).await;
        acknowledged(&own, written.unwrap().version);
        if number % 4 == DELETED {
            assert!(store.delete(&own).await.unwrap());
            acknowledged(&own, Version::ABSENT);
        }
        let shared = key("shared", SHARED[(number % 3) as usize]);
        let found = match store.get(&shared).await {
            Ok(record) => record.version,
            Err(StorageError::NotFound { .. }) => Version::ABSENT,
            Err(error) => panic!("{error:?}"),
        };
        let text = (found.get() + 1).to_string();
        match store.put_if_version(&shared, text.clone().into(), twice(&text), found).await {
            Ok(written) => acknowledged(&shared, written.version),
            Err(StorageError::VersionConflict { .. }) => {}
            Err(error) => panic!("{error:?}"),
        }
    }
}

pub fn text(folder: &Folder, sql: &str) -> String {
    folder.connection().query_row(sql, [], |row| row.get(0)).unwrap()
}

/// Returns the acknowledged writes that are not in the file: what was lost of each. `versions` has the latest acknowledged
/// version of each record; 0 for a delete. Asserts that the file is intact, and that no write is there by half.
pub async fn lost(folder: &Folder, versions: &HashMap<TaskKey, u64>) -> Vec<String> {
    let store = folder.backend().await;
    assert_eq!(text(folder, "PRAGMA integrity_check"), "ok");
    let counts = "SELECT count(*) || '' FROM owners WHERE records <> (SELECT count(*) FROM records WHERE owner = owners.id)";
    assert_eq!(text(folder, counts), "0", "the counts of the owners");
    let orphans = "SELECT count(*) || '' FROM parts WHERE record NOT IN (SELECT id FROM records)";
    assert_eq!(text(folder, orphans), "0", "parts without a record");
    let mut lost = Vec::new();
    for (key, &version) in versions {
        let record = match store.get(key).await {
            Ok(record) => record,
            Err(StorageError::NotFound { .. }) => {
                // The delete of such a record may have been applied without an acknowledgement.
                let number: Option<u64> = key.task.as_str().rsplit('-').next().unwrap().parse().ok();
                if version > 0 && number.is_none_or(|number| number % 4 != DELETED) {
                    lost.push(format!("the record at {key}"));
                }
                continue;
            }
            Err(error) => panic!("{key}: {error:?}"),
        };
        if version == 0 {
            lost.push(format!("the delete of {key}"));
        }
        if record.version.get() < version {
            lost.push(format!("version {version} of {key}, which is at {}", record.version));
        }
        let part = store.part(key, &OUTPUT).await.unwrap().unwrap();
        assert!(
            part.version == record.version && part.data == record.data,
            "half of a write at {key}: {record:?} {part:?}"
        );
        if key.owner.as_str() == "shared" {
            assert_eq!(record.data, record.version.to_string(), "each swap adds 1");
        }
    }
    lost
}

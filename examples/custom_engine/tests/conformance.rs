//! The suite of the contract passes on the engine.

use std::fs;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use custom_engine::FileBackend;
use mcp_task_store::conformance::{Capabilities, Hooks, Subject};
use mcp_task_store::{PutOptions, StorageBackend, TaskKey, Version, conformance_tests};

async fn open() -> Subject {
    let folder = tempfile::tempdir().expect("a folder");
    let engine = FileBackend::open(folder.path()).expect("a folder that can be written");
    let capabilities = Capabilities::default()
        .no_notified_watch("the engine polls")
        // The default burst would take long, because the engine syncs each insert to the disk.
        .burst(500);
    Subject::without_agenda(engine)
        .capabilities(capabilities)
        .hooks(Files(folder.path().to_owned()))
        .guard(folder)
}

conformance_tests!(open);

/// Damages and lists the files of the engine.
struct Files(PathBuf);

impl Files {
    /// Lists all files of records.
    fn records(&self) -> Vec<PathBuf> {
        let folders = list(&self.0).into_iter().filter(|path| path.is_dir());
        folders.flat_map(|folder| list(&folder)).collect()
    }

    /// Rewrites the header of a record, and what follows. Returns whether the record was found.
    fn rewrite(&self, key: &TaskKey, header: impl Fn(&str) -> String) -> bool {
        let first_line = serde_json::to_string(&key.task).expect("a task id") + "\n";
        for path in self.records() {
            let text = fs::read_to_string(&path).expect("a record of text");
            if let Some(rest) = text.strip_prefix(&first_line) {
                fs::write(&path, first_line.clone() + &header(rest)).expect("a file that can be written");
                return true;
            }
        }
        false
    }
}

#[async_trait]
impl Hooks for Files {
    async fn damage(&self, key: &TaskKey) -> bool {
        self.rewrite(key, |_| "not a header\n".to_owned())
    }

    async fn set_version(&self, key: &TaskKey, version: Version) -> bool {
        self.rewrite(key, |rest| rest.replace("\"version\":1,", &format!("\"version\":{version},")))
    }

    async fn left_behind(&self) -> Option<Vec<String>> {
        let names = list(&self.0).into_iter().map(|path| path.display().to_string());
        Some(names.filter(|name| !name.ends_with("lock")).collect())
    }
}

fn list(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder");
    entries.map(|entry| entry.expect("an entry").path()).collect()
}

#[tokio::test]
async fn two_engines_on_one_folder_share_their_records() {
    let folder = tempfile::tempdir().expect("a folder");
    let [one, two] =
        [(), ()].map(|()| FileBackend::open(folder.path()).expect("a folder that can be written"));
    let key = TaskKey::new("alice", "t1").expect("a legal key");
    let written = one.put(&key, "one".into(), PutOptions::default()).await.expect("a write");
    two.put_if_version(&key, "two".into(), PutOptions::default(), written.version).await.expect("a write");
    assert_eq!(one.get(&key).await.expect("a record").data, "two");
}

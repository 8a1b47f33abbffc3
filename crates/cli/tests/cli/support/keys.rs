//! Files of keys, and stores that encrypt.

use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use mcp_task_store::{Agenda, Encrypted, Keyring, StoreConfig, TaskStore};
use tempfile::TempDir;

use super::{LONG, Store};

/// A file of keys. Dropping it removes the file.
pub struct Keys {
    pub path: PathBuf,
    _folder: TempDir,
}

impl Keys {
    /// Writes keys of these ids, the current one first. The bytes of a key depend only on its id.
    pub fn new(ids: &[&str]) -> Self {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("tasks.keys");
        // 32 bytes of base64.
        let key = |id: &str| id.chars().cycle().take(42).collect::<String>() + "A=";
        let lines: String = ids.iter().map(|id| format!("{id}:{}\n", key(id))).collect();
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).unwrap();
        std::io::Write::write_all(&mut file, lines.as_bytes()).unwrap();
        Self { path, _folder: folder }
    }

    /// Returns a store that encrypts what this store stores.
    pub fn of(&self, store: &Store) -> TaskStore<Arc<dyn Agenda>> {
        let backend = Arc::clone(store.tasks.backend());
        let encrypted: Arc<dyn Agenda> =
            Arc::new(Encrypted::new(backend, Keyring::from_file(&self.path).unwrap()));
        let config = StoreConfig::new().observer(true).lease(LONG).retention(LONG).max_ttl(None);
        TaskStore::with_config(encrypted, config)
    }

    pub fn path(&self) -> &str {
        self.path.to_str().unwrap()
    }
}

//! Stores that encrypt their records.

use std::sync::Arc;

use mcp_task_store::{Agenda, Encrypted, Keyring};

use super::Store;

/// Keys of which a test uses some. The first one is the current key.
pub fn keyring(ids: &[&str]) -> Keyring {
    // The bytes of a key depend only on its id.
    let bytes = |id: &str| id.bytes().cycle().take(32).collect();
    Keyring::new(ids.iter().map(|id| (*id, bytes(id)))).unwrap()
}

/// Returns an engine that encrypts what this store stores.
pub fn encrypted(store: &Store, ids: &[&str]) -> Encrypted<Arc<dyn Agenda>> {
    Encrypted::new(Arc::clone(&store.backend), keyring(ids))
}

/// Makes a store encrypt its records.
pub fn encrypting(mut store: Store) -> Store {
    store.backend = Arc::new(encrypted(&store, &["k1"]));
    store
}

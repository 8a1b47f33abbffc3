//! Which file a path leads to.

use std::path::{Path, PathBuf};

/// The file that a path led to when it was opened. If somebody deletes or replaces the file, SQLite goes on writing to
/// the old one, which nobody can open again.
pub(super) struct Identity {
    path: PathBuf,
    #[cfg(unix)]
    opened: Option<(u64, u64)>,
}

impl Identity {
    pub(super) fn of(path: &Path) -> Self {
        // The process may change its folder.
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        Self {
            #[cfg(unix)]
            opened: number(&path),
            path,
        }
    }

    /// Returns whether the path still leads to the file.
    #[cfg(unix)]
    pub(super) fn is_same(&self) -> bool {
        self.opened.is_none() || number(&self.path) == self.opened
    }

    /// Returns whether the path still leads to the file. Other systems do not delete a file that is open.
    #[cfg(not(unix))]
    pub(super) fn is_same(&self) -> bool {
        self.path.exists()
    }
}

/// Returns the numbers of the device and of the file.
#[cfg(unix)]
fn number(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;

    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

//! Wrong clocks, by the library of Debian's `faketime`.

use std::path::{Path, PathBuf};

/// The process that looks at this folder finds the file `offset` whole at any time.
pub fn set_clock(folder: &Path, offset: &str) {
    std::fs::write(folder.join("next"), offset).unwrap();
    std::fs::rename(folder.join("next"), folder.join("offset")).unwrap();
}

/// The library by which Debian's `faketime` falsifies the wall clock.
pub fn library() -> PathBuf {
    let folders = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten().map(|entry| entry.path());
    let found = folders
        .chain(["/usr/lib".into(), "/usr/local/lib".into()])
        .map(|folder| folder.join("faketime/libfaketime.so.1"))
        .find(|library| library.exists());
    found.unwrap_or_else(|| panic!("libfaketime.so.1 is not here: apt-get install faketime"))
}

/// What a server preloads. Memory is taken from the C library: jemalloc, if the server is linked to it, and
/// `faketime` wait for each other when they begin.
pub fn libraries() -> String {
    format!("{}:libc.so.6", library().display())
}

//! Wrong wall clocks, through the library of Debian's `faketime`.

use std::path::{Path, PathBuf};

use super::redis::Server;

/// Sets the clock of the processes that read this folder. The rename is atomic, so no process reads half of the file.
pub fn set_clock(folder: &Path, offset: &str) {
    std::fs::write(folder.join("next"), offset).unwrap();
    std::fs::rename(folder.join("next"), folder.join("offset")).unwrap();
}

/// Returns the library that falsifies the wall clock of a process.
pub fn library() -> PathBuf {
    let folders = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten().map(|entry| entry.path());
    let found = folders
        .chain(["/usr/lib".into(), "/usr/local/lib".into()])
        .map(|folder| folder.join("faketime/libfaketime.so.1"))
        .find(|library| library.exists());
    found.unwrap_or_else(|| panic!("libfaketime.so.1 is missing: apt-get install faketime"))
}

/// Returns the libraries that a server preloads. The C library provides its memory, because jemalloc and `faketime`
/// deadlock at the start.
pub fn libraries() -> String {
    format!("{}:libc.so.6", library().display())
}

/// Starts a server with the wall clock that [`set_clock`] sets in a folder.
pub fn start_server(settings: &[&str], folder: &Path) -> Server {
    let file = folder.join("offset");
    let environment = [
        ("LD_PRELOAD", &*libraries()),
        ("FAKETIME_TIMESTAMP_FILE", file.to_str().unwrap()),
        ("FAKETIME_NO_CACHE", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
    ];
    Server::start_in(settings, &environment)
}

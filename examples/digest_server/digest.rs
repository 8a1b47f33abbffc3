//! One SHA-256 over all files under a folder, computed by this program or by the system's `sha256sum`.
//!
//! It is the digest of the output of `sha256sum --zero` for all files, sorted by the bytes of their names. If git tracks all of the
//! files, this command computes it too: `git ls-files -z | LC_ALL=C sort -z | xargs -0 sha256sum --zero -- | sha256sum`

use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek, Write};
use std::path::{Path, PathBuf};

use ignore::WalkBuilder;
use sha2::{Digest, Sha256};
use tokio::process::Command;

use crate::Failure;

/// Returns the files under a folder, as paths relative to it.
pub fn files(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    if !folder.is_dir() {
        let name = folder.display();
        return Err(match folder.exists() {
            true => format!("{name} is not a folder").into(),
            false => format!("there is no folder at {name}").into(),
        });
    }
    let mut files = Vec::new();
    let walk = WalkBuilder::new(folder)
        .standard_filters(false)
        .git_ignore(true)
        .git_exclude(true)
        .parents(true)
        .filter_entry(|entry| entry.file_name() != ".git")
        .build();
    for entry in walk {
        let entry = entry?;
        // A link to a file counts as that file. A dangling link is kept, so the digest fails on it. Links to folders, pipes and devices
        // are left out.
        if entry.path().metadata().is_ok_and(|behind| !behind.is_file()) {
            continue;
        }
        files.push(entry.path().strip_prefix(folder)?.to_owned());
    }
    files.sort_by(|a, b| a.as_os_str().as_encoded_bytes().cmp(b.as_os_str().as_encoded_bytes()));
    Ok(files)
}

/// Returns the SHA-256 of a file.
pub fn sha256(folder: &Path, file: &Path) -> Result<String, String> {
    let mut hasher = Sha256::new();
    let read = File::open(folder.join(file)).and_then(|content| {
        let mut content = BufReader::with_capacity(64 * 1024, content);
        loop {
            let bytes = content.fill_buf()?;
            if bytes.is_empty() {
                return Ok(());
            }
            hasher.update(bytes);
            let read = bytes.len();
            content.consume(read);
        }
    });
    read.map_err(|error| cannot_read(file, &error))?;
    Ok(hex(hasher))
}

fn cannot_read(file: &Path, error: &io::Error) -> String {
    format!("cannot read {}: {error}", file.display())
}

fn hex(hasher: Sha256) -> String {
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Computes the digest of a folder, file by file.
#[derive(Default)]
pub struct FolderDigest(Sha256);

impl FolderDigest {
    pub fn add(&mut self, file: &Path, sha256: &str) {
        self.0.update(line(file, sha256));
    }

    pub fn finish(self) -> String {
        hex(self.0)
    }
}

/// Returns the output of `sha256sum --zero` for a file.
fn line(file: &Path, sha256: &str) -> Vec<u8> {
    [sha256.as_bytes(), b"  ", file.as_os_str().as_encoded_bytes(), b"\0"].concat()
}

/// Returns the digest of these files. Only `sha256sum` computes hashes here, so the result checks the tool.
pub async fn by_sha256sum(folder: &Path, files: &[PathBuf], done: impl Fn()) -> Result<String, Failure> {
    let mut lines = tempfile::tempfile()?;
    for file in files {
        let content = File::open(folder.join(file)).map_err(|error| cannot_read(file, &error))?;
        lines.write_all(&line(file, &sha256sum(content).await?))?;
        done();
    }
    lines.rewind()?;
    sha256sum(lines).await
}

/// Runs `sha256sum` on its standard input, so that no file name needs escaping.
async fn sha256sum(content: File) -> Result<String, Failure> {
    let programs: [(&str, &[&str]); 2] = [("sha256sum", &[]), ("shasum", &["-a", "256"])];
    for (program, arguments) in programs {
        match Command::new(program).args(arguments).stdin(content.try_clone()?).output().await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(format!("cannot run {program}: {error}").into()),
            Ok(output) => {
                let sum = String::from_utf8_lossy(&output.stdout);
                return Ok(sum.split_whitespace().next().unwrap_or_default().to_owned());
            }
        }
    }
    Err("neither sha256sum nor shasum is installed; install one to check the digests".into())
}

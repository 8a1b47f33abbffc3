//! Checks a file, and then reads its records from the end of the file.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;

use mcp_task_store::OwnerId;
use sha2::{Digest, Sha256};

use super::backward::BackwardLines;
use super::writer::hex;
use super::{ArchivedRecord, FOOTER_PREFIX, FORMAT, Footer, Header, MAX_LINE_BYTES, VERSION};
use crate::failure::Failure;

/// A chunk ends after this many records, once its last owner ends.
const CHUNK_RECORDS: u64 = 256;
/// How many bytes the command reads at a time.
const BUFFER_BYTES: usize = 256 * 1024;

/// Lines of whole owners, which an import can read independently of other chunks.
pub type Chunk = Range<u64>;

/// A file that was checked.
pub struct Archive {
    file: Mutex<File>,
    pub header: Header,
    pub records: u64,
    /// How many records are encrypted.
    pub encrypted: u64,
    pub chunks: Vec<Chunk>,
}

impl Archive {
    /// Opens a file, or a copy of stdin in a temporary file, and checks all of it.
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let failed = |error| Failure::failed(format!("{} cannot be read: {error}", path.display()));
        if path != Path::new("-") {
            let mut file = File::open(path).map_err(failed)?;
            // The file is read twice.
            file.rewind().map_err(|_| {
                Failure::usage(format!(
                    "{} is not a regular file; pass - and redirect it to stdin",
                    path.display()
                ))
            })?;
            return Self::check(file, &path.display().to_string());
        }
        let mut copy = tempfile::tempfile().map_err(failed)?;
        tokio::task::block_in_place(|| io::copy(&mut io::stdin().lock(), &mut copy)).map_err(failed)?;
        copy.flush().and_then(|()| copy.rewind()).map_err(failed)?;
        Self::check(copy, "stdin")
    }

    /// Checks the format, each line, the number of records and the checksum.
    pub(super) fn check(file: File, name: &str) -> Result<Self, Failure> {
        let mut checker = Checker { name, hash: Sha256::new(), line: 0, at: 0 };
        let mut input = BufReader::with_capacity(BUFFER_BYTES, file);
        let header = checker.header(&mut input)?;
        let (mut chunks, mut records, mut encrypted) = (Chunks::new(checker.at), 0, 0);
        let footer = loop {
            let (before, line) = (checker.at, checker.next_line(&mut input)?);
            let Some(line) = line else { return Err(checker.cut_off()) };
            if line.starts_with(FOOTER_PREFIX) {
                chunks.end(before);
                break checker.footer(&line)?;
            }
            if !line.ends_with(b"\n") {
                return Err(checker.cut_off());
            }
            let record = ArchivedRecord::parse(&line).map_err(|error| checker.wrong(&error))?;
            checker.hash.update(&line);
            records += 1;
            encrypted += u64::from(is_encrypted(&record.data));
            chunks.add(&record.key.owner, before);
        };
        if checker.next_line(&mut input)?.is_some() {
            return Err(checker.wrong("it follows the last line of the export"));
        }
        if footer.records != records || footer.sha256 != hex(&checker.hash.finalize()) {
            return Err(Failure::failed(format!(
                "{name} was altered: its {records} records do not match the number and the checksum in its last line; nothing was \
                 written; export the tasks again"
            )));
        }
        Ok(Self { file: Mutex::new(input.into_inner()), header, records, encrypted, chunks: chunks.chunks })
    }

    /// Returns the records of a chunk, the oldest of each owner first.
    pub fn records_of(&self, chunk: &Chunk) -> Records<'_> {
        Records(BackwardLines::new(&self.file, chunk.clone()))
    }
}

/// The records of a chunk.
pub struct Records<'a>(BackwardLines<'a>);

impl Iterator for Records<'_> {
    type Item = Result<ArchivedRecord, Failure>;

    fn next(&mut self) -> Option<Self::Item> {
        let line =
            self.0.next_line().map_err(|error| Failure::failed(format!("the file cannot be read: {error}")));
        let parse = |line: Vec<u8>| {
            let changed =
                |error| Failure::failed(format!("the file was changed while the command read it: {error}"));
            ArchivedRecord::parse(&line).map_err(changed)
        };
        line.transpose().map(|line| line.and_then(parse))
    }
}

/// Returns whether stored data is encrypted: its first byte then is the version of the envelope, 1 to 8. No JSON begins with one.
fn is_encrypted(data: &[u8]) -> bool {
    matches!(data.first(), Some(1..=8))
}

/// The position in a file that is being checked.
struct Checker<'a> {
    name: &'a str,
    hash: Sha256,
    /// The number of the current line, from 1.
    line: u64,
    /// The offset of the next line.
    at: u64,
}

impl Checker<'_> {
    fn next_line(&mut self, input: &mut impl BufRead) -> Result<Option<Vec<u8>>, Failure> {
        let mut line = Vec::new();
        let read = input.by_ref().take(MAX_LINE_BYTES + 1).read_until(b'\n', &mut line);
        let read =
            read.map_err(|error| Failure::failed(format!("{} cannot be read: {error}", self.name)))? as u64;
        if read == 0 {
            return Ok(None);
        }
        self.line += 1;
        self.at += read;
        if read > MAX_LINE_BYTES {
            return Err(self.wrong(&format!("it has more than {MAX_LINE_BYTES} bytes")));
        }
        Ok(Some(line))
    }

    fn header(&mut self, input: &mut impl BufRead) -> Result<Header, Failure> {
        /// What every version of the format states.
        #[derive(serde::Deserialize)]
        struct AnyHeader {
            format: String,
            version: u64,
        }
        let name = self.name;
        let foreign = || {
            Failure::failed(format!(
                "{name} is not a file that `mcp-tasks export` has written: line 1 is not its header"
            ))
        };
        let line = self.next_line(input)?.ok_or_else(|| Failure::failed(format!("{name} is empty")))?;
        let any: AnyHeader = serde_json::from_slice(&line).map_err(|_| foreign())?;
        if any.format != FORMAT {
            return Err(foreign());
        }
        if any.version > VERSION {
            return Err(Failure::failed(format!(
                "{name} has version {} of the format (line 1), and this program reads version {VERSION}; use a later mcp-tasks",
                any.version
            )));
        }
        self.hash.update(&line);
        serde_json::from_slice(&line).map_err(|error| self.wrong(&error.to_string()))
    }

    fn footer(&self, line: &[u8]) -> Result<Footer, Failure> {
        serde_json::from_slice(line).map_err(|error| match error.is_eof() {
            true => self.cut_off(),
            false => self.wrong(&error.to_string()),
        })
    }

    fn wrong(&self, reason: &str) -> Failure {
        Failure::failed(format!(
            "line {} of {} is not a line of an export: {reason}; nothing was written; export the tasks again",
            self.line, self.name
        ))
    }

    fn cut_off(&self) -> Failure {
        Failure::failed(format!(
            "{} was cut off: it ends after line {} without the last line of an export; nothing was written; export the tasks again",
            self.name, self.line
        ))
    }
}

/// Divides the lines of the records into chunks.
struct Chunks {
    chunks: Vec<Chunk>,
    start: u64,
    records: u64,
    owner: Option<OwnerId>,
}

impl Chunks {
    fn new(start: u64) -> Self {
        Self { chunks: Vec::new(), start, records: 0, owner: None }
    }

    /// Adds a record, whose line begins at this offset.
    fn add(&mut self, owner: &OwnerId, offset: u64) {
        if self.owner.as_ref() != Some(owner) {
            if self.records >= CHUNK_RECORDS {
                self.end(offset);
            }
            self.owner = Some(owner.clone());
        }
        self.records += 1;
    }

    /// Ends the chunk at this offset.
    fn end(&mut self, offset: u64) {
        if offset > self.start {
            self.chunks.push(self.start..offset);
        }
        (self.start, self.records) = (offset, 0);
    }
}

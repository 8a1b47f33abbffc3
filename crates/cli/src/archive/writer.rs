//! Writes the file.

use std::collections::BTreeMap;
use std::io::{self, Write};

use mcp_task_store::{ListedRecord, OwnerId, PartName};
use sha2::{Digest, Sha256};

use super::{Footer, Header, MAX_LINE_BYTES, record_line};

/// Writes the lines of a file, and counts and hashes them.
pub struct ArchiveWriter<W> {
    out: W,
    hash: Sha256,
    records: u64,
}

impl<W: Write> ArchiveWriter<W> {
    /// Begins a file.
    pub fn new(out: W, header: &Header) -> io::Result<Self> {
        let mut writer = Self { out, hash: Sha256::new(), records: 0 };
        let mut line = serde_json::to_vec(header)?;
        line.push(b'\n');
        writer.write(&line)?;
        Ok(writer)
    }

    /// Writes a record with its parts.
    pub fn record(
        &mut self,
        owner: &OwnerId,
        listed: &ListedRecord,
        parts: &BTreeMap<PartName, Vec<u8>>,
    ) -> io::Result<()> {
        let line = record_line(owner, listed, parts)?;
        if line.len() as u64 > MAX_LINE_BYTES {
            return Err(io::Error::other(format!(
                "a record exceeds the maximum of {MAX_LINE_BYTES} bytes in a file"
            )));
        }
        self.write(&line)?;
        self.records += 1;
        Ok(())
    }

    /// Returns how many records were written.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Writes the last line. Without it, an import refuses the file.
    pub fn finish(mut self) -> io::Result<W> {
        let footer = Footer { records: self.records, sha256: hex(&self.hash.finalize()) };
        serde_json::to_writer(&mut self.out, &footer)?;
        self.out.write_all(b"\n")?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        self.hash.update(line);
        self.out.write_all(line)
    }
}

/// Returns bytes as lower-case hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

//! Reads the lines of a part of a file, the last line first.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// How many bytes one read takes.
const BLOCK_BYTES: u64 = 64 * 1024;

/// The lines of a part of a file, the last line first. It holds one block and one line in memory.
pub struct BackwardLines<'a> {
    file: &'a Mutex<File>,
    /// What was not read yet.
    unread: Range<u64>,
    /// What was read and not returned yet.
    read: Vec<u8>,
}

impl<'a> BackwardLines<'a> {
    /// Reads this part of the file. It begins at the beginning of a line, and ends with a line break.
    pub fn new(file: &'a Mutex<File>, part: Range<u64>) -> Self {
        Self { file, unread: part, read: Vec::new() }
    }

    /// Returns the next line without its line break; `None` at the beginning of the part.
    pub fn next_line(&mut self) -> io::Result<Option<Vec<u8>>> {
        if self.read.is_empty() && self.unread.is_empty() {
            return Ok(None);
        }
        // The bytes before this position were not searched for a line break yet.
        let mut end = self.read.len().saturating_sub(1);
        loop {
            if let Some(before) = self.read[..end].iter().rposition(|byte| *byte == b'\n') {
                return Ok(Some(self.take(before + 1)));
            }
            if self.unread.is_empty() {
                return Ok(Some(self.take(0)));
            }
            let is_first_read = self.read.is_empty();
            let bytes = self.read_block()?;
            // The line break at the end of the first block is that of the line itself.
            end = if is_first_read { bytes - 1 } else { bytes };
        }
    }

    /// Reads the block before what was read. Returns its size, which is not 0. A long line is read in growing blocks.
    fn read_block(&mut self) -> io::Result<usize> {
        let size = BLOCK_BYTES.max(self.read.len() as u64).min(self.unread.end - self.unread.start);
        let start = self.unread.end - size;
        let mut block = vec![0; usize::try_from(size).map_err(io::Error::other)?];
        {
            let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
            file.seek(SeekFrom::Start(start))?;
            file.read_exact(&mut block)?;
        }
        let bytes = block.len();
        block.append(&mut self.read);
        (self.read, self.unread.end) = (block, start);
        Ok(bytes)
    }

    /// Removes the line that begins at this position from what was read.
    fn take(&mut self, start: usize) -> Vec<u8> {
        let mut line = self.read.split_off(start);
        line.pop_if(|last| *last == b'\n');
        line
    }
}

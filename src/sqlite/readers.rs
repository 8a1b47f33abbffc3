//! The threads that read. A read sees every write that was acknowledged before it began, and waits for no write.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::Connection;

use super::open::{File, Session};
use crate::backend::StorageError;

/// How many reads run at the same time.
const READERS: usize = 4;

/// A call that reads.
pub(super) type Read = Box<dyn FnOnce(&Connection) + Send>;

/// Starts the threads. They end when the sender is dropped.
///
/// # Errors
/// The errors of an open, and `Unavailable` if the system starts no thread.
pub(super) fn start(file: &File) -> Result<Sender<Read>, StorageError> {
    let (sender, queue) = channel::<Read>();
    let queue = Arc::new(Mutex::new(queue));
    for number in 0..READERS {
        let (session, queue, limit) = (file.open_reader()?, Arc::clone(&queue), file.errors.busy_timeout);
        let thread = std::thread::Builder::new().name(format!("sqlite-reader-{number}"));
        let started = thread.spawn(move || serve(&session, &queue, limit));
        started.map_err(|error| {
            file.errors.unavailable("the system starts no thread for reads", false, Some(error.into()))
        })?;
    }
    Ok(sender)
}

fn serve(session: &Session, queue: &Mutex<Receiver<Read>>, limit: Duration) {
    loop {
        // One thread waits for the next read, and the others for the lock.
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(read) = next else { return };
        session.wait_for(limit);
        read(&session.connection);
    }
}

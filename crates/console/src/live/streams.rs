//! How many streams are open.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::security::guard::Visitor;

/// How many streams there are at most. Each renders its page up to five times a second.
pub(crate) const MAX_STREAMS: usize = 64;
/// How many streams a visitor with a name has at most, so that none takes them all.
pub(crate) const MAX_STREAMS_PER_NAME: usize = 16;

/// The open streams, by the names of their visitors.
#[derive(Clone, Default)]
pub(crate) struct Streams(Arc<Mutex<HashMap<String, usize>>>);

/// An open stream. Dropping it closes it.
pub(crate) struct Slot {
    streams: Streams,
    name: String,
}

impl Streams {
    /// Opens a stream, if there are not too many.
    pub(crate) fn open(&self, visitor: &Visitor) -> Option<Slot> {
        let name = visitor.who().to_owned();
        let most = if visitor.name.is_some() { MAX_STREAMS_PER_NAME } else { MAX_STREAMS };
        let mut open = self.lock();
        let own = open.get(&name).copied().unwrap_or_default();
        if own >= most || open.values().sum::<usize>() >= MAX_STREAMS {
            return None;
        }
        open.insert(name.clone(), own + 1);
        Some(Slot { streams: self.clone(), name })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut open = self.streams.lock();
        match open.get_mut(&self.name) {
            Some(own) if *own > 1 => *own -= 1,
            _ => drop(open.remove(&self.name)),
        }
    }
}

//! The sessions of users who signed in. They live in the memory of this process.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use super::access::hash;

/// How long a session lasts.
pub(crate) const LIFETIME: Duration = Duration::from_secs(12 * 3600);
/// How many sessions there are at most. A further one ends the oldest.
const MAX_SESSIONS: usize = 1_000;

#[derive(Default)]
pub(crate) struct Sessions {
    /// By the hash of their id, so that a lookup takes no time that depends on an id.
    by_id: Mutex<HashMap<[u8; 32], Session>>,
}

struct Session {
    user: Option<String>,
    begun: Instant,
}

impl Sessions {
    /// Begins a session. Returns its id, which is a secret.
    pub(crate) fn begin(&self, user: Option<String>) -> String {
        let id = random();
        let mut sessions = self.lock();
        sessions.retain(|_, session| session.begun.elapsed() < LIFETIME);
        if sessions.len() >= MAX_SESSIONS
            && let Some(oldest) = sessions.iter().min_by_key(|(_, session)| session.begun).map(|(id, _)| *id)
        {
            sessions.remove(&oldest);
        }
        sessions.insert(hash(&id), Session { user, begun: Instant::now() });
        id
    }

    /// Returns the user of a session; `None` if there is no such session.
    pub(crate) fn user(&self, id: &str) -> Option<Option<String>> {
        let sessions = self.lock();
        let session = sessions.get(&hash(id)).filter(|session| session.begun.elapsed() < LIFETIME)?;
        Some(session.user.clone())
    }

    pub(crate) fn end(&self, id: &str) {
        self.lock().remove(&hash(id));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<[u8; 32], Session>> {
        self.by_id.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns 64 hexadecimal digits that nobody can guess.
pub(super) fn random() -> String {
    format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_session_ends_after_its_lifetime_and_the_oldest_makes_room() {
        let sessions = Sessions::default();
        let first = sessions.begin(Some("ada".to_owned()));
        tokio::time::advance(LIFETIME / 2).await;
        assert_eq!(sessions.user(&first), Some(Some("ada".to_owned())));
        let second = sessions.begin(None);
        tokio::time::advance(LIFETIME / 2).await;
        assert_eq!((sessions.user(&first), sessions.user(&second)), (None, Some(None)));
        tokio::time::advance(Duration::from_secs(1)).await;
        for _ in 0..MAX_SESSIONS {
            sessions.begin(None);
        }
        assert_eq!(sessions.user(&second), None);
        assert_eq!(sessions.lock().len(), MAX_SESSIONS);
    }
}

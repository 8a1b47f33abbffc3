//! Whether a command of a call is on its way to a server. This decides the outcome of a call that its caller gives up.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};

/// What a connection records about a command that it sends.
pub(super) trait InFlight: Send + Sync {
    /// Records that the command may reach a server from now on. Returns `false` if the connection must not send it, because a
    /// caller has given up.
    #[must_use]
    fn set(&self) -> bool;

    /// Records that the reply has arrived, or that no server ran the command.
    fn clear(&self);
}

/// A call that sends commands of its own, or waits for a batch that another task sends.
#[derive(Debug, Default)]
pub(super) struct CallInFlight {
    is_set: AtomicBool,
    batched: OnceLock<Arc<BatchedCall>>,
}

impl CallInFlight {
    /// Records that the call waits for a batch.
    pub(super) fn join(&self, batched: Arc<BatchedCall>) {
        // A call joins one batch at most.
        let _ = self.batched.set(batched);
    }

    /// Records that a command of the call may reach a server from now on.
    pub(super) fn begin(&self) {
        self.is_set.store(true, Ordering::Relaxed);
    }

    /// Gives up the call: no batch sends its write from now on. Returns whether a command of the call is on its way.
    pub(super) fn give_up(&self) -> bool {
        self.is_set.load(Ordering::Relaxed) || self.batched.get().is_some_and(|batched| batched.give_up())
    }
}

impl InFlight for CallInFlight {
    fn set(&self) -> bool {
        self.begin();
        true
    }

    fn clear(&self) {
        self.is_set.store(false, Ordering::Relaxed);
    }
}

const WAITS: u8 = 0;
const SENT: u8 = 1;
const GIVEN_UP: u8 = 2;

/// A call that waits for a batch. Either the batch sends its write or the caller gives it up, never both.
#[derive(Debug, Default)]
pub(super) struct BatchedCall(AtomicU8);

impl BatchedCall {
    /// Gives up the call. Returns whether its write was sent and has no reply yet.
    pub(super) fn give_up(&self) -> bool {
        self.change(WAITS, GIVEN_UP) == SENT
    }

    pub(super) fn is_given_up(&self) -> bool {
        self.0.load(Ordering::Acquire) == GIVEN_UP
    }

    /// Records that the write is not on its way. Returns whether it was.
    pub(super) fn clear(&self) -> bool {
        self.change(SENT, WAITS) == SENT
    }

    /// Changes the state if it is `from`. Returns the state before.
    fn change(&self, from: u8, to: u8) -> u8 {
        self.0.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).unwrap_or_else(|state| state)
    }
}

/// The command of several calls.
impl InFlight for Vec<Arc<BatchedCall>> {
    fn set(&self) -> bool {
        let is_complete = self.iter().all(|call| call.change(WAITS, SENT) != GIVEN_UP);
        if !is_complete {
            self.clear();
        }
        is_complete
    }

    fn clear(&self) {
        for call in self {
            BatchedCall::clear(call);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calls() -> Vec<Arc<BatchedCall>> {
        vec![Arc::default(), Arc::default()]
    }

    #[test]
    fn a_call_that_is_given_up_before_its_batch_is_sent_is_not_sent() {
        let calls = calls();
        assert!(!calls[1].give_up(), "nothing was sent");
        assert!(!calls.set(), "the batch must leave the call out");
        assert!(!calls[0].clear() && !calls[0].give_up());
    }

    #[test]
    fn a_call_that_is_given_up_after_its_batch_was_sent_may_have_reached_a_server() {
        let (calls, call) = (calls(), CallInFlight::default());
        call.join(Arc::clone(&calls[0]));
        assert!(calls.set());
        assert!(call.give_up() && call.give_up());
        calls.clear();
        assert!(!call.give_up(), "no server ran the command");
        assert!(!calls.set());
    }
}

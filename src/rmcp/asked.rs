//! The questions that clients are being asked by requests of this process. No client is asked the same question twice at the same
//! time.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::backend::TaskKey;

/// A question: the key of a request, and its task.
type QuestionKey = (TaskKey, String);

/// The questions that clients are being asked. Clones share them.
#[derive(Clone, Default)]
pub(super) struct AskedQuestions(Arc<Mutex<HashMap<QuestionKey, watch::Receiver<()>>>>);

/// The right to ask a question, until it is dropped.
pub(super) struct AskedQuestion {
    questions: AskedQuestions,
    key: QuestionKey,
    /// Its end wakes those who wait for the question.
    _asking: watch::Sender<()>,
}

/// Who asks a question.
pub(super) enum Asker {
    This(AskedQuestion),
    /// Another call, until the receiver reports that its sender is gone.
    Other(watch::Receiver<()>),
}

impl AskedQuestions {
    /// Begins to ask a question, unless another call asks it at the moment.
    pub(super) fn begin(&self, task: &TaskKey, name: &str) -> Asker {
        let key = (task.clone(), name.to_owned());
        match self.entries().entry(key.clone()) {
            Entry::Occupied(asked) => Asker::Other(asked.get().clone()),
            Entry::Vacant(vacant) => {
                let (asking, asked) = watch::channel(());
                vacant.insert(asked);
                Asker::This(AskedQuestion { questions: self.clone(), key, _asking: asking })
            }
        }
    }

    /// No code panics while it holds the lock.
    fn entries(&self) -> MutexGuard<'_, HashMap<QuestionKey, watch::Receiver<()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for AskedQuestion {
    fn drop(&mut self) {
        self.questions.entries().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_one_call_asks_a_question_and_the_others_wait_for_its_end() {
        let (questions, task) = (AskedQuestions::default(), TaskKey::new("alice", "t1").unwrap());
        let Asker::This(first) = questions.begin(&task, "confirm") else { panic!("nobody asks it") };
        assert!(matches!(questions.begin(&task, "other"), Asker::This(_)), "it is another question");
        let Asker::Other(mut asked) = questions.begin(&task, "confirm") else { panic!("it is asked twice") };
        assert!(futures_util::FutureExt::now_or_never(asked.changed()).is_none(), "it is being asked");
        drop(first);
        asked.changed().await.unwrap_err();
        assert!(matches!(questions.begin(&task, "confirm"), Asker::This(_)));
        assert!(questions.entries().is_empty());
    }
}

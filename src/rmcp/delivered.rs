//! Tasks whose results a call has delivered.

use std::sync::Arc;

use tracing::Instrument;

use super::call_run::KEEP_ANSWERED;
use super::manager::DurableTaskManager;
use crate::backend::Agenda;
use crate::printable::Chain;
use crate::task::StoredTask;

impl<B: Agenda> DurableTaskManager<B> {
    /// Shortens the retention of a task whose result a call delivers, in the background. If the engine fails, the record of the task
    /// lives as long as it would anyway.
    pub(super) fn shorten_retention(&self, ended: Arc<StoredTask>) {
        let runtime = self.runtime();
        let (guard, store) = (runtime.calls.add(), runtime.store.clone());
        let shorten = async move {
            if let Err(error) = store.shorten_retention(&ended, KEEP_ANSWERED).await {
                tracing::debug!(error = %Chain(&error), "the retention of a delivered task could not be shortened");
            }
            drop(guard);
        };
        tokio::spawn(shorten.in_current_span());
    }
}

//! A guard that runs a closure when it is dropped.

/// Runs a closure once, when it is dropped. [`on_drop`] creates it.
#[derive(Debug)]
pub struct OnDrop<F: FnOnce()>(Option<F>);

/// Creates a guard that runs `f` when it is dropped, even if the future that holds the guard is dropped, or the task
/// that holds the guard panics.
///
/// ```
/// use mcp_task_store::backend::engine::on_drop;
///
/// let guard = on_drop(|| println!("the subscriber has left"));
/// drop(guard);
/// ```
pub fn on_drop<F: FnOnce()>(f: F) -> OnDrop<F> {
    OnDrop(Some(f))
}

impl<F: FnOnce()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        if let Some(f) = self.0.take() {
            f();
        }
    }
}

//! Ctrl-C in a command that changes many tasks, and in one that serves.

use tokio::sync::watch;

/// The exit code of a process that a second Ctrl-C ends.
const INTERRUPTED: i32 = 130;

/// Whether the user has pressed Ctrl-C. The command then stops between two tasks, or serves no new requests; a second Ctrl-C ends it
/// at once.
#[derive(Clone)]
pub struct Interrupt(watch::Receiver<bool>);

impl Interrupt {
    pub fn listen() -> Self {
        let (pressed, receiver) = watch::channel(false);
        tokio::spawn(async move {
            // Without a handler of the signal, Ctrl-C ends the process at once, as before.
            if tokio::signal::ctrl_c().await.is_ok() {
                pressed.send_replace(true);
                if tokio::signal::ctrl_c().await.is_ok() {
                    std::process::exit(INTERRUPTED);
                }
            }
            // The receiver must not see the end of this task as Ctrl-C.
            std::future::pending::<()>().await;
        });
        Self(receiver)
    }

    pub fn is_set(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until the user presses Ctrl-C.
    pub async fn pressed(&self) {
        if self.0.clone().wait_for(|pressed| *pressed).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

//! Ending in good order. A [`Shutdown`] is cloned into every loop; the first signal asks them to drain (finish what
//! runs, begin nothing), the second to abort. It never ends the process itself.

use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// How far the shutdown has come; it only rises.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// No one has asked.
    #[default]
    Running,
    /// Finish what runs, begin nothing new.
    Draining,
    /// Let go at once.
    Aborting,
}

/// The token; all clones are one.
#[derive(Clone, Debug)]
pub struct Shutdown {
    stage: Arc<watch::Sender<Stage>>,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self::new()
    }
}

impl Shutdown {
    /// A token that only calls to it move.
    pub fn new() -> Self {
        Self {
            stage: Arc::new(watch::Sender::new(Stage::Running)),
        }
    }

    /// A token moved by SIGINT and SIGTERM: the first drains, the second aborts. Needs a tokio runtime.
    pub fn on_signals() -> std::io::Result<Self> {
        let shutdown = Self::new();
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let told = shutdown.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                if told.stage() == Stage::Running {
                    told.drain();
                } else {
                    told.abort();
                }
            }
        });
        Ok(shutdown)
    }

    /// Asks everyone to drain.
    pub fn drain(&self) {
        self.raise(Stage::Draining);
    }

    /// Asks everyone to let go.
    pub fn abort(&self) {
        self.raise(Stage::Aborting);
    }

    /// How far it has come.
    pub fn stage(&self) -> Stage {
        *self.stage.borrow()
    }

    /// Whether nothing new may begin.
    pub fn is_draining(&self) -> bool {
        self.stage() >= Stage::Draining
    }

    /// Ends when draining (or aborting) begins.
    pub async fn draining(&self) {
        self.reached(Stage::Draining).await;
    }

    /// Ends when aborting begins.
    pub async fn aborting(&self) {
        self.reached(Stage::Aborting).await;
    }

    fn raise(&self, stage: Stage) {
        self.stage.send_if_modified(|now| {
            let higher = *now < stage;
            if higher {
                *now = stage;
            }
            higher
        });
    }

    async fn reached(&self, stage: Stage) {
        // The sender lives in `self`, so the channel cannot close under us.
        let _ = self.stage.subscribe().wait_for(|now| *now >= stage).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_only_rises_and_reaches_every_clone() {
        let shutdown = Shutdown::new();
        let clone = shutdown.clone();
        let waiting = tokio::spawn(async move {
            clone.draining().await;
            clone.aborting().await;
            clone.stage()
        });
        shutdown.abort();
        shutdown.drain();
        assert_eq!(waiting.await.expect("the task ends"), Stage::Aborting);
    }
}

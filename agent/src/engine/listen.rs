//! The engine's events, followed for ever: reconnected with back-off, checked when silent, and every gap said. Called by the
//! Docker engine only.

use std::time::Duration;

use runtime::backoff::Backoff;
use serde_json::json;

use super::answers;
use super::wire::{Address, Call, Lines, Wire, encode};
use super::{EngineError, ErrorKind, Event, Result};

/// Time for an answer.
const READ: Duration = Duration::from_secs(15);
/// An event stream silent for so long is checked.
const SILENCE: Duration = Duration::from_secs(20);
/// A silent stream over TCP is made anew, for a lost connection looks the same.
const TCP_SILENCES: u32 = 6;

/// Follows the engine's events, again and again.
pub(super) struct Listener {
    wire: Wire,
    cluster: String,
    lines: Option<Lines>,
    silences: u32,
    backoff: Backoff,
}

impl Listener {
    pub(super) fn new(wire: Wire, cluster: String) -> Self {
        let backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
        Self {
            wire,
            cluster,
            lines: None,
            silences: 0,
            backoff,
        }
    }

    /// The next event, whenever it comes.
    pub(super) async fn next(&mut self) -> Event {
        const ACT: &str = "follow the engine's events";
        loop {
            let Some(lines) = self.lines.as_mut() else {
                if self.backoff.failures() > 0 || self.silences > 0 {
                    tokio::time::sleep(self.backoff.delay()).await;
                }
                match self.open(ACT).await {
                    Ok(lines) => {
                        (self.lines, self.silences) = (Some(lines), 0);
                        self.backoff.reset();
                        return Event::Connected;
                    }
                    Err(error) => {
                        self.silences = self.silences.max(1);
                        return Event::Disconnected(error);
                    }
                }
            };
            let error = match tokio::time::timeout(SILENCE, lines.next()).await {
                Ok(Ok(Some(line))) => {
                    self.silences = 0;
                    match answers::event(&line, &self.cluster) {
                        Some(event) => return event,
                        None => continue,
                    }
                }
                Ok(Ok(None)) => EngineError::new(ErrorKind::Unavailable, ACT, "the engine ended the stream"),
                Ok(Err(error)) => error,
                Err(_) => {
                    self.silences += 1;
                    let stale = matches!(self.wire.address, Address::Tcp(_)) && self.silences >= TCP_SILENCES;
                    match self.wire.ping(ACT, READ).await {
                        Ok(_) if stale => EngineError::new(ErrorKind::Unavailable, ACT, "silent for long: made anew"),
                        Ok(_) => continue,
                        Err(error) => error,
                    }
                }
            };
            self.lines = None;
            self.silences = self.silences.max(1);
            return Event::Disconnected(error);
        }
    }

    async fn open(&self, act: &str) -> Result<Lines> {
        // Commands run in containers (probes) make events too: those are not asked for.
        let filters = json!({
            "type": ["container", "network", "image"],
            "event": ["create", "start", "die", "stop", "kill", "oom", "pause", "unpause", "rename", "update", "destroy", "connect", "disconnect", "delete", "untag"],
        });
        let path = format!("/events?filters={}", encode(&filters.to_string()));
        self.wire.lines(act, READ, Call::get(&path)).await
    }
}

//! Leader election on one key. Controllers [`campaign`]; the winner's [`Leadership`] is the fence of all its writes. It
//! steps down by its own clock (suspended time counted) before its lease can have ended.

use std::time::Duration;

use crate::error::StoreError;
use crate::shutdown::Shutdown;
use crate::store::{Prefix, Store};

/// How to campaign.
#[derive(Clone, Debug)]
pub struct LeaderOptions {
    /// The prefix of the election; the key is `<prefix>controller`.
    pub election: Prefix,
    /// Who campaigns, for people: `host:pid`, an address, ...
    pub holder: String,
    /// How long a leader that says nothing stays leader; 5 to 60 s, 10 s by default.
    pub ttl: Duration,
}

impl LeaderOptions {
    /// With a time to live of 10 s.
    pub fn new(election: Prefix, holder: impl Into<String>) -> Self {
        Self {
            election,
            holder: holder.into(),
            ttl: Duration::from_secs(10),
        }
    }
}

/// The leadership that was won; lost when the lease ends, when the key is gone, or when it is dropped.
#[derive(Debug)]
pub struct Leadership {
    key: Vec<u8>,
    epoch: i64,
    lost: Lost,
}

/// Tells that a leadership or a session is lost; it is never found again.
#[derive(Clone, Debug)]
pub struct Lost {
    state: tokio::sync::watch::Receiver<bool>,
}

impl Lost {
    /// Whether it is lost.
    pub fn is_lost(&self) -> bool {
        *self.state.borrow() || self.state.has_changed().is_err()
    }

    /// Ends when it is lost.
    pub async fn lost(&self) {
        // An error means that the keeper is gone, and the lease with it.
        let _ = self.state.clone().wait_for(|lost| *lost).await;
    }
}

/// Waits until this process leads; `None` when the shutdown drains first. Outages are waited out.
pub async fn campaign<S: Store>(
    _store: &S,
    _options: &LeaderOptions,
    _shutdown: &Shutdown,
) -> Result<Option<Leadership>, StoreError> {
    todo!()
}

impl Leadership {
    /// The election key.
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// The epoch: the create revision of the election key. Every later leader has a greater one.
    pub const fn epoch(&self) -> i64 {
        self.epoch
    }

    /// Tells when it is lost.
    pub fn lost(&self) -> Lost {
        self.lost.clone()
    }

    /// Whether it is lost; a fenced write finds out for sure.
    pub fn is_lost(&self) -> bool {
        self.lost.is_lost()
    }

    /// Gives the leadership up, so that another can lead at once.
    pub async fn resign(self) {
        todo!()
    }
}

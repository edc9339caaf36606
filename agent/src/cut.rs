//! Where an agent's life ends in tests: after so many effects on the engine or the disk nothing it does has any effect.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use tokio::sync::Notify;

#[derive(Clone, Debug)]
pub struct Cut(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    left: AtomicI64,
    dead: AtomicBool,
    died: Notify,
}

impl Cut {
    /// After so many effects.
    pub fn after(effects: i64) -> Self {
        Self(Arc::new(Inner {
            left: AtomicI64::new(effects),
            dead: AtomicBool::new(false),
            died: Notify::new(),
        }))
    }

    pub fn never() -> Self {
        Self::after(i64::MAX)
    }

    /// How many there were, less by a constant.
    pub fn effects(&self) -> i64 {
        self.0.left.load(Ordering::SeqCst).saturating_neg()
    }

    /// Whether it ends at all: what runs for real does not.
    pub fn is_mortal(&self) -> bool {
        self.0.left.load(Ordering::SeqCst) < i64::MAX / 2
    }

    pub fn is_dead(&self) -> bool {
        self.0.dead.load(Ordering::SeqCst)
    }

    /// There was an effect. True: it was the last.
    pub fn effect(&self) -> bool {
        if self.0.left.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.dead.store(true, Ordering::SeqCst);
            self.0.died.notify_one();
        }
        self.is_dead()
    }

    pub async fn died(&self) {
        self.0.died.notified().await;
    }
}

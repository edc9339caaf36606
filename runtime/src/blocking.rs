//! Work that takes the processor or the disk for a while, away from what must stay quick. Controllers and agents call
//! [`spawn`]. A simulation, where everything happens in one order, has such work done in its turn, on its own thread.

use tokio::task::JoinHandle;

#[cfg(feature = "testing")]
thread_local! {
    static IN_TURN: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// From now on this thread's runtimes do such work in turn with everything else.
#[cfg(feature = "testing")]
pub fn in_turn() {
    IN_TURN.set(true);
}

/// Begins the work; the handle gives what it came to, or says that it panicked.
pub fn spawn<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    #[cfg(feature = "testing")]
    if IN_TURN.get() {
        return tokio::spawn(async move { work() });
    }
    tokio::task::spawn_blocking(work)
}

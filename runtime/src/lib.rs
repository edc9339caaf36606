//! How objects move: kube-runtime's shape over etcd. The store behind one trait, the watch as a plain state machine, the
//! reflector, the work queue and control loop, leader election, sessions and fenced writes; and the embedded store. It
//! knows no kind of resource and decides nothing about them.
//!
//! ```text
//! EtcdStore | MemoryStore : Store -> watch::Machine -> reflector -> Reader -> (the caller's plan)
//!                             ^                                                     |
//!                             +------- commit(Txn) <- Fence <- Leadership | Session +   queue -> control::run
//! ```

pub mod backoff;
pub mod blocking;
pub mod boottime;
pub mod control;
pub mod embedded;
pub mod error;
pub mod etcd;
pub mod guest;
pub mod health;
pub mod leader;
pub mod map;
#[cfg(feature = "testing")]
pub mod memory;
pub mod person;
pub mod queue;
pub mod reflector;
pub mod session;
pub mod shutdown;
pub mod store;
#[cfg(feature = "testing")]
pub mod testing;
pub mod txn;
pub mod watch;

pub use control::{ControlOptions, Next};
pub use error::{StoreError, StoreErrorKind, chain};
pub use etcd::{EtcdOptions, EtcdStore, TlsFiles};
pub use health::Health;
pub use leader::{LeaderOptions, Leadership, Lost, campaign};
pub use map::KeyMap;
#[cfg(feature = "testing")]
pub use memory::MemoryStore;
pub use queue::Queue;
pub use reflector::{Cache, Position, Reader, ReflectOptions, reflect};
pub use session::{Session, SessionError, SessionOptions, SessionRecord};
pub use shutdown::Shutdown;
pub use store::{
    KeyValue, Lease, LeaseLife, Listing, Prefix, Read, Store, StoreStatus, WatchEvent, WatchInput, WatchStream,
};
pub use txn::{Conflict, Fence, Guard, Outcome, Txn};

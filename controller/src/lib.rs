//! The controller: observe the store, plan, execute with fenced writes. Any number run and one leads; what they decide is
//! the planner's, what they write is in `execute.rs`, and nothing else of the store is theirs.
//!
//! ```text
//! reflector -> observe::Observer -> Snapshot -> planner::cluster::{verdicts, plan} -> execute::prepare -> Batch::commit
//!     ^                                                                                                     |
//!     +------------------------- no pass before the cache has reached our own last write -------------------+
//! ```
//!
//! `reeve controller` and `reeve up` call [`run`]; `reeve plan`, `get` and `status` call [`observe::snapshot_from_listing`]
//! and so see what the leader sees.

pub mod events;
pub mod execute;
pub mod http;
mod lead;
pub mod metrics;
pub mod observe;
pub mod presence;
mod run;
mod vault;

pub use observe::{Hold, KeyNote, Observed, snapshot_from_listing};
pub use run::{ControllerError, ControllerOptions, Started, run};
pub use vault::VaultOptions;

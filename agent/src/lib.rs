//! The agent of one node: it observes Docker and the node's assignment, asks `planner::node` what to do, executes that
//! through [`engine`], and reports. Statically stable: with the store gone it keeps what it was last assigned running,
//! from its own disk. `reeve agent` and `reeve up` call [`run`].
//!
//! ```text
//! register (store) --assignment, specs--> run <--list, events, probes-- engine
//!        ^---------report, events---------/ \--steps--> execute
//! ```

#![cfg_attr(test, allow(clippy::wildcard_enum_match_arm, clippy::type_complexity))]

pub mod api;
pub mod copy;
#[cfg(any(test, feature = "testing"))]
pub mod cut;
mod disk;
pub mod engine;
mod events_out;
mod execute;
mod expose;
mod files;
mod genuine;
mod ground;
pub mod http;
mod ledger;
pub mod logins;
pub mod metrics;
mod observe;
mod peers;
mod pings;
pub mod policy;
pub mod probe;
mod register;
mod relays;
mod report;
mod rotation;
mod run;
pub mod secrets;
mod seen;
mod virtual_ips;
pub mod walls;

pub use disk::DiskError;
pub use ground::{Prove, raze};
pub use policy::{Policy, PolicyOptions};
pub use run::{AgentError, AgentOptions, Publish, run};

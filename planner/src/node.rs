//! What to tell one Docker engine: a [`NodeInput`] of everything the agent knows in, a [`NodePlan`] out. The agent calls
//! [`plan`] on every wake, writes the plan's ledger changes to disk, then runs its steps.

mod contact;
mod instance;
mod labels;
mod ledger;
mod order;
mod plan;
mod settle;
mod types;

pub use contact::Contact;
pub use labels::{LABEL_CLUSTER, LABEL_NODE, LABEL_TOKEN, OwnLabels};
pub use ledger::{InForce, Ledger, LedgerEntry, Owned, Trying, Up};
pub use order::{Ruling, judge};
pub use plan::{network_name, plan};
pub use settle::settle;
pub use types::bridge;
pub use types::{
    ContainerState, Details, Failure, FileId, Ground, Image, InstanceKey, Limits, Making, NetworkEnd, NodeInput,
    NodePlan, Observed, Op, OpOutcome, Permit, Probe, ProbeTarget, Probed, Pull, PullFailure, Reason, Seat,
    SecretState, SpecId, SpecState, Step,
};

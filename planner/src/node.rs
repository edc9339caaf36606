//! What to tell one Docker engine: a [`NodeInput`] of everything the agent knows in, a [`NodePlan`] out. The agent calls
//! [`plan`] on every wake, writes the plan's ledger changes to disk, then runs its steps.

mod labels;
mod ledger;
mod types;

pub use labels::{LABEL_CLUSTER, OwnLabels};
pub use ledger::{InForce, Ledger, LedgerEntry, Owned, Trying, Up};
pub use types::{
    ContainerState, Details, Failure, Image, InstanceKey, Limits, NetworkEnd, NodeInput, NodePlan, Observed, Op, OpOutcome, Probe,
    ProbeTarget, PullFailure, Reason, SpecId, SpecState, Step,
};

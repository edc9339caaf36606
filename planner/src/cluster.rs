//! Who runs what where, for the whole cluster: a [`Snapshot`] of the store in, a [`Plan`] out. The leading controller calls
//! it on every pass and `reeve plan` calls it with a manifest laid over the snapshot, so a person sees what the leader will do.

mod snapshot;
mod types;

pub use snapshot::{AcceptedEntry, AcceptedHistory, DesiredBody, DesiredEntry, NodeEntry, Snapshot, Stored};
pub use types::{AcceptedWrite, Action, AssignmentWrite, Change, Deletion, Guard, Notice, Plan, Reason, Status, VerdictsOut};

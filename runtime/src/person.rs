//! Writes by a person: transactions without a fence, for the verbs of the CLI alone. Controllers and agents never use
//! this module; a test looks for its name in their sources.

use crate::txn::{Fence, Txn};

/// An empty transaction that no leader and no session fences; give every write a guard.
pub fn txn() -> Txn {
    Txn::new(&Fence::nobody())
}

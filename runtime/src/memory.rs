//! A small store in memory for tests of what stands above the store: history, leases by hand, and faults on demand. It
//! sits the same contract suite as etcd.

/// The store in memory; all clones are one.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {}

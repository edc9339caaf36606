//! Real etcd processes for tests, on loopback in a temporary directory, killed on drop.

/// A running etcd cluster of one or more members.
#[derive(Debug)]
pub struct Etcd {}

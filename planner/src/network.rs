//! What a node makes of the cluster's network, as values: its links to other nodes and the answers to names. The crate
//! `network` and the agent carry it out; `cluster::plan` decides who has which address.

pub mod keys;
pub mod links;
pub mod lookup;
pub mod names;
pub mod pings;
pub mod policy;
pub mod relay;
pub mod trace;

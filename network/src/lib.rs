//! A node's end of the cluster's network: links to the other nodes, names for what runs on them, and
//! addresses that go from node to node. The agent tells it what
//! must be; it tells the kernel, and answers resolvers. It decides nothing: what must be is computed in `planner::network`.

pub mod detached;
pub mod floating;
pub mod links;
pub mod names;
pub mod wireguard;

//! A node's end of the cluster's network: links to the other nodes, names for what runs on them, and ports that lead there.
//! The agent tells it what must be; it tells the kernel, answers resolvers, and carries connections. It decides nothing: what
//! must be is computed in `planner::network`.

pub mod detached;
pub mod links;
pub mod names;
pub mod relay;
pub mod wireguard;

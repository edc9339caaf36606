//! A node's end of the cluster's network: links to the other nodes, and names for what runs on them. The agent tells it what
//! must be; it tells the kernel, and answers resolvers. It decides nothing: what must be is computed in `planner::network`.

pub mod detached;
pub mod links;
pub mod names;
pub mod wireguard;

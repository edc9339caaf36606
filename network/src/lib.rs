//! A node's end of the cluster's network: links to the other nodes, names for what runs on them, ports that lead there, and
//! addresses that go from node to node. The agent tells it what must be; it tells the kernel, answers resolvers, and carries
//! connections. It decides nothing: what must be is computed in `planner::network` and `planner::cluster`.

pub mod detached;
pub mod floating;
pub mod flows;
pub mod links;
pub mod names;
pub mod relay;
pub mod wireguard;

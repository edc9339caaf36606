//! Every decision, and no IO: functions from values to values. [`cluster`] decides who runs what where; [`node`] decides
//! what to tell one Docker engine. The controller, the agent and `reeve plan` call them and execute what they say, nothing
//! else. No clock, no randomness, no hash map, no waiting: the same snapshot always gives the same plan, byte for byte.

pub mod change;
pub mod cluster;
pub mod network;
pub mod node;
pub mod walls;

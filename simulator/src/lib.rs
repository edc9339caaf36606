//! The whole of Reeve in one process, under one seed, in virtual time: the real controllers and agents over a store in memory,
//! engines in memory and disks of their own, while everything happens to them that can. `tests/histories.rs` runs histories by the thousand;
//! a history that breaks a law is printed with its seed, made shorter, and can be run again, alike.
//!
//! ```text
//! seed -> history (what happens when) -> world (a machine each: clock, line to the store, engine, disk, process) -> laws
//! ```

pub mod dice;
pub mod history;
pub mod laws;
pub mod line;
pub mod machine;
pub mod steady;
pub mod world;

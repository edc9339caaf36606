//! Tests of `planner::cluster`: `rules.rs` tells in tables what is decided when, `laws.rs` has the laws as properties over
//! random clusters and histories. Both drive `support.rs`: a store in memory, and a fleet that obeys its assignments.

mod laws;
mod rules;
mod support;

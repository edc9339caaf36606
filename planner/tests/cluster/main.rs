//! Tests of `planner::cluster`: `rules.rs` tells in tables what is decided when (`files.rs` for files, `images.rs` for images, `virtual_ips.rs` for virtual addresses, with a property of their own), `laws.rs` has the laws as properties over
//! random clusters and histories. Both drive `support.rs`: a store in memory, and a fleet that obeys its assignments.

#![allow(clippy::wildcard_enum_match_arm)] // What a test does not name is not what it looks for.

mod exclusive;
mod files;
mod images;
mod laws;
mod losses;
mod network;
mod policies;
mod regressed;
mod rules;
mod secrets;
mod support;
mod virtual_ips;

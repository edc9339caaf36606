//! What people do through the binary, with a cluster or a store in the test's own process: one binary for all of it, for each
//! would hold the whole cluster again.

mod backup;
mod commands;
mod common;
mod files;
mod lab;
mod life;
mod network;
mod people;
mod registry;
mod secrets;
mod store;

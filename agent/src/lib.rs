//! agent
pub mod engine;

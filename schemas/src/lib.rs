//! The words people write: resources, names, units, validation and JSON Schemas. YAML or JSON in, typed documents or
//! problems with line, column and remedy out. Every other crate takes these types; this one knows none of ours, does no
//! IO, and promises that no input makes it panic, loop or overflow.

pub mod admit;
pub mod command;
pub mod config_file;
pub mod container;
pub mod explain;
pub mod image;
pub mod keys;
pub mod kinds;
pub mod meta;
pub mod names;
pub mod network_policy;
pub mod node;
pub mod placement;
pub mod problem;
pub mod records;
pub mod registry;
pub mod secret;
mod semantics;
pub mod service;
pub mod units;
pub mod virtual_ip;
pub mod write;
pub mod yaml;

pub use admit::{Admitted, Input, admit, admit_all, admit_stored};
pub use explain::explain;
pub use kinds::{Document, Kind};
pub use problem::{Code, Look, Problem, Problems};

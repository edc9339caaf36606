//! The laws as properties.

//! What to tell one Docker engine.

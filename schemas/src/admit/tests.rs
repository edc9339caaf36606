//! Admission: versions, keys of the store, several documents; the corpus under `tests/` covers the rest.

use super::*;

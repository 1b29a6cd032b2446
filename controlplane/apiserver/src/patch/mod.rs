//! Machinery on JSON values: patch.

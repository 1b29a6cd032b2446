//! Machinery on JSON values: schema.

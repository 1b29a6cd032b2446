//! Machinery on JSON values: openapi.

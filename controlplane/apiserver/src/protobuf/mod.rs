//! Machinery on JSON values: protobuf.

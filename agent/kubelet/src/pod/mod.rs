//! One pod on this node: what is wanted of it, what is seen of it, what to do about it.

pub mod labels;

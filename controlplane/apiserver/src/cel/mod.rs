//! CEL ([`expressions`]), with what only the API server can tell it: the types of built-in kinds
//! ([`native`]) and the answers of the authorizer ([`authorizer`]).

pub mod authorizer;
mod native;

pub use expressions::*;
pub use native::native;

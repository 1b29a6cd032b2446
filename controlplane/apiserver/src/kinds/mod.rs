//! The built-in kinds: one small module per kind with its descriptor and its hooks.
//!
//! Layer: between the registry, which calls [`crate::resource::Hooks`], and `api` (quantities,
//! selectors, field errors). Knows nothing of HTTP or the store.

use crate::resource::Resource;

/// Every built-in resource, in the order of discovery.
pub fn all() -> Vec<Resource> {
    Vec::new()
}

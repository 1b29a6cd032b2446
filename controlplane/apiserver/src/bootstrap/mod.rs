//! What a new cluster holds before anyone wrote to it.
//!
//! [`policy`] is the RBAC table. The rest are the four namespaces, the two system priority classes
//! and the `kubernetes` Service's objects.

pub mod policy;

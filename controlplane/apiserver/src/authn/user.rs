//! An authenticated user.

use std::collections::BTreeMap;

/// An authenticated user.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UserInfo {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

impl UserInfo {
    pub fn new(name: &str, groups: &[&str]) -> Self {
        Self { name: name.to_owned(), groups: groups.iter().map(|g| (*g).to_owned()).collect(), ..Self::default() }
    }

    /// The administrator: authorized for everything.
    pub fn admin() -> Self {
        Self::new("system:admin", &["system:masters", "system:authenticated"])
    }

    /// The server itself, where it is a client of its own.
    pub fn server() -> Self {
        Self::new("system:apiserver", &["system:authenticated", "system:masters"])
    }

    /// `system:serviceaccount:<namespace>:<name>` with its groups.
    pub fn service_account(namespace: &str, name: &str) -> Self {
        Self::new(
            &format!("system:serviceaccount:{namespace}:{name}"),
            &["system:serviceaccounts", &format!("system:serviceaccounts:{namespace}"), "system:authenticated"],
        )
    }

    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|held| held == group)
    }

    /// Who has not said who they are.
    pub fn is_anonymous(&self) -> bool {
        self.name == "system:anonymous" || self.in_group(super::UNAUTHENTICATED)
    }

    /// Namespace and name when this is a ServiceAccount.
    pub fn as_service_account(&self) -> Option<(&str, &str)> {
        self.name.strip_prefix("system:serviceaccount:")?.split_once(':')
    }

    /// The node's name when this is a node.
    pub fn as_node(&self) -> Option<&str> {
        if self.in_group("system:nodes") { self.name.strip_prefix("system:node:") } else { None }
    }
}

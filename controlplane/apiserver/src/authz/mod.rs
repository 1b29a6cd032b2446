//! May they: `system:masters` may do everything, nodes what the node authorizer allows, everybody
//! what roles grant them.
//!
//! [`Request`] is the question; an authorizer never denies, it only allows or has no opinion, and
//! what nobody allows is forbidden.

pub mod escalation;
mod node;
pub mod rbac;

use std::sync::Arc;

use parking_lot::RwLock;

use self::rbac::Index;
use crate::admit::Access;
use crate::authn::UserInfo;
use crate::error::ApiError;
use crate::http::info::RequestInfo;
use crate::server::Api;

/// What somebody wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Request<'a> {
    pub verb: &'a str,
    pub group: &'a str,
    pub resource: &'a str,
    pub subresource: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
    /// For requests that are not about a resource.
    pub path: &'a str,
}

impl<'a> From<Access<'a>> for Request<'a> {
    fn from(access: Access<'a>) -> Self {
        Self {
            verb: access.verb,
            group: access.group,
            resource: access.resource,
            subresource: access.subresource,
            namespace: access.namespace,
            name: access.name,
            path: "",
        }
    }
}

impl<'a> From<&'a RequestInfo> for Request<'a> {
    fn from(info: &'a RequestInfo) -> Self {
        if !info.is_resource {
            return Self { verb: &info.verb, path: &info.path, ..Self::default() };
        }
        Self {
            verb: &info.verb,
            group: &info.group,
            resource: &info.resource,
            subresource: &info.subresource,
            namespace: &info.namespace,
            name: &info.name,
            path: "",
        }
    }
}

impl Request<'_> {
    pub fn is_resource(&self) -> bool {
        !self.resource.is_empty()
    }

    /// `pods`, `pods/log`.
    pub fn full_resource(&self) -> String {
        if self.subresource.is_empty() {
            self.resource.to_owned()
        } else {
            format!("{}/{}", self.resource, self.subresource)
        }
    }

    /// The `403` that answers it, in upstream's words.
    pub fn refusal(&self, user: &UserInfo, reason: &str) -> ApiError {
        let Request { verb, group, namespace, path, .. } = self;
        let who = &user.name;
        let what = if !self.is_resource() {
            format!("User {who:?} cannot {verb} path {path:?}")
        } else {
            let scope = if namespace.is_empty() {
                "at the cluster scope".to_owned()
            } else {
                format!("in the namespace {namespace:?}")
            };
            format!("User {who:?} cannot {verb} resource {:?} in API group {group:?} {scope}", self.full_resource())
        };
        let why = if reason.is_empty() { what } else { format!("{what}: {reason}") };
        ApiError::forbidden(group, self.resource, self.name, why)
    }
}

/// Answers [`Request`]s.
#[derive(Default)]
pub struct Authorizer {
    index: RwLock<Arc<Index>>,
}

impl Authorizer {
    pub async fn allowed(&self, api: &Api, user: &UserInfo, request: &Request<'_>) -> bool {
        self.decide(api, user, request).await.is_ok()
    }

    /// `Err` is the reason to put into the refusal; often there is none to give.
    pub async fn decide(&self, api: &Api, user: &UserInfo, request: &Request<'_>) -> Result<(), String> {
        if user.in_group("system:masters") {
            return Ok(());
        }
        let reason = match user.as_node() {
            Some(node) => match node::decide(api, node, request).await {
                Ok(()) => return Ok(()),
                Err(reason) => reason,
            },
            None => String::new(),
        };
        let index = self.index(api).await?;
        if index.allows(user, request) { Ok(()) } else { Err(reason) }
    }

    /// The roles and bindings as they are now.
    pub async fn index(&self, api: &Api) -> Result<Arc<Index>, String> {
        let held = self.index.read().clone();
        let sources = rbac::Sources::of(api).await.map_err(|error| error.to_string())?;
        if held.is_current(&sources) {
            return Ok(held);
        }
        let fresh = Arc::new(Index::build(&sources));
        *self.index.write() = fresh.clone();
        Ok(fresh)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_read_as_upstream() {
        let user = UserInfo::new("jane", &[]);
        let request = Request { verb: "list", resource: "pods", namespace: "default", ..Request::default() };
        assert_eq!(
            request.refusal(&user, "").message(),
            "pods is forbidden: User \"jane\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\""
        );
        let request = Request {
            verb: "get",
            group: "apps",
            resource: "deployments",
            subresource: "scale",
            name: "x",
            ..Request::default()
        };
        assert_eq!(
            request.refusal(&user, "").message(),
            "deployments.apps \"x\" is forbidden: User \"jane\" cannot get resource \"deployments/scale\" in API group \"apps\" at the cluster scope"
        );
        let request = Request { verb: "get", path: "/metrics", ..Request::default() };
        assert_eq!(request.refusal(&user, "").message(), "forbidden: User \"jane\" cannot get path \"/metrics\"");
    }
}

//! May they: `system:masters` may do everything, nodes what the node authorizer allows, everybody
//! what roles grant them.
//!
//! [`Request`] is the question. Authorizers are asked in turn; the first that allows or denies
//! decides, and what nobody allows is forbidden.

mod config;
pub mod escalation;
mod node;
pub mod rbac;
mod webhook;

use std::sync::Arc;

use component::Supervisor;
use parking_lot::RwLock;

pub use self::config::{AuthorizationOptions, go_duration};
use self::rbac::Index;
use crate::admit::Access;
use crate::authn::UserInfo;
use crate::error::ApiError;
use crate::http::info::RequestInfo;
use crate::reload::{self, AsyncReload};
use crate::server::Api;

/// What somebody wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Request<'a> {
    pub verb: &'a str,
    pub group: &'a str,
    /// Rules do not ask for it; webhooks are told.
    pub version: &'a str,
    pub resource: &'a str,
    pub subresource: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
    /// For requests that are not about a resource.
    pub path: &'a str,
    /// What a list, watch or deletecollection is limited to.
    pub field_selector: &'a str,
    pub label_selector: &'a str,
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
            path: access.path,
            ..Self::default()
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
            version: &info.version,
            resource: &info.resource,
            subresource: &info.subresource,
            namespace: &info.namespace,
            name: &info.name,
            ..Self::default()
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

/// Why a request is not allowed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Refused {
    /// To put into the refusal; often there is none to give.
    pub reason: String,
    /// Somebody said no, and not only nobody yes.
    pub denied: bool,
    /// What went wrong with those who were asked: a request is then not forbidden, its answer is unknown.
    pub failure: Option<String>,
}

/// One of those asked in turn: the first that has an opinion decides.
pub enum Mode {
    Node,
    Rbac,
    AlwaysAllow,
    AlwaysDeny,
    Webhook(Box<webhook::Webhook>),
}

type Modes = Arc<RwLock<Arc<[Mode]>>>;

/// Puts the configuration file in force again.
struct Reread {
    modes: Modes,
    options: AuthorizationOptions,
}

impl AsyncReload for Reread {
    async fn reload(&mut self) -> crate::error::Result<()> {
        *self.modes.write() = config::modes(&self.options).await?.into();
        Ok(())
    }
}

/// Answers [`Request`]s.
pub struct Authorizer {
    modes: Modes,
    index: RwLock<Arc<Index>>,
}

/// An authorizer's answer.
enum Opinion {
    Allow(Arc<str>),
    Deny(String),
    /// With a reason, which may be empty.
    None(String),
    /// There is no answer, which may be as good as a no.
    Failed {
        why: String,
        denies: bool,
    },
}

impl Authorizer {
    /// A configuration file is read again when it changes.
    pub async fn new(options: &AuthorizationOptions, supervisor: &Supervisor) -> crate::error::Result<Self> {
        let modes: Modes = Arc::new(RwLock::new(config::modes(options).await?.into()));
        if let Some(file) = &options.config_file {
            let reread = Reread { modes: modes.clone(), options: options.clone() };
            reload::follow("authorization configuration", file, supervisor, reread)?;
        }
        Ok(Self { modes, index: RwLock::default() })
    }

    fn modes(&self) -> Arc<[Mode]> {
        self.modes.read().clone()
    }

    /// Why the rights of a user cannot be listed completely, if they cannot.
    pub fn hides_rules(&self, user: &UserInfo) -> Option<String> {
        let hides = |mode: &Mode| match mode {
            Mode::Node if user.as_node().is_some() => Some("node authorizer does not support user rule resolution"),
            Mode::Webhook(_) => Some("webhook authorizer does not support user rule resolution"),
            _ => None,
        };
        let modes = self.modes();
        let reasons: Vec<&str> = modes.iter().filter_map(hides).collect();
        (!reasons.is_empty()).then(|| reasons.join("; "))
    }

    pub async fn allowed(&self, api: &Api, user: &UserInfo, request: &Request<'_>) -> bool {
        self.decide(api, user, request).await.is_ok()
    }

    /// `Ok` is why it is allowed, for the audit log.
    pub async fn decide(&self, api: &Api, user: &UserInfo, request: &Request<'_>) -> Result<Arc<str>, Refused> {
        if user.in_group("system:masters") {
            return Ok(Arc::from(""));
        }
        let (mut reasons, mut failures): (Vec<String>, Vec<String>) = Default::default();
        for mode in self.modes().iter() {
            match self.ask(mode, api, user, request).await {
                Opinion::Allow(reason) => return Ok(reason),
                Opinion::Deny(reason) => return Err(Refused { reason, denied: true, failure: None }),
                Opinion::Failed { why, denies: true } => {
                    return Err(Refused { reason: String::new(), denied: true, failure: Some(why) });
                }
                Opinion::Failed { why, .. } => failures.push(why),
                Opinion::None(reason) if reason.is_empty() => {}
                Opinion::None(reason) => reasons.push(reason),
            }
        }
        let failure = match failures.as_slice() {
            [] => None,
            [one] => Some(one.clone()),
            many => Some(format!("[{}]", many.join(", "))),
        };
        Err(Refused { reason: reasons.join("\n"), denied: false, failure })
    }

    async fn ask(&self, mode: &Mode, api: &Api, user: &UserInfo, request: &Request<'_>) -> Opinion {
        match mode {
            Mode::Node => match user.as_node() {
                Some(node) => match Box::pin(node::decide(api, node, request)).await {
                    Ok(()) => Opinion::Allow(Arc::from("")),
                    Err(reason) => Opinion::None(reason),
                },
                None => Opinion::None(String::new()),
            },
            Mode::Rbac => match self.index(api).await {
                Ok(index) => match index.allows(user, request) {
                    Some(reason) => Opinion::Allow(reason),
                    None => Opinion::None(index.problems(user, request.namespace)),
                },
                Err(reason) => Opinion::None(reason),
            },
            Mode::AlwaysAllow => Opinion::Allow(Arc::from("")),
            Mode::Webhook(webhook) => Box::pin(webhook.decide(user, request)).await,
            Mode::AlwaysDeny => Opinion::Deny("Everything is forbidden.".to_owned()),
        }
    }

    /// The roles and bindings as they are now.
    pub async fn index(&self, api: &Api) -> Result<Arc<Index>, String> {
        let held = self.index.read().clone();
        let sources = rbac::Sources::of(api, &held).await.map_err(|error| error.to_string())?;
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

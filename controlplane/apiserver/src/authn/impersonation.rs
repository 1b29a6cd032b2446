//! `Impersonate-*` headers: acting as somebody else, when one may.
//!
//! There are several ways to be allowed to, tried in turn: the constrained ones (KEP-5284), which
//! ask for `impersonate:<mode>` on the identity and `impersonate-on:<mode>:<verb>` on what is done
//! with it, and the old one, which asks for `impersonate` on each part of the identity.

use std::sync::Arc;

use http::HeaderMap;

use super::{AUTHENTICATED, UNAUTHENTICATED, UserInfo};
use crate::audit::Record;
use crate::authz::Request;
use crate::error::{ApiError, Result};
use crate::http::info::RequestInfo;
use crate::server::Api;

const PREFIX: &str = "impersonate-";
const EXTRA: &str = "impersonate-extra-";
const GROUP: &str = "authentication.k8s.io";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

/// A way to be allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    AssociatedNode,
    ArbitraryNode,
    ServiceAccount,
    UserInfo,
    Legacy,
}

impl Mode {
    const ALL: [Mode; 5] =
        [Mode::AssociatedNode, Mode::ArbitraryNode, Mode::ServiceAccount, Mode::UserInfo, Mode::Legacy];

    fn name(self) -> &'static str {
        match self {
            Mode::AssociatedNode => "associated-node",
            Mode::ArbitraryNode => "arbitrary-node",
            Mode::ServiceAccount => "serviceaccount",
            Mode::UserInfo => "user-info",
            Mode::Legacy => "",
        }
    }

    fn verb(self) -> String {
        if self == Mode::Legacy { "impersonate".to_owned() } else { format!("impersonate:{}", self.name()) }
    }

    /// Whether this way is one for such an identity.
    fn fits(self, user: &UserInfo, wanted: &UserInfo) -> bool {
        let only_name = wanted.uid.is_empty() && wanted.groups.is_empty() && wanted.extra.is_empty();
        let node = wanted.name.strip_prefix("system:node:").filter(|node| !node.is_empty());
        match self {
            Mode::AssociatedNode => {
                let own = user.extra.get(NODE_NAME).map(Vec::as_slice);
                only_name
                    && user.as_service_account().is_some()
                    && matches!((own, node), (Some([own]), Some(node)) if own == node)
            }
            Mode::ArbitraryNode => only_name && node.is_some(),
            Mode::ServiceAccount => only_name && wanted.as_service_account().is_some(),
            Mode::UserInfo => node.is_none() && wanted.as_service_account().is_none(),
            Mode::Legacy => true,
        }
    }
}

/// The user that the request is to be carried out as.
pub async fn apply(
    api: &Api,
    user: Arc<UserInfo>,
    headers: &HeaderMap,
    (info, record): (&RequestInfo, Option<&Record>),
) -> Result<Arc<UserInfo>> {
    if !headers.keys().any(|name| name.as_str().starts_with(PREFIX)) {
        return Ok(user);
    }
    Box::pin(become_another(api, user, headers, (info, record))).await
}

async fn become_another(
    api: &Api,
    user: Arc<UserInfo>,
    headers: &HeaderMap,
    (info, record): (&RequestInfo, Option<&Record>),
) -> Result<Arc<UserInfo>> {
    let wanted = requested(headers);
    if wanted.name.is_empty() {
        if wanted != UserInfo::default() {
            return Err(ApiError::bad_request("requested impersonation without impersonating a user name"));
        }
        return Ok(user);
    }
    let mut first: Option<ApiError> = None;
    for mode in Mode::ALL.into_iter().filter(|mode| mode.fits(&user, &wanted)) {
        match check(api, &user, &wanted, mode, info).await {
            Ok(()) => {
                let verb = mode.verb();
                let wanted = completed(wanted, mode);
                if let Some(record) = record {
                    record.impersonated(&wanted, (mode != Mode::Legacy).then_some(verb.as_str()));
                }
                return Ok(Arc::new(wanted));
            }
            Err(error) => {
                first.get_or_insert(error);
            }
        }
    }
    Err(first.unwrap_or_else(|| ApiError::internal("all impersonation modes failed")))
}

fn requested(headers: &HeaderMap) -> UserInfo {
    let all = |name: &str| -> Vec<String> { headers.get_all(name).iter().map(super::header_text).collect() };
    let first = |name: &str| all(name).into_iter().next().unwrap_or_default();
    let mut wanted = UserInfo {
        name: first("impersonate-user"),
        uid: first("impersonate-uid"),
        groups: all("impersonate-group"),
        ..UserInfo::default()
    };
    for name in headers.keys() {
        if let Some(key) = name.as_str().strip_prefix(EXTRA) {
            let key = crate::http::query::percent_decode(key, false);
            wanted.extra.entry(key).or_default().extend(all(name.as_str()));
        }
    }
    wanted
}

/// Each part of the identity needs its own right; in the constrained ways, what is done with it too.
async fn check(api: &Api, user: &UserInfo, wanted: &UserInfo, mode: Mode, info: &RequestInfo) -> Result<()> {
    let ask = async |request: Request<'_>| match api.authz.decide(api, user, &request).await {
        Ok(_) => Ok(()),
        Err(refused) => Err(request.refusal(user, &refused.reason)),
    };
    if mode != Mode::Legacy {
        let verb = format!("impersonate-on:{}:{}", mode.name(), info.verb);
        ask(Request { verb: &verb, ..Request::from(info) }).await?;
    }
    let verb = mode.verb();
    for request in identity_requests(wanted, mode, &verb) {
        ask(request).await?;
    }
    Ok(())
}

/// What the identity asks for. Pure.
fn identity_requests<'a>(wanted: &'a UserInfo, mode: Mode, verb: &'a str) -> Vec<Request<'a>> {
    let group = if mode == Mode::Legacy { "" } else { GROUP };
    let base = Request { verb, group, version: "v1", ..Request::default() };
    let node = wanted.name.strip_prefix("system:node:").filter(|_| mode != Mode::Legacy);
    let mut requests = vec![match (node, wanted.as_service_account()) {
        // A right on the node that a ServiceAccount's pod runs on is a right on whichever it is.
        (Some(_), _) if mode == Mode::AssociatedNode => Request { resource: "nodes", name: "*", ..base },
        (Some(node), _) => Request { resource: "nodes", name: node, ..base },
        (None, Some((namespace, name))) => Request { resource: "serviceaccounts", namespace, name, ..base },
        (None, None) => Request { resource: "users", name: &wanted.name, ..base },
    }];
    let of_identity = Request { group: GROUP, ..base };
    if !wanted.uid.is_empty() {
        requests.push(Request { resource: "uids", name: &wanted.uid, ..of_identity });
    }
    requests.extend(wanted.groups.iter().map(|name| Request { resource: "groups", name, ..base }));
    for (key, values) in &wanted.extra {
        let extra = |name| Request { resource: "userextras", subresource: key, name, ..of_identity };
        requests.extend(values.iter().map(|value| extra(value)));
    }
    requests
}

/// Groups that the identity implies.
fn completed(mut user: UserInfo, mode: Mode) -> UserInfo {
    if user.groups.is_empty()
        && let Some((namespace, name)) = user.as_service_account()
    {
        user.groups = UserInfo::service_account(namespace, name).groups;
    }
    if matches!(mode, Mode::AssociatedNode | Mode::ArbitraryNode) {
        user.groups = vec!["system:nodes".to_owned()];
    }
    let implied = if user.name == "system:anonymous" { UNAUTHENTICATED } else { AUTHENTICATED };
    if !user.in_group(AUTHENTICATED) && !user.in_group(UNAUTHENTICATED) {
        user.groups.push(implied.to_owned());
    }
    user
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn every_part_of_an_identity_is_asked_for() {
        let wanted = requested(&headers(&[
            ("impersonate-user", "jane"),
            ("impersonate-uid", "7"),
            ("impersonate-group", "dev"),
            ("impersonate-group", "ops"),
            ("impersonate-extra-example.com%2fscope", "view"),
        ]));
        assert_eq!(wanted.extra["example.com/scope"], ["view"]);
        let asked: Vec<_> = identity_requests(&wanted, Mode::Legacy, "impersonate")
            .iter()
            .map(|request| (request.group, request.full_resource(), request.name))
            .map(|(group, resource, name)| format!("{group}|{resource}|{name}"))
            .collect();
        assert_eq!(
            asked,
            [
                "|users|jane",
                "authentication.k8s.io|uids|7",
                "|groups|dev",
                "|groups|ops",
                "authentication.k8s.io|userextras/example.com/scope|view"
            ]
        );
        let constrained = identity_requests(&wanted, Mode::UserInfo, "impersonate:user-info");
        assert!(constrained.iter().all(|request| request.group == GROUP && request.verb == "impersonate:user-info"));
    }

    #[test]
    fn a_name_that_is_not_ascii_does_not_leave_the_request_to_its_sender() {
        let wanted = requested(&headers(&[("impersonate-user", "jürgen"), ("impersonate-group", "büro")]));
        assert_eq!((wanted.name.as_str(), wanted.groups), ("jürgen", vec!["büro".to_owned()]));
    }

    #[test]
    fn modes_are_for_their_kind_of_identity() {
        let named = |name: &str| UserInfo::new(name, &[]);
        let mut bot = UserInfo::service_account("a", "bot");
        bot.extra.insert(NODE_NAME.to_owned(), vec!["n1".to_owned()]);
        let of = |user: &UserInfo, wanted: &UserInfo| -> Vec<&str> {
            Mode::ALL.into_iter().filter(|mode| mode.fits(user, wanted)).map(Mode::name).collect()
        };
        assert_eq!(of(&bot, &named("system:node:n1")), ["associated-node", "arbitrary-node", ""]);
        assert_eq!(of(&bot, &named("system:node:n2")), ["arbitrary-node", ""]);
        assert_eq!(of(&bot, &named("system:serviceaccount:a:b")), ["serviceaccount", ""]);
        assert_eq!(of(&bot, &named("jane")), ["user-info", ""]);
        assert_eq!(completed(named("system:node:n1"), Mode::ArbitraryNode).groups, ["system:nodes", AUTHENTICATED]);
        assert_eq!(completed(named("system:anonymous"), Mode::Legacy).groups, [UNAUTHENTICATED]);
    }
}

//! `Impersonate-*` headers: acting as somebody else, when one may.

use std::sync::Arc;

use http::HeaderMap;

use super::{AUTHENTICATED, UNAUTHENTICATED, UserInfo};
use crate::authz::Request;
use crate::error::{ApiError, Result};
use crate::server::Api;

const EXTRA: &str = "impersonate-extra-";

/// The user that the request is to be carried out as.
pub async fn apply(api: &Api, user: Arc<UserInfo>, headers: &HeaderMap) -> Result<Arc<UserInfo>> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let wanted = requested(headers);
    if text("impersonate-user").is_empty() {
        if wanted != UserInfo::default() {
            return Err(ApiError::bad_request("requested impersonation without impersonating a user"));
        }
        return Ok(user);
    }
    check(api, &user, &wanted).await?;
    Ok(Arc::new(completed(wanted)))
}

fn requested(headers: &HeaderMap) -> UserInfo {
    let all = |name: &str| -> Vec<String> {
        headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).map(str::to_owned).collect()
    };
    let mut wanted = UserInfo {
        name: all("impersonate-user").pop().unwrap_or_default(),
        uid: all("impersonate-uid").pop().unwrap_or_default(),
        groups: all("impersonate-group"),
        ..UserInfo::default()
    };
    for name in headers.keys() {
        if let Some(key) = name.as_str().strip_prefix(EXTRA) {
            let key = crate::http::query::percent_decode(key, false);
            wanted.extra.insert(key, all(name.as_str()));
        }
    }
    wanted
}

/// Each part of the identity needs its own right.
async fn check(api: &Api, user: &UserInfo, wanted: &UserInfo) -> Result<()> {
    let ask = |request: Request<'static>| request;
    let base = ask(Request { verb: "impersonate", ..Request::default() });
    let mut requests = Vec::new();
    match wanted.as_service_account() {
        Some((namespace, name)) => requests.push(Request { resource: "serviceaccounts", namespace, name, ..base }),
        None => requests.push(Request { resource: "users", name: &wanted.name, ..base }),
    }
    requests.extend(wanted.groups.iter().map(|group| Request { resource: "groups", name: group, ..base }));
    let group = "authentication.k8s.io";
    if !wanted.uid.is_empty() {
        requests.push(Request { group, resource: "uids", name: &wanted.uid, ..base });
    }
    for (key, values) in &wanted.extra {
        let extra = |value| Request { group, resource: "userextras", subresource: key, name: value, ..base };
        requests.extend(values.iter().map(|value| extra(value)));
    }
    for request in requests {
        api.authz.decide(api, user, &request).await.map_err(|reason| request.refusal(user, &reason))?;
    }
    Ok(())
}

/// Groups that the identity implies.
fn completed(mut user: UserInfo) -> UserInfo {
    if user.groups.is_empty()
        && let Some((namespace, name)) = user.as_service_account()
    {
        user.groups = UserInfo::service_account(namespace, name).groups;
    }
    let implied = if user.name == "system:anonymous" { UNAUTHENTICATED } else { AUTHENTICATED };
    if !user.in_group(AUTHENTICATED) && !user.in_group(UNAUTHENTICATED) {
        user.groups.push(implied.to_owned());
    }
    user
}

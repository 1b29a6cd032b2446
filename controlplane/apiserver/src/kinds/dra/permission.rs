//! Who may change which part of a claim's status (`pkg/registry/resource/utils.go`): beside the right
//! to update the status there are rights to give devices, and to report on those of a driver.
//!
//! ```text
//! status.allocation, status.reservedFor   VERB resourceclaims/binding, in the whole cluster
//! status.devices, for each driver         arbitrary-node:VERB resourceclaims/driver, by the driver's name,
//!                                         or associated-node:VERB from the node the claim is allocated to
//! ```

use std::collections::BTreeSet;

use api::field::{Error, ErrorList, Path};
use api::names;
use serde_json::Value;

use super::GROUP;
use crate::admit::Access;
use crate::authn::UserInfo;
use crate::authz::Request;
use crate::kinds::value::{has, list, same_at, text};
use crate::resource::Context;

const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

/// What the one who asks may not change.
pub async fn check(ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let status = Path::empty().child("status");
    if !same_at(new, old, "status.allocation") || !same_at(new, old, "status.reservedFor") {
        let access = access(ctx.verb, "binding", "", "");
        if let Some(why) = refusal(ctx, access).await {
            errors.push(Error::forbidden(&status, format!(
                "changing status.allocation or status.reservedFor requires resource=\"resourceclaims/binding\", verb=\"{}\" permission: {why}",
                ctx.verb
            )));
        }
    }
    let mut verbs = vec![format!("arbitrary-node:{}", ctx.verb)];
    if is_on(ctx.user, allocated_to(new)) {
        verbs.insert(0, format!("associated-node:{}", ctx.verb));
    }
    for driver in changed_drivers(new, old) {
        let mut first = None;
        for verb in &verbs {
            let Some(why) = refusal(ctx, access(verb, "driver", ctx.namespace, driver)).await else {
                first = None;
                break;
            };
            first.get_or_insert(why);
        }
        if let Some(why) = first {
            let verbs = verbs.join(" ");
            errors.push(Error::forbidden(&status.child("devices"), format!(
                "changing status.devices requires resource=\"resourceclaims/driver\", verb=\"[{verbs}]\" permission: {why}"
            )));
        }
    }
    errors
}

fn access<'a>(verb: &'a str, subresource: &'a str, namespace: &'a str, name: &'a str) -> Access<'a> {
    Access { verb, group: GROUP, resource: "resourceclaims", subresource, namespace, name, path: "" }
}

/// Why it is not allowed; none if it is.
async fn refusal(ctx: &Context<'_>, access: Access<'_>) -> Option<String> {
    let request = Request::from(access);
    if ctx.cluster.allowed(ctx.user, access).await {
        return None;
    }
    let status = request.refusal(ctx.user, "").to_status();
    Some(text(&status, "message").to_owned())
}

/// Drivers that something new is said of, or nothing any more. What goes with a device that was taken
/// back is nobody's report.
fn changed_drivers<'a>(new: &'a Value, old: &'a Value) -> BTreeSet<&'a str> {
    let key = |device: &'a Value| ["driver", "pool", "device", "shareID"].map(|field| text(device, field));
    let (now, before) = (list(new, "status.devices"), list(old, "status.devices"));
    let held = list(new, "status.allocation.devices.results");
    let is_held = |device: &&'a Value| {
        let device = key(device);
        held.iter().any(|result| key(result)[..3] == device[..3])
    };
    let changed = now.iter().filter(|device| !before.contains(device));
    let gone = before.iter().filter(|device| !now.iter().any(|other| key(other) == key(device))).filter(is_held);
    changed.chain(gone).map(|device| text(device, "driver")).collect()
}

/// The one node that a claim can be used on; empty if there is no such.
fn allocated_to(claim: &Value) -> &str {
    let [term] = list(claim, "status.allocation.nodeSelector.nodeSelectorTerms") else { return "" };
    let [field] = list(term, "matchFields") else { return "" };
    let [Value::String(node)] = list(field, "values") else { return "" };
    let named = text(field, "key") == "metadata.name" && text(field, "operator") == "In";
    if named && !has(term, "matchExpressions") { node } else { "" }
}

/// Whether this is the ServiceAccount of a pod on `node`.
fn is_on(user: &UserInfo, node: &str) -> bool {
    let Some([name]) = user.extra.get(NODE_NAME).map(Vec::as_slice) else { return false };
    !node.is_empty() && user.as_service_account().is_some() && names::dns1123_subdomain(name).is_empty() && name == node
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::fake::Fixed;
    use api::field::join;
    use jiff::Timestamp;
    use serde_json::json;

    fn on(node: &str) -> Value {
        json!({"nodeSelector": {"nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}]},
            "devices": {"results": [{"driver": "d", "pool": "p", "device": "x"}]}})
    }

    fn report(driver: &str, word: &str) -> Value {
        json!({"driver": driver, "pool": "p", "device": "x", "data": {"word": word}})
    }

    fn account(node: &str) -> UserInfo {
        let mut account = UserInfo::service_account("kube-system", "driver");
        account.extra.insert(NODE_NAME.to_owned(), vec![node.to_owned()]);
        account
    }

    async fn asked(user: &UserInfo, new: Value, old: Value, rights: &[&str]) -> String {
        let rights: Vec<String> = rights.iter().map(|right| (*right).to_owned()).collect();
        let cluster = Fixed::judged_by(move |_, access| {
            let asked = format!("{} {} {} {}", access.verb, access.subresource, access.namespace, access.name);
            rights.contains(&asked)
        });
        let ctx = Context {
            user,
            verb: "update",
            group: GROUP,
            namespace: "ns",
            name: "c",
            subresource: "status",
            dry_run: false,
            now: Timestamp::UNIX_EPOCH,
            cluster: &cluster,
            warnings: &Default::default(),
        };
        join(&check(&ctx, &json!({"status": new}), &json!({"status": old})).await)
    }

    #[tokio::test]
    async fn to_give_devices_is_a_right_of_its_own() {
        let user = UserInfo::new("jane", &[]);
        let given = json!({"allocation": on("n")});
        let refused = "status: Forbidden: changing status.allocation or status.reservedFor requires resource=\"resourceclaims/binding\", \
            verb=\"update\" permission: resourceclaims.resource.k8s.io is forbidden: User \"jane\" cannot update resource \
            \"resourceclaims/binding\" in API group \"resource.k8s.io\" at the cluster scope";
        assert_eq!(asked(&user, given.clone(), json!({}), &[]).await, refused);
        assert_eq!(asked(&user, given.clone(), json!({}), &["update binding  "]).await, "[]");
        let reserved = json!({"allocation": on("n"), "reservedFor": [{"uid": "1"}]});
        assert_eq!(asked(&user, reserved, given.clone(), &[]).await, refused);
        assert_eq!(asked(&user, given.clone(), given, &[]).await, "[]");
    }

    #[tokio::test]
    async fn drivers_report_on_their_own_devices() {
        let change = |node: &str, driver: &str| {
            let status = |word: &str| json!({"allocation": on(node), "devices": [report(driver, word)]});
            (status("new"), status("old"))
        };
        let here = "associated-node:update driver ns d";
        let anywhere = "arbitrary-node:update driver ns d";
        for (user, node, driver, rights, allowed) in [
            (account("n"), "n", "d", vec![here], true),
            (account("n"), "n", "d", vec![anywhere], true),
            (account("n"), "n", "d", vec![], false),
            (account("n"), "m", "d", vec![here], false),
            (account("n"), "m", "d", vec![anywhere], true),
            (account("n"), "n", "e", vec![here, anywhere], false),
            (UserInfo::service_account("kube-system", "driver"), "n", "d", vec![here], false),
            (UserInfo::new("system:node:n", &["system:nodes"]), "n", "d", vec![here], false),
        ] {
            let (new, old) = change(node, driver);
            let said = asked(&user, new, old, &rights).await;
            assert_eq!(said == "[]", allowed, "{user:?} {node} {driver} {rights:?}: {said}");
            assert!(allowed || said.starts_with("status.devices: Forbidden: changing status.devices requires resource=\"resourceclaims/driver\", verb=\"["), "{said}");
        }
        let (new, old) = change("n", "d");
        let without = json!({"allocation": on("n")});
        assert_ne!(asked(&account("m"), without, old.clone(), &[]).await, "[]", "a report is taken back");
        assert_eq!(asked(&account("m"), json!({}), old, &["update binding  "]).await, "[]", "the device is");
        assert_eq!(asked(&account("m"), new.clone(), new, &[]).await, "[]");
    }
}

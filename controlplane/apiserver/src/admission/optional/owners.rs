//! `OwnerReferencesPermissionEnforcement`: who changes an object's owners must be able to delete it,
//! and who blocks an owner's deletion must be able to set that owner's finalizers.

use async_trait::async_trait;
use serde_json::Value;

use crate::admit::{Access, Admission, Attributes, Cluster, Operation};
use crate::error::Result;
use crate::kinds::value::{flag, list, same, text};
use crate::resource::split_api_version;

pub struct OwnerReferencesPermissionEnforcement;

const OWNERS: &str = "metadata.ownerReferences";

#[async_trait]
impl Admission for OwnerReferencesPermissionEnforcement {
    fn name(&self) -> &'static str {
        "OwnerReferencesPermissionEnforcement"
    }

    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        // A pod's status cannot change its owners.
        let status_of_pod = attributes.is("", "pods") && attributes.subresource == "status";
        matches!(attributes.operation, Operation::Create | Operation::Update)
            && !status_of_pod
            && changes_owners(&attributes.object, attributes.old)
    }

    async fn validate(&self, attributes: &mut Attributes<'_>, cluster: &dyn Cluster) -> Result<()> {
        // Who creates an object may say whose it is.
        if attributes.operation != Operation::Create {
            let deletes = Access {
                verb: "delete",
                group: attributes.group,
                resource: &attributes.descriptor.plural,
                subresource: attributes.subresource,
                namespace: attributes.namespace,
                name: attributes.name,
                ..Access::default()
            };
            if !cluster.allowed(attributes.user, deletes).await {
                return Err(attributes.forbid("cannot set an ownerRef on a resource you can't delete: , <nil>"));
            }
        }
        let blocking = newly_blocking(&attributes.object, attributes.old);
        let anything = Access {
            verb: "update",
            group: "*",
            resource: "*",
            subresource: "finalizers",
            name: "*",
            ..Access::default()
        };
        if blocking.is_empty() || cluster.allowed(attributes.user, anything).await {
            return Ok(());
        }
        for owner in blocking {
            may_finalize(attributes, cluster, owner).await?;
        }
        Ok(())
    }
}

async fn may_finalize(attributes: &Attributes<'_>, cluster: &dyn Cluster, owner: &Value) -> Result<()> {
    let (api_version, kind) = (text(owner, "apiVersion"), text(owner, "kind"));
    let (group, version) = split_api_version(api_version);
    let served = cluster.schema(group, version, kind).and_then(|_| cluster.resource_of(group, kind));
    let Some((resource, namespaced)) = served else {
        return Err(attributes.forbid(format!(
            "cannot set blockOwnerDeletion in this case because cannot find RESTMapping for APIVersion {api_version} Kind {kind}: no matches for kind \"{kind}\" in version \"{api_version}\""
        )));
    };
    let access = Access {
        verb: "update",
        group,
        resource: &resource,
        subresource: "finalizers",
        // An owner in a namespace is in the object's own.
        namespace: if namespaced { attributes.namespace } else { "" },
        name: text(owner, "name"),
        ..Access::default()
    };
    if cluster.allowed(attributes.user, access).await {
        return Ok(());
    }
    Err(attributes.forbid(
        "cannot set blockOwnerDeletion if an ownerReference refers to a resource you can't set finalizers on: , <nil>",
    ))
}

fn changes_owners(new: &Value, old: Option<&Value>) -> bool {
    let (new, old) = (list(new, OWNERS), old.map_or(&[][..], |old| list(old, OWNERS)));
    new.len() != old.len() || new.iter().zip(old).any(|(one, other)| !same(one, other))
}

/// Owners that are blocked, and were not before.
fn newly_blocking<'a>(new: &'a Value, old: Option<&Value>) -> Vec<&'a Value> {
    let blocks = |owner: &Value| flag(owner, "blockOwnerDeletion");
    let before = |owner: &Value| {
        let same_owner = |other: &&Value| text(other, "uid") == text(owner, "uid");
        // Of several with one uid the last counts.
        old.and_then(|old| list(old, OWNERS).iter().rfind(same_owner)).is_some_and(blocks)
    };
    list(new, OWNERS).iter().filter(|owner| blocks(owner) && !before(owner)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::super::fake::{Fixed, Request};
    use super::*;
    use crate::authn::UserInfo;
    use serde_json::json;

    fn pod(owners: &[Value]) -> Value {
        json!({"metadata": {"name": "p", "namespace": "default", "ownerReferences": owners}})
    }

    fn plain(name: &str) -> Value {
        json!({"name": name, "uid": name})
    }

    /// `kind/name`, blocking or not.
    fn owner(kind: &str, name: &str, block: Option<bool>) -> Value {
        let mut owner = json!({"apiVersion": "v1", "kind": kind, "name": name, "uid": name});
        if let Some(block) = block {
            owner["blockOwnerDeletion"] = block.into();
        }
        owner
    }

    /// Upstream's users: none, those who may not delete or finalize something, and one who may all.
    fn may(user: &str, access: &Access<'_>) -> bool {
        match user {
            "non-deleter" => access.verb != "delete" && access.subresource != "finalizers",
            "non-pod-deleter" => access.verb != "delete" || access.resource != "pods",
            "non-rc-deleter" => match (access.verb, access.resource) {
                ("delete", "replicationcontrollers") => false,
                ("update", "replicationcontrollers") => access.subresource != "finalizers",
                ("update", "*") => access.subresource != "finalizers",
                _ => true,
            },
            "non-node-deleter" => match access.resource {
                "nodes" | "*" => !(access.verb == "update" && access.subresource == "finalizers"),
                _ => true,
            },
            _ => true,
        }
    }

    async fn outcome(user: &str, old: Option<&[Value]>, new: &[Value]) -> std::result::Result<(), String> {
        let cluster = Fixed::judged_by(may);
        let operation = if old.is_some() { Operation::Update } else { Operation::Create };
        let mut request = Request::new("", "pods", operation, pod(new));
        request.old = old.map(pod);
        request.user = UserInfo::new(user, &[]);
        request.admit(&OwnerReferencesPermissionEnforcement, &cluster).await
    }

    /// Upstream's rows (`TestGCAdmission`).
    #[tokio::test]
    async fn owners_are_for_those_who_may_delete() {
        const REFUSED: &str = "pods \"p\" is forbidden: cannot set an ownerRef on a resource you can't delete: , <nil>";
        let (none, first, both) = (&[][..], &[plain("first")][..], &[plain("first"), plain("second")][..]);
        for (user, old, new, allowed) in [
            ("super", None, none, true),
            ("super", None, first, true),
            ("non-deleter", None, none, true),
            ("non-deleter", None, first, true),
            ("non-pod-deleter", None, first, true),
            ("super", Some(none), first, true),
            ("non-deleter", Some(none), none, true),
            ("non-deleter", Some(first), first, true),
            ("non-deleter", Some(none), first, false),
            ("non-deleter", Some(first), both, false),
            ("non-pod-deleter", Some(none), first, false),
        ] {
            let expected = if allowed { Ok(()) } else { Err(REFUSED.to_owned()) };
            assert_eq!(outcome(user, old, new).await, expected, "{user} {old:?} {new:?}");
        }
    }

    /// Upstream's rows (`TestBlockOwnerDeletionAdmission`).
    #[tokio::test]
    async fn blocking_is_for_those_who_may_finalize() {
        const REFUSED: &str = "pods \"p\" is forbidden: cannot set blockOwnerDeletion if an ownerReference refers to a resource you can't set finalizers on: , <nil>";
        let rc = |block| owner("ReplicationController", "rc", block);
        let node = owner("Node", "node", Some(true));
        for (user, old, new, allowed) in [
            ("super", None, &[rc(Some(true))][..], true),
            ("non-rc-deleter", None, &[rc(Some(true))], false),
            ("non-rc-deleter", None, &[rc(Some(false))], true),
            ("non-rc-deleter", None, &[rc(None)], true),
            ("non-rc-deleter", Some(&[rc(Some(true))][..]), &[rc(Some(true))], true),
            ("non-rc-deleter", Some(&[rc(Some(false))]), &[rc(Some(true))], false),
            ("non-rc-deleter", Some(&[rc(None)]), &[rc(Some(true))], false),
            ("non-rc-deleter", Some(&[rc(Some(true))]), &[rc(Some(false))], true),
            ("non-rc-deleter", Some(&[]), &[rc(Some(true)), node.clone()], false),
            ("non-node-deleter", None, std::slice::from_ref(&node), false),
            ("non-node-deleter", None, &[rc(Some(true))], true),
            ("super", None, &[owner("Nothing", "n", Some(true))], true),
        ] {
            let expected = if allowed { Ok(()) } else { Err(REFUSED.to_owned()) };
            assert_eq!(outcome(user, old, new).await, expected, "{user} {old:?} {new:?}");
        }
        assert_eq!(
            outcome("non-rc-deleter", None, &[owner("Nothing", "n", Some(true))]).await.unwrap_err(),
            "pods \"p\" is forbidden: cannot set blockOwnerDeletion in this case because cannot find RESTMapping for APIVersion v1 Kind Nothing: no matches for kind \"Nothing\" in version \"v1\""
        );
    }
}

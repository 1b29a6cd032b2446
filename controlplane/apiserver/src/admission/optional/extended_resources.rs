//! `ExtendedResourceToleration`: pods that ask for an extended resource tolerate nodes that are
//! tainted with its name, which only they shall use.

use std::collections::BTreeSet;

use async_trait::async_trait;
use serde_json::{Value, json};

use super::changes_pod;
use crate::admit::{Admission, Attributes, Cluster};
use crate::error::Result;
use crate::kinds::core::pod::is_extended_resource;
use crate::kinds::value::{ensure_list, entries, list, text};

pub struct ExtendedResourceToleration;

#[async_trait]
impl Admission for ExtendedResourceToleration {
    fn name(&self) -> &'static str {
        "ExtendedResourceToleration"
    }

    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        changes_pod(attributes)
    }

    async fn mutate(&self, attributes: &mut Attributes<'_>, _cluster: &dyn Cluster) -> Result<()> {
        let pod = &attributes.object;
        let containers = ["spec.containers", "spec.initContainers"].into_iter().flat_map(|field| list(pod, field));
        let wanted: BTreeSet<String> = containers
            .flat_map(|container| entries(container, "resources.requests"))
            .filter(|(name, _)| is_extended_resource(name))
            .map(|(name, _)| name.to_owned())
            .collect();
        for resource in wanted {
            tolerate(&mut attributes.object, &resource);
        }
        Ok(())
    }
}

/// Adds the toleration; one that says nearly the same takes this form.
fn tolerate(pod: &mut Value, resource: &str) {
    let toleration = json!({"key": resource, "operator": "Exists", "effect": "NoSchedule"});
    let is_for = |other: &Value| {
        text(other, "key") == resource
            && text(other, "effect") == "NoSchedule"
            && text(other, "operator") == "Exists"
            && text(other, "value").is_empty()
    };
    let tolerations = ensure_list(pod, "spec.tolerations");
    match tolerations.iter_mut().find(|other| is_for(other)) {
        Some(held) => *held = toleration,
        None => tolerations.push(toleration),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::fake::{Fixed, Request};
    use super::*;

    /// Upstream's rows (`TestAdmit`).
    #[tokio::test]
    async fn tolerations_for_what_is_asked_for() {
        let (ek, do_) = ("example.com/device-ek", "example.com/device-do");
        let added = |key: &str| json!({"key": key, "operator": "Exists", "effect": "NoSchedule"});
        let foo = json!({"key": "foo", "operator": "Equal", "value": "bar", "effect": "NoSchedule"});
        let other = json!({"key": ek, "operator": "Equal", "value": "foo", "effect": "NoExecute"});
        let all = json!({"operator": "Exists"});
        for (containers, init, held, expected) in [
            (&[][..], &[][..], vec![], vec![]),
            (&["cpu"], &[], vec![], vec![]),
            (&[], &["memory"], vec![], vec![]),
            (&[ek], &[], vec![], vec![added(ek)]),
            (&[], &[do_], vec![], vec![added(do_)]),
            (&["cpu", ek], &[], vec![foo.clone()], vec![foo, added(ek)]),
            (&["memory", ek], &["cpu", do_], vec![], vec![added(do_), added(ek)]),
            (&["cpu", "memory", ek], &[], vec![added(ek)], vec![added(ek)]),
            (&["cpu", "memory", ek], &[], vec![other.clone()], vec![other, added(ek)]),
            (&["cpu", "memory", ek], &[], vec![all.clone()], vec![all, added(ek)]),
        ] {
            let asking = |names: &[&str]| -> Vec<Value> {
                names.iter().map(|name| json!({"resources": {"requests": {*name: "1"}}})).collect()
            };
            let mut request = Request::create(
                "",
                "pods",
                json!({"spec": {"containers": asking(containers), "initContainers": asking(init), "tolerations": held}}),
            );
            request.admit(&ExtendedResourceToleration, &Fixed::default()).await.unwrap();
            assert_eq!(request.object["spec"]["tolerations"], json!(expected), "{containers:?} {init:?}");
        }
    }
}

//! `RuntimeClass`: a pod takes over its class's overhead and scheduling constraints.

use async_trait::async_trait;
use serde_json::Value;

use super::creates;
use crate::admit::{Admission, Attributes, Cluster};
use crate::error::Result;
use crate::kinds::value::{at, ensure_list, ensure_map, has, list, map, opt_text, same, set};

const WITHOUT_CLASS: &str = "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead";

pub struct RuntimeClass;

#[async_trait]
impl Admission for RuntimeClass {
    fn name(&self) -> &'static str {
        "RuntimeClass"
    }

    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        creates(attributes, "", "pods")
    }

    async fn mutate(&self, attributes: &mut Attributes<'_>, cluster: &dyn Cluster) -> Result<()> {
        let Some(wanted) = opt_text(&attributes.object, "spec.runtimeClassName").map(str::to_owned) else {
            return if has(&attributes.object, "spec.overhead") {
                Err(attributes.forbid(WITHOUT_CLASS))
            } else {
                Ok(())
            };
        };
        let Some(class) = cluster.get("node.k8s.io", "runtimeclasses", "", &wanted).await? else {
            return Err(attributes.forbid(format!("pod rejected: RuntimeClass \"{wanted}\" not found")));
        };
        let overhead = at(&class, "overhead.podFixed");
        let given = at(&attributes.object, "spec.overhead");
        if given.is_null() {
            if !overhead.is_null() {
                set(&mut attributes.object, "spec.overhead", overhead.clone());
            }
        } else if overhead.is_null() {
            return Err(attributes.forbid(WITHOUT_CLASS));
        } else if !same(given, overhead) {
            return Err(attributes.forbid("pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead"));
        }
        schedule(attributes, &class)
    }
}

fn schedule(attributes: &mut Attributes<'_>, class: &Value) -> Result<()> {
    if let Some(wanted) = map(class, "scheduling.nodeSelector") {
        for (key, value) in wanted {
            let given = map(&attributes.object, "spec.nodeSelector").and_then(|selector| selector.get(key));
            if given.is_some_and(|given| given != value) {
                return Err(attributes.forbid(format!(
                    "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; pod.spec.nodeSelector[{key}] = {}",
                    value.as_str().unwrap_or(""),
                    given.and_then(Value::as_str).unwrap_or("")
                )));
            }
        }
        let selector = ensure_map(&mut attributes.object, "spec.nodeSelector");
        selector.extend(wanted.iter().map(|(key, value)| (key.clone(), value.clone())));
    }
    let wanted = list(class, "scheduling.tolerations");
    if !wanted.is_empty() {
        let tolerations = ensure_list(&mut attributes.object, "spec.tolerations");
        for toleration in wanted {
            if !tolerations.contains(toleration) {
                tolerations.push(toleration.clone());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::fake::{Fixed, Request};
    use super::*;
    use serde_json::json;

    #[tokio::test]
    async fn classes() {
        let class = json!({"metadata": {"name": "vm"}, "overhead": {"podFixed": {"cpu": "100m"}},
            "scheduling": {"nodeSelector": {"vm": "yes"}, "tolerations": [{"key": "vm", "operator": "Exists"}]}});
        let cluster = Fixed::with(&[("node.k8s.io", "runtimeclasses", class)]);
        let pod = |spec: Value| Request::create("", "pods", json!({"metadata": {"name": "p"}, "spec": spec}));
        let mut request = pod(json!({"runtimeClassName": "vm", "nodeSelector": {"a": "b"}}));
        request.admit(&RuntimeClass, &cluster).await.unwrap();
        assert_eq!(request.object["spec"]["overhead"], json!({"cpu": "100m"}));
        assert_eq!(request.object["spec"]["nodeSelector"], json!({"a": "b", "vm": "yes"}));
        assert_eq!(request.object["spec"]["tolerations"], json!([{"key": "vm", "operator": "Exists"}]));
        assert!(
            pod(json!({"runtimeClassName": "x"}))
                .admit(&RuntimeClass, &cluster)
                .await
                .unwrap_err()
                .contains("RuntimeClass \"x\" not found")
        );
        assert!(
            pod(json!({"runtimeClassName": "vm", "nodeSelector": {"vm": "no"}}))
                .admit(&RuntimeClass, &cluster)
                .await
                .is_err()
        );
        assert!(pod(json!({"overhead": {"cpu": "1"}})).admit(&RuntimeClass, &cluster).await.is_err());
    }
}

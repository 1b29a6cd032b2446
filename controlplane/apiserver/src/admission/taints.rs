//! `TaintNodesByCondition`: a new node takes no pods before it is known to be ready.
//! `DefaultTolerationSeconds`: pods stay five minutes on a node that is not.

use async_trait::async_trait;
use serde_json::{Value, json};

use super::creates;
use crate::admit::{Admission, Attributes, Cluster, Operation};
use crate::error::Result;
use crate::kinds::value::{ensure_list, list, text};

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const SECONDS: i64 = 300;

pub struct TaintNodesByCondition;

#[async_trait]
impl Admission for TaintNodesByCondition {
    fn name(&self) -> &'static str {
        "TaintNodesByCondition"
    }

    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        creates(attributes, "", "nodes")
    }

    async fn mutate(&self, attributes: &mut Attributes<'_>, _cluster: &dyn Cluster) -> Result<()> {
        let has = |taint: &Value| text(taint, "key") == NOT_READY && text(taint, "effect") == "NoSchedule";
        if !list(&attributes.object, "spec.taints").iter().any(has) {
            ensure_list(&mut attributes.object, "spec.taints").push(json!({"key": NOT_READY, "effect": "NoSchedule"}));
        }
        Ok(())
    }
}

pub struct DefaultTolerationSeconds;

#[async_trait]
impl Admission for DefaultTolerationSeconds {
    fn name(&self) -> &'static str {
        "DefaultTolerationSeconds"
    }

    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        attributes.is("", "pods")
            && attributes.subresource.is_empty()
            && matches!(attributes.operation, Operation::Create | Operation::Update)
    }

    async fn mutate(&self, attributes: &mut Attributes<'_>, _cluster: &dyn Cluster) -> Result<()> {
        for key in [NOT_READY, UNREACHABLE] {
            let tolerates = |toleration: &Value| {
                matches!(text(toleration, "key"), "") | (text(toleration, "key") == key)
                    && matches!(text(toleration, "effect"), "" | "NoExecute")
            };
            if !list(&attributes.object, "spec.tolerations").iter().any(tolerates) {
                ensure_list(&mut attributes.object, "spec.tolerations").push(
                    json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": SECONDS}),
                );
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::{Fixed, Request};
    use super::*;

    #[tokio::test]
    async fn nodes_start_tainted() {
        let mut request = Request::create("", "nodes", json!({"metadata": {"name": "n"}}));
        request.admit(&TaintNodesByCondition, &Fixed::default()).await.unwrap();
        assert_eq!(request.object["spec"]["taints"], json!([{"key": NOT_READY, "effect": "NoSchedule"}]));
    }

    #[tokio::test]
    async fn tolerations_added_once() {
        for (given, expected) in [
            (json!([]), 2),
            (json!([{"operator": "Exists"}]), 1),
            (json!([{"key": NOT_READY, "operator": "Exists", "effect": "NoExecute"}]), 2),
            (json!([{"key": NOT_READY, "operator": "Exists", "effect": "NoSchedule"}]), 3),
        ] {
            let mut request =
                Request::create("", "pods", json!({"metadata": {"name": "p"}, "spec": {"tolerations": given}}));
            request.admit(&DefaultTolerationSeconds, &Fixed::default()).await.unwrap();
            assert_eq!(request.object["spec"]["tolerations"].as_array().map(Vec::len), Some(expected), "{given}");
        }
    }
}

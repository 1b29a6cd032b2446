//! `Priority`: a pod's priority is its PriorityClass's number, nothing that a user writes.

use async_trait::async_trait;
use serde_json::Value;

use crate::admit::{Admission, Attributes, Cluster, Operation};
use crate::error::Result;
use crate::kinds::value::{flag, int, name, opt_int, opt_text, set, text};

const GROUP: &str = "scheduling.k8s.io";
const CLASSES: &str = "priorityclasses";

pub struct Priority;

#[async_trait]
impl Admission for Priority {
    fn name(&self) -> &'static str {
        "Priority"
    }

    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        attributes.subresource.is_empty()
            && matches!(attributes.operation, Operation::Create | Operation::Update)
            && (attributes.is("", "pods") || attributes.is(GROUP, CLASSES))
    }

    async fn mutate(&self, attributes: &mut Attributes<'_>, cluster: &dyn Cluster) -> Result<()> {
        if !attributes.is("", "pods") {
            return Ok(());
        }
        match (attributes.operation, attributes.old) {
            (Operation::Update, Some(old)) => {
                // Clients that know nothing of these fields leave them out.
                for field in ["spec.priority", "spec.preemptionPolicy"] {
                    let was = crate::kinds::value::at(old, field);
                    if !crate::kinds::value::has(&attributes.object, field) && !was.is_null() {
                        set(&mut attributes.object, field, was.clone());
                    }
                }
                Ok(())
            }
            _ => admit_pod(attributes, cluster).await,
        }
    }

    async fn validate(&self, attributes: &mut Attributes<'_>, cluster: &dyn Cluster) -> Result<()> {
        if !attributes.is(GROUP, CLASSES) || !flag(&attributes.object, "globalDefault") {
            return Ok(());
        }
        let own = name(&attributes.object);
        for class in cluster.list(GROUP, CLASSES, "").await? {
            if flag(&class, "globalDefault") && name(&class) != own {
                let why =
                    format!("PriorityClass {} is already marked as default. Only one default can exist", name(&class));
                return Err(attributes.forbid(why));
            }
        }
        Ok(())
    }
}

async fn admit_pod(attributes: &mut Attributes<'_>, cluster: &dyn Cluster) -> Result<()> {
    let wanted = text(&attributes.object, "spec.priorityClassName").to_owned();
    let class = if wanted.is_empty() {
        default_class(cluster).await?
    } else {
        match find(cluster, &wanted).await? {
            Some(class) => Some(class),
            None => return Err(attributes.forbid(format!("no PriorityClass with name {wanted} was found"))),
        }
    };
    let priority = class.as_deref().map_or(0, |class| int(class, "value"));
    let policy =
        class.as_deref().and_then(|class| opt_text(class, "preemptionPolicy")).unwrap_or("PreemptLowerPriority");
    if let Some(given) = opt_int(&attributes.object, "spec.priority").filter(|given| *given != priority) {
        return Err(attributes.forbid(format!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {priority} from the given PriorityClass name"
        )));
    }
    if let Some(given) = opt_text(&attributes.object, "spec.preemptionPolicy").filter(|given| *given != policy) {
        return Err(attributes.forbid(format!(
            "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"
        )));
    }
    let class_name = class.as_deref().map(|class| name(class).to_owned());
    let policy = policy.to_owned();
    let pod = &mut attributes.object;
    if let (true, Some(class_name)) = (wanted.is_empty(), class_name) {
        set(pod, "spec.priorityClassName", class_name);
    }
    set(pod, "spec.priority", priority);
    set(pod, "spec.preemptionPolicy", policy);
    Ok(())
}

async fn find(cluster: &dyn Cluster, wanted: &str) -> Result<Option<std::sync::Arc<Value>>> {
    match cluster.get(GROUP, CLASSES, "", wanted).await? {
        Some(class) => Ok(Some(class)),
        None => cluster.get_live(GROUP, CLASSES, "", wanted).await,
    }
}

/// Of several defaults (made at the same time) the lowest counts.
async fn default_class(cluster: &dyn Cluster) -> Result<Option<std::sync::Arc<Value>>> {
    let classes = cluster.list(GROUP, CLASSES, "").await?;
    Ok(classes.into_iter().filter(|class| flag(class, "globalDefault")).min_by_key(|class| int(class, "value")))
}

#[cfg(test)]
mod tests {
    use super::super::fake::{Fixed, Request};
    use super::*;
    use serde_json::json;

    #[tokio::test]
    async fn priorities() {
        let cluster = Fixed::with(&[(
            GROUP,
            CLASSES,
            json!({"metadata": {"name": "high"}, "value": 100, "preemptionPolicy": "Never"}),
        )]);
        for (spec, expected) in [
            (json!({}), Ok((0, "PreemptLowerPriority"))),
            (json!({"priorityClassName": "high"}), Ok((100, "Never"))),
            (
                json!({"priorityClassName": "no"}),
                Err("pods \"p\" is forbidden: no PriorityClass with name no was found"),
            ),
            (
                json!({"priority": 7}),
                Err(
                    "pods \"p\" is forbidden: the integer value of priority (7) must not be provided in pod spec; priority admission controller computed 0 from the given PriorityClass name",
                ),
            ),
        ] {
            let mut request = Request::create("", "pods", json!({"metadata": {"name": "p"}, "spec": spec}));
            let outcome = request.admit(&Priority, &cluster).await;
            match expected {
                Err(message) => assert_eq!(outcome, Err(message.to_owned())),
                Ok((priority, policy)) => {
                    assert_eq!(outcome, Ok(()));
                    assert_eq!(request.object["spec"]["priority"], priority);
                    assert_eq!(request.object["spec"]["preemptionPolicy"], policy);
                }
            }
        }
    }

    #[tokio::test]
    async fn one_default() {
        let cluster =
            Fixed::with(&[(GROUP, CLASSES, json!({"metadata": {"name": "a"}, "value": 5, "globalDefault": true}))]);
        let mut request = Request::create(GROUP, CLASSES, json!({"metadata": {"name": "b"}, "globalDefault": true}));
        assert!(
            request
                .admit(&Priority, &cluster)
                .await
                .unwrap_err()
                .contains("PriorityClass a is already marked as default")
        );
        let mut pod = Request::create("", "pods", json!({"metadata": {"name": "p"}, "spec": {}}));
        pod.admit(&Priority, &cluster).await.unwrap();
        assert_eq!(
            (pod.object["spec"]["priorityClassName"].as_str(), pod.object["spec"]["priority"].as_i64()),
            (Some("a"), Some(5))
        );
    }
}

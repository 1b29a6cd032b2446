//! `AlwaysPullImages`: who runs an image must be able to pull it, whatever lies on the node.

use std::collections::BTreeSet;

use api::field::{Error, Path};
use async_trait::async_trait;
use serde_json::Value;

use super::changes_pod;
use crate::admit::{Admission, Attributes, Cluster};
use crate::error::{ApiError, Result};
use crate::kinds::value::{get, has, list, list_mut, set, text};

const CONTAINERS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];
const ALWAYS: &str = "Always";

pub struct AlwaysPullImages;

#[async_trait]
impl Admission for AlwaysPullImages {
    fn name(&self) -> &'static str {
        "AlwaysPullImages"
    }

    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        changes_pod(attributes) && !brings_no_image(attributes)
    }

    async fn mutate(&self, attributes: &mut Attributes<'_>, _cluster: &dyn Cluster) -> Result<()> {
        for field in CONTAINERS {
            for container in list_mut(&mut attributes.object, &format!("spec.{field}")) {
                set(container, "imagePullPolicy", ALWAYS);
            }
        }
        for volume in list_mut(&mut attributes.object, "spec.volumes").filter(|volume| has(volume, "image")) {
            set(volume, "image.pullPolicy", ALWAYS);
        }
        Ok(())
    }

    async fn validate(&self, attributes: &mut Attributes<'_>, _cluster: &dyn Cluster) -> Result<()> {
        let refusals = unpulled(&attributes.object).into_iter().map(|error| attributes.forbid(error));
        let refusals: Vec<ApiError> = refusals.collect();
        match refusals.as_slice() {
            [] => Ok(()),
            [one] => Err(one.clone()),
            many => {
                let messages: Vec<&str> = many.iter().map(ApiError::message).collect();
                Err(ApiError::new(http::StatusCode::INTERNAL_SERVER_ERROR, "", format!("[{}]", messages.join(", "))))
            }
        }
    }
}

/// An update in which every image was there before.
fn brings_no_image(attributes: &Attributes<'_>) -> bool {
    attributes.old.is_some_and(|old| images(&attributes.object).is_subset(&images(old)))
}

fn images(pod: &Value) -> BTreeSet<&str> {
    let containers = CONTAINERS.iter().flat_map(|field| list(&pod["spec"], field));
    let volumes = list(pod, "spec.volumes").iter().filter_map(|volume| get(volume, "image.reference"));
    containers.map(|container| text(container, "image")).chain(volumes.filter_map(Value::as_str)).collect()
}

fn unpulled(pod: &Value) -> Vec<Error> {
    let spec = Path::root("spec");
    let wrong = |path: Path, policy: &str| (policy != ALWAYS).then(|| Error::not_supported(&path, policy, &[ALWAYS]));
    let mut errors = Vec::new();
    for field in CONTAINERS {
        for (at, container) in list(&pod["spec"], field).iter().enumerate() {
            let path = spec.child(field).index(at).child("imagePullPolicy");
            errors.extend(wrong(path, text(container, "imagePullPolicy")));
        }
    }
    for (at, volume) in list(pod, "spec.volumes").iter().enumerate().filter(|(_, volume)| has(volume, "image")) {
        let path = spec.child("volumes").index(at).child("image").child("pullPolicy");
        errors.extend(wrong(path, text(volume, "image.pullPolicy")));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::super::super::fake::{Fixed, Request};
    use super::*;
    use crate::admit::Operation;
    use serde_json::json;

    fn pod(policy: &str) -> Value {
        json!({"metadata": {"name": "123"}, "spec": {
            "initContainers": [{"name": "init", "image": "i", "imagePullPolicy": policy}],
            "containers": [{"name": "c", "image": "image", "imagePullPolicy": policy}],
            "volumes": [{"name": "v", "image": {"reference": "r", "pullPolicy": policy}}, {"name": "e", "emptyDir": {}}],
        }})
    }

    #[tokio::test]
    async fn every_policy_becomes_always() {
        for policy in ["", "IfNotPresent", "Never", "Always"] {
            let mut request = Request::create("", "pods", pod(policy));
            request.admit(&AlwaysPullImages, &Fixed::default()).await.unwrap();
            assert_eq!(request.object, pod(ALWAYS));
        }
    }

    #[tokio::test]
    async fn updates_without_new_images_are_let_be() {
        let mut request = Request::new("", "pods", Operation::Update, pod("Never"));
        request.old = Some(pod("Never"));
        request.admit(&AlwaysPullImages, &Fixed::default()).await.unwrap();
        assert_eq!(request.object, pod("Never"));
        request.object["spec"]["containers"][0]["image"] = "new".into();
        request.admit(&AlwaysPullImages, &Fixed::default()).await.unwrap();
        assert_eq!(request.object["spec"]["containers"][0]["imagePullPolicy"], ALWAYS);
    }

    #[test]
    fn what_somebody_changed_back_is_refused() {
        let refused: Vec<String> = unpulled(&pod("Never")).iter().map(Error::to_string).collect();
        assert_eq!(
            refused,
            [
                "spec.initContainers[0].imagePullPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
                "spec.containers[0].imagePullPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
                "spec.volumes[0].image.pullPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
            ]
        );
    }
}

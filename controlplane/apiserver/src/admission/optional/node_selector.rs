//! `PodNodeSelector`: a namespace's pods run on the nodes that its annotation selects, or that the
//! cluster's configuration says.

use std::collections::BTreeMap;

use async_trait::async_trait;
use http::StatusCode;
use serde::Deserialize;
use serde_json::Value;

use super::super::config::Configuration;
use super::namespace_of;
use crate::admit::{Admission, Attributes, Cluster};
use crate::error::{ApiError, Result};
use crate::kinds::value::{annotation, ensure_map, text};

const ANNOTATION: &str = "scheduler.alpha.kubernetes.io/node-selector";
const DEFAULT: &str = "clusterDefaultNodeSelector";

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PodNodeSelector {
    /// Selectors by namespace that its pods may have; and `clusterDefaultNodeSelector`.
    #[serde(rename = "podNodeSelectorPluginConfig", default)]
    selectors: BTreeMap<String, String>,
}

type Labels = BTreeMap<String, String>;

impl PodNodeSelector {
    /// # Errors
    ///
    /// What is wrong with the configuration.
    pub fn new(given: Option<&Configuration>) -> std::result::Result<Self, String> {
        let Some(given) = given else { return Ok(Self::default()) };
        let plugin: Self = given.untyped()?;
        for (namespace, selector) in &plugin.selectors {
            labels(selector).map_err(|why| given.wrong(format!("podNodeSelectorPluginConfig[{namespace}]: {why}")))?;
        }
        Ok(plugin)
    }

    fn configured(&self, namespace: &str) -> Result<Labels> {
        labels(self.selectors.get(namespace).map_or("", String::as_str)).map_err(unusable)
    }

    /// What a namespace's pods must have.
    fn wanted(&self, namespace: &Value) -> Result<Labels> {
        match annotation(namespace, ANNOTATION) {
            Some(selector) => labels(selector).map_err(unusable),
            None => self.configured(DEFAULT),
        }
    }
}

/// Upstream has no kind of answer for it.
fn unusable(why: String) -> ApiError {
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "", why)
}

/// `a=b, c = d` (`labels.ConvertSelectorToLabelsMap`).
fn labels(selector: &str) -> std::result::Result<Labels, String> {
    if selector.is_empty() {
        return Ok(Labels::new());
    }
    let pair = |part: &str| {
        let sides: Vec<&str> = part.split('=').collect();
        let [key, value] = sides[..] else { return Err(format!("invalid selector: [{}]", sides.join(" "))) };
        let (key, value) = (key.trim(), value.trim());
        let problems = [api::names::qualified_name(key), api::names::label_value(value)].concat();
        if problems.is_empty() {
            Ok((key.to_owned(), value.to_owned()))
        } else {
            Err(format!("invalid selector: {part:?}: {}", problems.join("; ")))
        }
    };
    selector.split(',').map(pair).collect()
}

fn own(pod: &Value) -> Labels {
    let selector = crate::kinds::value::entries(pod, "spec.nodeSelector");
    selector.map(|(key, value)| (key.to_owned(), value.as_str().unwrap_or_default().to_owned())).collect()
}

fn conflict(one: &Labels, other: &Labels) -> bool {
    one.iter().any(|(key, value)| other.get(key).is_some_and(|held| held != value))
}

#[async_trait]
impl Admission for PodNodeSelector {
    fn name(&self) -> &'static str {
        "PodNodeSelector"
    }

    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        super::super::creates(attributes, "", "pods")
    }

    async fn mutate(&self, attributes: &mut Attributes<'_>, cluster: &dyn Cluster) -> Result<()> {
        let wanted = self.wanted(&*namespace_of(attributes, cluster).await?)?;
        if !conflict(&wanted, &own(&attributes.object)) && !wanted.is_empty() {
            let selector = ensure_map(&mut attributes.object, "spec.nodeSelector");
            selector.extend(wanted.into_iter().map(|(key, value)| (key, value.into())));
        }
        self.validate(attributes, cluster).await
    }

    async fn validate(&self, attributes: &mut Attributes<'_>, cluster: &dyn Cluster) -> Result<()> {
        let wanted = self.wanted(&*namespace_of(attributes, cluster).await?)?;
        let own = own(&attributes.object);
        let forbid = |why| Err(ApiError::forbidden("", "pods", text(&attributes.object, "metadata.name"), why));
        if conflict(&wanted, &own) {
            return forbid("pod node label selector conflicts with its namespace node label selector");
        }
        let allowed = self.configured(attributes.namespace)?;
        if !allowed.is_empty() && own.iter().any(|(key, value)| allowed.get(key) != Some(value)) {
            return forbid("pod node label selector labels conflict with its namespace whitelist");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::config::given;
    use super::super::super::fake::{Fixed, Request};
    use super::*;
    use serde_json::json;

    const CONFLICT: Option<&str> = Some("pod node label selector conflicts with its namespace node label selector");
    const FORBIDDEN: Option<&str> = Some("pod node label selector labels conflict with its namespace whitelist");

    /// Upstream's rows (`TestPodAdmission`).
    #[tokio::test]
    async fn selectors_are_merged_and_checked() {
        for (default, namespace, whitelist, pod, merged, refused) in [
            ("", None, "", json!({}), json!({}), None),
            ("infra = false", None, "", json!({}), json!({"infra": "false"}), None),
            ("", Some(" infra = false "), "", json!({}), json!({"infra": "false"}), None),
            ("infra = false", Some("infra=true"), "", json!({}), json!({"infra": "true"}), None),
            ("infra = false", Some(""), "", json!({}), json!({}), None),
            (
                "infra = false",
                Some("infra=true"),
                "",
                json!({"env": "test"}),
                json!({"infra": "true", "env": "test"}),
                None,
            ),
            ("env = test", Some("infra=true"), "", json!({"infra": "false"}), json!({}), CONFLICT),
            (
                "env=dev",
                Some("infra=false, env = test"),
                "",
                json!({"env": "dev", "color": "blue"}),
                json!({}),
                CONFLICT,
            ),
            (
                "env=dev",
                Some("infra=false, env = dev"),
                "env=dev, infra=false, color=blue",
                json!({"env": "dev", "color": "blue"}),
                json!({"infra": "false", "env": "dev", "color": "blue"}),
                None,
            ),
            (
                "env=dev",
                Some("infra=false, env = dev"),
                "env=dev, infra=true, color=blue",
                json!({"env": "dev", "color": "blue"}),
                json!({}),
                FORBIDDEN,
            ),
        ] {
            let config = given(json!({"podNodeSelectorPluginConfig": {DEFAULT: default, "n": whitelist}}));
            let plugin = PodNodeSelector::new(Some(&config)).unwrap();
            let annotations = namespace.map_or(json!({}), |selector| json!({ANNOTATION: selector}));
            let cluster =
                Fixed::with(&[("", "namespaces", json!({"metadata": {"name": "n", "annotations": annotations}}))]);
            let mut request = Request::create(
                "",
                "pods",
                json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {"nodeSelector": pod}}),
            );
            let expected = refused.map_or(Ok(()), |why| Err(format!("pods \"p\" is forbidden: {why}")));
            assert_eq!(request.admit(&plugin, &cluster).await, expected, "{default:?} {namespace:?}");
            if refused.is_none() {
                assert_eq!(request.object["spec"]["nodeSelector"], merged);
            }
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (config, expected) in [
            (
                json!({"podNodeSelectorPluginConfig": {"n": "a"}}),
                "podNodeSelectorPluginConfig[n]: invalid selector: [a]",
            ),
            (json!({"podNodeSelectorPluginConfig": {"n": "a=b=c"}}), "invalid selector: [a b c]"),
            (json!({"podNodeSelectorPluginConfig": {"n": "a=-"}}), "a valid label must be an empty string or"),
            (json!({"other": {}}), "unknown field `other`"),
        ] {
            let error = PodNodeSelector::new(Some(&given(config))).err().unwrap();
            assert!(error.contains(expected), "{error}");
        }
        assert!(PodNodeSelector::new(None).unwrap().selectors.is_empty());
    }
}

//! Which requests a webhook or policy is for: rules, selectors, and the version that it gets the
//! object in. Upstream: `k8s.io/apiserver/pkg/admission/plugin/{webhook/rules,policy/matching}`.

use std::borrow::Cow;
use std::sync::Arc;

use api::selector::Selector;
use serde_json::{Value, json};

use crate::admit::{Attributes, Cluster, Operation};
use crate::error::Result;

/// The group version that a request is seen in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    pub group: String,
    pub version: String,
}

/// Where the rules and selectors of a webhook or of a policy are.
pub struct Criteria<'a> {
    pub rules: &'a Value,
    pub exclude: &'a Value,
    pub exact: bool,
    pub namespaces: &'a Value,
    pub objects: &'a Value,
}

impl<'a> Criteria<'a> {
    pub fn of_webhook(webhook: &'a Value) -> Self {
        Self { rules: &webhook["rules"], exclude: &Value::Null, ..Self::selectors(webhook) }
    }

    /// `MatchResources`.
    pub fn of_resources(resources: &'a Value) -> Self {
        Self {
            rules: &resources["resourceRules"],
            exclude: &resources["excludeResourceRules"],
            ..Self::selectors(resources)
        }
    }

    fn selectors(of: &'a Value) -> Self {
        Self {
            rules: &Value::Null,
            exclude: &Value::Null,
            exact: of["matchPolicy"] == "Exact",
            namespaces: &of["namespaceSelector"],
            objects: &of["objectSelector"],
        }
    }

    /// The version in which a request matches, if it does.
    pub async fn matched(&self, attributes: &Attributes<'_>, cluster: &dyn Cluster) -> Result<Option<Version>> {
        if self.excluded(attributes, cluster) {
            return Ok(None);
        }
        let Some(version) = self.version(attributes, cluster) else { return Ok(None) };
        Ok(self.selected(attributes, cluster).await?.then_some(version))
    }

    /// The same where no rules are as good as all of them: in bindings.
    pub async fn matched_or_unruled(&self, attributes: &Attributes<'_>, cluster: &dyn Cluster) -> Result<bool> {
        if self.excluded(attributes, cluster) {
            return Ok(false);
        }
        let ruled = self.rules.as_array().is_some_and(|rules| !rules.is_empty());
        if ruled && self.version(attributes, cluster).is_none() {
            return Ok(false);
        }
        self.selected(attributes, cluster).await
    }

    fn excluded(&self, attributes: &Attributes<'_>, cluster: &dyn Cluster) -> bool {
        versions(attributes, cluster, self.exact).iter().any(|version| any_rule(self.exclude, attributes, version))
    }

    /// The request's own version if a rule names it, else an equivalent one that a rule names.
    fn version(&self, attributes: &Attributes<'_>, cluster: &dyn Cluster) -> Option<Version> {
        versions(attributes, cluster, self.exact).into_iter().find(|version| any_rule(self.rules, attributes, version))
    }

    /// Whether the namespace and the object have the labels that are asked for.
    async fn selected(&self, attributes: &Attributes<'_>, cluster: &dyn Cluster) -> Result<bool> {
        if let Some(wanted) = selector(self.namespaces) {
            let namespace = if attributes.is("", "namespaces") {
                let own = if attributes.object.is_object() { Some(&attributes.object) } else { attributes.old };
                own.map(|object| Arc::new(object.clone()))
            } else if attributes.namespace.is_empty() {
                None
            } else {
                cluster.get("", "namespaces", "", attributes.namespace).await?
            };
            if let Some(namespace) = namespace
                && !wanted.matches_json(namespace["metadata"].get("labels"))
            {
                return Ok(false);
            }
        }
        if let Some(wanted) = selector(self.objects) {
            // What a connection is opened with (`PodExecOptions`) cannot have labels: no selector chooses it.
            let labelled = |object: &Value| object.is_object() && attributes.operation != Operation::Connect;
            let matches = |object: &Value| labelled(object) && wanted.matches_json(object["metadata"].get("labels"));
            if !matches(&attributes.object) && !attributes.old.is_some_and(matches) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// None: everything is selected.
fn selector(selector: &Value) -> Option<Selector> {
    Selector::from_json(Some(selector))
        .ok()
        .filter(|_| selector.is_object())
        .filter(|selector| !selector.is_everything())
}

/// The versions that rules may name, the request's own first.
fn versions(attributes: &Attributes<'_>, cluster: &dyn Cluster, exact: bool) -> Vec<Version> {
    let own = Version { group: attributes.group.to_owned(), version: attributes.version.to_owned() };
    let mut all = vec![own];
    if !exact {
        for (group, version) in cluster.versions(attributes.descriptor) {
            let other = Version { group, version };
            if !all.contains(&other) {
                all.push(other);
            }
        }
    }
    all
}

fn any_rule(rules: &Value, attributes: &Attributes<'_>, version: &Version) -> bool {
    rules.as_array().into_iter().flatten().any(|rule| rule_matches(rule, attributes, version))
}

fn contains(list: &Value, wanted: &str) -> bool {
    list.as_array().into_iter().flatten().any(|held| held == "*" || held == wanted)
}

fn rule_matches(rule: &Value, attributes: &Attributes<'_>, version: &Version) -> bool {
    let scope = match rule["scope"].as_str().unwrap_or("*") {
        // A namespace itself has no namespace.
        "Namespaced" => attributes.descriptor.namespaced,
        "Cluster" => !attributes.descriptor.namespaced,
        _ => true,
    };
    let name = match attributes.name {
        "" => attributes.object["metadata"]["name"].as_str().unwrap_or_default(),
        name => name,
    };
    let named = match rule["resourceNames"].as_array() {
        Some(names) if !names.is_empty() => names.iter().any(|held| held == name),
        _ => true,
    };
    scope
        && named
        && contains(&rule["operations"], attributes.operation.name())
        && contains(&rule["apiGroups"], &version.group)
        && contains(&rule["apiVersions"], &version.version)
        && rule["resources"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .any(|held| resource_matches(held, &attributes.descriptor.plural, attributes.subresource))
}

fn resource_matches(rule: &str, plural: &str, subresource: &str) -> bool {
    match rule.split_once('/') {
        None => subresource.is_empty() && (rule == "*" || rule == plural),
        Some((main, sub)) => {
            (main == "*" || main == plural) && (sub == "*" || (!subresource.is_empty() && sub == subresource))
        }
    }
}

/// The object and what it was, as a version has them.
pub struct Versioned<'a> {
    pub version: Version,
    pub object: Cow<'a, Value>,
    pub old: Cow<'a, Value>,
}

static NONE: Value = Value::Null;

/// Converts the objects of a request to the version that it matched in.
pub async fn versioned<'a>(
    attributes: &'a Attributes<'_>,
    cluster: &dyn Cluster,
    version: Version,
) -> Result<Versioned<'a>> {
    let object = converted(attributes, cluster, &attributes.object, &version).await?;
    let old = converted(attributes, cluster, attributes.old.unwrap_or(&NONE), &version).await?;
    Ok(Versioned { version, object, old })
}

async fn converted<'a>(
    attributes: &Attributes<'_>,
    cluster: &dyn Cluster,
    object: &'a Value,
    to: &Version,
) -> Result<Cow<'a, Value>> {
    let descriptor = attributes.descriptor;
    let hub = (descriptor.hub_group(), descriptor.hub_version());
    // Subresources may have kinds of their own, which have one version.
    if hub == (&to.group, &to.version) || object["kind"] != *descriptor.kind {
        return Ok(Cow::Borrowed(object));
    }
    Ok(Cow::Owned(cluster.convert(descriptor, object.clone(), &to.group, &to.version).await?))
}

/// An object that was changed in a version, back in the hub version.
pub async fn restored(
    attributes: &Attributes<'_>,
    cluster: &dyn Cluster,
    object: Value,
    from: &Version,
) -> Result<Value> {
    let descriptor = attributes.descriptor;
    let hub = Version { group: descriptor.hub_group().to_owned(), version: descriptor.hub_version().to_owned() };
    if *from == hub || object["kind"] != *descriptor.kind {
        return Ok(object);
    }
    cluster.convert(descriptor, object, &hub.group, &hub.version).await
}

/// `AdmissionRequest`, without the objects.
pub fn request(attributes: &Attributes<'_>, version: &Version, uid: &str) -> Value {
    let descriptor = attributes.descriptor;
    let sample = if attributes.object.is_object() { Some(&attributes.object) } else { attributes.old };
    let own = sample.is_none_or(|object| object["kind"] == *descriptor.kind);
    let kind_in = |group: &str, version: &str| match sample.filter(|_| !own) {
        Some(object) => {
            let api_version = object["apiVersion"].as_str().unwrap_or_default();
            let (group, version) = crate::resource::split_api_version(api_version);
            json!({"group": group, "version": version, "kind": object["kind"]})
        }
        None => json!({"group": group, "version": version, "kind": descriptor.kind}),
    };
    let resource_in =
        |group: &str, version: &str| json!({"group": group, "version": version, "resource": descriptor.plural});
    let name = match attributes.name {
        "" => attributes.object["metadata"]["name"].as_str().unwrap_or_default(),
        name => name,
    };
    let mut request = json!({
        "uid": uid, "kind": kind_in(&version.group, &version.version),
        "resource": resource_in(&version.group, &version.version),
        "requestKind": kind_in(attributes.group, attributes.version),
        "requestResource": resource_in(attributes.group, attributes.version),
        "name": name, "operation": attributes.operation.name(),
        "userInfo": crate::registry::user_object(attributes.user),
        "dryRun": attributes.dry_run, "options": attributes.options,
    });
    if !attributes.namespace.is_empty() {
        request["namespace"] = attributes.namespace.into();
    }
    if !attributes.subresource.is_empty() {
        request["subResource"] = attributes.subresource.into();
        request["requestSubResource"] = attributes.subresource.into();
    }
    request
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::fake::Fixed;
    use crate::authn::UserInfo;
    use crate::resource::Descriptor;

    #[tokio::test]
    async fn rules_choose_requests_and_versions() {
        let descriptor = Descriptor::new("apps", "v1", "Deployment", "deployments").also("apps", "v1beta1");
        let (user, options) = (UserInfo::admin(), json!({}));
        let attributes = Attributes {
            user: &user,
            descriptor: &descriptor,
            group: "apps",
            version: "v1",
            subresource: "",
            operation: Operation::Create,
            namespace: "a",
            name: "x",
            object: json!({"kind": "Deployment", "metadata": {"labels": {"a": "b"}}}),
            old: None,
            options: &options,
            dry_run: false,
            deadline: None,
            patched: false,
            warnings: Vec::new(),
            audit: Vec::new(),
        };
        let rule = |operations: &str, group: &str, version: &str, resource: &str, scope: &str| json!({"rules": [{"operations": [operations], "apiGroups": [group], "apiVersions": [version], "resources": [resource], "scope": scope}]});
        let cluster = Fixed::default();
        for (webhook, expected) in [
            (rule("CREATE", "apps", "*", "deployments", "*"), Some("v1")),
            (rule("CREATE", "apps", "v1beta1", "deployments", "*"), Some("v1beta1")),
            (rule("*", "*", "*", "*", "Namespaced"), Some("v1")),
            (rule("*", "*", "*", "*/*", "*"), Some("v1")),
            (rule("UPDATE", "apps", "*", "deployments", "*"), None),
            (rule("CREATE", "", "*", "deployments", "*"), None),
            (rule("CREATE", "apps", "*", "deployments/status", "*"), None),
            (rule("CREATE", "apps", "*", "deployments", "Cluster"), None),
        ] {
            let found = Criteria::of_webhook(&webhook).matched(&attributes, &cluster).await.unwrap();
            assert_eq!(found.map(|version| version.version).as_deref(), expected, "{webhook}");
        }
        let mut exact = rule("CREATE", "apps", "v1beta1", "deployments", "*");
        exact["matchPolicy"] = "Exact".into();
        assert_eq!(Criteria::of_webhook(&exact).matched(&attributes, &cluster).await.unwrap(), None);
        let mut labels = rule("*", "*", "*", "*", "*");
        labels["objectSelector"] = json!({"matchLabels": {"a": "c"}});
        assert_eq!(Criteria::of_webhook(&labels).matched(&attributes, &cluster).await.unwrap(), None);
        // What opens a connection has no labels, which is not to lack one.
        labels["objectSelector"] = json!({"matchExpressions": [{"key": "c", "operator": "DoesNotExist"}]});
        assert!(Criteria::of_webhook(&labels).matched(&attributes, &cluster).await.unwrap().is_some());
        let object = json!({"kind": "PodExecOptions", "apiVersion": "v1"});
        let opening = Attributes { operation: Operation::Connect, object, ..attributes };
        assert_eq!(Criteria::of_webhook(&labels).matched(&opening, &cluster).await.unwrap(), None);
    }
}

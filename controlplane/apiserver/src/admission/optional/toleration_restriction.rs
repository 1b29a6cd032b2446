//! `PodTolerationRestriction`: a namespace's pods get its default tolerations, and no others than
//! its whitelist has; the cluster's configuration says both for namespaces that do not.

use api::field::Path;
use async_trait::async_trait;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::config::Configuration;
use super::{changes_pod, namespace_of};
use crate::admit::{Admission, Attributes, Cluster, Operation};
use crate::error::{ApiError, Result};
use crate::kinds::check::Node;
use crate::kinds::core::pod::{placement, qos_class};
use crate::kinds::value::{annotation, list, opt_int, same, set, text};
use crate::schema::document::syntax_error;
use crate::schema::normalize;
use crate::schema::table::TypeId;

const GROUP: &str = "podtolerationrestriction.admission.k8s.io";
const DEFAULTS: &str = "scheduler.alpha.kubernetes.io/defaultTolerations";
const WHITELIST: &str = "scheduler.alpha.kubernetes.io/tolerationsWhitelist";

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PodTolerationRestriction {
    #[serde(default)]
    default: Vec<Value>,
    #[serde(default)]
    whitelist: Vec<Value>,
}

impl PodTolerationRestriction {
    /// # Errors
    ///
    /// What is wrong with the configuration.
    pub fn new(given: Option<&Configuration>) -> std::result::Result<Self, String> {
        let Some(given) = given else { return Ok(Self::default()) };
        let mut plugin: Self = given.typed(GROUP, &["v1alpha1"], "Configuration")?;
        let mut errors = Vec::new();
        for (field, tolerations) in [("default", &mut plugin.default), ("whitelist", &mut plugin.whitelist)] {
            let path = Path::root("podtolerationrestriction").child(field);
            for (at, toleration) in tolerations.iter_mut().enumerate() {
                let path = path.index(at);
                let unknown = decoded(toleration).map_err(|why| given.wrong(format!("{path}: {why}")))?;
                if let Some(first) = unknown.first() {
                    return Err(given.wrong(format!("{path}: {first}")));
                }
                placement::validate_toleration(&Node::new(toleration, path), &mut errors);
            }
        }
        if errors.is_empty() { Ok(plugin) } else { Err(given.wrong(api::field::join(&errors))) }
    }
}

/// Makes of it what Go would decode; the fields that it does not have are returned.
fn decoded(toleration: &mut Value) -> std::result::Result<Vec<String>, String> {
    const TYPE: &str = "io.k8s.api.core.v1.Toleration";
    let id = TypeId::named(TYPE).ok_or_else(|| format!("{TYPE} is not in the table of types"))?;
    let unknown = normalize::decode(id, toleration).map_err(|error| error.0)?;
    // An empty one in a list is one with nothing in it.
    if toleration.is_null() {
        *toleration = json!({});
    }
    Ok(unknown)
}

#[async_trait]
impl Admission for PodTolerationRestriction {
    fn name(&self) -> &'static str {
        "PodTolerationRestriction"
    }

    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        changes_pod(attributes)
    }

    async fn mutate(&self, attributes: &mut Attributes<'_>, cluster: &dyn Cluster) -> Result<()> {
        let mut all = Vec::new();
        if attributes.operation == Operation::Create {
            let own = of_namespace(&*namespace_of(attributes, cluster).await?, DEFAULTS)?;
            all = own.unwrap_or_else(|| self.default.clone());
        }
        all = merged(all, list(&attributes.object, "spec.tolerations"));
        if qos_class(&attributes.object) != "BestEffort" {
            let pressure =
                json!({"key": "node.kubernetes.io/memory-pressure", "operator": "Exists", "effect": "NoSchedule"});
            all = merged(all, &[pressure]);
        }
        if !all.is_empty() {
            set(&mut attributes.object, "spec.tolerations", all);
        }
        self.validate(attributes, cluster).await
    }

    async fn validate(&self, attributes: &mut Attributes<'_>, cluster: &dyn Cluster) -> Result<()> {
        let held = list(&attributes.object, "spec.tolerations");
        if held.is_empty() {
            return Ok(());
        }
        let own = of_namespace(&*namespace_of(attributes, cluster).await?, WHITELIST)?;
        let scope = if own.is_some() { "namespace" } else { "cluster" };
        let allowed = own.as_ref().unwrap_or(&self.whitelist);
        if allowed.is_empty() || held.iter().all(|one| allowed.iter().any(|other| covers(other, one))) {
            return Ok(());
        }
        // Upstream has no kind of answer for it.
        Err(ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "",
            format!(
                "pod tolerations (possibly merged with namespace default tolerations) conflict with its {scope} whitelist"
            ),
        ))
    }
}

/// None: the namespace says nothing; the cluster's count.
fn of_namespace(namespace: &Value, key: &str) -> Result<Option<Vec<Value>>> {
    match annotation(namespace, key) {
        None => Ok(None),
        Some("") => Ok(Some(Vec::new())),
        Some(text) => read(text).map(Some).map_err(|why| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "", why)),
    }
}

/// A list of tolerations; the error is in the words of `encoding/json`.
fn read(text: &str) -> std::result::Result<Vec<Value>, String> {
    let parsed = serde_json::from_str(text);
    let parsed = parsed.map_err(|error| syntax_error(text.as_bytes()).unwrap_or_else(|| error.to_string()))?;
    let mut tolerations = match parsed {
        Value::Null => Vec::new(),
        Value::Array(tolerations) => tolerations,
        other => {
            let found = normalize::json_type(&other);
            return Err(format!("json: cannot unmarshal {found} into Go value of type []v1.Toleration"));
        }
    };
    for toleration in &mut tolerations {
        decoded(toleration)?;
    }
    Ok(tolerations)
}

/// Both lists without what others in them cover; of equals the first stays.
fn merged(first: Vec<Value>, second: &[Value]) -> Vec<Value> {
    let all: Vec<Value> = first.into_iter().chain(second.iter().cloned()).collect();
    let mut kept: Vec<Value> = Vec::new();
    for (at, one) in all.iter().enumerate() {
        let covered = kept.iter().any(|other| covers(other, one))
            || all[at + 1..].iter().any(|other| !same(one, other) && covers(other, one));
        if !covered {
            kept.push(one.clone());
        }
    }
    kept
}

/// Whether `wide` tolerates all that `narrow` does.
fn covers(wide: &Value, narrow: &Value) -> bool {
    let field = |key: &str| (text(wide, key), text(narrow, key));
    if same(wide, narrow) {
        return true;
    }
    let ((key, narrow_key), (effect, narrow_effect)) = (field("key"), field("effect"));
    let (operator, narrow_operator) = field("operator");
    if key != narrow_key && !(key.is_empty() && operator == "Exists") {
        return false;
    }
    if effect != narrow_effect && !effect.is_empty() {
        return false;
    }
    if effect == "NoExecute"
        && let Some(most) = opt_int(wide, "tolerationSeconds")
        && opt_int(narrow, "tolerationSeconds").is_none_or(|seconds| seconds > most)
    {
        return false;
    }
    let (value, narrow_value) = field("value");
    match operator {
        "Equal" | "" => narrow_operator == "Equal" && value == narrow_value,
        "Exists" => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::config::given;
    use super::super::super::fake::{Fixed, Request};
    use super::*;

    /// Upstream's tolerations by their names: `key[-value][-effect][-seconds]`.
    fn toleration(name: &str) -> Value {
        let mut toleration = json!({"operator": "Exists"});
        for (at, part) in name.split('-').enumerate() {
            match part {
                "all" => {}
                "nosched" => toleration["effect"] = "NoSchedule".into(),
                "noexec" => toleration["effect"] = "NoExecute".into(),
                "prefnosched" => toleration["effect"] = "PreferNoSchedule".into(),
                "10" => toleration["tolerationSeconds"] = 10.into(),
                "0" => toleration["tolerationSeconds"] = 0.into(),
                key if at == 0 => toleration["key"] = key.into(),
                value => {
                    toleration["operator"] = "Equal".into();
                    toleration["value"] = value.into();
                }
            }
        }
        toleration
    }

    fn tolerations(names: &[&str]) -> Vec<Value> {
        names.iter().map(|name| toleration(name)).collect()
    }

    /// Upstream's rows (`TestIsSuperset`).
    #[test]
    fn what_covers_what() {
        const ALL: [&str; 16] = [
            "all",
            "all-nosched",
            "all-noexec",
            "foo",
            "foo-bar",
            "foo-nosched",
            "foo-bar-nosched",
            "foo-baz-nosched",
            "faz-nosched",
            "faz-baz-nosched",
            "foo-prefnosched",
            "foo-noexec",
            "foo-bar-noexec",
            "foo-noexec-10",
            "foo-noexec-0",
            "foo-bar-noexec-10",
        ];
        for (wide, covered) in [
            ("all", &ALL[..]),
            ("all-nosched", &["foo-nosched", "foo-bar-nosched", "foo-baz-nosched", "faz-nosched", "faz-baz-nosched"]),
            ("all-noexec", &["foo-noexec", "foo-bar-noexec", "foo-noexec-10", "foo-noexec-0", "foo-bar-noexec-10"]),
            (
                "foo",
                &[
                    "foo-bar",
                    "foo-nosched",
                    "foo-bar-nosched",
                    "foo-baz-nosched",
                    "foo-prefnosched",
                    "foo-noexec",
                    "foo-bar-noexec",
                    "foo-noexec-10",
                    "foo-noexec-0",
                    "foo-bar-noexec-10",
                ],
            ),
            ("foo-bar", &["foo-bar-nosched", "foo-bar-noexec", "foo-bar-noexec-10"]),
            ("foo-nosched", &["foo-bar-nosched", "foo-baz-nosched"]),
            ("foo-bar-nosched", &[]),
            ("faz-nosched", &["faz-baz-nosched"]),
            ("faz-baz-nosched", &[]),
            ("foo-prefnosched", &[]),
            ("foo-noexec", &["foo-bar-noexec", "foo-noexec-10", "foo-noexec-0", "foo-bar-noexec-10"]),
            ("foo-bar-noexec", &["foo-bar-noexec-10"]),
            ("foo-noexec-10", &["foo-noexec-0", "foo-bar-noexec-10"]),
            ("foo-noexec-0", &[]),
            ("foo-bar-noexec-10", &[]),
        ] {
            for narrow in ALL {
                let expected = narrow == wide || covered.contains(&narrow);
                assert_eq!(covers(&toleration(wide), &toleration(narrow)), expected, "{wide} {narrow}");
            }
        }
    }

    /// Upstream's rows (`TestMergeTolerations`).
    #[test]
    fn redundant_ones_go() {
        for (first, second, expected) in [
            (
                &["foo-bar-nosched", "faz-baz-nosched", "foo-noexec-10"][..],
                &["foo-prefnosched", "foo-baz-nosched"][..],
                &["foo-bar-nosched", "faz-baz-nosched", "foo-noexec-10", "foo-prefnosched", "foo-baz-nosched"][..],
            ),
            (
                &["foo-bar-nosched", "faz-baz-nosched", "foo-noexec-10"],
                &["foo-bar-nosched", "faz-baz-nosched", "foo-noexec-10"],
                &["foo-bar-nosched", "faz-baz-nosched", "foo-noexec-10"],
            ),
            (
                &["foo-bar-nosched", "foo-baz-nosched"],
                &["foo-nosched", "faz-baz-nosched"],
                &["foo-nosched", "faz-baz-nosched"],
            ),
            (&["foo-bar-nosched", "foo-baz-nosched", "foo-noexec-10"], &["all"], &["all"]),
            (&["all"], &["foo-bar-nosched", "foo-baz-nosched", "foo-noexec-10"], &["all"]),
        ] {
            assert_eq!(merged(tolerations(first), &tolerations(second)), tolerations(expected), "{first:?} {second:?}");
        }
    }

    /// Upstream's rows (`TestPodAdmission`); `mem` is the toleration of memory pressure.
    #[tokio::test]
    async fn defaults_and_whitelists() {
        const SCOPES: [&str; 2] = ["namespace", "cluster"];
        let pressure =
            json!({"key": "node.kubernetes.io/memory-pressure", "operator": "Exists", "effect": "NoSchedule"});
        let best = json!({});
        let guaranteed = json!({"limits": {"cpu": "1"}, "requests": {"cpu": "1"}});
        let burstable = json!({"requests": {"cpu": "500m"}});
        let own: &[&str] = &["foo-bar-nosched"];
        let none: &[&str] = &[];
        for (resources, cluster_default, namespace_default, whitelist, cluster_whitelist, pod, expected) in [
            (&best, own, None, None, none, none, Ok(own)),
            (&best, own, None, None, none, own, Ok(own)),
            (&best, none, Some(own), None, none, own, Ok(own)),
            (&best, none, Some(own), None, none, none, Ok(own)),
            (&best, none, Some(own), None, none, &["foo-baz-nosched"], Ok(&["foo-bar-nosched", "foo-baz-nosched"][..])),
            (&best, own, Some(none), None, none, none, Ok(none)),
            (&best, none, Some(own), Some(own), none, none, Ok(own)),
            (&best, none, Some(own), Some(&["foo-baz-nosched"][..]), none, none, Err(0)),
            (&best, none, None, None, &["foo-baz-nosched"], own, Err(1)),
            (&best, none, None, Some(none), &["foo-baz-nosched"], own, Ok(own)),
            (&burstable, none, Some(own), None, none, none, Ok(&["foo-bar-nosched", "mem"])),
            (&guaranteed, none, Some(own), None, none, none, Ok(&["foo-bar-nosched", "mem"])),
        ] {
            let config = given(json!({"apiVersion": "podtolerationrestriction.admission.k8s.io/v1alpha1",
                "kind": "Configuration", "default": tolerations(cluster_default), "whitelist": tolerations(cluster_whitelist)}));
            let plugin = PodTolerationRestriction::new(Some(&config)).unwrap();
            let mut annotations = json!({});
            for (key, value) in [(DEFAULTS, namespace_default), (WHITELIST, whitelist)] {
                if let Some(names) = value {
                    let text = if names.is_empty() { String::new() } else { json!(tolerations(names)).to_string() };
                    annotations[key] = text.into();
                }
            }
            let cluster =
                Fixed::with(&[("", "namespaces", json!({"metadata": {"name": "n", "annotations": annotations}}))]);
            let mut request = Request::create(
                "",
                "pods",
                json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {
                    "containers": [{"name": "c", "resources": resources}], "tolerations": tolerations(pod)}}),
            );
            let outcome = request.admit(&plugin, &cluster).await;
            match expected {
                Ok(names) => {
                    let of = |name: &&str| if *name == "mem" { pressure.clone() } else { toleration(name) };
                    assert_eq!(outcome, Ok(()));
                    assert_eq!(request.object["spec"]["tolerations"], names.iter().map(of).collect::<Value>());
                }
                Err(scope) => assert_eq!(
                    outcome,
                    Err(format!(
                        "pod tolerations (possibly merged with namespace default tolerations) conflict with its {} whitelist",
                        SCOPES[scope]
                    ))
                ),
            }
        }
    }

    #[test]
    fn mistakes_are_named() {
        let read = |body: Value| {
            let mut config =
                json!({"apiVersion": "podtolerationrestriction.admission.k8s.io/v1alpha1", "kind": "Configuration"});
            config.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
            PodTolerationRestriction::new(Some(&given(config))).err().unwrap()
        };
        assert!(read(json!({"default": [{"operator": "Other"}]})).contains("podtolerationrestriction.default[0]"));
        assert!(read(json!({"whiteList": []})).contains("unknown field `whiteList`"));
        for (toleration, expected) in [
            (
                json!({"key": 5}),
                "whitelist[0]: json: cannot unmarshal number into Go struct field Toleration.key of type string",
            ),
            (json!("key"), "whitelist[0]: json: cannot unmarshal string into Go value of type v1.Toleration"),
            (json!({"kye": "a"}), "whitelist[0]: unknown field \"kye\""),
        ] {
            let error = read(json!({"whitelist": [toleration]}));
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn annotations_are_decoded_as_go_would() {
        for (text, expected) in [
            ("{", "unexpected end of JSON input"),
            ("[x]", "invalid character 'x' looking for beginning of value"),
            ("{}", "json: cannot unmarshal object into Go value of type []v1.Toleration"),
            ("[1]", "json: cannot unmarshal number into Go value of type v1.Toleration"),
            (
                r#"[{"tolerationSeconds": "9"}]"#,
                "json: cannot unmarshal string into Go struct field Toleration.tolerationSeconds of type int64",
            ),
        ] {
            assert_eq!(super::read(text), Err(expected.to_owned()), "{text}");
        }
        assert_eq!(super::read("null"), Ok(Vec::new()));
        let read = super::read(r#"[{"key": "a", "value": "", "unknown": 1}, null]"#);
        assert_eq!(read, Ok(vec![json!({"key": "a"}), json!({})]));
    }
}

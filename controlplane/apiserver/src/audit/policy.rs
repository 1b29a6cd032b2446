//! The audit policy (`audit.k8s.io/v1 Policy`): which requests are recorded, how much of them, at
//! which stages. Pure.

use api::field::{Error, Path};
use serde::Deserialize;
use serde_json::Value;

use crate::authn::UserInfo;
use crate::http::info::RequestInfo;
use crate::kinds::value;

const LEVELS: [&str; 4] = ["None", "Metadata", "Request", "RequestResponse"];
const STAGES: [&str; 4] = ["RequestReceived", "ResponseStarted", "ResponseComplete", "Panic"];

/// How much of a request is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub enum Level {
    None,
    Metadata,
    Request,
    RequestResponse,
}

impl Level {
    pub fn name(self) -> &'static str {
        match self {
            Level::None => "None",
            Level::Metadata => "Metadata",
            Level::Request => "Request",
            Level::RequestResponse => "RequestResponse",
        }
    }
}

/// Where in its life a request is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Stage {
    RequestReceived,
    ResponseStarted,
    ResponseComplete,
    Panic,
}

impl Stage {
    pub fn name(self) -> &'static str {
        match self {
            Stage::RequestReceived => "RequestReceived",
            Stage::ResponseStarted => "ResponseStarted",
            Stage::ResponseComplete => "ResponseComplete",
            Stage::Panic => "Panic",
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    #[serde(default)]
    rules: Vec<Rule>,
    #[serde(default)]
    omit_stages: Vec<Stage>,
    #[serde(default)]
    omit_managed_fields: bool,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    level: Level,
    #[serde(default)]
    users: Vec<String>,
    #[serde(default)]
    user_groups: Vec<String>,
    #[serde(default)]
    verbs: Vec<String>,
    #[serde(default)]
    resources: Vec<GroupResources>,
    #[serde(default)]
    namespaces: Vec<String>,
    #[serde(default, rename = "nonResourceURLs")]
    non_resource_urls: Vec<String>,
    #[serde(default)]
    omit_stages: Vec<Stage>,
    omit_managed_fields: Option<bool>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct GroupResources {
    #[serde(default)]
    group: String,
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    resource_names: Vec<String>,
}

/// The fields of a policy, of a rule and of a rule's resources: others are ignored, with a warning.
const FIELDS: [&[&str]; 3] = [
    &["apiVersion", "kind", "metadata", "rules", "omitStages", "omitManagedFields"],
    &[
        "level",
        "users",
        "userGroups",
        "verbs",
        "resources",
        "namespaces",
        "nonResourceURLs",
        "omitStages",
        "omitManagedFields",
    ],
    &["group", "resources", "resourceNames"],
];

/// What the policy says about one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    pub level: Level,
    pub omit_stages: Vec<Stage>,
    pub omit_managed_fields: bool,
}

impl Policy {
    /// Reads a policy, YAML or JSON; `Err` says what is wrong with it, in upstream's words.
    pub fn parse(text: &str) -> Result<Self, String> {
        let read: Value = serde_saphyr::from_str(text).map_err(|error| format!("failed decoding: {error}"))?;
        let (version, kind) = (value::text(&read, "apiVersion"), value::text(&read, "kind"));
        if kind != "Policy" || version != "audit.k8s.io/v1" {
            return Err(format!(
                "failed decoding: no kind {kind:?} is registered for version {version:?}; a Policy of \"audit.k8s.io/v1\" is needed"
            ));
        }
        let errors = problems(&read);
        if !errors.is_empty() {
            return Err(api::field::join(&errors));
        }
        let unknown = unknown_fields(&read);
        if !unknown.is_empty() {
            tracing::warn!(fields = unknown.join(", "), "the audit policy has fields that are not known");
        }
        let policy: Policy = serde_json::from_value(read).map_err(|error| format!("failed decoding: {error}"))?;
        if policy.rules.is_empty() {
            return Err("loaded illegal policy with 0 rules".to_owned());
        }
        Ok(policy)
    }

    /// The first rule that fits decides; nothing is recorded where none does.
    pub fn decide(&self, user: &UserInfo, info: &RequestInfo) -> Decision {
        let Some(rule) = self.rules.iter().find(|rule| rule.matches(user, info)) else {
            return Decision { level: Level::None, omit_stages: Vec::new(), omit_managed_fields: false };
        };
        Decision {
            level: rule.level,
            omit_stages: [&self.omit_stages[..], &rule.omit_stages[..]].concat(),
            omit_managed_fields: rule.omit_managed_fields.unwrap_or(self.omit_managed_fields),
        }
    }
}

/// Paths of fields that a policy does not have.
fn unknown_fields(policy: &Value) -> Vec<String> {
    fn look(object: &Value, path: &str, level: usize, found: &mut Vec<String>) {
        for (key, inner) in object.as_object().into_iter().flatten() {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            if !FIELDS[level].contains(&key.as_str()) {
                found.push(path);
            } else if (level, key.as_str()) == (0, "rules") || (level, key.as_str()) == (1, "resources") {
                for (at, entry) in inner.as_array().into_iter().flatten().enumerate() {
                    look(entry, &format!("{path}[{at}]"), level + 1, found);
                }
            }
        }
    }
    let mut found = Vec::new();
    look(policy, "", 0, &mut found);
    found
}

fn problems(policy: &Value) -> Vec<Error> {
    let mut errors = Vec::new();
    stages(policy, &Path::empty(), &mut errors);
    for (at, rule) in value::list(policy, "rules").iter().enumerate() {
        rule_problems(rule, &Path::root("rules").index(at), &mut errors);
    }
    errors
}

fn rule_problems(rule: &Value, path: &Path, errors: &mut Vec<Error>) {
    let level = value::text(rule, "level");
    if level.is_empty() {
        errors.push(Error::required(&path.child("level"), ""));
    } else if !LEVELS.contains(&level) {
        errors.push(Error::not_supported(&path.child("level"), level, &LEVELS));
    }
    let urls = path.child("nonResourceURLs");
    for (at, url) in value::texts(rule, "nonResourceURLs").into_iter().enumerate().filter(|(_, url)| *url != "*") {
        let mut bad = |why: &str| errors.push(Error::invalid(&urls.index(at), url, why));
        if !url.starts_with('/') {
            bad("non-resource URL rules must begin with a '/' character");
        }
        if url.strip_suffix('*').unwrap_or(url).contains('*') {
            bad("non-resource URL wildcards '*' must be the final character of the rule");
        }
    }
    let resources = path.child("resources");
    for entry in value::list(rule, "resources") {
        let group = value::text(entry, "group");
        let bad = if matches!(group, "" | "*") { Vec::new() } else { api::names::dns1123_subdomain(group) };
        if !bad.is_empty() {
            errors.push(Error::invalid(&resources.child("group"), group, bad.join(",")));
        }
        let names = value::at(entry, "resourceNames");
        if names.as_array().is_some_and(|names| !names.is_empty()) && value::list(entry, "resources").is_empty() {
            let why = "using resourceNames requires at least one resource";
            errors.push(Error::invalid(&resources.child("resourceNames"), names.clone(), why));
        }
    }
    stages(rule, path, errors);
    let is_set = |field: &str| !value::list(rule, field).is_empty();
    if is_set("nonResourceURLs") && (is_set("resources") || is_set("namespaces")) {
        let why = "rules cannot apply to both regular resources and non-resource URLs";
        errors.push(Error::invalid(&urls, value::at(rule, "nonResourceURLs").clone(), why));
    }
}

fn stages(owner: &Value, path: &Path, errors: &mut Vec<Error>) {
    for (at, stage) in value::texts(owner, "omitStages").into_iter().enumerate() {
        if !STAGES.contains(&stage) {
            let why = format!("allowed stages are {}", STAGES.join(","));
            errors.push(Error::invalid(&path.child("omitStages").index(at), stage, why));
        }
    }
}

fn fits(list: &[String], value: &str) -> bool {
    list.is_empty() || list.iter().any(|item| item == value)
}

impl Rule {
    fn matches(&self, user: &UserInfo, info: &RequestInfo) -> bool {
        let in_group = self.user_groups.is_empty() || self.user_groups.iter().any(|group| user.in_group(group));
        if !fits(&self.users, &user.name) || !in_group || !fits(&self.verbs, &info.verb) {
            return false;
        }
        if !self.namespaces.is_empty() || !self.resources.is_empty() {
            return info.is_resource
                && fits(&self.namespaces, &info.namespace)
                && (self.resources.is_empty() || self.resources.iter().any(|group| group.matches(info)));
        }
        if self.non_resource_urls.is_empty() {
            return true;
        }
        !info.is_resource
            && self.non_resource_urls.iter().any(|url| {
                url == "*"
                    || *url == info.path
                    || url.strip_suffix('*').is_some_and(|prefix| info.path.starts_with(prefix))
            })
    }
}

impl GroupResources {
    fn matches(&self, info: &RequestInfo) -> bool {
        if self.group != "*" && self.group != info.group {
            return false;
        }
        if self.resources.is_empty() {
            return true;
        }
        fits(&self.resource_names, &info.name) && self.resources.iter().any(|pattern| resource_fits(pattern, info))
    }
}

fn resource_fits(pattern: &str, info: &RequestInfo) -> bool {
    match pattern.split_once('/') {
        None => pattern == "*" || (info.subresource.is_empty() && pattern == info.resource),
        Some((resource, "*")) => resource == info.resource,
        Some((resource, sub)) => {
            !info.subresource.is_empty() && sub == info.subresource && (resource == "*" || resource == info.resource)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = r#"
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
omitManagedFields: true
rules:
- {level: None, users: ["system:kube-proxy"], verbs: [watch], resources: [{group: "", resources: [endpoints, services]}]}
- {level: None, userGroups: ["system:authenticated"], nonResourceURLs: ["/api*", /version]}
- {level: Request, resources: [{group: "", resources: [configmaps]}], namespaces: [kube-system], omitManagedFields: false}
- {level: Metadata, resources: [{group: "", resources: [secrets, configmaps]}], omitStages: [ResponseStarted]}
- {level: RequestResponse, resources: [{group: apps, resources: ["*/scale", "daemonsets/*"]}, {group: "", resources: [pods], resourceNames: [web]}]}
- {level: Metadata, namespaces: [""]}
"#;

    fn info(verb: &str, group: &str, resource: &str, namespace: &str) -> RequestInfo {
        let (resource, sub) = resource.split_once('/').unwrap_or((resource, ""));
        RequestInfo {
            is_resource: true,
            verb: verb.into(),
            group: group.into(),
            resource: resource.into(),
            subresource: sub.into(),
            namespace: namespace.into(),
            name: "web".into(),
            ..RequestInfo::default()
        }
    }

    #[test]
    fn the_first_rule_that_fits_decides() {
        let policy = Policy::parse(POLICY).unwrap();
        let jane = UserInfo::new("jane", &["system:authenticated"]);
        let proxy = UserInfo::new("system:kube-proxy", &[]);
        let level = |user: &UserInfo, info: &RequestInfo| policy.decide(user, info).level;
        assert_eq!(level(&proxy, &info("watch", "", "services", "")), Level::None);
        assert_eq!(level(&jane, &info("watch", "", "services", "")), Level::Metadata);
        assert_eq!(level(&jane, &info("get", "", "configmaps", "kube-system")), Level::Request);
        assert_eq!(level(&jane, &info("get", "", "configmaps", "a")), Level::Metadata);
        assert_eq!(level(&jane, &info("get", "", "secrets/x", "a")), Level::None);
        assert_eq!(level(&jane, &info("patch", "apps", "deployments/scale", "a")), Level::RequestResponse);
        assert_eq!(level(&jane, &info("patch", "apps", "daemonsets/status", "a")), Level::RequestResponse);
        assert_eq!(level(&jane, &info("patch", "apps", "deployments", "a")), Level::None);
        assert_eq!(level(&jane, &info("get", "", "pods", "a")), Level::RequestResponse);
        assert_eq!(level(&jane, &info("list", "", "nodes", "")), Level::Metadata);
        let path = |path: &str| RequestInfo { verb: "get".into(), path: path.into(), ..RequestInfo::default() };
        assert_eq!(level(&jane, &path("/apis/apps")), Level::None);
        assert_eq!(level(&jane, &path("/healthz")), Level::None);
    }

    #[test]
    fn stages_add_up_and_rules_override_managed_fields() {
        let policy = Policy::parse(POLICY).unwrap();
        let jane = UserInfo::new("jane", &[]);
        let secrets = policy.decide(&jane, &info("get", "", "secrets", "a"));
        assert_eq!(secrets.omit_stages, [Stage::RequestReceived, Stage::ResponseStarted]);
        assert!(secrets.omit_managed_fields);
        assert!(!policy.decide(&jane, &info("get", "", "configmaps", "kube-system")).omit_managed_fields);
    }

    #[test]
    fn bad_policies_say_what_is_wrong() {
        let with = |rule: &str| format!("apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{rule}]\n");
        for (text, expected) in [
            (
                with("{level: Everything}"),
                "rules[0].level: Unsupported value: \"Everything\": supported values: \"None\", \"Metadata\", \"Request\", \"RequestResponse\"",
            ),
            (with("{users: [a]}"), "rules[0].level: Required value"),
            (
                with("{level: None, nonResourceURLs: [/a], namespaces: [b]}"),
                "rules[0].nonResourceURLs: Invalid value: [\"/a\"]: rules cannot apply to both regular resources and non-resource URLs",
            ),
            (
                with("{level: None, nonResourceURLs: [a, '/b*/c']}"),
                "[rules[0].nonResourceURLs[0]: Invalid value: \"a\": non-resource URL rules must begin with a '/' character, rules[0].nonResourceURLs[1]: Invalid value: \"/b*/c\": non-resource URL wildcards '*' must be the final character of the rule]",
            ),
            (
                with("{level: None, resources: [{group: '', resourceNames: [b]}]}"),
                "rules[0].resources.resourceNames: Invalid value: [\"b\"]: using resourceNames requires at least one resource",
            ),
            (
                with("{level: None, omitStages: [Never]}"),
                "rules[0].omitStages[0]: Invalid value: \"Never\": allowed stages are RequestReceived,ResponseStarted,ResponseComplete,Panic",
            ),
            ("apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: []\n".to_owned(), "loaded illegal policy with 0 rules"),
        ] {
            assert_eq!(Policy::parse(&text).unwrap_err(), expected);
        }
        let foreign = Policy::parse("apiVersion: v1\nkind: Policy\nrules: []\n").unwrap_err();
        assert!(foreign.starts_with("failed decoding: no kind \"Policy\" is registered for version \"v1\""));
        assert!(Policy::parse("]").unwrap_err().starts_with("failed decoding: "));
    }

    #[test]
    fn unknown_fields_are_no_reason_to_refuse_a_policy() {
        let text = "{apiVersion: audit.k8s.io/v1, kind: Policy, x: 1, rules: [{level: None, user: [a], resources: [{group: '', name: b}]}]}";
        assert!(Policy::parse(text).is_ok());
        let read: Value = serde_saphyr::from_str(text).unwrap();
        assert_eq!(unknown_fields(&read), ["rules[0].resources[0].name", "rules[0].user", "x"]);
    }
}

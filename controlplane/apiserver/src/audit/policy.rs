//! The audit policy (`audit.k8s.io/v1 Policy`): which requests are recorded, how much of them, at
//! which stages. Pure.

use serde::Deserialize;

use crate::authn::UserInfo;
use crate::http::info::RequestInfo;

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
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Policy {
    #[serde(rename = "apiVersion")]
    api_version: String,
    kind: String,
    #[serde(default, rename = "metadata")]
    _metadata: serde_json::Value,
    rules: Vec<Rule>,
    #[serde(default)]
    omit_stages: Vec<Stage>,
    #[serde(default)]
    omit_managed_fields: bool,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
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
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct GroupResources {
    #[serde(default)]
    group: String,
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    resource_names: Vec<String>,
}

/// What the policy says about one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    pub level: Level,
    pub omit_stages: Vec<Stage>,
    pub omit_managed_fields: bool,
}

impl Policy {
    /// Reads a policy, YAML or JSON; `Err` says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let policy: Policy = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
        if policy.kind != "Policy" || policy.api_version != "audit.k8s.io/v1" {
            return Err(format!(
                "it is a {} of {:?}; a Policy of \"audit.k8s.io/v1\" is needed",
                policy.kind, policy.api_version
            ));
        }
        match policy.rules.iter().enumerate().find_map(|(at, rule)| Some((at, rule.problem()?))) {
            Some((at, problem)) => Err(format!("rules[{at}]{problem}")),
            None => Ok(policy),
        }
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

fn fits(list: &[String], value: &str) -> bool {
    list.is_empty() || list.iter().any(|item| item == value)
}

impl Rule {
    fn problem(&self) -> Option<String> {
        if !self.non_resource_urls.is_empty() && (!self.resources.is_empty() || !self.namespaces.is_empty()) {
            return Some(
                ".nonResourceURLs: Invalid value: rules cannot apply to both regular resources and non-resource URLs"
                    .to_owned(),
            );
        }
        for (at, url) in self.non_resource_urls.iter().enumerate() {
            let stem = url.strip_suffix('*').unwrap_or(url);
            if stem.contains('*') || (url != "*" && !url.starts_with('/')) {
                return Some(format!(
                    ".nonResourceURLs[{at}]: Invalid value: {url:?}: it must start with '/'; '*' stands only at the end"
                ));
            }
        }
        let named =
            self.resources.iter().position(|group| group.resources.is_empty() && !group.resource_names.is_empty());
        named.map(|at| {
            format!(".resources[{at}].resourceNames: Invalid value: using resourceNames requires at least one resource")
        })
    }

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
        for (text, word) in [
            (with("{level: Everything}"), "Everything"),
            (with("{level: None, user: [a]}"), "user"),
            (with("{level: None, nonResourceURLs: [/a], namespaces: [b]}"), "both"),
            (with("{level: None, nonResourceURLs: [a]}"), "nonResourceURLs[0]"),
            (with("{level: None, resources: [{group: '', resourceNames: [b]}]}"), "resourceNames"),
            ("apiVersion: v1\nkind: Policy\nrules: []\n".to_owned(), "audit.k8s.io/v1"),
            ("]".to_owned(), ""),
        ] {
            let problem = Policy::parse(&text).unwrap_err();
            assert!(problem.contains(word), "{problem}");
        }
    }
}

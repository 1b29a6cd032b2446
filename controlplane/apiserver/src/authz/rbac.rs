//! Roles and bindings, compiled into an [`Index`] by subject. Rebuilt when any of them changes.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;

use super::Request;
use crate::authn::UserInfo;
use crate::cache::item::Item;
use crate::error::Result;
use crate::server::Api;

const GROUP: &str = "rbac.authorization.k8s.io";

/// One `PolicyRule`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Hash)]
pub struct Rule {
    pub verbs: Vec<String>,
    pub groups: Vec<String>,
    pub resources: Vec<String>,
    pub names: Vec<String>,
    pub urls: Vec<String>,
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|held| held == "*" || held == wanted)
}

impl Rule {
    pub fn from_json(rule: &Value) -> Self {
        Self {
            verbs: texts(&rule["verbs"]),
            groups: texts(&rule["apiGroups"]),
            resources: texts(&rule["resources"]),
            names: texts(&rule["resourceNames"]),
            urls: texts(&rule["nonResourceURLs"]),
        }
    }

    /// All rules of a `Role` or `ClusterRole`.
    pub fn all_of(role: &Value) -> Vec<Self> {
        role["rules"].as_array().into_iter().flatten().map(Self::from_json).collect()
    }

    pub fn allows(&self, request: &Request<'_>) -> bool {
        if !has(&self.verbs, request.verb) {
            return false;
        }
        if !request.is_resource() {
            return self.urls.iter().any(|url| covers_url(url, request.path));
        }
        has(&self.groups, request.group)
            && self.covers_resource(request.resource, request.subresource)
            && (self.names.is_empty() || self.names.iter().any(|name| name == request.name))
    }

    fn covers_resource(&self, resource: &str, subresource: &str) -> bool {
        self.resources.iter().any(|held| {
            held == "*"
                || match held.split_once('/') {
                    None => subresource.is_empty() && held == resource,
                    Some((main, sub)) => {
                        !subresource.is_empty() && sub == subresource && (main == "*" || main == resource)
                    }
                }
        })
    }

    /// Whether everything that `asked` grants is granted by some of `held`. `asked` is broken down
    /// into single grants first, as upstream does.
    pub fn covered_by(&self, held: &[Rule]) -> bool {
        self.missing(held).is_empty()
    }

    /// The single grants of this rule that none of `held` gives.
    pub fn missing(&self, held: &[Rule]) -> Vec<Rule> {
        let mut singles = self.split();
        singles.retain(|single| !held.iter().any(|rule| rule.covers_single(single)));
        singles
    }

    fn split(&self) -> Vec<Rule> {
        let one = |text: &String| vec![text.clone()];
        let mut singles = Vec::new();
        for verb in &self.verbs {
            for group in &self.groups {
                for resource in &self.resources {
                    let base =
                        Rule { verbs: one(verb), groups: one(group), resources: one(resource), ..Rule::default() };
                    if self.names.is_empty() {
                        singles.push(base);
                    } else {
                        singles.extend(self.names.iter().map(|name| Rule { names: one(name), ..base.clone() }));
                    }
                }
            }
            singles.extend(self.urls.iter().map(|url| Rule { verbs: one(verb), urls: one(url), ..Rule::default() }));
        }
        singles
    }

    fn covers_single(&self, single: &Rule) -> bool {
        let first = |list: &'_ [String]| list.first().cloned().unwrap_or_default();
        if !has(&self.verbs, &first(&single.verbs)) {
            return false;
        }
        if let Some(url) = single.urls.first() {
            return self.urls.iter().any(|held| held == url || covers_url(held, url));
        }
        let resource = first(&single.resources);
        let resources = self.resources.iter().any(|held| {
            held == "*"
                || *held == resource
                || match (held.split_once('/'), resource.split_once('/')) {
                    (Some(("*", sub)), Some((_, wanted))) => sub == wanted,
                    _ => false,
                }
        });
        let names = self.names.is_empty() || single.names.first().is_some_and(|name| self.names.contains(name));
        has(&self.groups, &first(&single.groups)) && resources && names
    }
}

fn covers_url(rule: &str, path: &str) -> bool {
    rule == "*" || rule == path || rule.strip_suffix('*').is_some_and(|prefix| path.starts_with(prefix))
}

/// What one binding gives to its subjects.
#[derive(Debug, Clone)]
struct Grant {
    /// None: in all namespaces and at the cluster scope.
    namespace: Option<String>,
    rules: Arc<Vec<Rule>>,
    /// Why it allows, or what is wrong with it, as upstream words it.
    says: Arc<str>,
}

/// Roles and bindings, by subject.
#[derive(Default)]
pub struct Index {
    versions: [u64; 4],
    users: HashMap<String, Vec<Grant>>,
    groups: HashMap<String, Vec<Grant>>,
    roles: HashMap<(String, String), Arc<Vec<Rule>>>,
    /// What bindings say whose role there is not.
    broken: Vec<Arc<str>>,
}

/// The stored objects an index is made from.
pub struct Sources {
    versions: [u64; 4],
    items: [Vec<Arc<Item>>; 4],
}

const PLURALS: [&str; 4] = ["clusterroles", "roles", "clusterrolebindings", "rolebindings"];

impl Sources {
    /// The objects are read only if they are others than those that `known` was made from: an index that
    /// another request made meanwhile must not be taken for it.
    pub async fn of(api: &Api, known: &Index) -> Result<Self> {
        let mut sources = Self { versions: [0; 4], items: Default::default() };
        let resources = api.resources();
        let mut changed = false;
        let mut caches = Vec::new();
        for (at, plural) in PLURALS.iter().enumerate() {
            let Some(endpoint) = resources.by_hub(GROUP, plural) else { return Ok(sources) };
            endpoint.cache.ready().await?;
            sources.versions[at] = endpoint.cache.read().changed;
            changed |= sources.versions[at] != known.versions[at];
            caches.push(endpoint.cache.clone());
        }
        if changed {
            for (at, cache) in caches.iter().enumerate() {
                let state = cache.read();
                sources.versions[at] = state.changed;
                sources.items[at] = state.scan("").cloned().collect();
            }
        }
        Ok(sources)
    }
}

impl Index {
    pub fn is_current(&self, sources: &Sources) -> bool {
        self.versions == sources.versions
    }

    pub fn build(sources: &Sources) -> Self {
        let decode = |at: usize| sources.items[at].iter().map(|item| item.decode());
        let mut index = Self { versions: sources.versions, ..Self::default() };
        for role in decode(0).chain(decode(1)) {
            index.add_role(&role);
        }
        for binding in decode(2).chain(decode(3)) {
            index.add_binding(&binding);
        }
        index
    }

    fn add_role(&mut self, role: &Value) {
        let text = |key: &str| role["metadata"][key].as_str().unwrap_or_default().to_owned();
        self.roles.insert((text("namespace"), text("name")), Arc::new(Rule::all_of(role)));
    }

    fn add_binding(&mut self, binding: &Value) {
        let namespace = binding["metadata"]["namespace"].as_str();
        let role = &binding["roleRef"];
        let (kind, role_name) = (role["kind"].as_str().unwrap_or_default(), role["name"].as_str().unwrap_or_default());
        let role_namespace = if kind == "Role" { namespace.unwrap_or_default() } else { "" };
        let rules = self.roles.get(&(role_namespace.to_owned(), role_name.to_owned())).cloned();
        let name = binding["metadata"]["name"].as_str().unwrap_or_default();
        let binding_text = match namespace {
            Some(namespace) => format!("RoleBinding {:?}", format!("{name}/{namespace}")),
            None => format!("ClusterRoleBinding {name:?}"),
        };
        for subject in binding["subjects"].as_array().into_iter().flatten() {
            let name = subject["name"].as_str().unwrap_or_default();
            let home = subject["namespace"].as_str().or(namespace).unwrap_or_default();
            let (map, key, shown) = match subject["kind"].as_str() {
                Some("User") => (&mut self.users, name.to_owned(), format!("User {name:?}")),
                Some("Group") => (&mut self.groups, name.to_owned(), format!("Group {name:?}")),
                Some("ServiceAccount") => (
                    &mut self.users,
                    format!("system:serviceaccount:{home}:{name}"),
                    format!("ServiceAccount {:?}", format!("{name}/{home}")),
                ),
                _ => continue,
            };
            let says = match &rules {
                Some(_) => format!("RBAC: allowed by {binding_text} of {kind} {role_name:?} to {shown}"),
                None => format!("{}.rbac.authorization.k8s.io {role_name:?} not found", kind.to_lowercase()),
            };
            let grant = Grant {
                namespace: namespace.map(str::to_owned),
                rules: rules.clone().unwrap_or_default(),
                says: says.into(),
            };
            let grants = map.entry(key).or_default();
            if rules.is_none() {
                self.broken.push(grant.says.clone());
            }
            grants.push(grant);
        }
    }

    fn grants<'a>(&'a self, user: &'a UserInfo, namespace: &'a str) -> impl Iterator<Item = &'a Grant> {
        let own = self.users.get(&user.name);
        let of_groups = user.groups.iter().filter_map(|group| self.groups.get(group));
        own.into_iter().chain(of_groups).flatten().filter(move |grant| match &grant.namespace {
            None => true,
            Some(held) => !namespace.is_empty() && held == namespace,
        })
    }

    /// Why it is allowed; none if it is not.
    pub fn allows(&self, user: &UserInfo, request: &Request<'_>) -> Option<Arc<str>> {
        let mut grants = self.grants(user, request.namespace);
        let grant = grants.find(|grant| grant.rules.iter().any(|rule| rule.allows(request)))?;
        Some(grant.says.clone())
    }

    /// What is wrong with the user's bindings: a refusal says it, since that may be its cause.
    pub fn problems(&self, user: &UserInfo, namespace: &str) -> String {
        if self.broken.is_empty() {
            return String::new();
        }
        let mut problems: Vec<&str> = self.grants(user, namespace).map(|grant| &*grant.says).collect();
        problems.retain(|says| self.broken.iter().any(|broken| &**broken == *says));
        problems.dedup();
        match problems.as_slice() {
            [] => String::new(),
            [one] => format!("RBAC: {one}"),
            many => format!("RBAC: [{}]", many.join(", ")),
        }
    }

    /// Every rule that `user` has in `namespace` (empty: at the cluster scope).
    pub fn rules_of(&self, user: &UserInfo, namespace: &str) -> Vec<Rule> {
        self.grants(user, namespace).flat_map(|grant| grant.rules.iter().cloned()).collect()
    }

    /// The rules of a role; `namespace` is empty for cluster roles.
    pub fn role(&self, namespace: &str, name: &str) -> Option<Arc<Vec<Rule>>> {
        self.roles.get(&(namespace.to_owned(), name.to_owned())).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rule(value: Value) -> Rule {
        Rule::from_json(&value)
    }

    #[test]
    fn rules_cover_resources_subresources_and_names() {
        let pods =
            rule(json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods", "*/scale"], "resourceNames": []}));
        let ask = |verb, resource, subresource| Request { verb, resource, subresource, ..Request::default() };
        assert!(pods.allows(&ask("get", "pods", "")));
        assert!(!pods.allows(&ask("get", "pods", "log")));
        assert!(!pods.allows(&ask("list", "pods", "")));
        assert!(pods.allows(&ask("get", "replicationcontrollers", "scale")));
        let named = rule(json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "resourceNames": ["a"]}));
        assert!(named.allows(&Request { name: "a", ..ask("get", "pods", "log") }));
        assert!(!named.allows(&ask("list", "pods", "")));
        let url = rule(json!({"verbs": ["get"], "nonResourceURLs": ["/healthz/*", "/version"]}));
        let path = |path| Request { verb: "get", path, ..Request::default() };
        assert!(url.allows(&path("/healthz/etcd")) && url.allows(&path("/version")) && !url.allows(&path("/metrics")));
    }

    #[test]
    fn bindings_reach_users_groups_and_service_accounts() {
        let mut index = Index::default();
        index.add_role(&json!({"metadata": {"name": "reader"}, "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]}));
        index.add_binding(&json!({"metadata": {"name": "b", "namespace": "a"}, "roleRef": {"kind": "ClusterRole", "name": "reader"},
            "subjects": [{"kind": "User", "name": "jane"}, {"kind": "ServiceAccount", "name": "bot", "namespace": "x"}]}));
        index.add_binding(&json!({"metadata": {"name": "c"}, "roleRef": {"kind": "ClusterRole", "name": "reader"},
            "subjects": [{"kind": "Group", "name": "ops"}]}));
        let ask = |namespace| Request { verb: "get", resource: "pods", namespace, ..Request::default() };
        assert!(index.allows(&UserInfo::new("jane", &[]), &ask("a")).is_some());
        assert!(index.allows(&UserInfo::new("jane", &[]), &ask("b")).is_none());
        assert!(index.allows(&UserInfo::new("jane", &[]), &ask("")).is_none());
        assert!(index.allows(&UserInfo::service_account("x", "bot"), &ask("a")).is_some());
        assert!(index.allows(&UserInfo::new("joe", &["ops"]), &ask("")).is_some());
        assert_eq!(
            &*index.allows(&UserInfo::service_account("x", "bot"), &ask("a")).unwrap(),
            "RBAC: allowed by RoleBinding \"b/a\" of ClusterRole \"reader\" to ServiceAccount \"bot/x\""
        );
        index.add_binding(&json!({"metadata": {"name": "d"}, "roleRef": {"kind": "ClusterRole", "name": "gone"},
            "subjects": [{"kind": "User", "name": "jane"}]}));
        let jane = UserInfo::new("jane", &[]);
        assert_eq!(index.problems(&jane, "b"), "RBAC: clusterrole.rbac.authorization.k8s.io \"gone\" not found");
        assert_eq!(index.problems(&UserInfo::new("joe", &[]), "b"), "");
    }

    #[test]
    fn escalation_needs_every_part_to_be_held() {
        let held = [
            rule(json!({"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods"]})),
            rule(json!({"verbs": ["*"], "apiGroups": ["apps"], "resources": ["*"]})),
        ];
        let covered = |asked: Value| rule(asked).covered_by(&held);
        assert!(covered(json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"], "resourceNames": ["a"]})));
        assert!(covered(json!({"verbs": ["get"], "apiGroups": ["apps"], "resources": ["deployments/scale"]})));
        assert!(!covered(json!({"verbs": ["get", "delete"], "apiGroups": [""], "resources": ["pods"]})));
        assert!(!covered(json!({"verbs": ["*"], "apiGroups": [""], "resources": ["pods"]})));
        assert!(!covered(json!({"verbs": ["get"], "nonResourceURLs": ["/metrics"]})));
    }
}

//! FlowSchemas: which requests they catch, and which flow of theirs a request is. Pure.

use http::HeaderValue;
use serde_json::Value;

use super::level::SchemaCounters;
use crate::authn::UserInfo;
use crate::http::info::RequestInfo;

/// A compiled `FlowSchema`.
#[derive(Debug)]
pub struct Schema {
    pub name: String,
    pub uid: String,
    /// `uid` as answers carry it.
    pub shown: HeaderValue,
    pub level: String,
    pub precedence: i64,
    distinguisher: Distinguisher,
    rules: Vec<Rules>,
    pub counters: SchemaCounters,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Distinguisher {
    None,
    User,
    Namespace,
}

#[derive(Debug)]
struct Rules {
    subjects: Vec<Subject>,
    resources: Vec<ResourceRule>,
    paths: Vec<PathRule>,
}

#[derive(Debug)]
enum Subject {
    User(String),
    Group(String),
    /// Namespace and name; `*` is every name.
    Account(String, String),
}

#[derive(Debug)]
struct ResourceRule {
    verbs: Vec<String>,
    groups: Vec<String>,
    resources: Vec<String>,
    namespaces: Vec<String>,
    cluster_scope: bool,
}

#[derive(Debug)]
struct PathRule {
    verbs: Vec<String>,
    paths: Vec<String>,
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn holds(list: &[String], wanted: &str) -> bool {
    matches!(list, [only] if only == "*") || list.iter().any(|item| item == wanted)
}

impl Schema {
    pub fn from_json(object: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let spec = &object["spec"];
        Self {
            name: text(&object["metadata"]["name"]),
            shown: super::header(object["metadata"]["uid"].as_str().unwrap_or_default()),
            uid: text(&object["metadata"]["uid"]),
            level: text(&spec["priorityLevelConfiguration"]["name"]),
            precedence: spec["matchingPrecedence"].as_i64().unwrap_or(1000),
            distinguisher: match spec["distinguisherMethod"]["type"].as_str() {
                Some("ByUser") => Distinguisher::User,
                Some("ByNamespace") => Distinguisher::Namespace,
                _ => Distinguisher::None,
            },
            rules: items(&spec["rules"]).map(Rules::from_json).collect(),
            counters: SchemaCounters::default(),
        }
    }

    pub fn matches(&self, user: &UserInfo, info: &RequestInfo) -> bool {
        self.rules.iter().any(|rules| rules.matches(user, info))
    }

    /// What tells the flows of this schema apart.
    pub fn flow<'a>(&self, user: &'a UserInfo, info: &'a RequestInfo) -> &'a str {
        match self.distinguisher {
            Distinguisher::None => "",
            Distinguisher::User => &user.name,
            Distinguisher::Namespace => &info.namespace,
        }
    }
}

impl Rules {
    fn from_json(rules: &Value) -> Self {
        Self {
            subjects: items(&rules["subjects"]).filter_map(Subject::from_json).collect(),
            resources: items(&rules["resourceRules"])
                .map(|rule| ResourceRule {
                    verbs: texts(&rule["verbs"]),
                    groups: texts(&rule["apiGroups"]),
                    resources: texts(&rule["resources"]),
                    namespaces: texts(&rule["namespaces"]),
                    cluster_scope: rule["clusterScope"] == true,
                })
                .collect(),
            paths: items(&rules["nonResourceRules"])
                .map(|rule| PathRule { verbs: texts(&rule["verbs"]), paths: texts(&rule["nonResourceURLs"]) })
                .collect(),
        }
    }

    fn matches(&self, user: &UserInfo, info: &RequestInfo) -> bool {
        self.subjects.iter().any(|subject| subject.is(user))
            && if info.is_resource {
                self.resources.iter().any(|rule| rule.matches(info))
            } else {
                self.paths.iter().any(|rule| rule.matches(info))
            }
    }
}

impl Subject {
    fn from_json(subject: &Value) -> Option<Self> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        match subject["kind"].as_str()? {
            "User" => Some(Subject::User(text(&subject["user"]["name"])?)),
            "Group" => Some(Subject::Group(text(&subject["group"]["name"])?)),
            "ServiceAccount" => {
                let account = &subject["serviceAccount"];
                Some(Subject::Account(text(&account["namespace"])?, text(&account["name"])?))
            }
            _ => None,
        }
    }

    fn is(&self, user: &UserInfo) -> bool {
        match self {
            Subject::User(name) => name == "*" || *name == user.name,
            Subject::Group(name) => name == "*" || user.in_group(name),
            Subject::Account(namespace, name) => user
                .as_service_account()
                .is_some_and(|(home, account)| home == namespace && (name == "*" || name == account)),
        }
    }
}

impl ResourceRule {
    fn matches(&self, info: &RequestInfo) -> bool {
        let resource = || {
            if info.subresource.is_empty() {
                holds(&self.resources, &info.resource)
            } else {
                holds(&self.resources, &format!("{}/{}", info.resource, info.subresource))
            }
        };
        let scope =
            if info.namespace.is_empty() { self.cluster_scope } else { holds(&self.namespaces, &info.namespace) };
        scope && holds(&self.verbs, &info.verb) && holds(&self.groups, &info.group) && resource()
    }
}

impl PathRule {
    fn matches(&self, info: &RequestInfo) -> bool {
        holds(&self.verbs, &info.verb)
            && self.paths.iter().any(|path| {
                let stem = path.trim_end_matches('*').trim_end_matches('/');
                path == "*"
                    || *path == info.path
                    || info.path.strip_prefix(stem).is_some_and(|rest| rest.starts_with('/'))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn schema(subjects: Value, rules: Value) -> Schema {
        let mut rules = rules;
        rules["subjects"] = subjects;
        Schema::from_json(&json!({"metadata": {"name": "x"}, "spec": {
            "priorityLevelConfiguration": {"name": "y"}, "distinguisherMethod": {"type": "ByUser"}, "rules": [rules]}}))
    }

    fn info(verb: &str, group: &str, resource: &str, namespace: &str) -> RequestInfo {
        let (resource, sub) = resource.split_once('/').unwrap_or((resource, ""));
        RequestInfo {
            is_resource: true,
            verb: verb.into(),
            group: group.into(),
            resource: resource.into(),
            subresource: sub.into(),
            namespace: namespace.into(),
            ..RequestInfo::default()
        }
    }

    #[test]
    fn resource_rules_need_every_part() {
        let leases = json!({"resourceRules": [{"verbs": ["get", "update"], "apiGroups": ["coordination.k8s.io"],
            "resources": ["leases", "leases/status"], "namespaces": ["*"]}]});
        let accounts = json!([{"kind": "ServiceAccount", "serviceAccount": {"namespace": "kube-system", "name": "*"}}]);
        let schema = schema(accounts, leases);
        let (inside, outside) =
            (UserInfo::service_account("kube-system", "a"), UserInfo::service_account("kube-system-2", "a"));
        let group = "coordination.k8s.io";
        assert!(schema.matches(&inside, &info("get", group, "leases", "a")));
        assert!(schema.matches(&inside, &info("get", group, "leases/status", "a")));
        assert!(!schema.matches(&outside, &info("get", group, "leases", "a")));
        assert!(!schema.matches(&inside, &info("list", group, "leases", "a")));
        assert!(!schema.matches(&inside, &info("get", "", "leases", "a")));
        assert!(!schema.matches(&inside, &info("get", group, "leases", "")), "not at the cluster scope");
        assert_eq!(schema.flow(&inside, &info("get", "", "x", "")), "system:serviceaccount:kube-system:a");
    }

    #[test]
    fn path_rules_cover_what_is_below() {
        let schema = schema(
            json!([{"kind": "Group", "group": {"name": "system:authenticated"}}]),
            json!({"nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["/healthz", "/debug/*"]}]}),
        );
        let user = UserInfo::new("jane", &["system:authenticated"]);
        let path = |path: &str| RequestInfo { verb: "get".into(), path: path.into(), ..RequestInfo::default() };
        assert!(schema.matches(&user, &path("/healthz")) && schema.matches(&user, &path("/healthz/etcd")));
        assert!(schema.matches(&user, &path("/debug/x")) && !schema.matches(&user, &path("/healthzz")));
        assert!(!schema.matches(&UserInfo::new("jane", &[]), &path("/healthz")));
    }
}

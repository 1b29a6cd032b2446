//! What a request is about, from its method and path alone (`RequestInfoFactory`).

use http::Method;

use super::query::Query;

/// A request's verb and what it is applied to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RequestInfo {
    /// False for paths such as `/healthz`, and for discovery (`/apis/apps/v1`).
    pub is_resource: bool,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`; for other
    /// paths the method in lower case.
    pub verb: String,
    pub path: String,
    pub group: String,
    pub version: String,
    pub namespace: String,
    pub resource: String,
    pub name: String,
    pub subresource: String,
    /// The path itself names an object (and not only a field selector).
    pub named: bool,
    /// What follows `proxy/` in the path, with its slash.
    pub rest: String,
}

impl RequestInfo {
    pub fn parse(method: &Method, path: &str, query: &Query) -> Self {
        let mut info = Self { path: path.to_owned(), ..Self::default() };
        // Enough for the longest path of a resource; what follows `proxy` may be longer.
        let mut parts = Vec::with_capacity(8);
        parts.extend(path.trim_matches('/').split('/'));
        let rest = match parts.as_slice() {
            ["api", version, rest @ ..] if !rest.is_empty() => {
                info.version = (*version).to_owned();
                rest
            }
            ["apis", group, version, rest @ ..] if !group.is_empty() && !rest.is_empty() => {
                info.group = (*group).to_owned();
                info.version = (*version).to_owned();
                rest
            }
            _ => {
                info.verb = method.as_str().to_lowercase();
                return info;
            }
        };
        info.is_resource = true;
        let (verb, rest) = match rest {
            // The old form of watching: /api/v1/watch/pods
            ["watch", rest @ ..] if !rest.is_empty() => ("watch", rest),
            ["proxy", rest @ ..] if !rest.is_empty() => ("proxy", rest),
            rest => (verb_of(method), rest),
        };
        let behind = info.locate(rest);
        if info.resource == "namespaces" && info.group.is_empty() {
            info.namespace.clone_from(&info.name);
        }
        info.verb = info.refined(verb, query).to_owned();
        info.find_rest(path, parts.len() - behind);
        info
    }

    pub fn path_has_name(&self) -> bool {
        self.named
    }

    /// Requests without a time limit: watches, and what takes over its connection.
    pub fn is_long_running(&self) -> bool {
        matches!(self.verb.as_str(), "watch" | "proxy")
            || matches!(self.subresource.as_str(), "attach" | "exec" | "proxy" | "log" | "portforward")
    }

    /// Requests that change nothing.
    pub fn is_read_only(&self) -> bool {
        matches!(self.verb.as_str(), "get" | "list" | "watch")
    }

    /// Whether this after a namespace's name is a subresource of it.
    fn keeps(&self, part: &str) -> bool {
        self.group.is_empty() && matches!(part, "status" | "finalize")
    }

    /// Reads what is named; returns how many parts follow the subresource.
    fn locate(&mut self, parts: &[&str]) -> usize {
        let own = |part: &&str| decode(part);
        let parts = match parts {
            // /namespaces/<name>/<resource>..., but status and finalize belong to the namespace
            ["namespaces", namespace, rest @ ..] if rest.first().is_some_and(|part| !self.keeps(part)) => {
                self.namespace = own(namespace);
                rest
            }
            parts => parts,
        };
        self.resource = parts.first().map(own).unwrap_or_default();
        self.name = parts.get(1).map(own).unwrap_or_default();
        self.subresource = parts.get(2).map(own).unwrap_or_default();
        self.named = !self.name.is_empty();
        parts.len().saturating_sub(3)
    }

    /// A verb of one object is another one on a collection.
    fn refined(&self, verb: &'static str, query: &Query) -> &'static str {
        match verb {
            _ if !self.name.is_empty() => verb,
            "get" if query.flag("watch") => "watch",
            "get" => "list",
            "delete" => "deletecollection",
            _ => verb,
        }
    }

    /// A list or watch whose field selector names one object counts as one on that object.
    pub fn take_name_from(&mut self, field_selector_name: Option<&str>) {
        if let Some(name) = field_selector_name
            && self.name.is_empty()
            && !matches!(name, "." | "..")
            && !name.contains(['/', '%'])
            && matches!(self.verb.as_str(), "list" | "watch" | "deletecollection")
        {
            self.name = name.to_owned();
        }
    }

    /// `proxy` is the last of the path's first `count` parts.
    fn find_rest(&mut self, path: &str, count: usize) {
        if self.subresource != "proxy" {
            return;
        }
        let start = path.len() - path.trim_start_matches('/').len();
        let mut ends = path[start..].match_indices('/').map(|(at, _)| start + at);
        self.rest = ends.nth(count - 1).map(|at| path[at..].to_owned()).unwrap_or_default();
    }
}

fn verb_of(method: &Method) -> &'static str {
    match method.as_str() {
        "POST" => "create",
        "GET" | "HEAD" => "get",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" => "delete",
        _ => "",
    }
}

/// Percent-decodes one path segment.
fn decode(part: &&str) -> String {
    super::query::percent_decode(part, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_as_upstream_reads_them() {
        let cases: &[(&str, &str, &str, [&str; 6])] = &[
            ("GET", "/api/v1/pods", "list", ["", "v1", "", "pods", "", ""]),
            ("GET", "/api/v1/pods?watch=true", "watch", ["", "v1", "", "pods", "", ""]),
            ("GET", "/api/v1/namespaces/a/pods/b/log", "get", ["", "v1", "a", "pods", "b", "log"]),
            ("POST", "/apis/apps/v1/namespaces/a/deployments", "create", ["apps", "v1", "a", "deployments", "", ""]),
            ("PUT", "/api/v1/namespaces/a/finalize", "update", ["", "v1", "a", "namespaces", "a", "finalize"]),
            ("GET", "/api/v1/namespaces/a", "get", ["", "v1", "a", "namespaces", "a", ""]),
            ("DELETE", "/api/v1/namespaces/a/pods", "deletecollection", ["", "v1", "a", "pods", "", ""]),
            (
                "PATCH",
                "/apis/apps/v1/namespaces/a/deployments/d/scale",
                "patch",
                ["apps", "v1", "a", "deployments", "d", "scale"],
            ),
            ("GET", "/api/v1/watch/pods", "watch", ["", "v1", "", "pods", "", ""]),
            (
                "DELETE",
                "/apis/rbac.authorization.k8s.io/v1/clusterroles/system:node",
                "delete",
                ["rbac.authorization.k8s.io", "v1", "", "clusterroles", "system:node", ""],
            ),
        ];
        for (method, target, verb, [group, version, namespace, resource, name, subresource]) in cases {
            let (path, query) = target.split_once('?').unwrap_or((target, ""));
            let info = RequestInfo::parse(&method.parse().unwrap(), path, &Query::parse(query));
            assert!(info.is_resource, "{target}");
            assert_eq!(info.verb, *verb, "{target}");
            let got = [&info.group, &info.version, &info.namespace, &info.resource, &info.name, &info.subresource];
            assert_eq!(got, [group, version, namespace, resource, name, subresource], "{target}");
        }
        // An empty step is a step like any other.
        let info = RequestInfo::parse(&Method::GET, "/api/v1/namespaces//pods/", &Query::parse(""));
        assert_eq!((&*info.namespace, &*info.resource, &*info.name), ("", "pods", ""));
        assert!(!RequestInfo::parse(&Method::GET, "/apis//v1/pods", &Query::parse("")).is_resource);
        for path in ["/", "/healthz", "/api", "/api/v1", "/apis", "/apis/apps", "/apis/apps/v1", "/openapi/v3"] {
            let info = RequestInfo::parse(&Method::GET, path, &Query::parse(""));
            assert!(!info.is_resource, "{path}");
            assert_eq!(info.verb, "get");
        }
    }

    #[test]
    fn what_follows_proxy_is_kept() {
        let path = "/api/v1/namespaces/a/services/web:80/proxy/x/y";
        let info = RequestInfo::parse(&Method::GET, path, &Query::parse(""));
        assert_eq!((info.name.as_str(), info.subresource.as_str(), info.rest.as_str()), ("web:80", "proxy", "/x/y"));
    }

    #[test]
    fn what_follows_proxy_is_kept_in_a_namespace_named_like_the_resource() {
        for (path, rest) in [
            ("/api/v1/namespaces/pods/pods/web/proxy/x", "/x"),
            ("/api/v1/namespaces/services/services/web/proxy/", "/"),
            ("/api/v1/namespaces/a/services/services/proxy//x/", "//x/"),
            ("/api/v1/nodes/n/proxy/nodes/proxy/x", "/nodes/proxy/x"),
            ("/api/v1/nodes/n/proxy", ""),
        ] {
            assert_eq!(RequestInfo::parse(&Method::GET, path, &Query::parse("")).rest, rest, "{path}");
        }
    }
}

//! Which of the server's endpoints a request is for, and what it needs permission for. Pure.

use http::Method;

/// An endpoint with its path parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    Healthz,
    Pods,
    RunningPods,
    ContainerLogs {
        namespace: String,
        pod: String,
        container: String,
    },
    Exec(Target),
    Attach(Target),
    Run(Target),
    Checkpoint {
        namespace: String,
        pod: String,
        container: String,
    },
    PortForward {
        namespace: String,
        pod: String,
        uid: Option<String>,
    },
    StatsSummary,
    Metrics,
    MetricsCadvisor,
    MetricsResource,
    MetricsProbes,
    MetricsSlis,
    Statusz,
    Flagz,
    /// A path under the host's log directory.
    NodeLogs {
        path: String,
    },
    Configz,
}

/// One container, as `/exec` and its like name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub namespace: String,
    pub pod: String,
    pub uid: Option<String>,
    pub container: String,
}

/// What a request asks to be allowed: `verb` on `nodes/<subresource>` of this node.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Attributes {
    pub verb: &'static str,
    pub subresource: &'static str,
}

/// None if there is no such endpoint.
pub fn route(path: &str) -> Option<Route> {
    let parts: Vec<String> = path.split('/').filter(|part| !part.is_empty()).map(percent_decode).collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    Some(match parts.as_slice() {
        ["healthz"] | ["healthz", "ping" | "log" | "syncloop"] => Route::Healthz,
        ["pods"] => Route::Pods,
        ["runningpods"] => Route::RunningPods,
        ["containerLogs", namespace, pod, container] => Route::ContainerLogs {
            namespace: (*namespace).to_owned(),
            pod: (*pod).to_owned(),
            container: (*container).to_owned(),
        },
        ["exec", rest @ ..] => Route::Exec(target(rest)?),
        ["attach", rest @ ..] => Route::Attach(target(rest)?),
        ["run", rest @ ..] => Route::Run(target(rest)?),
        ["checkpoint", namespace, pod, container] => Route::Checkpoint {
            namespace: (*namespace).to_owned(),
            pod: (*pod).to_owned(),
            container: (*container).to_owned(),
        },
        ["portForward", namespace, pod] => {
            Route::PortForward { namespace: (*namespace).to_owned(), pod: (*pod).to_owned(), uid: None }
        }
        ["portForward", namespace, pod, uid] => Route::PortForward {
            namespace: (*namespace).to_owned(),
            pod: (*pod).to_owned(),
            uid: Some((*uid).to_owned()),
        },
        ["stats", "summary"] => Route::StatsSummary,
        ["metrics"] => Route::Metrics,
        ["metrics", "cadvisor"] => Route::MetricsCadvisor,
        ["metrics", "resource"] => Route::MetricsResource,
        ["metrics", "probes"] => Route::MetricsProbes,
        ["metrics", "slis"] => Route::MetricsSlis,
        ["statusz"] => Route::Statusz,
        ["flagz"] => Route::Flagz,
        ["logs", rest @ ..] => Route::NodeLogs { path: rest.join("/") },
        ["configz"] => Route::Configz,
        _ => return None,
    })
}

fn target(parts: &[&str]) -> Option<Target> {
    let (namespace, pod, uid, container) = match parts {
        [namespace, pod, container] => (namespace, pod, None, container),
        [namespace, pod, uid, container] => (namespace, pod, Some((*uid).to_owned()), container),
        _ => return None,
    };
    Some(Target { namespace: (*namespace).to_owned(), pod: (*pod).to_owned(), uid, container: (*container).to_owned() })
}

/// What is asked for, the fine-grained permission first: one of them suffices
/// (`pkg/kubelet/server/auth.go`).
pub fn attributes(method: &Method, path: &str) -> Vec<Attributes> {
    let verb = match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "get",
    };
    let first = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    let subresources: &[&'static str] = match first {
        "stats" => &["stats"],
        "metrics" => &["metrics"],
        "logs" => &["log"],
        "checkpoint" => &["checkpoint"],
        "healthz" => &["healthz", "proxy"],
        "pods" | "runningpods" => &["pods", "proxy"],
        // What the flags say is the configuration, by another name.
        "configz" | "flagz" => &["configz", "proxy"],
        "statusz" => &["statusz", "proxy"],
        _ => &["proxy"],
    };
    subresources.iter().map(|subresource| Attributes { verb, subresource }).collect()
}

/// The values of a query parameter, decoded, in order.
pub fn query_values(query: Option<&str>, name: &str) -> Vec<String> {
    query
        .unwrap_or_default()
        .split('&')
        .filter_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (percent_decode(key) == name).then(|| percent_decode(&value.replace('+', " ")))
        })
        .collect()
}

pub fn query_value(query: Option<&str>, name: &str) -> Option<String> {
    query_values(query, name).into_iter().next().filter(|value| !value.is_empty())
}

/// A flag under any of its names: `stdin=true` as clients write it, `input=1` as the API server does.
pub fn query_flag(query: Option<&str>, names: &[&str]) -> bool {
    names.iter().any(|name| query_values(query, name).first().is_some_and(|value| value == "1" || value == "true"))
}

fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let digits = bytes.get(at + 1..at + 3).and_then(|digits| std::str::from_utf8(digits).ok());
        match (bytes[at], digits.and_then(|digits| u8::from_str_radix(digits, 16).ok())) {
            (b'%', Some(byte)) => {
                plain.push(byte);
                at += 3;
            }
            (byte, _) => {
                plain.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_to_endpoints() {
        assert_eq!(route("/healthz"), Some(Route::Healthz));
        assert_eq!(route("/runningpods/"), Some(Route::RunningPods));
        let target = |uid: Option<&str>| Target {
            namespace: "n".into(),
            pod: "p".into(),
            uid: uid.map(str::to_owned),
            container: "c".into(),
        };
        assert_eq!(route("/exec/n/p/c"), Some(Route::Exec(target(None))));
        assert_eq!(route("/attach/n/p/u/c"), Some(Route::Attach(target(Some("u")))));
        assert_eq!(route("/exec/n/p"), None);
        let checkpoint = Route::Checkpoint { namespace: "n".into(), pod: "p".into(), container: "c".into() };
        assert_eq!(route("/checkpoint/n/p/c"), Some(checkpoint));
        assert_eq!(route("/metrics/cadvisor"), Some(Route::MetricsCadvisor));
        assert_eq!(route("/logs/a/b"), Some(Route::NodeLogs { path: "a/b".into() }));
        assert_eq!(route("/nonsense"), None);
    }

    #[test]
    fn permissions_follow_the_path_and_method() {
        let ask = |method, path| {
            attributes(&method, path).into_iter().map(|a| format!("{} {}", a.verb, a.subresource)).collect::<Vec<_>>()
        };
        assert_eq!(ask(Method::POST, "/exec/n/p/c"), ["create proxy"]);
        assert_eq!(ask(Method::GET, "/containerLogs/n/p/c"), ["get proxy"]);
        assert_eq!(ask(Method::GET, "/metrics/resource"), ["get metrics"]);
        assert_eq!(ask(Method::GET, "/stats/summary"), ["get stats"]);
        assert_eq!(ask(Method::GET, "/pods"), ["get pods", "get proxy"]);
        assert_eq!(ask(Method::GET, "/logs/"), ["get log"]);
        assert_eq!(ask(Method::POST, "/checkpoint/n/p/c"), ["create checkpoint"]);
        assert_eq!(ask(Method::GET, "/statusz"), ["get statusz", "get proxy"]);
        assert_eq!(ask(Method::GET, "/flagz"), ["get configz", "get proxy"]);
        assert_eq!(ask(Method::GET, "/metrics/slis"), ["get metrics"]);
    }

    #[test]
    fn queries_are_decoded() {
        let query = Some("command=sh&command=-c&command=echo+a%26b&input=1&&tty=false");
        assert_eq!(query_values(query, "command"), ["sh", "-c", "echo a&b"]);
        assert!(query_flag(query, &["stdin", "input"]));
        assert!(!query_flag(query, &["tty"]));
        assert_eq!(query_value(query, "none"), None);
    }
}

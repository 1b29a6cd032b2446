//! exec, attach and port-forward: the client's upgraded connection, joined to the runtime's.
//!
//! The runtime serves the streams itself and says where (a URL from CRI). What joins the two
//! depends on what the client speaks:
//!
//! | client | runtime | what happens |
//! |---|---|---|
//! | SPDY/3.1 | SPDY/3.1 | bytes are passed through (`tunnel`) |
//! | WebSocket, older subprotocols | WebSocket | bytes are passed through (`tunnel`) |
//! | WebSocket `v5.channel.k8s.io` | SPDY/3.1, `v4.channel.k8s.io` | channels become streams (`channels`): older runtimes do not know v5, and only SPDY has its half-close |
//! | WebSocket `SPDY/3.1+portforward.k8s.io` | SPDY/3.1 | messages are unwrapped to bytes (`unwrap`) |

mod channels;
mod spdy;
mod tunnel;
mod unwrap;

use std::sync::Arc;

use http::{HeaderMap, Request, StatusCode, header};
use hyper::body::Incoming;
use proto::runtime::v1 as cri;

use super::reply::{self, Reply};
use super::route::{Target, query_flag, query_values};
use crate::cri::RuntimeError;
use crate::server_contract::NodePods;
use component::Supervisor;

/// Which standard streams a client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

impl Wanted {
    /// From the query: `input=1` as the API server writes it, or `stdin=true` as clients do.
    fn parse(query: Option<&str>) -> Result<Self, &'static str> {
        let tty = query_flag(query, &["tty"]);
        let wanted = Self {
            stdin: query_flag(query, &["input", "stdin"]),
            stdout: query_flag(query, &["output", "stdout"]),
            // a terminal has one output
            stderr: query_flag(query, &["error", "stderr"]) && !tty,
            tty,
        };
        if wanted.stdin || wanted.stdout || wanted.stderr {
            Ok(wanted)
        } else {
            Err("you must specify at least 1 of stdin, stdout, stderr")
        }
    }
}

/// How the client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Speech {
    Spdy,
    /// A subprotocol that the runtime's own WebSocket server knows.
    WebSocket,
    /// `v5.channel.k8s.io`
    Channels,
    /// `SPDY/3.1+portforward.k8s.io`
    WrappedSpdy,
}

fn speech(headers: &HeaderMap) -> Option<Speech> {
    let list = |name: header::HeaderName| -> Vec<String> {
        let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).map(|part| part.trim().to_owned()).collect()
    };
    let upgrade = list(header::UPGRADE);
    if upgrade.iter().any(|protocol| protocol.eq_ignore_ascii_case("SPDY/3.1")) {
        return Some(Speech::Spdy);
    }
    if !upgrade.iter().any(|protocol| protocol.eq_ignore_ascii_case("websocket")) {
        return None;
    }
    let offered = list(header::SEC_WEBSOCKET_PROTOCOL);
    let offers = |protocol: &str| offered.iter().any(|offered| offered == protocol);
    Some(if offers(channels::PROTOCOL) {
        Speech::Channels
    } else if offers(unwrap::PROTOCOL) {
        Speech::WrappedSpdy
    } else {
        Speech::WebSocket
    })
}

pub async fn exec(
    pods: &Arc<dyn NodePods>,
    target: &Target,
    request: Request<Incoming>,
    supervisor: &Supervisor,
) -> Reply {
    let query = request.uri().query().map(str::to_owned);
    let wanted = match Wanted::parse(query.as_deref()) {
        Ok(wanted) => wanted,
        Err(message) => return reply::error(StatusCode::BAD_REQUEST, message),
    };
    let container_id = match find_container(pods, target, no_container) {
        Ok(id) => id,
        Err(refused) => return *refused,
    };
    let url = pods
        .runtime()
        .exec(cri::ExecRequest {
            container_id,
            cmd: query_values(query.as_deref(), "command"),
            tty: wanted.tty,
            stdin: wanted.stdin,
            stdout: wanted.stdout,
            stderr: wanted.stderr,
            ..Default::default()
        })
        .await;
    join(url, request, Some(wanted), supervisor).await
}

pub async fn attach(
    pods: &Arc<dyn NodePods>,
    target: &Target,
    request: Request<Incoming>,
    supervisor: &Supervisor,
) -> Reply {
    let wanted = match Wanted::parse(request.uri().query()) {
        Ok(wanted) => wanted,
        Err(message) => return reply::error(StatusCode::BAD_REQUEST, message),
    };
    let container_id = match find_container(pods, target, nothing_to_attach_to) {
        Ok(id) => id,
        Err(refused) => return *refused,
    };
    // Whether there is a terminal is the container's own property.
    let pod = pods.pod(&target.namespace, &target.pod);
    let tty = pod.and_then(|pod| tty_of(&pod, &target.container)).unwrap_or(wanted.tty);
    let wanted = Wanted { tty, stderr: wanted.stderr && !tty, ..wanted };
    let url = pods
        .runtime()
        .attach(cri::AttachRequest {
            container_id,
            tty: wanted.tty,
            stdin: wanted.stdin,
            stdout: wanted.stdout,
            stderr: wanted.stderr,
            ..Default::default()
        })
        .await;
    join(url, request, Some(wanted), supervisor).await
}

pub async fn port_forward(
    pods: &Arc<dyn NodePods>,
    (namespace, name, uid): (&str, &str, Option<&str>),
    request: Request<Incoming>,
    supervisor: &Supervisor,
) -> Reply {
    let found = pods.pod(namespace, name).filter(|pod| uid.is_none_or(|uid| pod.metadata.uid.as_deref() == Some(uid)));
    let Some(pod) = found else {
        return reply::error(StatusCode::NOT_FOUND, format!("pod does not exist: {name}_{namespace}"));
    };
    let view = pods.runtime_view(pod.metadata.uid.as_deref().unwrap_or_default());
    let Some(pod_sandbox_id) = view.sandbox_id else {
        return reply::error(StatusCode::NOT_FOUND, format!("failed to find sandbox for pod {name}_{namespace}"));
    };
    let ports = query_values(request.uri().query(), "port")
        .iter()
        .chain(&query_values(request.uri().query(), "ports"))
        .flat_map(|list| list.split(','))
        .filter_map(|port| port.parse().ok())
        .collect();
    let url = pods.runtime().port_forward(cri::PortForwardRequest { pod_sandbox_id, port: ports }).await;
    join(url, request, None, supervisor).await
}

/// `/run`: one command to its end; the answer is its output.
pub async fn run(pods: &Arc<dyn NodePods>, target: &Target, query: Option<&str>) -> Reply {
    let container_id = match find_container(pods, target, no_container) {
        Ok(id) => id,
        Err(refused) => return *refused,
    };
    let command: Vec<String> =
        query_values(query, "cmd").iter().flat_map(|text| text.split_whitespace()).map(str::to_owned).collect();
    match pods.runtime().exec_sync(&container_id, command, None).await {
        Ok(answer) if answer.exit_code == 0 => {
            let mut output = answer.stdout;
            output.extend_from_slice(&answer.stderr);
            reply::with_type(StatusCode::OK, "text/plain", output)
        }
        Ok(answer) => {
            let output =
                String::from_utf8_lossy(&answer.stdout).into_owned() + &String::from_utf8_lossy(&answer.stderr);
            let message = format!("command exited with {}: {output}", answer.exit_code);
            reply::error(StatusCode::INTERNAL_SERVER_ERROR, message)
        }
        Err(error) => reply::error(StatusCode::INTERNAL_SERVER_ERROR, error.runtime_message()),
    }
}

/// What is said of a container that does not run: to whom wants to run something in it...
fn no_container(container: &str, _: &str, _: &str) -> String {
    format!("container not found (\"{container}\")")
}

/// ... and to whom wants to see it (`kubelet_pods.go: GetExec`, `GetAttach`).
fn nothing_to_attach_to(container: &str, pod: &str, namespace: &str) -> String {
    format!("container {container} not found in pod {pod}_{namespace}")
}

/// The id of the container's run that is running, or the answer that says that there is none.
fn find_container(
    pods: &Arc<dyn NodePods>,
    target: &Target,
    not_found: fn(&str, &str, &str) -> String,
) -> Result<String, Box<Reply>> {
    let Target { namespace, pod: name, uid, container } = target;
    let found = pods.pod(namespace, name);
    let found = found.filter(|pod| uid.is_none() || pod.metadata.uid == *uid);
    let Some(pod) = found else {
        return Err(Box::new(reply::error(StatusCode::NOT_FOUND, format!("pod does not exist: {name}_{namespace}"))));
    };
    let view = pods.runtime_view(pod.metadata.uid.as_deref().unwrap_or_default());
    match view.container(container, false).filter(|run| run.running) {
        Some(run) => Ok(run.id.clone()),
        None => Err(Box::new(reply::error(StatusCode::INTERNAL_SERVER_ERROR, not_found(container, name, namespace)))),
    }
}

fn tty_of(pod: &k8s_openapi::api::core::v1::Pod, container: &str) -> Option<bool> {
    let spec = pod.spec.as_ref()?;
    let mut ordinary = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let own = ordinary.find(|candidate| candidate.name == container).map(|found| found.tty);
    let ephemeral =
        || spec.ephemeral_containers.iter().flatten().find(|found| found.name == container).map(|found| found.tty);
    own.or_else(ephemeral).map(|tty| tty.unwrap_or(false))
}

/// Joins the client to the runtime's URL. `wanted` is none for port-forward.
async fn join(
    url: Result<String, RuntimeError>,
    request: Request<Incoming>,
    wanted: Option<Wanted>,
    supervisor: &Supervisor,
) -> Reply {
    let url = match url {
        Ok(url) => url,
        Err(error) => return reply::error(StatusCode::INTERNAL_SERVER_ERROR, error.runtime_message()),
    };
    let outcome = match (speech(request.headers()), wanted) {
        (Some(Speech::Channels), Some(wanted)) => channels::join(&url, request, wanted, supervisor).await,
        (Some(Speech::WrappedSpdy), None) => unwrap::join(&url, request, supervisor).await,
        (Some(_), _) => tunnel::join(&url, request, supervisor).await,
        (None, _) => {
            return reply::error(StatusCode::BAD_REQUEST, "unable to upgrade: missing upgrade headers in request");
        }
    };
    outcome.unwrap_or_else(|failed| match failed {
        tunnel::Failed::Answer(answer) => *answer,
        tunnel::Failed::Runtime(message) => {
            reply::error(StatusCode::INTERNAL_SERVER_ERROR, format!("error dialing backend: {message}"))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(upgrade: &str, protocols: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::UPGRADE, upgrade.parse().unwrap());
        if !protocols.is_empty() {
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, protocols.parse().unwrap());
        }
        headers
    }

    #[test]
    fn clients_are_told_apart() {
        let cases = [
            (headers("SPDY/3.1", ""), Some(Speech::Spdy)),
            (headers("websocket", "v5.channel.k8s.io,v4.channel.k8s.io"), Some(Speech::Channels)),
            (headers("WebSocket", "v4.channel.k8s.io"), Some(Speech::WebSocket)),
            (headers("websocket", "SPDY/3.1+portforward.k8s.io"), Some(Speech::WrappedSpdy)),
            (headers("h2c", ""), None),
            (HeaderMap::new(), None),
        ];
        for (headers, expected) in cases {
            assert_eq!(speech(&headers), expected, "{headers:?}");
        }
    }

    #[test]
    fn a_terminal_has_no_standard_error() {
        let wanted = Wanted::parse(Some("input=1&output=1&error=1&tty=1")).unwrap();
        assert_eq!(wanted, Wanted { stdin: true, stdout: true, stderr: false, tty: true });
        assert!(Wanted::parse(Some("tty=1")).is_err());
    }
}

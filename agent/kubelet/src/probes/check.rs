//! One probe, asked once. Messages are those of Kubernetes' probers.

use std::error::Error;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::SignedDuration;
use k8s_openapi::api::core::v1::{Container, ExecAction, GRPCAction, HTTPGetAction, Probe, TCPSocketAction};
use proto::grpc::health::v1::HealthCheckRequest;
use proto::grpc::health::v1::health_check_response::ServingStatus;
use proto::grpc::health::v1::health_client::HealthClient;
use tonic::Status;
use tonic::transport::Endpoint;

use super::http;
use crate::cri::{Runtime, RuntimeError, code_name};
use crate::pod::backoff::go_duration;
use crate::pod::hooks::resolve_port;

/// How long after a refused connection a gRPC probe tries the next.
const RECONNECT: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Success,
    /// Good, with something to tell.
    Warning(String),
    Failure(String),
    /// Nothing can be said about the container.
    Error(String),
}

pub struct Target<'a> {
    pub runtime: &'a Runtime,
    pub container: &'a Container,
    pub container_id: &'a str,
    pub pod_ip: Option<&'a str>,
}

pub async fn check(target: &Target<'_>, probe: &Probe, timeout: Duration) -> Answer {
    if let Some(exec) = &probe.exec {
        return check_exec(target, exec, timeout).await;
    }
    if let Some(get) = &probe.http_get {
        return check_http(target, get, timeout).await;
    }
    if let Some(socket) = &probe.tcp_socket {
        return check_tcp(target, socket, timeout).await;
    }
    if let Some(grpc) = &probe.grpc {
        return check_grpc(target, grpc, timeout).await;
    }
    Answer::Error("missing probe handler".to_owned())
}

async fn check_exec(target: &Target<'_>, exec: &ExecAction, timeout: Duration) -> Answer {
    let command = exec.command.clone().unwrap_or_default();
    let shown = format!("{:?}", command.join(" "));
    match target.runtime.exec_sync(target.container_id, command, Some(timeout)).await {
        Ok(answer) if answer.exit_code == 0 => Answer::Success,
        Ok(answer) => {
            let output = [answer.stdout, answer.stderr].concat();
            Answer::Failure(cut(&String::from_utf8_lossy(&output)))
        }
        Err(RuntimeError::Deadline { .. }) => timed_out(&shown, timeout),
        Err(RuntimeError::Answer { code: tonic::Code::DeadlineExceeded, .. }) => timed_out(&shown, timeout),
        Err(error) => Answer::Error(error.runtime_message()),
    }
}

fn timed_out(command: &str, timeout: Duration) -> Answer {
    Answer::Failure(format!(
        "command timed out: {command} timed out after {}",
        go_duration(SignedDuration::try_from(timeout).unwrap_or_default())
    ))
}

/// Kubernetes keeps 10 KiB of a probe's output.
fn cut(output: &str) -> String {
    const LIMIT: usize = 10 << 10;
    let end = (0..=output.len().min(LIMIT)).rev().find(|at| output.is_char_boundary(*at)).unwrap_or(0);
    output[..end].to_owned()
}

fn host<'a>(given: Option<&'a str>, target: &Target<'a>) -> Result<&'a str, Answer> {
    given
        .filter(|host| !host.is_empty())
        .or(target.pod_ip)
        .ok_or_else(|| Answer::Error("the pod has no address yet".to_owned()))
}

async fn check_http(target: &Target<'_>, get: &HTTPGetAction, timeout: Duration) -> Answer {
    let host = match host(get.host.as_deref(), target) {
        Ok(host) => host,
        Err(answer) => return answer,
    };
    let Some(port) = resolve_port(target.container, &get.port) else {
        return Answer::Error(format!("couldn't find port: {:?}", get.port));
    };
    let request = http::Request::from_action(get, host, port);
    match http::fetch(&request, timeout).await {
        Ok(answer) if (300..400).contains(&answer.status) => {
            Answer::Warning(format!("Probe terminated redirects, Response body: {}", cut(&answer.body)))
        }
        Ok(answer) if (200..300).contains(&answer.status) => Answer::Success,
        Ok(answer) => Answer::Failure(format!("HTTP probe failed with statuscode: {}", answer.status)),
        Err(message) => Answer::Failure(message),
    }
}

async fn check_tcp(target: &Target<'_>, socket: &TCPSocketAction, timeout: Duration) -> Answer {
    let host = match host(socket.host.as_deref(), target) {
        Ok(host) => host,
        Err(answer) => return answer,
    };
    let Some(port) = resolve_port(target.container, &socket.port) else {
        return Answer::Error(format!("couldn't find port: {:?}", socket.port));
    };
    match http::connect(host, port, timeout).await {
        Ok(_) => Answer::Success,
        Err(message) => Answer::Failure(message),
    }
}

async fn check_grpc(target: &Target<'_>, grpc: &GRPCAction, timeout: Duration) -> Answer {
    let host = match host(None, target) {
        Ok(host) => host,
        Err(answer) => return answer,
    };
    let authority = http::authority(host, u16::try_from(grpc.port).unwrap_or_default());
    let Ok(endpoint) =
        Endpoint::from_shared(format!("http://{authority}")).and_then(|e| e.user_agent(http::USER_AGENT))
    else {
        return Answer::Error(format!("invalid address {authority}"));
    };
    let service = grpc.service.clone().unwrap_or_default();
    let within = go_duration(SignedDuration::try_from(timeout).unwrap_or_default());
    let connected = AtomicBool::new(false);
    match tokio::time::timeout(timeout, ask_health(&endpoint, &service, &connected)).await {
        Err(_) if connected.load(Ordering::Relaxed) => {
            Answer::Failure(format!("timeout: health rpc did not complete within {within}"))
        }
        Err(_) => Answer::Failure(format!(
            "timeout: failed to connect service \"{authority}\" within {within}: context deadline exceeded"
        )),
        Ok(Ok(ServingStatus::Serving)) => Answer::Success,
        Ok(Ok(other)) => Answer::Failure(format!("service unhealthy (responded with \"{}\")", other.as_str_name())),
        Ok(Err(status)) => Answer::Failure(match status.code() {
            tonic::Code::Unimplemented => format!(
                "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {}",
                status.message()
            ),
            tonic::Code::DeadlineExceeded => format!("timeout: health rpc did not complete within {within}"),
            code => format!(
                "error: health rpc probe failed: rpc error: code = {} desc = {}",
                code_name(code),
                status.message()
            ),
        }),
    }
}

/// Asks until a server answers: one that refuses, or speaks something else, may yet come up while there
/// is time (grpc-go's blocking dial).
async fn ask_health(endpoint: &Endpoint, service: &str, connected: &AtomicBool) -> Result<ServingStatus, Status> {
    loop {
        if let Ok(channel) = endpoint.connect().await {
            connected.store(true, Ordering::Relaxed);
            let request = HealthCheckRequest { service: service.to_owned() };
            match HealthClient::new(channel).check(request).await {
                Ok(answer) => return Ok(answer.into_inner().status()),
                // Only what the transport itself says has a source.
                Err(status) if status.source().is_none() => return Err(status),
                Err(_) => connected.store(false, Ordering::Relaxed),
            }
        }
        tokio::time::sleep(RECONNECT).await;
    }
}

/// Used by `http::connect` as well.
pub(super) fn socket_address(host: &str, port: u16) -> Option<SocketAddr> {
    host.parse().ok().map(|ip| SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::grpc::health::v1::HealthCheckResponse;
    use proto::grpc::health::v1::health_server::{self, HealthServer};
    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tonic::transport::Server;
    use tonic::transport::server::TcpIncoming;
    use tonic::{Request, Response};

    async fn server(response: &'static str) -> u16 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut buffer = [0; 1024];
                let _ = stream.read(&mut buffer).await;
                let _ = stream.write_all(response.as_bytes()).await;
            }
        });
        port
    }

    async fn ask(probe: serde_json::Value) -> Answer {
        let runtime = Runtime::new(std::path::Path::new("/nonexistent"));
        let container: Container =
            serde_json::from_value(json!({"name": "c", "ports": [{"name": "web", "containerPort": 1}]})).unwrap();
        let target = Target { runtime: &runtime, container: &container, container_id: "x", pod_ip: Some("127.0.0.1") };
        let probe: Probe = serde_json::from_value(probe).unwrap();
        check(&target, &probe, Duration::from_secs(1)).await
    }

    #[tokio::test]
    async fn http_answers() {
        let good = server("HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok").await;
        assert_eq!(ask(json!({"httpGet": {"path": "/healthz", "port": good}})).await, Answer::Success);
        let bad = server("HTTP/1.1 503 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
        let failed = Answer::Failure("HTTP probe failed with statuscode: 503".into());
        assert_eq!(ask(json!({"httpGet": {"port": bad}})).await, failed);
        let away = server("HTTP/1.1 302 Found\r\nlocation: http://elsewhere.example/\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
        assert!(matches!(ask(json!({"httpGet": {"port": away}})).await, Answer::Warning(_)));
        let nowhere = server("HTTP/1.1 304 Not Modified\r\nconnection: close\r\n\r\n").await;
        assert!(matches!(ask(json!({"httpGet": {"port": nowhere}})).await, Answer::Warning(_)), "without a location");
    }

    #[tokio::test]
    async fn refused_connections_read_as_gos() {
        let closed = {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            listener.local_addr().unwrap().port()
        };
        let dial = format!("dial tcp 127.0.0.1:{closed}: connect: connection refused");
        assert_eq!(ask(json!({"tcpSocket": {"port": closed}})).await, Answer::Failure(dial.clone()));
        let get = Answer::Failure(format!("Get \"http://127.0.0.1:{closed}/x\": {dial}"));
        assert_eq!(ask(json!({"httpGet": {"path": "/x", "port": closed}})).await, get);
        let timeout =
            format!("timeout: failed to connect service \"127.0.0.1:{closed}\" within 1s: context deadline exceeded");
        assert_eq!(ask(json!({"grpc": {"port": closed}})).await, Answer::Failure(timeout));
    }

    struct Health;

    #[tonic::async_trait]
    impl health_server::Health for Health {
        async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
            let agent = request.metadata().get("user-agent").and_then(|agent| agent.to_str().ok()).unwrap_or_default();
            assert!(agent.starts_with("kube-probe/"), "{agent}");
            let status = match request.into_inner().service.as_str() {
                "" => ServingStatus::Serving,
                "bad" => ServingStatus::NotServing,
                "slow" => std::future::pending().await,
                "canceled" => return Err(Status::cancelled("no more")),
                _ => return Err(Status::not_found("unknown service")),
            };
            Ok(Response::new(HealthCheckResponse { status: status.into() }))
        }

        type WatchStream = futures::stream::Empty<Result<HealthCheckResponse, Status>>;

        async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
            Err(Status::unimplemented("watch"))
        }
    }

    #[tokio::test]
    async fn grpc_answers() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let incoming = TcpIncoming::from(listener);
        let health = Server::builder().add_service(HealthServer::new(Health));
        tokio::spawn(health.serve_with_incoming(incoming));
        assert_eq!(ask(json!({"grpc": {"port": port}})).await, Answer::Success);
        for (service, message) in [
            ("bad", "service unhealthy (responded with \"NOT_SERVING\")"),
            ("none", "error: health rpc probe failed: rpc error: code = NotFound desc = unknown service"),
            ("canceled", "error: health rpc probe failed: rpc error: code = Canceled desc = no more"),
            ("slow", "timeout: health rpc did not complete within 1s"),
        ] {
            let answer = ask(json!({"grpc": {"port": port, "service": service}})).await;
            assert_eq!(answer, Answer::Failure(message.to_owned()), "{service}");
        }
        let other = server("HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
        let timeout =
            format!("timeout: failed to connect service \"127.0.0.1:{other}\" within 1s: context deadline exceeded");
        assert_eq!(ask(json!({"grpc": {"port": other}})).await, Answer::Failure(timeout));
    }

    #[tokio::test]
    async fn nothing_can_be_said() {
        assert!(matches!(ask(json!({})).await, Answer::Error(_)));
        assert!(matches!(ask(json!({"httpGet": {"port": "none"}})).await, Answer::Error(_)));
        assert!(matches!(ask(json!({"exec": {"command": ["true"]}})).await, Answer::Error(_)));
    }
}

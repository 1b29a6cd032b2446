//! Lifecycle hooks: run a command, call a URL, or wait, in or next to a container.

use std::time::Duration;

use component::EventType;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction, LifecycleHandler, Pod};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::actions::pod_id;
use crate::context::NodeContext;
use crate::probes::http;

/// A hook has the time that it takes: what bounds it is the end of its pod.
const LIMIT: Duration = Duration::from_secs(86_400);

/// Runs one hook to its end. The error is what Kubernetes puts into its event.
pub async fn run(
    node: &NodeContext,
    pod: &Pod,
    container: &Container,
    container_id: &str,
    pod_ip: Option<&str>,
    hook: &LifecycleHandler,
) -> Result<(), String> {
    if let Some(exec) = &hook.exec {
        let command = exec.command.clone().unwrap_or_default();
        let answer = node.runtime.exec_sync(container_id, command.clone(), None).await;
        let described = format!("[{}]", command.join(" "));
        return match answer {
            Ok(answer) if answer.exit_code == 0 => Ok(()),
            Ok(answer) => {
                let output = [answer.stdout, answer.stderr].concat();
                Err(format!(
                    "Exec lifecycle hook ({described}) for Container \"{}\" in Pod \"{}\" failed - error: command '{}' exited with {}: {}, message: {:?}",
                    container.name,
                    pod_id(pod),
                    command.join(" "),
                    answer.exit_code,
                    String::from_utf8_lossy(&output).trim_end(),
                    String::from_utf8_lossy(&output),
                ))
            }
            Err(error) => Err(error.runtime_message()),
        };
    }
    if let Some(get) = &hook.http_get {
        return http_hook(container, pod_ip, get).await.map(|fell_back| {
            if let Some(message) = fell_back {
                node.event(pod, EventType::Warning, "LifecycleHTTPFallback", message);
            }
        });
    }
    if let Some(sleep) = &hook.sleep {
        tokio::time::sleep(Duration::from_secs(sleep.seconds.max(0).unsigned_abs())).await;
        return Ok(());
    }
    if hook.tcp_socket.is_some() {
        // Never supported by Kubernetes either: accepted by validation, refused at run time.
        return Err("invalid handler: tcpSocket hooks are not supported".to_owned());
    }
    Err("cannot run a lifecycle hook without a handler".to_owned())
}

/// Returns what is to be told if it was a server without TLS that was asked by HTTPS: the scheme of hooks once
/// did not count.
async fn http_hook(container: &Container, pod_ip: Option<&str>, get: &HTTPGetAction) -> Result<Option<String>, String> {
    let port = resolve_port(container, &get.port).ok_or_else(|| format!("couldn't find port: {:?}", get.port))?;
    let host = get.host.clone().filter(|host| !host.is_empty()).or_else(|| pod_ip.map(str::to_owned));
    let host = host.ok_or("the pod has no address yet")?;
    let mut request = http::Request::from_action(get, &host, port);
    if !request.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("user-agent")) {
        request.headers.push(("user-agent".to_owned(), format!("kube-lifecycle/{}", api::version::SHORT)));
    }
    // Whoever answers was told, whatever the answer is (`handlers.go: runHTTPHandler`).
    let Err(message) = http::fetch(&request, LIMIT).await else { return Ok(None) };
    if !request.tls || !message.ends_with(http::PLAIN_HTTP) {
        return Err(message);
    }
    request.tls = false;
    request.headers.retain(|(name, _)| !name.eq_ignore_ascii_case("authorization"));
    http::fetch(&request, LIMIT).await.map_err(|_| message)?;
    let authority = http::authority(&host, port);
    Ok(Some(format!("request to HTTPS lifecycle hook {authority} got HTTP response, retry with HTTP succeeded")))
}

/// A port by number, or by the name the container gives it.
pub fn resolve_port(container: &Container, port: &IntOrString) -> Option<u16> {
    match port {
        IntOrString::Int(number) => u16::try_from(*number).ok(),
        IntOrString::String(text) => {
            let named = container.ports.iter().flatten().find(|port| port.name.as_deref() == Some(text));
            named.and_then(|port| u16::try_from(port.container_port).ok()).or_else(|| text.parse().ok())
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_hook_that_is_answered_has_not_failed_whatever_the_answer_says() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let get: HTTPGetAction = serde_json::from_value(json!({"path": "/", "port": port})).unwrap();
        let answer = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = vec![0; 1024];
            let read = stream.read(&mut asked).await.unwrap();
            let answer = "HTTP/1.1 500 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&asked[..read]).to_lowercase()
        };
        let container = Container::default();
        let (asked, outcome) = tokio::join!(answer, http_hook(&container, Some("127.0.0.1"), &get));
        assert_eq!(outcome, Ok(None));
        assert!(asked.contains("user-agent: kube-lifecycle/1."), "{asked}");
        drop(listener);
        assert!(http_hook(&container, Some("127.0.0.1"), &get).await.is_err(), "nobody answers");
    }

    #[tokio::test]
    async fn a_hook_by_https_is_asked_by_http_where_nobody_speaks_tls() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let headers = json!([{"name": "Authorization", "value": "secret"}]);
        let action = json!({"path": "/", "port": port, "scheme": "HTTPS", "httpHeaders": headers});
        let get: HTTPGetAction = serde_json::from_value(action).unwrap();
        let answer = async {
            let mut asked = String::new();
            for status in ["400 Bad Request", "200 OK"] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut buffer = vec![0; 4096];
                let read = stream.read(&mut buffer).await.unwrap();
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.unwrap();
                asked = String::from_utf8_lossy(&buffer[..read]).to_lowercase();
            }
            asked
        };
        let container = Container::default();
        let (asked, outcome) = tokio::join!(answer, http_hook(&container, Some("127.0.0.1"), &get));
        let told = outcome.unwrap().unwrap();
        assert_eq!(told.split(" got ").next(), Some(&*format!("request to HTTPS lifecycle hook 127.0.0.1:{port}")));
        assert!(asked.starts_with("get / ") && !asked.contains("authorization"), "{asked}");
    }
}

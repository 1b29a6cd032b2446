//! Lifecycle hooks: run a command, call a URL, or wait, in or next to a container.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, HTTPGetAction, LifecycleHandler, Pod};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::actions::pod_id;
use crate::context::NodeContext;
use crate::probes::http;

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
        return http_hook(container, pod_ip, get).await;
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

async fn http_hook(container: &Container, pod_ip: Option<&str>, get: &HTTPGetAction) -> Result<(), String> {
    let port = resolve_port(container, &get.port).ok_or_else(|| format!("couldn't find port: {:?}", get.port))?;
    let host = get.host.clone().filter(|host| !host.is_empty()).or_else(|| pod_ip.map(str::to_owned));
    let host = host.ok_or("the pod has no address yet")?;
    let mut request = http::Request::from_action(get, &host, port);
    if !request.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("user-agent")) {
        request.headers.push(("user-agent".to_owned(), format!("kube-lifecycle/{}", api::version::SHORT)));
    }
    // Whoever answers was told, whatever the answer is (`handlers.go: runHTTPHandler`).
    http::fetch(&request, Duration::from_secs(30)).await.map(drop)
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
        assert_eq!(outcome, Ok(()));
        assert!(asked.contains("user-agent: kube-lifecycle/1."), "{asked}");
        drop(listener);
        assert!(http_hook(&container, Some("127.0.0.1"), &get).await.is_err(), "nobody answers");
    }
}

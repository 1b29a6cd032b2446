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
    let request = http::Request::from_action(get, &host, port);
    match http::fetch(&request, Duration::from_secs(30)).await {
        Ok(answer) if answer.status < 400 => Ok(()),
        Ok(answer) => Err(format!("HTTP hook returned status code {}", answer.status)),
        Err(error) => Err(error),
    }
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

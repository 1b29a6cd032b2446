//! The downward API: what a pod may learn about itself. Pure; shared by environment variables and
//! by downwardAPI volumes (`pkg/fieldpath`, `k8s.io/kubernetes/pkg/api/v1/resource`).

use std::collections::BTreeMap;

use api::quantity::Quantity;
use api::resources::{self, Amounts, Side};
use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DownwardError {
    #[error("unsupported fieldPath: {0}")]
    Field(String),
    #[error("unsupported container resource : {0}")]
    Resource(String),
    #[error("container {0} not found")]
    Container(String),
}

/// The value at a field path such as `metadata.labels['app']` or `status.podIP`.
pub fn field(pod: &Pod, path: &str) -> Result<String, DownwardError> {
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref();
    let status = pod.status.as_ref();
    if let Some((map, key)) = subscript(path) {
        let entries = match map {
            "metadata.annotations" => meta.annotations.as_ref(),
            "metadata.labels" => meta.labels.as_ref(),
            _ => return Err(DownwardError::Field(path.to_owned())),
        };
        return Ok(entries.and_then(|entries| entries.get(key)).cloned().unwrap_or_default());
    }
    let value = match path {
        "metadata.name" => meta.name.clone(),
        "metadata.namespace" => meta.namespace.clone(),
        "metadata.uid" => meta.uid.clone(),
        "metadata.annotations" => Some(lines(meta.annotations.as_ref())),
        "metadata.labels" => Some(lines(meta.labels.as_ref())),
        "spec.nodeName" => spec.and_then(|spec| spec.node_name.clone()),
        "spec.serviceAccountName" => spec.and_then(|spec| spec.service_account_name.clone()),
        "status.hostIP" => status.and_then(|status| status.host_ip.clone()),
        "status.hostIPs" => status
            .and_then(|status| status.host_ips.as_ref())
            .map(|ips| comma(ips.iter().map(|entry| entry.ip.as_str()))),
        "status.podIP" => status.and_then(|status| status.pod_ip.clone()),
        "status.podIPs" => status
            .and_then(|status| status.pod_ips.as_ref())
            .map(|ips| comma(ips.iter().map(|entry| entry.ip.as_str()))),
        _ => return Err(DownwardError::Field(path.to_owned())),
    };
    Ok(value.unwrap_or_default())
}

fn comma<'a>(values: impl Iterator<Item = &'a str>) -> String {
    values.collect::<Vec<_>>().join(",")
}

/// Splits `metadata.labels['key']`.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, rest) = path.split_once("['")?;
    Some((map, rest.strip_suffix("']")?))
}

/// A map as downwardAPI volumes write it: sorted `key="value"` lines, values quoted as Go does.
fn lines(entries: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> =
        entries.into_iter().flatten().map(|(key, value)| format!("{key}={}", quote(value))).collect();
    lines.join("\n")
}

/// As Go's `%q`.
pub(crate) fn quote(value: &str) -> String {
    let mut quoted = String::with_capacity(value.len() + 2);
    quoted.push('"');
    for c in value.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            c if c.is_control() => quoted.push_str(&format!("\\x{:02x}", c as u32)),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// A container's request or limit, in units of the divisor, rounded up. A limit that is not set is
/// the node's `allocatable`.
pub fn resource(
    pod: &Pod,
    selector: &ResourceFieldSelector,
    own_container: Option<&str>,
    allocatable: &Amounts,
) -> Result<String, DownwardError> {
    let name = selector.container_name.as_deref().filter(|name| !name.is_empty()).or(own_container).unwrap_or_default();
    let container = find_container(pod, name).ok_or_else(|| DownwardError::Container(name.to_owned()))?;
    let unsupported = || DownwardError::Resource(selector.resource.clone());
    let (side, wanted) = selector.resource.split_once('.').ok_or_else(unsupported)?;
    if !matches!(wanted, "cpu" | "memory" | "ephemeral-storage") && !wanted.starts_with("hugepages-") {
        return Err(unsupported());
    }
    let amount = match side {
        "requests" => resources::of_container(container, Side::Requests).get(wanted).copied(),
        "limits" => resources::of_container(container, Side::Limits)
            .get(wanted)
            .copied()
            .filter(|limit| !limit.is_zero())
            .or_else(|| allocatable.get(wanted).copied()),
        _ => return Err(unsupported()),
    };
    let divisor = selector.divisor.as_ref().map(Quantity::from).filter(|divisor| !divisor.is_zero());
    Ok(divided(amount.unwrap_or(Quantity::ZERO), divisor, wanted == "cpu").to_string())
}

fn divided(amount: Quantity, divisor: Option<Quantity>, is_cpu: bool) -> i64 {
    let ceil = |value: i64, by: i64| if by <= 0 { value } else { value / by + i64::from(value % by != 0) };
    match divisor {
        None => amount.units(),
        Some(divisor) if is_cpu => ceil(amount.milli(), divisor.milli()),
        Some(divisor) => ceil(amount.units(), divisor.units()),
    }
}

fn find_container<'a>(pod: &'a Pod, name: &str) -> Option<&'a Container> {
    let spec = pod.spec.as_ref()?;
    spec.containers.iter().chain(spec.init_containers.iter().flatten()).find(|container| container.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"b": "2", "a": "one \"x\""}},
            "spec": {"nodeName": "node", "serviceAccountName": "sa", "containers": [
                {"name": "c", "resources": {"requests": {"cpu": "250m", "memory": "1Mi"}, "limits": {"cpu": "1500m"}}}]},
            "status": {"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd::1"}], "hostIP": "1.2.3.4"}
        }))
        .unwrap()
    }

    #[test]
    fn fields() {
        for (path, value) in [
            ("metadata.name", "p"),
            ("metadata.uid", "u"),
            ("metadata.labels", "a=\"one \\\"x\\\"\"\nb=\"2\""),
            ("metadata.labels['b']", "2"),
            ("metadata.annotations['none']", ""),
            ("spec.nodeName", "node"),
            ("status.podIPs", "10.0.0.1,fd::1"),
            ("status.hostIP", "1.2.3.4"),
        ] {
            assert_eq!(field(&pod(), path).unwrap(), value, "{path}");
        }
        assert_eq!(field(&pod(), "spec.restartPolicy"), Err(DownwardError::Field("spec.restartPolicy".into())));
    }

    #[test]
    fn resources_are_divided_and_rounded_up() {
        let allocatable = Amounts::from([("memory".to_owned(), "2Gi".parse().unwrap())]);
        for (selector, value) in [
            (json!({"resource": "limits.cpu"}), "2"),
            (json!({"resource": "limits.cpu", "divisor": "1m"}), "1500"),
            (json!({"resource": "requests.cpu"}), "1"),
            (json!({"resource": "requests.memory", "divisor": "1Ki"}), "1024"),
            (json!({"resource": "limits.memory", "divisor": "1Mi"}), "2048"),
            (json!({"resource": "requests.ephemeral-storage"}), "0"),
        ] {
            let selector: ResourceFieldSelector = serde_json::from_value(selector).unwrap();
            assert_eq!(resource(&pod(), &selector, Some("c"), &allocatable).unwrap(), value, "{selector:?}");
        }
        let other: ResourceFieldSelector = serde_json::from_value(json!({"resource": "limits.gpu"})).unwrap();
        assert_eq!(
            resource(&pod(), &other, Some("c"), &allocatable),
            Err(DownwardError::Resource("limits.gpu".into()))
        );
    }
}

//! Whether a container that ended runs again: its `restartPolicyRules`, then its own `restartPolicy`,
//! then the pod's. A rule may also ask for all of the pod's containers to be run again, from the first
//! init container on (KEP-5532). Pure.

use k8s_openapi::api::core::v1::{Container, PodSpec};

use super::actions::{ContainerKind, is_sidecar};
use super::observed::{Observed, Run, RunState};

const RESTART: &str = "Restart";
const RESTART_ALL: &str = "RestartAllContainers";

/// What the first rule that matches an exit code asks for.
fn action(container: &Container, exit_code: i32) -> Option<&str> {
    let rules = container.restart_policy_rules.iter().flatten();
    let mut matching = rules.filter(|rule| {
        rule.exit_codes.as_ref().is_some_and(|codes| {
            let listed = codes.values.iter().flatten().any(|code| *code == exit_code);
            if codes.operator == "NotIn" { !listed } else { listed }
        })
    });
    matching.next().map(|rule| rule.action.as_str())
}

/// Whether an end with `exit_code` is followed by another run of the container.
pub fn restarts_after(spec: &PodSpec, container: &Container, kind: ContainerKind, exit_code: i32) -> bool {
    if kind == ContainerKind::Ephemeral {
        return false;
    }
    if matches!(action(container, exit_code), Some(RESTART | RESTART_ALL)) || kind == ContainerKind::Sidecar {
        return true;
    }
    match container.restart_policy.as_deref().or(spec.restart_policy.as_deref()).unwrap_or("Always") {
        "Never" => false,
        "OnFailure" => exit_code != 0,
        // Init containers that succeeded never run again.
        _ => kind != ContainerKind::Init || exit_code != 0,
    }
}

/// Whether an exited run is followed by another.
pub fn should_restart(spec: &PodSpec, container: &Container, kind: ContainerKind, run: &Run) -> bool {
    restarts_after(spec, container, kind, run.exit_code)
}

/// Init containers and main ones, each with its kind.
pub fn containers(spec: &PodSpec) -> impl Iterator<Item = (&Container, ContainerKind)> {
    let init = spec.init_containers.iter().flatten().map(|container| {
        let kind = if is_sidecar(container) { ContainerKind::Sidecar } else { ContainerKind::Init };
        (container, kind)
    });
    init.chain(spec.containers.iter().map(|container| (container, ContainerKind::Main)))
}

/// Whether any container has a rule that restarts all of them.
pub fn could_restart_all(spec: &PodSpec) -> bool {
    containers(spec)
        .any(|(container, _)| container.restart_policy_rules.iter().flatten().any(|rule| rule.action == RESTART_ALL))
}

/// The run whose end asks for all containers to be run again.
pub fn source_of_restart_all<'a>(spec: &PodSpec, observed: &'a Observed) -> Option<&'a Run> {
    containers(spec).find_map(|(container, _)| {
        let run = observed.newest(&container.name).filter(|run| run.state == RunState::Exited)?;
        (action(container, run.exit_code) == Some(RESTART_ALL)).then_some(run)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn rules_before_the_containers_policy_before_the_pods() {
        let rule = |action: &str, operator: &str| json!([{"action": action, "exitCodes": {"operator": operator, "values": [42]}}]);
        use ContainerKind::{Ephemeral, Init, Main, Sidecar};
        for (pod, own, rules, kind, code, expected) in [
            ("Never", Value::Null, json!([]), Main, 1, false),
            ("Always", Value::Null, json!([]), Main, 0, true),
            ("OnFailure", Value::Null, json!([]), Main, 0, false),
            ("Always", json!("Never"), json!([]), Main, 1, false),
            ("Never", json!("Always"), json!([]), Main, 0, true),
            ("Never", json!("OnFailure"), json!([]), Main, 1, true),
            ("Never", json!("Never"), rule("Restart", "In"), Main, 42, true),
            ("Never", json!("Never"), rule("Restart", "In"), Main, 1, false),
            ("Never", json!("Never"), rule("Restart", "NotIn"), Main, 1, true),
            ("Never", json!("Never"), rule("RestartAllContainers", "In"), Main, 42, true),
            ("Always", Value::Null, json!([]), Init, 0, false),
            ("Always", Value::Null, json!([]), Init, 1, true),
            ("Never", Value::Null, json!([]), Init, 1, false),
            ("Never", json!("Always"), json!([]), Sidecar, 0, true),
            ("Always", Value::Null, json!([]), Ephemeral, 1, false),
        ] {
            let spec: PodSpec = serde_json::from_value(json!({"restartPolicy": pod, "containers": []})).unwrap();
            let text = format!("{pod} {own} {rules} {kind:?} {code}");
            let container = json!({"name": "c", "restartPolicy": own, "restartPolicyRules": rules});
            let container: Container = serde_json::from_value(container).unwrap();
            assert_eq!(restarts_after(&spec, &container, kind, code), expected, "{text}");
        }
    }
}

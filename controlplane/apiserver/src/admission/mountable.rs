//! The Secrets that a pod of a ServiceAccount may use, where the account says that it may use its own
//! only (`kubernetes.io/enforce-mountable-secrets`). Pure.

use serde_json::Value;

use crate::kinds::value::{annotation, list, name, text};

const ANNOTATION: &str = "kubernetes.io/enforce-mountable-secrets";

/// Whether the account limits its pods.
pub fn limits(account: &Value) -> bool {
    // What Go reads as true.
    matches!(annotation(account, ANNOTATION), Some("1" | "t" | "T" | "true" | "TRUE" | "True"))
}

/// Why a pod may not run as the account.
pub fn problem(account: &Value, pod: &Value) -> Option<String> {
    let own = name(account);
    let names = |field: &str| -> Vec<&str> { list(account, field).iter().map(|entry| text(entry, "name")).collect() };
    let secrets = names("secrets");
    for volume in list(pod, "spec.volumes") {
        let secret = text(volume, "secret.secretName");
        if !volume["secret"].is_null() && !secrets.contains(&secret) {
            return Some(format!(
                "volume with secret.secretName=\"{secret}\" is not allowed because service account {own} does not reference that secret"
            ));
        }
    }
    let of_containers = [("spec.initContainers", "init container"), ("spec.containers", "container")];
    if let Some(why) = of_containers.iter().find_map(|(field, what)| variables(list(pod, field), what, own, &secrets)) {
        return Some(why);
    }
    let pulls = names("imagePullSecrets");
    let refused = list(pod, "spec.imagePullSecrets").iter().map(|entry| text(entry, "name")).enumerate();
    refused.into_iter().find(|(_, secret)| !pulls.contains(secret)).map(|(at, secret)| {
        format!(
            "imagePullSecrets[{at}].name=\"{secret}\" is not allowed because service account {own} does not reference that imagePullSecret"
        )
    })
}

/// The same of the debugging containers that a pod gets.
pub fn debugger_problem(account: &Value, pod: &Value) -> Option<String> {
    let secrets: Vec<&str> = list(account, "secrets").iter().map(|entry| text(entry, "name")).collect();
    variables(list(pod, "spec.ephemeralContainers"), "ephemeral container", name(account), &secrets)
}

fn variables(containers: &[Value], what: &str, account: &str, secrets: &[&str]) -> Option<String> {
    let each = containers.iter().flat_map(|container| list(container, "env").iter().map(move |env| (container, env)));
    let mut from_secrets = each.filter(|(_, env)| !env["valueFrom"]["secretKeyRef"].is_null());
    from_secrets.find_map(|(container, env)| {
        let secret = text(env, "valueFrom.secretKeyRef.name");
        (!secrets.contains(&secret)).then(|| {
            format!(
                "{what} {} with envVar {} referencing secret.secretName=\"{secret}\" is not allowed because service account {account} does not reference that secret",
                name_of(container),
                name_of(env)
            )
        })
    })
}

fn name_of(entry: &Value) -> &str {
    text(entry, "name")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_the_accounts_own_secrets() {
        let account = json!({"metadata": {"name": "bot", "annotations": {ANNOTATION: "true"}},
            "secrets": [{"name": "own"}], "imagePullSecrets": [{"name": "pull"}]});
        assert!(limits(&account) && !limits(&json!({"metadata": {"annotations": {ANNOTATION: "yes"}}})));
        let env = |secret: &str| json!([{"name": "c", "env": [{"name": "E", "valueFrom": {"secretKeyRef": {"name": secret}}}]}]);
        let rest = "is not allowed because service account bot does not reference that";
        for (spec, expected) in [
            (
                json!({"volumes": [{"secret": {"secretName": "own"}}], "containers": env("own"), "imagePullSecrets": [{"name": "pull"}]}),
                String::new(),
            ),
            (
                json!({"volumes": [{"secret": {"secretName": "other"}}]}),
                format!("volume with secret.secretName=\"other\" {rest} secret"),
            ),
            (
                json!({"initContainers": env("other")}),
                format!("init container c with envVar E referencing secret.secretName=\"other\" {rest} secret"),
            ),
            (
                json!({"containers": env("other")}),
                format!("container c with envVar E referencing secret.secretName=\"other\" {rest} secret"),
            ),
            (
                json!({"imagePullSecrets": [{"name": "own"}]}),
                format!("imagePullSecrets[0].name=\"own\" {rest} imagePullSecret"),
            ),
        ] {
            assert_eq!(problem(&account, &json!({"spec": spec})).unwrap_or_default(), expected);
        }
        let debugged = json!({"spec": {"ephemeralContainers": env("other")}});
        assert!(debugger_problem(&account, &debugged).unwrap().starts_with("ephemeral container c with envVar E"));
    }
}

//! Ingresses and their classes.

use api::field::{Error, ErrorList, Path};
use api::names;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::kinds::check::{Node, domain_prefixed_path, parse_ip};
use crate::kinds::core::load_balancers;
use crate::kinds::table::{NONE, cell, named, row, words};
use crate::kinds::value::{annotation, default_text, has, list, name, opt_text, set, text};
use crate::resource::{Column, Context, Hooks};

const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";
const HOSTS_SHOWN: usize = 3;

pub struct Ingress;

impl Hooks for Ingress {
    fn prepare_create(&self, _ctx: &Context<'_>, ingress: &mut Value) {
        set(ingress, "status", json!({"loadBalancer": {}}));
    }

    fn validate_create(&self, _ctx: &Context<'_>, ingress: &Value) -> ErrorList {
        let mut errors = validate(ingress, Tolerated::default());
        let annotation = annotation(ingress, CLASS_ANNOTATION);
        let class = opt_text(ingress, "spec.ingressClassName");
        if let Some(given) = annotation.filter(|given| class.is_some_and(|class| class != *given)) {
            let path = Path::root("annotations").child(CLASS_ANNOTATION);
            errors.push(Error::invalid(&path, given, "must match `ingressClassName` when both are specified"));
        }
        errors
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        validate(new, Tolerated::of(old))
    }

    fn validate_subresource_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        let known = list(old, "status.loadBalancer.ingress");
        let mut errors = ErrorList::new();
        for outside in Node::root(new).items("status.loadBalancer.ingress") {
            let (ip, name) = (outside.child("ip"), outside.child("hostname"));
            if !ip.text().is_empty() && !known.iter().any(|old| text(old, "ip") == ip.text()) {
                ip.legacy_ip(&mut errors);
            }
            if name.text().is_empty() {
                continue;
            }
            name.format(&mut errors, names::dns1123_subdomain);
            if parse_ip(name.text()).is_some() {
                name.invalid(&mut errors, "must be a DNS name, not an IP address");
            }
        }
        errors
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        let annotated = old.is_none() && annotation(new, CLASS_ANNOTATION).is_some();
        let words = "is deprecated, please use 'spec.ingressClassName' instead";
        annotated.then(|| format!("annotation \"{CLASS_ANNOTATION}\" {words}")).into_iter().collect()
    }

    fn row(&self, ingress: &Value, now: Timestamp) -> Vec<Value> {
        let class = opt_text(ingress, "spec.ingressClassName").unwrap_or(NONE);
        let hosts = hosts(list(ingress, "spec.rules"));
        let ports = if list(ingress, "spec.tls").is_empty() { "80" } else { "80, 443" };
        row(ingress, now, vec![class.into(), hosts.into(), load_balancers(ingress).into(), ports.into()])
    }
}

/// The hosts of the first rules that name one, and how many rules there are beyond these.
fn hosts(rules: &[Value]) -> String {
    let (mut shown, mut more) = (Vec::new(), false);
    for host in rules.iter().map(|rule| text(rule, "host")) {
        more |= shown.len() == HOSTS_SHOWN;
        if !more && !host.is_empty() {
            shown.push(host);
        }
    }
    match shown.join(",") {
        none if none.is_empty() => "*".to_owned(),
        hosts if more => format!("{hosts} + {} more...", rules.len() - HOSTS_SHOWN),
        hosts => hosts,
    }
}

/// What a stored Ingress already holds may stay.
#[derive(Default, Clone, Copy)]
struct Tolerated {
    secret_names: bool,
    wildcard_rules: bool,
}

impl Tolerated {
    fn of(old: &Value) -> Self {
        let bad = |name: &str| !name.is_empty() && !names::dns1123_subdomain(name).is_empty();
        let lost = |rule: &Node<'_>| {
            let mut errors = ErrorList::new();
            rule_value(rule, &mut errors);
            rule.child("host").text().contains('*') && !errors.is_empty()
        };
        Self {
            secret_names: list(old, "spec.tls").iter().any(|tls| bad(text(tls, "secretName"))),
            wildcard_rules: Node::root(old).items("spec.rules").iter().any(lost),
        }
    }
}

fn validate(ingress: &Value, tolerated: Tolerated) -> ErrorList {
    let mut errors = ErrorList::new();
    let spec = Node::root(ingress).child("spec");
    if spec.items("rules").is_empty() && !spec.has("defaultBackend") {
        let rules = spec.child("rules").value.clone();
        errors.push(Error::invalid(&spec.path, rules, "either `defaultBackend` or `rules` must be specified"));
    }
    if spec.has("defaultBackend") {
        backend(&spec.child("defaultBackend"), &mut errors);
    }
    for rule in spec.items("rules") {
        host(&rule.child("host"), &mut errors);
        if !(tolerated.wildcard_rules && rule.child("host").text().contains('*')) {
            rule_value(&rule, &mut errors);
        }
    }
    for tls in spec.items("tls") {
        for name in tls.items("hosts") {
            dns_name(&name, &mut errors);
        }
        if !tls.child("secretName").text().is_empty() && !tolerated.secret_names {
            tls.child("secretName").format(&mut errors, names::dns1123_subdomain);
        }
    }
    if spec.has("ingressClassName") {
        spec.child("ingressClassName").format(&mut errors, names::dns1123_subdomain);
    }
    errors
}

fn rule_value(rule: &Node<'_>, errors: &mut ErrorList) {
    if rule.has("http") && rule.items("http.paths").is_empty() {
        rule.child("http.paths").missing(errors, "");
    }
    for path in rule.items("http.paths") {
        http_path(&path, errors);
    }
}

fn host(host: &Node<'_>, errors: &mut ErrorList) {
    if host.text().is_empty() {
        return;
    }
    if parse_ip(host.text()).is_some() {
        host.invalid(errors, "must be a DNS name, not an IP address");
    }
    dns_name(host, errors);
}

/// A host, or `*.` and a domain.
fn dns_name(host: &Node<'_>, errors: &mut ErrorList) {
    if host.text().contains('*') {
        let rest = host.text().strip_prefix("*.");
        if rest.is_none_or(|rest| !names::dns1123_subdomain(rest).is_empty()) {
            host.invalid(errors, "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character (e.g. '*.example.com', regex used for validation is '\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')");
        }
    } else {
        host.format(errors, names::dns1123_subdomain);
    }
}

const BAD_IN_PATH: [&str; 5] = ["//", "/./", "/../", "%2f", "%2F"];

fn http_path(path: &Node<'_>, errors: &mut ErrorList) {
    let (kind, value) = (path.child("pathType"), path.child("path"));
    match kind.text() {
        "" => return kind.missing(errors, "pathType must be specified"),
        "Exact" | "Prefix" => {
            if !value.text().starts_with('/') {
                value.invalid_text(errors, "must be an absolute path");
            }
            for bad in &BAD_IN_PATH {
                if value.text().contains(bad) {
                    value.invalid(errors, format!("must not contain '{bad}'"));
                }
            }
            for bad in ["/..", "/."] {
                if value.text().ends_with(bad) {
                    value.invalid(errors, format!("cannot end with '{bad}'"));
                }
            }
        }
        "ImplementationSpecific" => {
            if !value.text().is_empty() && !value.text().starts_with('/') {
                value.invalid(errors, "must be an absolute path");
            }
        }
        _ => {
            kind.one_of(errors, &["Exact", "ImplementationSpecific", "Prefix"]);
        }
    }
    backend(&path.child("backend"), errors);
}

fn backend(backend: &Node<'_>, errors: &mut ErrorList) {
    let (service, resource) = (backend.child("service"), backend.child("resource"));
    let mut refuse = |detail: &str| errors.push(Error::invalid(&backend.path, "", detail));
    match (service.exists(), resource.exists()) {
        (true, true) => refuse("cannot set both resource and service backends"),
        (false, false) => refuse("resource or service backend is required"),
        (false, true) => local_reference(&resource, ["kind is required", "name is required"], errors),
        (true, false) => service_backend(backend, &service, errors),
    }
}

fn service_backend(backend: &Node<'_>, service: &Node<'_>, errors: &mut ErrorList) {
    if service.child("name").required(errors, "") {
        service.child("name").format(errors, names::dns1123_label);
    }
    let (name, number) = (service.child("port.name"), service.child("port.number"));
    match (name.text().is_empty(), number.int() == 0) {
        (false, false) => errors.push(Error::invalid(&backend.path, "", "cannot set both port name & port number")),
        (true, true) => backend.missing(errors, "port name or number is required"),
        (false, true) => names::port_name(name.text()).into_iter().for_each(|problem| name.invalid(errors, problem)),
        (true, false) => number.port_number(errors),
    }
}

/// A `TypedLocalObjectReference`; `missing` says that kind or name are.
fn local_reference(reference: &Node<'_>, missing: [&str; 2], errors: &mut ErrorList) {
    if reference.has("apiGroup") {
        reference.child("apiGroup").format(errors, names::dns1123_subdomain);
    }
    for (field, detail) in ["kind", "name"].into_iter().zip(missing) {
        if reference.child(field).required(errors, detail) {
            reference.child(field).format(errors, names::path_segment);
        }
    }
}

pub fn columns() -> Vec<Column> {
    named(vec![
        words("Class", "The name of the IngressClass resource that should be used for additional configuration"),
        words("Hosts", "Hosts that incoming requests are matched against before the ingress rule"),
        words("Address", "Address is a list containing ingress points for the load-balancer"),
        words("Ports", "Ports of TLS configurations that open"),
    ])
}

pub struct IngressClass;

impl Hooks for IngressClass {
    fn defaults(&self, class: &mut Value) {
        if has(class, "spec.parameters") {
            default_text(class, "spec.parameters.scope", "Cluster");
        }
    }

    fn validate_create(&self, _ctx: &Context<'_>, class: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        let spec = Node::root(class).child("spec");
        let controller = spec.child("controller");
        if controller.text().len() > 250 {
            errors.push(Error::too_long(&controller.path, 250));
        }
        domain_prefixed_path(&controller, &mut errors);
        let parameters = spec.child("parameters");
        if parameters.exists() {
            local_reference(&parameters, ["", ""], &mut errors);
            match parameters.child("scope").text() {
                "Namespace" => {
                    let namespace = parameters.child("namespace");
                    if !namespace.exists() {
                        namespace.missing(&mut errors, "`parameters.scope` is set to 'Namespace'");
                    } else {
                        namespace.format(&mut errors, names::dns1123_label);
                    }
                }
                "Cluster" => {
                    if parameters.has("namespace") {
                        parameters.child("namespace").forbidden(&mut errors, "`parameters.scope` is set to 'Cluster'");
                    }
                }
                _ => {
                    parameters.child("scope").one_of(&mut errors, &["Cluster", "Namespace"]);
                }
            }
        }
        errors
    }

    fn validate_update(&self, ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        Node::root(new).child("spec.controller").immutable(&mut errors, &Node::root(old).child("spec.controller"));
        errors.extend(self.validate_create(ctx, new));
        errors
    }

    fn row(&self, class: &Value, now: Timestamp) -> Vec<Value> {
        let parameters = if has(class, "spec.parameters") {
            let kind = text(class, "spec.parameters.kind");
            let kind = match text(class, "spec.parameters.apiGroup") {
                "" => kind.to_owned(),
                group => format!("{kind}.{group}"),
            };
            format!("{kind}/{}", text(class, "spec.parameters.name"))
        } else {
            NONE.to_owned()
        };
        let mut cells = row(class, now, vec![cell(class, "spec.controller"), parameters.into()]);
        if annotation(class, "ingressclass.kubernetes.io/is-default-class") == Some("true") {
            cells[0] = format!("{} (default)", name(class)).into();
        }
        cells
    }
}

pub fn class_columns() -> Vec<Column> {
    named(vec![
        words("Controller", "Controller that is responsible for handling this class"),
        words("Parameters", "A reference to a resource with additional parameters"),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::tested;
    use api::field::join;

    #[test]
    fn refused() {
        let service = json!({"service": {"name": "s", "port": {"number": 80}}});
        let with = |path: Value| json!({"spec": {"rules": [{"host": "a.example.com", "http": {"paths": [path]}}]}});
        for (ingress, expected) in [
            (with(json!({"path": "/", "pathType": "Prefix", "backend": service})), "[]"),
            (
                with(json!({"path": "/", "backend": service})),
                "spec.rules[0].http.paths[0].pathType: Required value: pathType must be specified",
            ),
            (
                with(json!({"path": "a", "pathType": "Exact", "backend": service})),
                "spec.rules[0].http.paths[0].path: Invalid value: \"a\": must be an absolute path",
            ),
            (
                with(json!({"pathType": "Prefix", "backend": service})),
                "spec.rules[0].http.paths[0].path: Invalid value: \"\": must be an absolute path",
            ),
            (
                with(json!({"path": "/", "pathType": "Exact", "backend": {"service": {"name": "s"}}})),
                "spec.rules[0].http.paths[0].backend: Required value: port name or number is required",
            ),
            (
                json!({"spec": {"defaultBackend": {}}}),
                "spec.defaultBackend: Invalid value: \"\": resource or service backend is required",
            ),
            (
                json!({"spec": {"rules": [{"host": "10.0.0.1"}]}}),
                "spec.rules[0].host: Invalid value: \"10.0.0.1\": must be a DNS name, not an IP address",
            ),
            (json!({"spec": {}}), "spec: Invalid value: null: either `defaultBackend` or `rules` must be specified"),
            (
                json!({"spec": {"defaultBackend": {"resource": {"apiGroup": "a", "kind": "", "name": "a/b"}}}}),
                "[spec.defaultBackend.resource.kind: Required value: kind is required, spec.defaultBackend.resource.name: Invalid value: \"a/b\": may not contain '/']",
            ),
            (
                json!({"spec": {"defaultBackend": {"service": {"name": "s", "port": {"name": "http", "number": 80}}}}}),
                "spec.defaultBackend: Invalid value: \"\": cannot set both port name & port number",
            ),
            (
                json!({"spec": {"defaultBackend": service, "tls": [{"hosts": ["*.a.b", "*"]}]}}),
                "spec.tls[0].hosts[1]: Invalid value: \"*\": a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character (e.g. '*.example.com', regex used for validation is '\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
            ),
            (
                with(json!({"path": "/a//%2f/..", "pathType": "Prefix", "backend": service})),
                "[spec.rules[0].http.paths[0].path: Invalid value: \"/a//%2f/..\": must not contain '//', spec.rules[0].http.paths[0].path: Invalid value: \"/a//%2f/..\": must not contain '%2f', spec.rules[0].http.paths[0].path: Invalid value: \"/a//%2f/..\": cannot end with '/..']",
            ),
        ] {
            assert_eq!(join(&validate(&ingress, Tolerated::default())), expected, "{ingress}");
        }
        let old = json!({"spec": {"tls": [{"secretName": "A"}], "rules": [{"host": "*.x", "http": {"paths": []}}]}});
        assert_eq!(join(&validate(&old, Tolerated::of(&old))), "[]");
        assert!(validate(&old, Tolerated::default()).len() == 2);
    }

    #[test]
    fn rows() {
        let ingress = json!({"metadata": {"name": "i"}, "spec": {"ingressClassName": "nginx", "tls": [{}], "rules": [{"host": "a"}, {"host": "b"}, {"host": "c"}, {"host": "d"}]}});
        let shown: Vec<String> =
            Ingress.row(&ingress, Timestamp::UNIX_EPOCH).iter().map(|c| c.as_str().unwrap().to_owned()).collect();
        assert_eq!(shown.join("|"), "i|nginx|a,b,c + 1 more...||80, 443|<unknown>");
    }

    #[test]
    fn classes() {
        for (spec, expected) in [
            (json!({"controller": "example.com/c"}), "[]"),
            (json!({}), "spec.controller: Required value"),
            (
                json!({"controller": "c"}),
                "spec.controller: Invalid value: \"c\": must be a domain-prefixed path (such as \"acme.io/foo\")",
            ),
            (
                json!({"controller": "a.b/ c"}),
                "spec.controller: Invalid value: \" c\": Invalid path (regex used for validation is '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')",
            ),
            (
                json!({"controller": "a.b/c", "parameters": {"scope": "Namespace", "name": "n"}}),
                "[spec.parameters.kind: Required value, spec.parameters.namespace: Required value: `parameters.scope` is set to 'Namespace']",
            ),
            (
                json!({"controller": "a.b/c", "parameters": {"kind": "K", "name": "n", "namespace": "x"}}),
                "spec.parameters.namespace: Forbidden: `parameters.scope` is set to 'Cluster'",
            ),
            (
                json!({"controller": "a.b/c", "parameters": {"kind": "K", "name": "n", "scope": "X"}}),
                "spec.parameters.scope: Unsupported value: \"X\": supported values: \"Cluster\", \"Namespace\"",
            ),
        ] {
            let class = json!({"metadata": {"name": "c"}, "spec": spec});
            assert_eq!(tested::created(&IngressClass, &class), expected, "{class}");
        }
    }
}

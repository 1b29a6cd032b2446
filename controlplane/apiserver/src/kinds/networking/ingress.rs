//! Ingresses and their classes.

use api::field::ErrorList;
use api::names;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::kinds::check::{Node, parse_ip};
use crate::kinds::core::load_balancers;
use crate::kinds::table::{NONE, cell, named, row, some_of, words};
use crate::kinds::value::{default_text, has, list, opt_text, set, text};
use crate::resource::{Column, Context, Hooks};

pub struct Ingress;

impl Hooks for Ingress {
    fn prepare_create(&self, _ctx: &Context<'_>, ingress: &mut Value) {
        set(ingress, "status", json!({"loadBalancer": {}}));
    }

    fn validate_create(&self, _ctx: &Context<'_>, ingress: &Value) -> ErrorList {
        let mut errors = validate(ingress);
        let annotation = crate::kinds::value::annotation(ingress, "kubernetes.io/ingress.class");
        if annotation.is_some() && has(ingress, "spec.ingressClassName") {
            let node = Node::root(ingress).child("metadata.annotations");
            errors.push(api::field::Error::invalid(
                &node.path.child("kubernetes.io/ingress.class"),
                annotation.unwrap_or(""),
                "can not be set when the class field is also set",
            ));
        }
        errors
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, _old: &Value) -> ErrorList {
        validate(new)
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        let key = "kubernetes.io/ingress.class";
        if old.is_none() && crate::kinds::value::annotation(new, key).is_some() {
            return vec![format!("annotation \"{key}\" is deprecated, please use 'spec.ingressClassName' instead")];
        }
        Vec::new()
    }

    fn row(&self, ingress: &Value, now: Timestamp) -> Vec<Value> {
        let class = opt_text(ingress, "spec.ingressClassName")
            .or_else(|| crate::kinds::value::annotation(ingress, "kubernetes.io/ingress.class"))
            .unwrap_or(NONE);
        let hosts: Vec<String> = list(ingress, "spec.rules")
            .iter()
            .map(|rule| text(rule, "host"))
            .filter(|host| !host.is_empty())
            .map(str::to_owned)
            .collect();
        let hosts = if hosts.is_empty() { "*".to_owned() } else { some_of(&hosts, 3) };
        let ports = if list(ingress, "spec.tls").is_empty() { "80" } else { "80, 443" };
        row(ingress, now, vec![class.into(), hosts.into(), load_balancers(ingress).into(), ports.into()])
    }
}

fn validate(ingress: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let spec = Node::root(ingress).child("spec");
    if spec.items("rules").is_empty() && !spec.has("defaultBackend") {
        spec.invalid(&mut errors, "either `defaultBackend` or `rules` must be specified");
    }
    if spec.has("defaultBackend") {
        backend(&spec.child("defaultBackend"), &mut errors);
    }
    for rule in spec.items("rules") {
        host(&rule.child("host"), &mut errors);
        if rule.has("http") && rule.items("http.paths").is_empty() {
            rule.child("http.paths").missing(&mut errors, "");
        }
        for path in rule.items("http.paths") {
            http_path(&path, &mut errors);
        }
    }
    for tls in spec.items("tls") {
        for name in tls.items("hosts") {
            host(&name, &mut errors);
        }
        if !tls.child("secretName").text().is_empty() {
            tls.child("secretName").format(&mut errors, names::dns1123_subdomain);
        }
    }
    if spec.has("ingressClassName") {
        spec.child("ingressClassName").format(&mut errors, names::dns1123_subdomain);
    }
    errors
}

fn host(host: &Node<'_>, errors: &mut ErrorList) {
    if host.text().is_empty() {
        return;
    }
    if parse_ip(host.text()).is_some() {
        host.invalid(errors, "must be a DNS name, not an IP address");
    }
    if host.text().contains('*') {
        let rest = host.text().strip_prefix("*.");
        if rest.is_none_or(|rest| !names::dns1123_subdomain(rest).is_empty()) {
            host.invalid(errors, "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character (e.g. '*.example.com', regex used for validation is '\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')");
        }
    } else {
        host.format(errors, names::dns1123_subdomain);
    }
}

const BAD_IN_PATH: [&str; 6] = ["//", "/./", "/../", "%2f", "%2F", "/."];

fn http_path(path: &Node<'_>, errors: &mut ErrorList) {
    let (kind, value) = (path.child("pathType"), path.child("path"));
    match kind.text() {
        "" => kind.missing(errors, "pathType must be specified"),
        "Exact" | "Prefix" => {
            if !value.text().starts_with('/') {
                value.invalid(errors, "must be an absolute path");
            }
            for bad in &BAD_IN_PATH[..5] {
                if value.text().contains(bad) {
                    value.invalid(errors, format!("must not contain '{bad}'"));
                }
            }
            for bad in ["/..", "/."] {
                if value.text().ends_with(bad) {
                    value.invalid(errors, format!("cannot end with '{bad}'"));
                    break;
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
    match (service.exists(), resource.exists()) {
        (true, true) => {
            errors.push(api::field::Error::invalid(&backend.path, "", "cannot set both resource and service backends"))
        }
        (false, true) => {
            for field in ["kind", "name"] {
                resource.child(field).required(errors, "");
            }
        }
        (false, false) => backend.missing(errors, "resource or service backend is required"),
        (true, false) => {
            if service.child("name").required(errors, "") {
                service.child("name").format(errors, names::dns1035_label);
            }
            let (name, number) = (service.child("port.name"), service.child("port.number"));
            match (name.text().is_empty(), number.int() == 0) {
                (false, false) => service.child("port").invalid(errors, "cannot set both port name & port number"),
                (true, true) => service.child("port").missing(errors, "port name or number is required"),
                (false, true) => {
                    names::port_name(name.text()).into_iter().for_each(|problem| name.invalid(errors, problem))
                }
                (true, false) => number.port_number(errors),
            }
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
            errors.push(api::field::Error::too_long(&controller.path, 250));
        }
        match controller.text().split_once('/') {
            Some((domain, rest)) if !rest.is_empty() && names::dns1123_subdomain(domain).is_empty() => {}
            _ => controller.invalid(&mut errors, "must be a domain-prefixed path (such as \"acme.io/foo\")"),
        }
        let parameters = spec.child("parameters");
        if parameters.exists() {
            for field in ["kind", "name"] {
                parameters.child(field).required(&mut errors, "");
            }
            match parameters.child("scope").text() {
                "Namespace" => {
                    parameters.child("namespace").required(&mut errors, "`parameters.scope` is set to 'Namespace'");
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
        let mut errors = self.validate_create(ctx, new);
        Node::root(new).child("spec.controller").immutable(&mut errors, &Node::root(old).child("spec.controller"));
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
        row(class, now, vec![cell(class, "spec.controller"), parameters.into()])
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
                with(json!({"path": "/", "pathType": "Exact", "backend": {"service": {"name": "s"}}})),
                "spec.rules[0].http.paths[0].backend.service.port: Required value: port name or number is required",
            ),
            (
                json!({"spec": {"defaultBackend": {}}}),
                "spec.defaultBackend: Required value: resource or service backend is required",
            ),
            (
                json!({"spec": {"rules": [{"host": "10.0.0.1"}]}}),
                "spec.rules[0].host: Invalid value: \"10.0.0.1\": must be a DNS name, not an IP address",
            ),
        ] {
            assert_eq!(join(&validate(&ingress)), expected, "{ingress}");
        }
        assert!(join(&validate(&json!({"spec": {}}))).contains("either `defaultBackend` or `rules` must be specified"));
    }

    #[test]
    fn rows() {
        let ingress = json!({"metadata": {"name": "i"}, "spec": {"ingressClassName": "nginx", "tls": [{}], "rules": [{"host": "a"}, {"host": "b"}, {"host": "c"}, {"host": "d"}]}});
        let shown: Vec<String> =
            Ingress.row(&ingress, Timestamp::UNIX_EPOCH).iter().map(|c| c.as_str().unwrap().to_owned()).collect();
        assert_eq!(shown.join("|"), "i|nginx|a,b,c + 1 more...||80, 443|<unknown>");
    }
}

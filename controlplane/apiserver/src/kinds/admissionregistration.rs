//! The `admissionregistration.k8s.io` group: webhooks and CEL policies.

use api::field::{Error, ErrorList};
use api::names;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::check::{Node, Seen, conditions, label_selector};
use super::table::{UNSET, go_selector, named, number, row, size, words};
use super::value::{at, default, default_text, get_mut, has, list_mut, text};
use crate::cel::{self, decl::Decl};
use crate::policy::{self, Purpose};
use crate::resource::{ALL_BUT_STATUS, Column, Context, Descriptor, Hooks, Paths, Resource};

pub fn resources() -> Vec<Resource> {
    vec![
        Resource::new(
            descriptor("MutatingAdmissionPolicy", "mutatingadmissionpolicies").columns(policy_columns(
                "Mutations",
                "Mutation indicates the number of mutations rules defined in this configuration",
            )),
            Policy { rules: "spec.mutations" },
        ),
        Resource::new(
            descriptor("MutatingAdmissionPolicyBinding", "mutatingadmissionpolicybindings").columns(binding_columns()),
            Binding { actions: false },
        ),
        Resource::new(
            descriptor("MutatingWebhookConfiguration", "mutatingwebhookconfigurations").columns(webhook_columns()),
            Webhooks { mutating: true },
        ),
        Resource::new(
            descriptor("ValidatingAdmissionPolicy", "validatingadmissionpolicies").with_status().columns(
                policy_columns(
                    "Validations",
                    "Validations indicates the number of validation rules defined in this configuration",
                ),
            ),
            Policy { rules: "spec.validations" },
        ),
        Resource::new(
            descriptor("ValidatingAdmissionPolicyBinding", "validatingadmissionpolicybindings")
                .columns(binding_columns()),
            Binding { actions: true },
        ),
        Resource::new(
            descriptor("ValidatingWebhookConfiguration", "validatingwebhookconfigurations").columns(webhook_columns()),
            Webhooks { mutating: false },
        ),
    ]
}

fn descriptor(kind: &'static str, plural: &'static str) -> Descriptor {
    let mut descriptor = Descriptor::new("admissionregistration.k8s.io", "v1", kind, plural)
        .cluster_scoped()
        .categories(&["api-extensions"])
        .with_generation();
    descriptor.unconditional_update = false;
    descriptor
}

struct Webhooks {
    mutating: bool,
}

impl Hooks for Webhooks {
    fn defaults(&self, configuration: &mut Value) {
        for webhook in list_mut(configuration, "webhooks") {
            default(webhook, "failurePolicy", "Fail");
            default(webhook, "matchPolicy", "Equivalent");
            default(webhook, "namespaceSelector", json!({}));
            default(webhook, "objectSelector", json!({}));
            default(webhook, "timeoutSeconds", 10);
            if self.mutating {
                default(webhook, "reinvocationPolicy", "Never");
            }
            for rule in list_mut(webhook, "rules") {
                default(rule, "scope", "*");
            }
            if has(webhook, "clientConfig.service") {
                default(webhook, "clientConfig.service.port", 443);
            }
        }
    }

    fn validate_create(&self, _ctx: &Context<'_>, configuration: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        let mut seen = Seen::default();
        for webhook in Node::root(configuration).items("webhooks") {
            validate_webhook(&webhook, self.mutating, &mut errors);
            if !seen.insert(webhook.child("name").text()) {
                webhook.child("name").duplicate(&mut errors);
            }
        }
        errors
    }

    fn validate_update(&self, ctx: &Context<'_>, new: &Value, _old: &Value) -> ErrorList {
        self.validate_create(ctx, new)
    }

    fn row(&self, configuration: &Value, now: Timestamp) -> Vec<Value> {
        row(configuration, now, vec![size(configuration, "webhooks").into()])
    }
}

fn webhook_columns() -> Vec<Column> {
    named(vec![number("Webhooks", "Webhooks indicates the number of webhooks registered in this configuration")])
}

fn validate_webhook(webhook: &Node<'_>, mutating: bool, errors: &mut ErrorList) {
    let name = webhook.child("name");
    if name.required_format(errors, names::dns1123_subdomain) && name.text().split('.').count() < 3 {
        name.invalid(errors, "should be a domain with at least three segments separated by dots");
    }
    for rule in webhook.items("rules") {
        validate_rule(&rule, errors);
    }
    webhook.child("failurePolicy").optional_one_of(errors, &["Fail", "Ignore"]);
    webhook.child("matchPolicy").optional_one_of(errors, &["Equivalent", "Exact"]);
    if webhook.has("sideEffects") {
        webhook.child("sideEffects").one_of(errors, &["None", "NoneOnDryRun"]);
    } else {
        webhook.child("sideEffects").missing(errors, "must specify one of None, NoneOnDryRun");
    }
    let timeout = webhook.child("timeoutSeconds");
    if timeout.exists() && !(1..=30).contains(&timeout.int()) {
        timeout.invalid(errors, "the timeout value must be between 1 and 30 seconds");
    }
    for field in ["namespaceSelector", "objectSelector"] {
        label_selector(&webhook.child(field), errors);
    }
    if mutating {
        webhook.child("reinvocationPolicy").optional_one_of(errors, &["IfNeeded", "Never"]);
    }
    client_config(&webhook.child("clientConfig"), errors);
    match_conditions(webhook, errors);
    review_versions(webhook, errors);
}

/// The forms of `AdmissionReview` that the webhook understands: one of them must be known here.
fn review_versions(webhook: &Node<'_>, errors: &mut ErrorList) {
    let all = webhook.child("admissionReviewVersions");
    if !all.required(errors, "must specify one of v1, v1beta1") {
        return;
    }
    let versions = webhook.items("admissionReviewVersions");
    let mut seen = Seen::default();
    for version in &versions {
        if seen.insert(version.text()) {
            version.format(errors, names::dns1035_label);
        } else {
            version.invalid(errors, "duplicate version");
        }
    }
    if !versions.iter().any(|version| matches!(version.text(), "v1" | "v1beta1")) {
        all.invalid(errors, "must include at least one of v1, v1beta1");
    }
}

fn match_conditions(owner: &Node<'_>, errors: &mut ErrorList) {
    let conditions = owner.items("matchConditions");
    if conditions.len() > 64 {
        errors.push(Error::too_many(&owner.child("matchConditions").path, conditions.len(), 64));
    }
    let mut seen = Seen::default();
    let known = policy::declarations(purpose(owner), None, None, None);
    for condition in conditions {
        let expression = condition.child("expression");
        if expression.required(errors, "") {
            compiles(&expression, &known, &["bool"], errors);
        }
        let name = condition.child("name");
        if name.required_format(errors, names::qualified_name) && !seen.insert(name.text()) {
            name.duplicate(errors);
        }
    }
}

/// Which variables the expressions of a webhook (or of a policy's `spec`) see.
fn purpose(owner: &Node<'_>) -> Purpose {
    if owner.has("paramKind") { Purpose::WithParams } else { Purpose::Plain }
}

/// The type of an expression that compiles and gives one of `wanted` (none: anything).
fn compiles(expression: &Node<'_>, known: &[(&str, Decl)], wanted: &[&str], errors: &mut ErrorList) -> Decl {
    let decl = match cel::compile_checked(expression.text(), known) {
        Ok((_, checked)) => checked.decl,
        Err(error) => {
            expression.invalid(errors, error.to_string());
            return Decl::dynamic();
        }
    };
    let found = decl.to_string();
    if found != "dyn" && !wanted.is_empty() && !wanted.contains(&found.as_str()) {
        let wanted = match wanted {
            [one] => (*one).to_owned(),
            all => format!("one of [{}]", all.join(" ")),
        };
        expression.invalid(errors, format!("must evaluate to {wanted}"));
    }
    decl
}

pub(super) fn client_config(config: &Node<'_>, errors: &mut ErrorList) {
    let (url, service) = (config.child("url"), config.child("service"));
    match (url.exists(), service.exists()) {
        (true, false) => webhook_url(&url, errors),
        (false, true) => webhook_service(&service, errors),
        _ => config.missing(errors, "exactly one of url or service is required"),
    }
}

/// `https://host[/path]`: nobody's name, no query and no fragment in it. The part that is wrong is
/// what is shown.
fn webhook_url(url: &Node<'_>, errors: &mut ErrorList) {
    const FORM: &str = "; desired format: https://host[/path]";
    let mut refuse = |part: &str, detail: String| errors.push(Error::invalid(&url.path, part, detail));
    let (rest, fragment) = url.text().split_once('#').unwrap_or((url.text(), ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (scheme, rest) = match rest.split_once(':') {
        Some((scheme, rest)) if !scheme.contains('/') => (scheme, rest),
        _ => ("", rest),
    };
    let authority = rest.strip_prefix("//").map_or("", |rest| rest.split('/').next().unwrap_or(""));
    let (user, host) = authority.rsplit_once('@').map_or((None, authority), |(user, host)| (Some(user), host));
    if !scheme.eq_ignore_ascii_case("https") {
        refuse(scheme, format!("'https' is the only allowed URL scheme{FORM}"));
    }
    if host.is_empty() {
        refuse(host, format!("host must be specified{FORM}"));
    }
    if let Some(user) = user {
        refuse(user, "user information is not permitted in the URL".to_owned());
    }
    if !fragment.is_empty() {
        refuse(fragment, "fragments are not permitted in the URL".to_owned());
    }
    if !query.is_empty() {
        refuse(query, "query parameters are not permitted in the URL".to_owned());
    }
}

fn webhook_service(service: &Node<'_>, errors: &mut ErrorList) {
    for field in ["name", "namespace"] {
        service.child(field).required(errors, "");
    }
    let port = service.child("port");
    if let Some(problem) = names::port_number(port.int()) {
        port.invalid(errors, format!("port is not valid: {problem}"));
    }
    let path = service.child("path");
    match path.text() {
        "" | "/" => return,
        "//" => return path.invalid(errors, "segment[0] may not be empty"),
        _ => {}
    }
    if !path.text().starts_with('/') {
        path.invalid(errors, "must start with a '/'");
    }
    // The first letter is taken for the slash, whatever it is.
    let mut letters = path.text().chars();
    letters.next();
    let inner = letters.as_str().strip_suffix('/').unwrap_or(letters.as_str());
    for (index, segment) in inner.split('/').enumerate() {
        if segment.is_empty() {
            path.invalid(errors, format!("segment[{index}] may not be empty"));
        } else {
            for problem in names::dns1123_subdomain(segment) {
                path.invalid(errors, format!("segment[{index}]: {problem}"));
            }
        }
    }
}

fn validate_rule(rule: &Node<'_>, errors: &mut ErrorList) {
    let wild = |field: &str| {
        let items = rule.items(field);
        items.len() > 1 && items.iter().any(|item| item.text() == "*")
    };
    for (field, others) in [("operations", "operations"), ("apiGroups", "API groups"), ("apiVersions", "API versions")]
    {
        rule.child(field).required(errors, "");
        if wild(field) {
            rule.child(field).invalid(errors, format!("if '*' is present, must not specify other {others}"));
        }
        if field == "operations" {
            for operation in rule.items("operations") {
                operation.one_of(errors, &["*", "CONNECT", "CREATE", "DELETE", "UPDATE"]);
            }
        }
    }
    for version in rule.items("apiVersions") {
        version.required(errors, "");
    }
    rule_resources(rule, errors);
    rule.child("scope").optional_one_of(errors, &["*", "Cluster", "Namespaced"]);
}

/// `pods`, `pods/status`, `*/scale`, `*`, `*/*`: none of them covered by another.
fn rule_resources(rule: &Node<'_>, errors: &mut ErrorList) {
    let all = rule.child("resources");
    all.required(errors, "");
    let (mut of_any, mut any_of) = (Seen::default(), Seen::default());
    let (mut every, mut every_whole, mut whole) = (false, false, false);
    let items = rule.items("resources");
    for item in &items {
        let text = item.text();
        every |= text == "*/*";
        every_whole |= text == "*";
        let Some((resource, sub)) = text.split_once('/') else {
            whole |= !matches!(text, "" | "*");
            item.required(errors, "");
            continue;
        };
        if any_of.contains(resource) {
            item.invalid(errors, format!("if '{resource}/*' is present, must not specify {text}"));
        }
        if of_any.contains(sub) {
            item.invalid(errors, format!("if '*/{sub}' is present, must not specify {text}"));
        }
        if sub == "*" {
            any_of.insert(resource);
        }
        if resource == "*" {
            of_any.insert(sub);
        }
    }
    if items.len() > 1 && every {
        all.invalid(errors, "if '*/*' is present, must not specify other resources");
    }
    if every_whole && whole {
        all.invalid(errors, "if '*' is present, must not specify other resources without subresources");
    }
}

/// Defaults of `MatchResources`.
fn match_defaults(resources: &mut Value) {
    default(resources, "matchPolicy", "Equivalent");
    default(resources, "namespaceSelector", json!({}));
    default(resources, "objectSelector", json!({}));
    for field in ["resourceRules", "excludeResourceRules"] {
        for rule in list_mut(resources, field) {
            default(rule, "scope", "*");
        }
    }
}

fn match_resources(resources: &Node<'_>, errors: &mut ErrorList) {
    resources.child("matchPolicy").optional_one_of(errors, &["Equivalent", "Exact"]);
    for field in ["namespaceSelector", "objectSelector"] {
        label_selector(&resources.child(field), errors);
    }
    for field in ["resourceRules", "excludeResourceRules"] {
        for rule in resources.items(field) {
            validate_rule(&rule, errors);
            let mut seen = Seen::default();
            for name in rule.items("resourceNames") {
                name.format(errors, names::path_segment);
                if !seen.insert(name.text()) {
                    name.duplicate(errors);
                }
            }
        }
    }
}

/// A policy; `rules` is where its validations or mutations are.
struct Policy {
    rules: &'static str,
}

impl Hooks for Policy {
    fn reset_by_status(&self) -> Paths {
        ALL_BUT_STATUS
    }

    fn defaults(&self, policy: &mut Value) {
        default_text(policy, "spec.failurePolicy", "Fail");
        if let Some(resources) = get_mut(policy, "spec.matchConstraints") {
            match_defaults(resources);
        }
    }

    fn validate_create(&self, _ctx: &Context<'_>, policy: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        let spec = Node::root(policy).child("spec");
        spec.child("failurePolicy").optional_one_of(&mut errors, &["Fail", "Ignore"]);
        let constraints = spec.child("matchConstraints");
        if !constraints.exists() {
            constraints.missing(&mut errors, "");
        } else {
            match_resources(&constraints, &mut errors);
            if constraints.items("resourceRules").is_empty() {
                constraints.child("resourceRules").missing(&mut errors, "");
            }
        }
        match_conditions(&spec, &mut errors);
        if spec.has("paramKind") {
            for field in ["apiVersion", "kind"] {
                spec.child("paramKind").child(field).required(&mut errors, "");
            }
        }
        let mut seen = Seen::default();
        let mut variables: Vec<(String, Decl)> = Vec::new();
        for variable in spec.items("variables") {
            let expression = variable.child("expression");
            let mut decl = Decl::dynamic();
            if expression.required(&mut errors, "expression is not specified") {
                let known = policy::declarations(purpose(&spec), None, None, Some(&variables));
                decl = compiles(&expression, &known, &[], &mut errors);
            }
            let name = variable.child("name");
            if name.required(&mut errors, "name is not specified") && !seen.insert(name.text()) {
                name.duplicate(&mut errors);
            }
            variables.push((name.text().to_owned(), decl));
        }
        let known = policy::declarations(purpose(&spec), None, None, Some(&variables));
        self.rules_are_sound(policy, &spec, &known, &mut errors);
        errors
    }

    fn validate_update(&self, ctx: &Context<'_>, new: &Value, _old: &Value) -> ErrorList {
        self.validate_create(ctx, new)
    }

    fn validate_subresource_update(&self, _ctx: &Context<'_>, new: &Value, _old: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        conditions(&Node::root(new), "status.conditions", &mut errors);
        errors
    }

    fn row(&self, policy: &Value, now: Timestamp) -> Vec<Value> {
        let params = if has(policy, "spec.paramKind") {
            format!("{}/{}", text(policy, "spec.paramKind.apiVersion"), text(policy, "spec.paramKind.kind"))
        } else {
            UNSET.to_owned()
        };
        row(policy, now, vec![size(policy, self.rules).into(), params.into()])
    }
}

impl Policy {
    fn rules_are_sound(&self, policy: &Value, spec: &Node<'_>, known: &[(&str, Decl)], errors: &mut ErrorList) {
        let root = Node::root(policy);
        if self.rules == "spec.mutations" {
            root.child(self.rules).required(errors, "mutations must contain at least one item");
            spec.child("reinvocationPolicy").required_one_of(errors, &["IfNeeded", "Never"]);
            for mutation in root.items(self.rules) {
                match mutation.child("patchType").text() {
                    "ApplyConfiguration" => {
                        let expression = mutation.child("applyConfiguration.expression");
                        if expression.required(errors, "") {
                            compiles(&expression, known, &["Object"], errors);
                        }
                    }
                    "JSONPatch" => {
                        let expression = mutation.child("jsonPatch.expression");
                        if expression.required(errors, "") {
                            compiles(&expression, known, &["list(JSONPatch)", "list(dyn)"], errors);
                        }
                    }
                    _ => {
                        mutation.child("patchType").required_one_of(errors, &["ApplyConfiguration", "JSONPatch"]);
                    }
                }
            }
            return;
        }
        if root.items(self.rules).is_empty() && spec.items("auditAnnotations").is_empty() {
            for field in ["validations", "auditAnnotations"] {
                spec.child(field)
                    .missing(errors, "validations or auditAnnotations must be specified; they cannot both be empty");
            }
        }
        for validation in root.items(self.rules) {
            let expression = validation.child("expression");
            if expression.required(errors, "expression is not specified") {
                compiles(&expression, known, &["bool"], errors);
            }
            let message = validation.child("messageExpression");
            if !message.text().is_empty() {
                compiles(&message, known, &["string"], errors);
            }
            validation
                .child("reason")
                .optional_one_of(errors, &["Forbidden", "Invalid", "RequestEntityTooLarge", "Unauthorized"]);
        }
        for annotation in spec.items("auditAnnotations") {
            annotation.child("key").required(errors, "");
            let value = annotation.child("valueExpression");
            if value.required(errors, "valueExpression is not specified") {
                compiles(&value, known, &["string", "null"], errors);
            }
        }
    }
}

fn policy_columns(rules: &'static str, description: &'static str) -> Vec<Column> {
    named(vec![
        number(rules, description),
        words("ParamKind", "ParamKind specifies the kind of resources used to parameterize this policy"),
    ])
}

struct Binding {
    /// Validating bindings say what a failed validation does.
    actions: bool,
}

impl Hooks for Binding {
    fn defaults(&self, binding: &mut Value) {
        if let Some(resources) = get_mut(binding, "spec.matchResources") {
            match_defaults(resources);
        }
    }

    fn validate_create(&self, _ctx: &Context<'_>, binding: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        let spec = Node::root(binding).child("spec");
        let policy = spec.child("policyName");
        if !policy.text().is_empty() {
            policy.format(&mut errors, names::dns1123_subdomain);
        }
        param_ref(&spec.child("paramRef"), &mut errors);
        match_resources(&spec.child("matchResources"), &mut errors);
        if self.actions {
            let actions = spec.items("validationActions");
            let mut seen = Seen::default();
            for action in &actions {
                action.one_of(&mut errors, &["Audit", "Deny", "Warn"]);
                if !seen.insert(action.text()) {
                    action.duplicate(&mut errors);
                }
            }
            let has = |name: &str| actions.iter().any(|action| action.text() == name);
            if has("Deny") && has("Warn") {
                spec.child("validationActions").invalid(&mut errors, "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)");
            }
        }
        // Declared rules speak last.
        policy.required(&mut errors, "");
        if self.actions {
            spec.child("validationActions").required(&mut errors, "");
        }
        errors
    }

    fn validate_update(&self, ctx: &Context<'_>, new: &Value, _old: &Value) -> ErrorList {
        self.validate_create(ctx, new)
    }

    fn row(&self, binding: &Value, now: Timestamp) -> Vec<Value> {
        let params = at(binding, "spec.paramRef");
        // Whether the kind of parameters has namespaces cannot be told from here.
        let params = match (text(params, "namespace"), text(params, "name")) {
            (_, "") if has(params, "selector") => go_selector(at(params, "selector")),
            (_, "") => UNSET.to_owned(),
            ("", name) => format!("*/{name}"),
            (namespace, name) => format!("{namespace}/{name}"),
        };
        row(binding, now, vec![text(binding, "spec.policyName").into(), params.into()])
    }
}

fn param_ref(params: &Node<'_>, errors: &mut ErrorList) {
    if !params.exists() {
        return;
    }
    let (name, selector) = (params.child("name"), params.child("selector"));
    let both = "name and selector are mutually exclusive";
    let named = !name.text().is_empty();
    if named {
        name.format(errors, names::path_segment);
        if selector.exists() {
            name.forbidden(errors, both);
        }
    }
    if selector.exists() {
        label_selector(&selector, errors);
        if named {
            selector.forbidden(errors, both);
        }
    }
    if !named && !selector.exists() {
        params.missing(errors, "one of name or selector must be specified");
    }
    params.child("parameterNotFoundAction").required_one_of(errors, &["Deny", "Allow"]);
}

fn binding_columns() -> Vec<Column> {
    named(vec![
        words("PolicyName", "PolicyName indicates the policy definition which the policy binding binded to"),
        words("ParamRef", "ParamRef indicates the param resource which sets the configration param"),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::tested;
    use api::field::join;

    #[test]
    fn webhooks() {
        let hooks = Webhooks { mutating: true };
        let mut configuration = json!({"webhooks": [{"name": "a.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "clientConfig": {"service": {"name": "s", "namespace": "n"}},
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"]}]}]});
        hooks.defaults(&mut configuration);
        let webhook = &configuration["webhooks"][0];
        for (field, value) in [
            ("failurePolicy", json!("Fail")),
            ("timeoutSeconds", json!(10)),
            ("matchPolicy", json!("Equivalent")),
            ("reinvocationPolicy", json!("Never")),
        ] {
            assert_eq!(webhook[field], value);
        }
        assert_eq!(webhook["clientConfig"]["service"]["port"], 443);
        let mut errors = ErrorList::new();
        validate_webhook(&Node::root(webhook), true, &mut errors);
        assert_eq!(join(&errors), "[]");
        let bad = json!({"name": "a.b", "clientConfig": {"url": "http://x"}, "timeoutSeconds": 40, "admissionReviewVersions": ["v2"]});
        let mut errors = ErrorList::new();
        validate_webhook(&Node::root(&bad), false, &mut errors);
        let found = join(&errors);
        for expected in [
            "at least three segments",
            "'https' is the only allowed URL scheme",
            "sideEffects: Required value: must specify one of None, NoneOnDryRun",
            "between 1 and 30 seconds",
            "must include at least one of v1, v1beta1",
        ] {
            assert!(found.contains(expected), "{expected}: {found}");
        }
    }

    #[test]
    fn client_configs() {
        for (config, expected) in [
            (json!({"url": "https://example.com/x"}), "[]"),
            (json!({}), "c: Required value: exactly one of url or service is required"),
            (
                json!({"url": "http://u:p@/x?q=1#f"}),
                "[c.url: Invalid value: \"http\": 'https' is the only allowed URL scheme; desired format: https://host[/path], \
                 c.url: Invalid value: \"\": host must be specified; desired format: https://host[/path], \
                 c.url: Invalid value: \"u:p\": user information is not permitted in the URL, \
                 c.url: Invalid value: \"f\": fragments are not permitted in the URL, \
                 c.url: Invalid value: \"q=1\": query parameters are not permitted in the URL]",
            ),
            (
                json!({"service": {"name": "s", "port": 0, "path": "a//b"}}),
                "[c.service.namespace: Required value, \
                 c.service.port: Invalid value: 0: port is not valid: must be between 1 and 65535, inclusive, \
                 c.service.path: Invalid value: \"a//b\": must start with a '/', \
                 c.service.path: Invalid value: \"a//b\": segment[0] may not be empty, \
                 c.service.path: Invalid value: \"a//b\": segment[1] may not be empty]",
            ),
        ] {
            let mut errors = ErrorList::new();
            client_config(&Node::new(&config, api::field::Path::root("c")), &mut errors);
            assert_eq!(join(&errors), expected, "{config}");
        }
    }

    #[test]
    fn rules_refused() {
        let whole = json!({"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]});
        let with = |field: &str, value: Value| {
            let mut rule = whole.clone();
            rule[field] = value;
            rule
        };
        for (rule, expected) in [
            (whole.clone(), "[]"),
            (
                json!({"scope": "X"}),
                "[operations: Required value, apiGroups: Required value, apiVersions: Required value, resources: Required value, \
                 scope: Unsupported value: \"X\": supported values: \"*\", \"Cluster\", \"Namespaced\"]",
            ),
            (
                with("operations", json!(["*", "PATCH"])),
                "[operations: Invalid value: [\"*\",\"PATCH\"]: if '*' is present, must not specify other operations, \
                 operations[1]: Unsupported value: \"PATCH\": supported values: \"*\", \"CONNECT\", \"CREATE\", \"DELETE\", \"UPDATE\"]",
            ),
            (
                with("apiGroups", json!(["*", "apps"])),
                "apiGroups: Invalid value: [\"*\",\"apps\"]: if '*' is present, must not specify other API groups",
            ),
            (
                with("resources", json!(["*", "pods", "pods/*", "pods/status", "*/scale", "a/scale"])),
                "[resources[3]: Invalid value: \"pods/status\": if 'pods/*' is present, must not specify pods/status, \
                 resources[5]: Invalid value: \"a/scale\": if '*/scale' is present, must not specify a/scale, \
                 resources: Invalid value: [\"*\",\"pods\",\"pods/*\",\"pods/status\",\"*/scale\",\"a/scale\"]: if '*' is present, must not specify other resources without subresources]",
            ),
        ] {
            let mut errors = ErrorList::new();
            validate_rule(&Node::root(&rule), &mut errors);
            assert_eq!(join(&errors), expected, "{rule}");
        }
    }

    #[test]
    fn bindings() {
        let hooks = Binding { actions: true };
        let with = |spec: Value| json!({"metadata": {"name": "b"}, "spec": spec});
        for (spec, expected) in [
            (json!({"policyName": "p", "validationActions": ["Deny"]}), "[]"),
            (json!({}), "[spec.policyName: Required value, spec.validationActions: Required value]"),
            (
                json!({"policyName": "p", "validationActions": ["Warn"], "paramRef": {"name": "n", "selector": {}}}),
                "[spec.paramRef.name: Forbidden: name and selector are mutually exclusive, \
                 spec.paramRef.selector: Forbidden: name and selector are mutually exclusive, \
                 spec.paramRef.parameterNotFoundAction: Required value]",
            ),
            (
                json!({"policyName": "p", "validationActions": ["Warn", "Log"], "paramRef": {"parameterNotFoundAction": "X"}}),
                "[spec.paramRef: Required value: one of name or selector must be specified, \
                 spec.paramRef.parameterNotFoundAction: Unsupported value: \"X\": supported values: \"Deny\", \"Allow\", \
                 spec.validationActions[1]: Unsupported value: \"Log\": supported values: \"Audit\", \"Deny\", \"Warn\"]",
            ),
        ] {
            assert_eq!(tested::created(&hooks, &with(spec.clone())), expected, "{spec}");
        }
        let webhooks = json!({"metadata": {"name": "w"}, "webhooks": [{}, {}]});
        assert_eq!(tested::cells(&Webhooks { mutating: false }, &webhooks, "2026-01-01T00:00:00Z"), "w|2|<unknown>");
    }
}

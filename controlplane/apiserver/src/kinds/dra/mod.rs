//! The `resource.k8s.io` group: dynamic resource allocation. [`claim`] validates what is asked for,
//! [`allocation`] what was given and [`permission`] who may give it, [`slice`] and [`device`] what
//! there is.

mod allocation;
mod capacity;
mod claim;
mod device;
mod permission;
mod report;
mod selector;
mod slice;

use api::field::{Error, ErrorList, Path};
use api::names;
use async_trait::async_trait;
use jiff::Timestamp;
use serde_json::Value;

use super::check::{Node, conditions};
use super::core::pod::volume::{csi_driver_name, template_metadata};
use super::table::{cell, named, row, words};
use super::value::{
    at, default, default_int, default_text, flag, has, label, list, list_mut, name, namespace, opt_text, same_at, text,
};
use crate::error::{ApiError, Result};
use crate::resource::{
    ALL_BUT_STATUS, Column, Context, Descriptor, Feature, Hooks, Paths, Reservation, Resource, SwitchedOff, since,
};
use report::Report;

const GROUP: &str = "resource.k8s.io";

pub fn resources() -> Vec<Resource> {
    vec![
        Resource::new(
            Descriptor::new(GROUP, "v1", "DeviceClass", "deviceclasses").cluster_scoped().with_generation(),
            Class,
        ),
        Resource::new(
            Descriptor::new(GROUP, "v1", "DeviceTaintRule", "devicetaintrules")
                .cluster_scoped()
                .with_status()
                .with_generation()
                .columns(taint_rule_columns()),
            TaintRule,
        ),
        Resource::new(
            Descriptor::new(GROUP, "v1", "ResourceClaim", "resourceclaims").with_status().columns(claim_columns()),
            Claim { spec: "spec" },
        ),
        Resource::new(
            Descriptor::new(GROUP, "v1", "ResourceClaimTemplate", "resourceclaimtemplates"),
            Claim { spec: "spec.spec" },
        ),
        Resource::new(slice_descriptor().columns(slice::columns()), slice::Slice),
    ]
}

fn slice_descriptor() -> Descriptor {
    let mut descriptor = Descriptor::new(GROUP, "v1", "ResourceSlice", "resourceslices")
        .cluster_scoped()
        .with_generation()
        .selectable("spec.nodeName")
        .selectable("spec.driver");
    descriptor.field_labels.refusal = Some("field label not supported for resource.k8s.io/v1, Kind=ResourceSlice: {}");
    descriptor
}

/// Drivers are called in lower case.
fn uppercase_driver(path: &str, driver: &str) -> Option<String> {
    (driver != driver.to_lowercase())
        .then(|| format!("{path}: driver names should be lowercase; {driver:?} contains uppercase characters"))
}

/// As [`uppercase_driver`], of the drivers that a list of configurations is for.
fn uppercase_drivers(object: &Value, path: &str) -> Vec<String> {
    let drivers = list(object, path).iter().enumerate();
    let warn =
        |(index, config)| uppercase_driver(&format!("{path}[{index}].opaque.driver"), text(config, "opaque.driver"));
    drivers.filter_map(warn).collect()
}

struct Class;

impl Hooks for Class {
    fn validate_create(&self, _ctx: &Context<'_>, class: &Value) -> ErrorList {
        validate_class(class, None)
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        validate_class(new, Some(old))
    }

    fn warnings(&self, new: &Value, _old: Option<&Value>) -> Vec<String> {
        uppercase_drivers(new, "spec.config")
    }
}

fn validate_class(class: &Value, old: Option<&Value>) -> ErrorList {
    let mut report = Report::default();
    let spec = Node::root(class).child("spec");
    let stored = |field: &str| old.is_some_and(|old| same_at(class, old, field));
    claim::selectors(&spec, stored("spec.selectors"), &mut report);
    for config in report.limited(&spec, "config", claim::MAX_ITEMS) {
        claim::configuration(&config, stored("spec.config"), &mut report);
    }
    let extended = spec.child("extendedResourceName");
    if extended.exists() && !stored("spec.extendedResourceName") {
        extended_name(&extended, &mut report.declared);
    }
    report.errors()
}

fn extended_name(name: &Node<'_>, errors: &mut ErrorList) {
    if !name.text().contains('/') {
        name.invalid_text(errors, "a name must be a domain-prefixed path, such as 'example.com/my-prop'");
    } else if name.text().contains("kubernetes.io/") {
        name.invalid(errors, "must not have \"kubernetes.io/\" domain");
    }
    if name.text().starts_with("requests.") {
        name.invalid(errors, "must not have \"requests.\" prefix");
    }
    for problem in names::qualified_name(&format!("requests.{}", name.text())) {
        name.invalid_text(errors, problem);
    }
}

struct TaintRule;

const MAX_RULE_CONDITIONS: usize = 8;

impl Hooks for TaintRule {
    fn prepare_create(&self, ctx: &Context<'_>, rule: &mut Value) {
        default(rule, "spec.taint.timeAdded", api::scalar::time(ctx.now));
    }

    fn prepare_update(&self, ctx: &Context<'_>, new: &mut Value, _old: &Value) {
        default(new, "spec.taint.timeAdded", api::scalar::time(ctx.now));
    }

    fn validate_create(&self, _ctx: &Context<'_>, rule: &Value) -> ErrorList {
        validate_rule(rule, None)
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        validate_rule(new, Some(old))
    }

    fn validate_subresource_update(&self, _ctx: &Context<'_>, new: &Value, _old: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        conditions(&Node::root(new), "status.conditions", &mut errors);
        let all = Node::root(new).child("status.conditions");
        if all.len() > MAX_RULE_CONDITIONS {
            errors.push(Error::too_many(&all.path, all.len(), MAX_RULE_CONDITIONS));
        }
        errors
    }

    fn warnings(&self, new: &Value, _old: Option<&Value>) -> Vec<String> {
        let driver = text(new, "spec.deviceSelector.driver");
        uppercase_driver("spec.deviceSelector.driver", driver).into_iter().collect()
    }

    fn row(&self, rule: &Value, now: Timestamp) -> Vec<Value> {
        let added = opt_text(rule, "spec.taint.timeAdded").map(|_| since(at(rule, "spec.taint.timeAdded"), now));
        let mut cells: Vec<Value> = ["key", "value", "effect"].map(|field| cell(at(rule, "spec.taint"), field)).into();
        cells.push(added.unwrap_or_else(|| "".into()));
        row(rule, now, cells)
    }
}

fn taint_rule_columns() -> Vec<Column> {
    named(vec![
        words("Key", "The taint key to be applied to a device. Must be a label name."),
        words("Value", "The taint value corresponding to the taint key. Must be a label value."),
        words(
            "Effect",
            "The effect of the taint on claims that do not tolerate the taint and through such claims on the pods using them.",
        ),
        words(
            "TimeAdded",
            "TimeAdded represents the time at which the taint was added or (only in a DeviceTaintRule) the effect was modified. Added automatically during create or update if not set.",
        ),
    ])
}

fn validate_rule(rule: &Value, old: Option<&Value>) -> ErrorList {
    let mut report = Report::default();
    let spec = Node::root(rule).child("spec");
    let selector = spec.child("deviceSelector");
    if selector.has("driver") {
        csi_driver_name(&selector.child("driver"), &mut report.said);
    }
    if selector.has("pool") {
        report::pool_name(&selector.child("pool"), &mut report.said);
    }
    if selector.has("device") {
        selector.child("device").format(&mut report.said, names::dns1123_label);
    }
    claim::taint(&spec.child("taint"), old.map(|old| text(old, "spec.taint.effect")), &mut report);
    report.errors()
}

/// Claims, and templates of claims whose claim spec is deeper.
struct Claim {
    spec: &'static str,
}

impl Claim {
    fn is_template(&self) -> bool {
        self.spec != "spec"
    }

    /// Whether devices are asked for, or given, although others have them.
    fn wants_admin(&self, object: &Value) -> bool {
        list(object, &format!("{}.devices.requests", self.spec))
            .iter()
            .any(|request| flag(request, "exactly.adminAccess"))
    }
}

fn is_given_as_admin(claim: &Value) -> bool {
    list(claim, "status.allocation.devices.results").iter().any(|result| flag(result, "adminAccess"))
}

/// `DRADerivedAttributes` is off.
const DERIVED_ATTRIBUTES: Feature =
    &["devices.requests.*.exactly.derivedAttributes", "devices.requests.*.firstAvailable.*.derivedAttributes"];

#[async_trait]
impl Hooks for Claim {
    fn defaults(&self, claim: &mut Value) {
        for request in list_mut(claim, &format!("{}.devices.requests", self.spec)) {
            if let Some(exactly) = request.get_mut("exactly").filter(|exactly| exactly.is_object()) {
                count_defaults(exactly);
            }
            for option in list_mut(request, "firstAvailable") {
                count_defaults(option);
            }
        }
    }

    fn switched_off(&self) -> SwitchedOff {
        SwitchedOff { at: self.spec, features: &[DERIVED_ATTRIBUTES] }
    }

    fn reset_by_status(&self) -> Paths {
        ALL_BUT_STATUS
    }

    fn prepare_subresource_update(&self, _ctx: &Context<'_>, new: &mut Value, old: &Value) {
        allocation::drop_deallocated(new, old);
    }

    fn validate_create(&self, _ctx: &Context<'_>, object: &Value) -> ErrorList {
        let mut report = Report::default();
        if self.is_template() {
            template_metadata(&Node::root(object).child("spec.metadata"), &mut report.said);
        }
        claim::validate(&Node::root(object).child(self.spec), &mut report);
        report.errors()
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        let (spec, was) = (Node::root(new).child("spec"), Node::root(old).child("spec"));
        if self.is_template() {
            spec.immutable(&mut errors, &was);
        } else {
            spec.immutable_declared(&mut errors, &was);
        }
        errors
    }

    fn validate_subresource_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        allocation::validate(new, old)
    }

    fn warnings(&self, new: &Value, _old: Option<&Value>) -> Vec<String> {
        uppercase_drivers(new, &format!("{}.devices.config", self.spec))
    }

    /// Access to devices that others have is a namespace's right.
    async fn reserve(
        &self,
        ctx: &Context<'_>,
        new: &mut Value,
        old: Option<&Value>,
    ) -> Result<Option<Box<dyn Reservation>>> {
        if let Some(old) = old.filter(|_| ctx.subresource == "status" && !self.is_template()) {
            let errors = permission::check(ctx, new, old).await;
            if !errors.is_empty() {
                return Err(ApiError::invalid(GROUP, "ResourceClaim", name(new), &errors));
            }
        }
        const LABEL: &str = "resource.kubernetes.io/admin-access";
        let asks = match old {
            None => self.wants_admin(new),
            Some(old) => ctx.subresource == "status" && is_given_as_admin(new) && !is_given_as_admin(old),
        };
        if !asks {
            return Ok(None);
        }
        let held = ctx.cluster.get("", "namespaces", "", namespace(new)).await?;
        if held.is_some_and(|held| label(&held, LABEL) == Some("true")) {
            return Ok(None);
        }
        let detail = format!("admin access to devices requires the `{LABEL}: true` label on the containing namespace");
        let kind = if self.is_template() { "ResourceClaimTemplate" } else { "ResourceClaim" };
        Err(ApiError::invalid(GROUP, kind, name(new), &[Error::forbidden(&Path::unnamed(), detail)]))
    }

    fn row(&self, claim: &Value, now: Timestamp) -> Vec<Value> {
        if self.is_template() {
            return row(claim, now, Vec::new());
        }
        let mut states = Vec::new();
        if has(claim, "metadata.deletionTimestamp") {
            states.push("deleted");
        }
        if has(claim, "status.allocation") {
            states.push("allocated");
            if !list(claim, "status.reservedFor").is_empty() {
                states.push("reserved");
            }
        } else if states.is_empty() {
            states.push("pending");
        }
        row(claim, now, vec![states.join(",").into()])
    }
}

fn count_defaults(request: &mut Value) {
    default_text(request, "allocationMode", "ExactCount");
    if text(request, "allocationMode") == "ExactCount" {
        default_int(request, "count", 1);
    }
    for toleration in list_mut(request, "tolerations") {
        default_text(toleration, "operator", "Equal");
    }
}

fn claim_columns() -> Vec<Column> {
    named(vec![words("State", "A summary of the current state (allocated, pending, reserved, etc.).")])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::fake::Fixed;
    use crate::authn::UserInfo;
    use crate::kinds::tested::{created, updated, updated_sub};
    use serde_json::json;

    const CLAIM: Claim = Claim { spec: "spec" };
    const TEMPLATE: Claim = Claim { spec: "spec.spec" };

    #[test]
    fn classes() {
        let class = |spec: Value| json!({"metadata": {"name": "c"}, "spec": spec});
        for (spec, expected) in [
            (json!({"extendedResourceName": "example.com/gpu"}), "[]"),
            (
                json!({"extendedResourceName": "cpu"}),
                "spec.extendedResourceName: Invalid value: \"cpu\": a name must be a domain-prefixed path, such as 'example.com/my-prop'",
            ),
            (
                json!({"extendedResourceName": "requests.kubernetes.io/a"}),
                "[spec.extendedResourceName: Invalid value: \"requests.kubernetes.io/a\": must not have \"kubernetes.io/\" domain, \
                 spec.extendedResourceName: Invalid value: \"requests.kubernetes.io/a\": must not have \"requests.\" prefix]",
            ),
            (
                json!({"selectors": [{}], "config": [{}]}),
                "[spec.selectors[0].cel: Required value, spec.config[0].opaque: Required value]",
            ),
        ] {
            assert_eq!(created(&Class, &class(spec.clone())), expected, "{spec}");
        }
        let bad = class(json!({"selectors": [{"cel": {"expression": "1 +"}}]}));
        assert!(
            created(&Class, &bad)
                .starts_with("spec.selectors[0].cel.expression: Invalid value: \"1 +\": compilation failed: ERROR: ")
        );
        let numbers = "[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]";
        let loops: String = (0..7).map(|depth| format!("{numbers}.all(x{depth}, ")).collect();
        let expensive = format!("{loops}int('1'.find('[0-9]*')) < 100{}", ")".repeat(7));
        for (expression, expected) in [
            ("device.attributes['a.b'].name", String::new()),
            ("1", "spec.selectors[0].cel.expression: Invalid value: \"1\": must evaluate to bool or the unknown type, not int".into()),
            (&expensive, "spec.selectors[0].cel.expression: Forbidden: too complex, exceeds cost limit".into()),
        ] {
            let errors = created(&Class, &class(json!({"selectors": [{"cel": {"expression": expression}}]})));
            assert_eq!(errors, if expected.is_empty() { "[]".to_owned() } else { expected }, "{expression}");
        }
        assert_eq!(updated(&Class, &bad, &bad), "[]", "what is stored is not compiled again");
        assert_eq!(
            Class.warnings(&class(json!({"config": [{"opaque": {"driver": "D"}}]})), None),
            ["spec.config[0].opaque.driver: driver names should be lowercase; \"D\" contains uppercase characters"]
        );
    }

    #[test]
    fn rules() {
        let rule = |spec: Value| json!({"metadata": {"name": "r"}, "spec": spec});
        assert_eq!(created(&TaintRule, &rule(json!({"taint": {"key": "k"}}))), "spec.taint.effect: Required value");
        assert_eq!(
            created(
                &TaintRule,
                &rule(json!({"deviceSelector": {"pool": ""}, "taint": {"key": "k", "effect": "Never"}}))
            ),
            "[spec.deviceSelector.pool: Required value, \
             spec.taint.effect: Unsupported value: \"Never\": supported values: \"NoExecute\", \"NoSchedule\", \"None\"]"
        );
        let stored = rule(json!({"taint": {"key": "k", "effect": "Later"}}));
        assert_eq!(updated(&TaintRule, &stored, &stored), "[]");
        let condition = |n: usize| json!({"type": format!("t{n}"), "status": "True", "reason": "R", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let status = json!({"status": {"conditions": (0..9).map(condition).collect::<Vec<_>>()}});
        assert_eq!(
            updated_sub(&TaintRule, "status", &json!({}), &status),
            "status.conditions: Too many: 9: must have at most 8 items"
        );
    }

    #[test]
    fn claims_stay() {
        let request = json!({"name": "r", "exactly": {"deviceClassName": "c", "count": 0}});
        let claim = |devices: Value| json!({"metadata": {"name": "c", "namespace": "n"}, "spec": {"devices": devices}});
        let (one, none) = (claim(json!({"requests": [request]})), claim(json!({})));
        assert_eq!(created(&CLAIM, &one), "[]", "no count is one");
        assert_eq!(updated(&CLAIM, &none, &one), "spec: Invalid value: null: field is immutable");
        let template =
            |meta: Value| json!({"metadata": {"name": "t", "namespace": "n"}, "spec": {"metadata": meta, "spec": {}}});
        assert_eq!(created(&TEMPLATE, &template(json!({"labels": {"a": "b"}}))), "[]");
        assert_eq!(created(&TEMPLATE, &template(json!({"name": "x"}))), "spec.metadata.name: Forbidden: cannot be set");
    }

    #[tokio::test]
    async fn access_of_administrators_is_a_namespaces_right() {
        let namespace = |label: &str| json!({"metadata": {"name": label, "labels": {"resource.kubernetes.io/admin-access": label}}});
        let cluster = Fixed::with(&[("", "namespaces", namespace("true")), ("", "namespaces", namespace("false"))]);
        let user = UserInfo::admin();
        let now = Timestamp::UNIX_EPOCH;
        for (namespace, admin, refused) in [("true", true, false), ("false", true, true), ("false", false, false)] {
            let mut claim = json!({"metadata": {"name": "c", "namespace": namespace}, "spec": {"devices": {"requests": [{"exactly": {"adminAccess": admin}}]}}});
            let ctx = Context {
                user: &user,
                verb: "create",
                group: "",
                namespace,
                name: "c",
                subresource: "",
                dry_run: false,
                now,
                cluster: &cluster,
                warnings: &Default::default(),
            };
            let found = CLAIM.reserve(&ctx, &mut claim, None).await.err().map(|error| error.to_status());
            let expected = "ResourceClaim.resource.k8s.io \"c\" is invalid: []: Forbidden: admin access to devices requires the `resource.kubernetes.io/admin-access: true` label on the containing namespace";
            assert_eq!(found.as_ref().and_then(|status| status["message"].as_str()), refused.then_some(expected));
        }
    }
}

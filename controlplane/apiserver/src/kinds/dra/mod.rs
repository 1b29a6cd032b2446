//! The `resource.k8s.io` group: dynamic resource allocation. [`claim`] validates what is asked for.

mod claim;

use api::field::{Error, ErrorList};
use api::names;
use jiff::Timestamp;
use serde_json::Value;

use super::check::Node;
use super::core::pod::placement::node_selector;
use super::core::pod::volume::csi_driver_name;
use super::table::{cell, named, row, words};
use super::value::{at, default, default_text, has, list, list_mut, opt_text, text};
use crate::resource::{Column, Context, Descriptor, Hooks, Resource, since};

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
        Resource::new(slice_descriptor().columns(slice_columns()), Slice),
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

struct Class;

impl Hooks for Class {
    fn validate_create(&self, _ctx: &Context<'_>, class: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        let spec = Node::root(class).child("spec");
        claim::selectors(&spec, &mut errors);
        claim::configurations(&spec, &mut errors);
        let extended = spec.child("extendedResourceName");
        let native = extended
            .text()
            .split_once('/')
            .is_none_or(|(domain, _)| domain.ends_with("kubernetes.io") || domain.starts_with("requests."));
        if extended.exists() && (native || !names::qualified_name(extended.text()).is_empty()) {
            extended.invalid(&mut errors, "must be a valid extended resource name");
        }
        errors
    }

    fn validate_update(&self, ctx: &Context<'_>, new: &Value, _old: &Value) -> ErrorList {
        self.validate_create(ctx, new)
    }
}

struct TaintRule;

impl Hooks for TaintRule {
    fn prepare_create(&self, ctx: &Context<'_>, rule: &mut Value) {
        default(rule, "spec.taint.timeAdded", super::core::pod::timestamp(ctx.now));
    }

    fn validate_create(&self, _ctx: &Context<'_>, rule: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        let spec = Node::root(rule).child("spec");
        let selector = spec.child("deviceSelector");
        if selector.has("driver") {
            csi_driver_name(&selector.child("driver"), &mut errors);
        }
        if selector.has("pool") {
            claim::pool_name(&selector.child("pool"), &mut errors);
        }
        if selector.has("device") {
            selector.child("device").format(&mut errors, names::dns1123_label);
        }
        claim::taint(&spec.child("taint"), &mut errors);
        errors
    }

    fn validate_update(&self, ctx: &Context<'_>, new: &Value, _old: &Value) -> ErrorList {
        self.validate_create(ctx, new)
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

/// Claims, and templates of claims whose claim spec is deeper.
struct Claim {
    spec: &'static str,
}

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

    fn validate_create(&self, _ctx: &Context<'_>, object: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        if self.spec != "spec" {
            claim::template_metadata(&Node::root(object).child("spec.metadata"), &mut errors);
        }
        claim::validate(&Node::root(object).child(self.spec), &mut errors);
        errors
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        Node::root(new).child("spec").immutable(&mut errors, &Node::root(old).child("spec"));
        errors
    }

    fn validate_subresource_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        claim::validate_status(new, old)
    }

    fn row(&self, claim: &Value, now: Timestamp) -> Vec<Value> {
        if self.spec != "spec" {
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
        default(request, "count", 1);
    }
    for toleration in list_mut(request, "tolerations") {
        default_text(toleration, "operator", "Equal");
    }
}

fn claim_columns() -> Vec<Column> {
    named(vec![words("State", "A summary of the current state (allocated, pending, reserved, etc.).")])
}

struct Slice;

/// Ways to say where the devices of a slice are.
const PLACEMENTS: [&str; 4] = ["nodeName", "nodeSelector", "allNodes", "perDeviceNodeSelection"];

impl Hooks for Slice {
    fn validate_create(&self, _ctx: &Context<'_>, slice: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        let spec = Node::root(slice).child("spec");
        if spec.child("driver").required(&mut errors, "") {
            csi_driver_name(&spec.child("driver"), &mut errors);
        }
        pool(&spec.child("pool"), &mut errors);
        placement(&spec, &mut errors);
        if spec.has("sharedCounters") && spec.has("devices") {
            let detail = "only one of `sharedCounters` or `devices` is allowed";
            errors.push(Error::invalid(&spec.path, "", detail));
        }
        devices(&spec, &mut errors);
        errors
    }

    fn validate_update(&self, ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        let mut errors = self.validate_create(ctx, new);
        for field in ["pool.name", "driver", "nodeName"] {
            let path = format!("spec.{field}");
            Node::root(new).child(&path).immutable(&mut errors, &Node::root(old).child(&path));
        }
        errors
    }

    fn row(&self, slice: &Value, now: Timestamp) -> Vec<Value> {
        row(slice, now, vec![cell(slice, "spec.nodeName"), cell(slice, "spec.driver"), cell(slice, "spec.pool.name")])
    }
}

fn pool(pool: &Node<'_>, errors: &mut ErrorList) {
    claim::pool_name(&pool.child("name"), errors);
    if pool.child("resourceSliceCount").int() <= 0 {
        pool.child("resourceSliceCount").invalid(errors, "must be greater than zero");
    }
    pool.child("generation").non_negative(errors);
}

fn placement(spec: &Node<'_>, errors: &mut ErrorList) {
    let name = spec.child("nodeName");
    if name.exists() && name.text().is_empty() {
        name.invalid(errors, "must be either unset or set to a non-empty string");
    } else if name.exists() {
        name.format(errors, names::dns1123_subdomain);
    }
    let selector = spec.child("nodeSelector");
    if selector.exists() {
        node_selector(&selector, errors);
        if selector.items("nodeSelectorTerms").len() != 1 {
            selector.child("nodeSelectorTerms").invalid(errors, "must have exactly one node selector term");
        }
    }
    for field in ["allNodes", "perDeviceNodeSelection"] {
        if spec.has(field) && !spec.child(field).flag() {
            spec.child(field).invalid(errors, "must be either unset or set to true");
        }
    }
    let said = |field: &&&str| spec.has(field) && spec.child(field).value != "" && spec.child(field).value != false;
    let given: Vec<String> = PLACEMENTS.iter().filter(said).map(|field| format!("`{field}`")).collect();
    let one = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
    match given.len() {
        0 => spec.missing(errors, one),
        1 => {}
        _ => errors.push(Error::invalid(
            &spec.path,
            format!("{{{}}}", given.join(", ")),
            format!("{one}, but multiple fields are set"),
        )),
    }
}

fn devices(spec: &Node<'_>, errors: &mut ErrorList) {
    let given = spec.items("devices");
    let rich = |device: &Node<'_>| !device.items("taints").is_empty() || !device.items("consumesCounters").is_empty();
    let most = if given.iter().any(rich) { 64 } else { 128 };
    if given.len() > most {
        return errors.push(Error::too_many(&spec.child("devices").path, given.len(), most));
    }
    for device in &given {
        device.child("name").required_format(errors, names::dns1123_label);
        let count = device.child("attributes").len() + device.child("capacity").len();
        if count > 32 {
            let detail = "the total number of attributes and capacities must not exceed 32";
            errors.push(Error::invalid(&device.path, count, detail));
        }
        for (key, attribute) in device.entries("attributes") {
            let values = attribute.value.as_object().map_or(0, |kinds| kinds.values().filter(|v| !v.is_null()).count());
            match values {
                0 => attribute.missing(errors, "exactly one value must be specified"),
                1 => {}
                _ => errors.push(Error::invalid(
                    &attribute.path,
                    attribute.value.clone(),
                    "exactly one value must be specified",
                )),
            }
            if key.is_empty() {
                errors.push(Error::required(&device.child("attributes").path, "name required"));
            }
        }
        for taint in device.items("taints") {
            claim::taint(&taint, errors);
        }
    }
    claim::unique_names(spec, "devices", errors);
}

fn slice_columns() -> Vec<Column> {
    named(vec![
        words("Node", "NodeName identifies the node which provides the resources in this pool."),
        words("Driver", "Driver identifies the DRA driver providing the capacity information."),
        words("Pool", "Pool describes the pool that this ResourceSlice belongs to."),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::fake::Fixed;
    use crate::authn::UserInfo;
    use api::field::join;
    use serde_json::json;

    fn check(hooks: &dyn Hooks, object: &Value) -> String {
        let (cluster, user) = (Fixed::default(), UserInfo::admin());
        let now = Timestamp::UNIX_EPOCH;
        let ctx = Context {
            user: &user,
            group: "",
            namespace: "",
            name: "x",
            subresource: "",
            dry_run: false,
            now,
            cluster: &cluster,
        };
        join(&hooks.validate_create(&ctx, object))
    }

    #[test]
    fn slices_refused() {
        let slice = |extra: Value| {
            let mut spec = json!({"driver": "d.example.com", "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1}, "nodeName": "n"});
            for (key, value) in extra.as_object().unwrap() {
                spec[key] = value.clone();
            }
            json!({ "spec": spec })
        };
        for (extra, expected) in [
            (json!({}), "[]"),
            (
                json!({"allNodes": true}),
                "spec: Invalid value: \"{`nodeName`, `allNodes`}\": exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required, but multiple fields are set",
            ),
            (
                json!({"nodeName": null}),
                "spec: Required value: exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required",
            ),
            (json!({"devices": [{"name": "a"}, {"name": "a"}]}), "spec.devices[1]: Duplicate value: \"a\""),
            (
                json!({"devices": [{"name": "a", "taints": [{"key": "k", "effect": "Never"}]}]}),
                "spec.devices[0].taints[0].effect: Unsupported value: \"Never\": supported values: \"NoExecute\", \"NoSchedule\", \"None\"",
            ),
        ] {
            assert_eq!(check(&Slice, &slice(extra)), expected);
        }
    }

    #[test]
    fn classes_and_rules_refused() {
        let class = json!({"spec": {"selectors": [{"cel": {"expression": "1 +"}}], "extendedResourceName": "cpu"}});
        let found = check(&Class, &class);
        assert!(
            found.contains("spec.selectors[0].cel.expression: Invalid value: \"1 +\": compilation failed"),
            "{found}"
        );
        assert!(
            found.contains("spec.extendedResourceName: Invalid value: \"cpu\": must be a valid extended resource name")
        );
        assert_eq!(check(&TaintRule, &json!({"spec": {"taint": {"key": "k"}}})), "spec.taint.effect: Required value");
    }
}

//! CSIDrivers, CSINodes and CSIStorageCapacities: what drivers are, where, and what they have left.

use api::field::{Error, ErrorList};
use api::names;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::kinds::check::{IMMUTABLE, NON_NEGATIVE, Node, Seen, label_selector, label_selector_where};
use crate::kinds::core::pod::quantity;
use crate::kinds::core::pod::volume::csi_driver_name;
use crate::kinds::core::pod::warn::{old_keys, old_label};
use crate::kinds::table::{NONE, UNSET, boolean, cell, named, number, row, size, words};
use crate::kinds::value::{
    at, copy, default, entries, flag, list, list_mut, name, opt_flag, opt_text, same, set, text, texts,
};
use crate::resource::{Column, Context, Hooks};

const MAX_NODE_ID: usize = 256;

pub struct Driver;

impl Hooks for Driver {
    fn defaults(&self, driver: &mut Value) {
        default(driver, "spec.attachRequired", true);
        for field in
            ["podInfoOnMount", "storageCapacity", "requiresRepublish", "seLinuxMount", "preventPodSchedulingIfMissing"]
        {
            default(driver, &format!("spec.{field}"), false);
        }
        default(driver, "spec.fsGroupPolicy", "ReadWriteOnceWithFSType");
        if list(driver, "spec.volumeLifecycleModes").is_empty() {
            set(driver, "spec.volumeLifecycleModes", json!(["Persistent"]));
        }
    }

    fn validate_create(&self, _ctx: &Context<'_>, driver: &Value) -> ErrorList {
        validate_driver(driver)
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        let mut errors = validate_driver(new);
        // The first path is Kubernetes' own.
        for (field, named) in [("attachRequired", "attachedRequired"), ("volumeLifecycleModes", "volumeLifecycleModes")]
        {
            let now = Node::root(new).child("spec").child(field).value;
            let now = Node::new(now, Node::root(new).child("spec").child(named).path);
            now.immutable(&mut errors, &Node::root(old).child("spec").child(field));
        }
        errors
    }

    fn row(&self, driver: &Value, now: Timestamp) -> Vec<Value> {
        let tokens: Vec<&str> =
            list(driver, "spec.tokenRequests").iter().map(|request| text(request, "audience")).collect();
        let modes = texts(driver, "spec.volumeLifecycleModes").join(",");
        row(
            driver,
            now,
            vec![
                opt_flag(driver, "spec.attachRequired").unwrap_or(true).into(),
                flag(driver, "spec.podInfoOnMount").into(),
                flag(driver, "spec.storageCapacity").into(),
                if tokens.is_empty() { UNSET.into() } else { tokens.join(",").into() },
                flag(driver, "spec.requiresRepublish").into(),
                if modes.is_empty() { NONE.into() } else { modes.into() },
            ],
        )
    }
}

fn validate_driver(driver: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let spec = Node::root(driver).child("spec");
    spec.child("fsGroupPolicy").optional_one_of(&mut errors, &["File", "None", "ReadWriteOnceWithFSType"]);
    let mut audiences = Seen::default();
    for request in spec.items("tokenRequests") {
        let (audience, expiry) = (request.child("audience"), request.child("expirationSeconds"));
        if !audiences.insert(audience.text()) {
            errors.push(Error::duplicate(&audience.path, audience.text()));
            continue;
        }
        if expiry.exists() && expiry.int() < 600 {
            expiry.invalid(&mut errors, "may not specify a duration less than 10 minutes");
        }
        if expiry.int() > 1 << 32 {
            expiry.invalid(&mut errors, "may not specify a duration larger than 2^32 seconds");
        }
    }
    let modes = spec.child("volumeLifecycleModes");
    for mode in texts(spec.value, "volumeLifecycleModes") {
        if !matches!(mode, "Persistent" | "Ephemeral") {
            errors.push(Error::not_supported(&modes.path, mode, &["Persistent", "Ephemeral"]));
        }
    }
    let period = spec.child("nodeAllocatableUpdatePeriodSeconds");
    if period.exists() && period.int() < 10 {
        period.invalid(&mut errors, "must be greater than or equal to 10 seconds");
    }
    errors
}

pub fn columns() -> Vec<Column> {
    named(vec![
        boolean("AttachRequired", "attachRequired indicates this CSI volume driver requires an attach operation."),
        boolean(
            "PodInfoOnMount",
            "podInfoOnMount indicates this CSI volume driver requires additional pod information during mount operations.",
        ),
        boolean(
            "StorageCapacity",
            "storageCapacity indicates that the CSI volume driver wants pod scheduling to consider the storage capacity.",
        ),
        words(
            "TokenRequests",
            "tokenRequests indicates the CSI driver needs pods' service account tokens it is mounting volume for to do necessary authentication.",
        ),
        boolean(
            "RequiresRepublish",
            "requiresRepublish indicates the CSI driver wants `NodePublishVolume` being periodically called to reflect any possible change in the mounted volume.",
        ),
        words("Modes", "volumeLifecycleModes defines what kind of volumes this CSI volume driver supports."),
    ])
}

pub struct DriverNode;

impl Hooks for DriverNode {
    fn validate_create(&self, _ctx: &Context<'_>, node: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        let mut names = Seen::default();
        for driver in Node::root(node).items("spec.drivers") {
            node_driver(&driver, &mut names, &mut errors);
        }
        errors
    }

    /// Drivers come and go; what is known of one stays, but for how much it can hold.
    fn validate_update(&self, ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        let mut errors = self.validate_create(ctx, new);
        let mut known = new.clone();
        for driver in list_mut(&mut known, "spec.drivers") {
            let before = list(old, "spec.drivers").iter().find(|old| text(old, "name") == text(driver, "name"));
            let Some(before) = before else { continue };
            let mut changed = driver.clone();
            copy(before, &mut changed, "allocatable");
            if !same(&changed, before) {
                let shown = driver.clone();
                errors.push(Error::invalid(&Node::root(new).child("spec.drivers").path, shown, IMMUTABLE));
            }
        }
        errors
    }

    fn row(&self, node: &Value, now: Timestamp) -> Vec<Value> {
        row(node, now, vec![size(node, "spec.drivers").into()])
    }
}

fn node_driver(driver: &Node<'_>, names: &mut Seen, errors: &mut ErrorList) {
    let (name, id) = (driver.child("name"), driver.child("nodeID"));
    csi_driver_name(&name, errors);
    id.required(errors, "");
    if id.text().len() > MAX_NODE_ID {
        id.invalid(errors, format!("must be {MAX_NODE_ID} characters or less"));
    }
    driver.child("allocatable.count").non_negative(errors);
    if !names.insert(name.text()) {
        errors.push(Error::duplicate(&name.path, name.text()));
    }
    // The paths of the keys are the driver's, as upstream.
    let mut keys = Seen::default();
    for key in texts(driver.value, "topologyKeys") {
        if key.is_empty() {
            driver.missing(errors, "");
        }
        if !keys.insert(key) {
            errors.push(Error::duplicate(&driver.path, key));
        }
        for problem in api::names::qualified_name(key) {
            errors.push(Error::invalid(&driver.path, key, problem));
        }
    }
}

pub fn node_columns() -> Vec<Column> {
    named(vec![number("Drivers", "Drivers indicates the number of CSI drivers registered on the node")])
}

pub struct Capacity;

impl Hooks for Capacity {
    fn validate_create(&self, _ctx: &Context<'_>, capacity: &Value) -> ErrorList {
        validate_capacity(capacity, true)
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        let mut wrong = ErrorList::new();
        label_selector(&Node::root(old).child("nodeTopology"), &mut wrong);
        let mut errors = validate_capacity(new, wrong.is_empty());
        for field in ["nodeTopology", "storageClassName"] {
            Node::root(new).child(field).immutable(&mut errors, &Node::root(old).child(field));
        }
        errors
    }

    fn warnings(&self, new: &Value, _old: Option<&Value>) -> Vec<String> {
        let mut found = Vec::new();
        old_keys(at(new, "nodeTopology"), "nodeTopology", &mut found);
        for (label, _) in entries(new, "nodeTopology.matchLabels") {
            found.extend(old_label(label).map(|words| format!("nodeTopology.matchLabels.{label}: {words}")));
        }
        found
    }

    fn row(&self, capacity: &Value, _now: Timestamp) -> Vec<Value> {
        let amount = opt_text(capacity, "capacity").unwrap_or(UNSET);
        vec![name(capacity).into(), cell(capacity, "storageClassName"), amount.into()]
    }
}

pub fn capacity_columns() -> Vec<Column> {
    vec![
        Column::name(),
        words(
            "StorageClassName",
            "storageClassName represents the name of the StorageClass that the reported capacity applies to.",
        ),
        words(
            "Capacity",
            "capacity is the value reported by the CSI driver in its GetCapacityResponse for a GetCapacityRequest with topology and parameters that match the previous fields.",
        ),
    ]
}

fn validate_capacity(capacity: &Value, selector_values: bool) -> ErrorList {
    let mut errors = ErrorList::new();
    let root = Node::root(capacity);
    label_selector_where(&root.child("nodeTopology"), selector_values, &mut errors);
    root.child("storageClassName").format(&mut errors, names::dns1123_subdomain);
    let amount = root.child("capacity");
    if quantity(amount.value).is_some_and(|amount| amount.is_negative()) {
        amount.invalid(&mut errors, NON_NEGATIVE);
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::tested::{created, updated};

    #[test]
    fn drivers_get_defaults() {
        let mut driver = json!({"metadata": {"name": "d"}, "spec": {}});
        Driver.defaults(&mut driver);
        assert_eq!(
            driver["spec"],
            json!({"attachRequired": true, "podInfoOnMount": false, "storageCapacity": false, "requiresRepublish": false,
            "seLinuxMount": false, "preventPodSchedulingIfMissing": false, "fsGroupPolicy": "ReadWriteOnceWithFSType", "volumeLifecycleModes": ["Persistent"]})
        );
    }

    #[test]
    fn drivers_refused() {
        let driver = |spec: Value| json!({"metadata": {"name": "d"}, "spec": spec});
        for (spec, expected) in [
            (json!({"tokenRequests": [{"expirationSeconds": 600}, {"audience": "a"}]}), "[]"),
            (
                json!({"fsGroupPolicy": "All", "volumeLifecycleModes": ["Always"], "nodeAllocatableUpdatePeriodSeconds": 9}),
                "[spec.fsGroupPolicy: Unsupported value: \"All\": supported values: \"File\", \"None\", \"ReadWriteOnceWithFSType\", \
                 spec.volumeLifecycleModes: Unsupported value: \"Always\": supported values: \"Persistent\", \"Ephemeral\", \
                 spec.nodeAllocatableUpdatePeriodSeconds: Invalid value: 9: must be greater than or equal to 10 seconds]",
            ),
            (
                json!({"tokenRequests": [{"expirationSeconds": 599}, {"expirationSeconds": 1}, {"audience": "a", "expirationSeconds": 4294967297_i64}]}),
                "[spec.tokenRequests[0].expirationSeconds: Invalid value: 599: may not specify a duration less than 10 minutes, \
                 spec.tokenRequests[1].audience: Duplicate value: \"\", \
                 spec.tokenRequests[2].expirationSeconds: Invalid value: 4294967297: may not specify a duration larger than 2^32 seconds]",
            ),
        ] {
            assert_eq!(created(&Driver, &driver(spec.clone())), expected, "{spec}");
        }
        let changed =
            driver(json!({"attachRequired": false, "fsGroupPolicy": "None", "volumeLifecycleModes": ["Ephemeral"]}));
        assert_eq!(
            updated(&Driver, &driver(json!({})), &changed),
            "[spec.attachedRequired: Invalid value: false: field is immutable, spec.volumeLifecycleModes: Invalid value: [\"Ephemeral\"]: field is immutable]"
        );
    }

    #[test]
    fn nodes_refused() {
        let node = |driver: Value| json!({"metadata": {"name": "n"}, "spec": {"drivers": [driver]}});
        let known = |id: &str, count: i64| {
            node(json!({"name": "d.example.com", "nodeID": id, "allocatable": {"count": count}}))
        };
        for (object, expected) in [
            (known("a", 1), "[]".to_owned()),
            (known("", -1), "[spec.drivers[0].nodeID: Required value, spec.drivers[0].allocatable.count: Invalid value: -1: must be greater than or equal to 0]".to_owned()),
            (
                known(&"a".repeat(257), 1),
                format!("spec.drivers[0].nodeID: Invalid value: \"{}\": must be 256 characters or less", "a".repeat(257)),
            ),
            (
                node(json!({"name": "d", "nodeID": "a", "topologyKeys": ["k", "k"]})),
                "spec.drivers[0]: Duplicate value: \"k\"".to_owned(),
            ),
        ] {
            assert_eq!(created(&DriverNode, &object), expected);
        }
        let twice = json!({"metadata": {"name": "n"}, "spec": {"drivers": [{"name": "d", "nodeID": "a"}, {"name": "d", "nodeID": "b"}]}});
        assert_eq!(created(&DriverNode, &twice), "spec.drivers[1].name: Duplicate value: \"d\"");
        assert_eq!(updated(&DriverNode, &known("a", 1), &known("a", 2)), "[]");
        assert!(updated(&DriverNode, &known("a", 1), &known("b", 1)).ends_with("field is immutable"));
    }

    #[test]
    fn node_labels_of_before_are_warned_of() {
        let topology = json!({"matchLabels": {"beta.kubernetes.io/arch": "arm64", "a": "b"},
            "matchExpressions": [{"key": "beta.kubernetes.io/os", "operator": "Exists"}]});
        assert_eq!(
            Capacity.warnings(&json!({"nodeTopology": topology}), None),
            [
                "nodeTopology.matchExpressions[0].key: beta.kubernetes.io/os is deprecated since v1.14; use \"kubernetes.io/os\" instead",
                "nodeTopology.matchLabels.beta.kubernetes.io/arch: deprecated since v1.14; use \"kubernetes.io/arch\" instead",
            ]
        );
    }

    #[test]
    fn capacities_refused() {
        let capacity = |class: &str, amount: &str| json!({"metadata": {"name": "c"}, "storageClassName": class, "capacity": amount, "maximumVolumeSize": "-1"});
        assert_eq!(created(&Capacity, &capacity("s", "1")), "[]");
        assert_eq!(
            created(&Capacity, &capacity("s", "-1")),
            "capacity: Invalid value: \"-1\": must be greater than or equal to 0"
        );
        assert_eq!(
            updated(&Capacity, &capacity("s", "1"), &capacity("t", "1")),
            "storageClassName: Invalid value: \"t\": field is immutable"
        );
        let mut stored = capacity("s", "1");
        set(
            &mut stored,
            "nodeTopology",
            json!({"matchExpressions": [{"key": "a", "operator": "In", "values": ["-"]}]}),
        );
        assert_eq!(updated(&Capacity, &stored, &stored), "[]");
        assert_ne!(created(&Capacity, &stored), "[]");
    }
}

//! The `storage.k8s.io` group.

use api::field::{Error, ErrorList};
use api::names;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::check::{IMMUTABLE, NON_NEGATIVE, Node, Seen, label_selector};
use super::core::pod::quantity;
use super::core::pod::volume::csi_driver_name;
use super::table::{NONE, UNSET, boolean, cell, named, number, row, size, words};
use super::value::{annotation, default, flag, list, opt_flag, opt_text, same_at, text, texts};
use crate::resource::{Column, Context, Descriptor, Hooks, Resource};

const GROUP: &str = "storage.k8s.io";

pub fn resources() -> Vec<Resource> {
    vec![
        Resource::new(
            conditional(descriptor("CSIDriver", "csidrivers").with_generation()).columns(driver_columns()),
            Driver,
        ),
        Resource::new(conditional(descriptor("CSINode", "csinodes")).columns(node_columns()), DriverNode),
        Resource::new(
            conditional(Descriptor::new(GROUP, "v1", "CSIStorageCapacity", "csistoragecapacities"))
                .columns(capacity_columns()),
            Capacity,
        ),
        Resource::new(descriptor("StorageClass", "storageclasses").short(&["sc"]).columns(class_columns()), Class),
        Resource::new(
            conditional(descriptor("VolumeAttachment", "volumeattachments").with_status())
                .columns(attachment_columns()),
            Attachment,
        ),
        Resource::new(
            descriptor("VolumeAttributesClass", "volumeattributesclasses")
                .short(&["vac"])
                .columns(attributes_columns()),
            Attributes,
        ),
    ]
}

fn descriptor(kind: &'static str, plural: &'static str) -> Descriptor {
    Descriptor::new(GROUP, "v1", kind, plural).cluster_scoped()
}

fn conditional(mut descriptor: Descriptor) -> Descriptor {
    descriptor.unconditional_update = false;
    descriptor
}

struct Class;

impl Hooks for Class {
    fn defaults(&self, class: &mut Value) {
        default(class, "reclaimPolicy", "Delete");
        default(class, "volumeBindingMode", "Immediate");
    }

    fn validate_create(&self, _ctx: &Context<'_>, class: &Value) -> ErrorList {
        validate_class(class)
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        let mut errors = validate_class(new);
        for field in ["provisioner", "parameters", "reclaimPolicy", "volumeBindingMode"] {
            Node::root(new).child(field).immutable_declared(&mut errors, &Node::root(old).child(field));
        }
        errors
    }

    fn row(&self, class: &Value, now: Timestamp) -> Vec<Value> {
        let default =
            ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"]
                .iter()
                .any(|key| annotation(class, key) == Some("true"));
        let mut cells = row(
            class,
            now,
            vec![
                cell(class, "provisioner"),
                opt_text(class, "reclaimPolicy").unwrap_or("Delete").into(),
                opt_text(class, "volumeBindingMode").unwrap_or("Immediate").into(),
                flag(class, "allowVolumeExpansion").into(),
            ],
        );
        if default {
            cells[0] = format!("{} (default)", super::value::name(class)).into();
        }
        cells
    }
}

fn validate_class(class: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let root = Node::root(class);
    let provisioner = root.child("provisioner");
    if !provisioner.text().is_empty() {
        for problem in names::qualified_name(&provisioner.text().to_lowercase()) {
            provisioner.invalid(&mut errors, problem);
        }
    }
    parameters(&root.child("parameters"), true, &mut errors);
    root.child("reclaimPolicy").optional_one_of(&mut errors, &["Delete", "Retain"]);
    root.child("volumeBindingMode").required_one_of(&mut errors, &["Immediate", "WaitForFirstConsumer"]);
    topologies(&root, &mut errors);
    // Declared rules speak last.
    provisioner.required(&mut errors, "");
    errors
}

const PARAMETERS: usize = 512;
const PARAMETER_BYTES: usize = 256 * 1024;

/// `validateParameters`: not too many, not too long, every key named.
fn parameters(parameters: &Node<'_>, may_be_empty: bool, errors: &mut ErrorList) {
    let Some(given) = parameters.value.as_object().filter(|given| !given.is_empty()) else {
        if !may_be_empty {
            parameters.missing(errors, "must contain at least one key/value pair");
        }
        return;
    };
    if given.len() > PARAMETERS {
        return errors.push(Error::too_long(&parameters.path, PARAMETERS));
    }
    if let Some(value) = given.get("") {
        let length = value.as_str().map_or(0, str::len);
        errors.push(Error::invalid(&parameters.path, length, "field must not be empty."));
    }
    let bytes: usize = given.iter().map(|(key, value)| key.len() + value.as_str().map_or(0, str::len)).sum();
    if bytes > PARAMETER_BYTES {
        errors.push(Error::too_long(&parameters.path, PARAMETER_BYTES));
    }
}

/// `allowedTopologies`: no term twice, no key twice in a term, no value twice for a key.
fn topologies(class: &Node<'_>, errors: &mut ErrorList) {
    let mut terms: Vec<&Value> = Vec::new();
    for term in class.items("allowedTopologies") {
        let mut keys = Seen::default();
        for expression in term.items("matchLabelExpressions") {
            let (key, values) = (expression.child("key"), expression.items("values"));
            if values.is_empty() {
                expression.child("values").missing(errors, "");
            }
            let mut seen = Seen::default();
            for value in values.iter().filter(|value| !seen.insert(value.text())) {
                value.duplicate(errors);
            }
            key.format(errors, names::qualified_name);
            if !keys.insert(key.text()) {
                key.duplicate(errors);
            }
        }
        if terms.contains(&term.value) {
            errors.push(Error::duplicate(&term.child("matchLabelExpressions").path, ""));
        }
        terms.push(term.value);
    }
}

fn class_columns() -> Vec<Column> {
    named(vec![
        words("Provisioner", "provisioner indicates the type of the provisioner."),
        words(
            "ReclaimPolicy",
            "reclaimPolicy controls the reclaimPolicy for dynamically provisioned PersistentVolumes of this storage class. Defaults to Delete.",
        ),
        words(
            "VolumeBindingMode",
            "volumeBindingMode indicates how PersistentVolumeClaims should be provisioned and bound.  When unset, VolumeBindingImmediate is used. This field is only honored by servers that enable the VolumeScheduling feature.",
        ),
        words("AllowVolumeExpansion", "allowVolumeExpansion shows whether the storage class allow volume expand."),
    ])
}

struct Driver;

impl Hooks for Driver {
    fn defaults(&self, driver: &mut Value) {
        default(driver, "spec.attachRequired", true);
        for field in ["podInfoOnMount", "storageCapacity", "requiresRepublish", "seLinuxMount"] {
            default(driver, &format!("spec.{field}"), false);
        }
        default(driver, "spec.fsGroupPolicy", "ReadWriteOnceWithFSType");
        if list(driver, "spec.volumeLifecycleModes").is_empty() {
            super::value::set(driver, "spec.volumeLifecycleModes", json!(["Persistent"]));
        }
    }

    fn validate_create(&self, _ctx: &Context<'_>, driver: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        let root = Node::root(driver);
        csi_driver_name(&root.child("metadata.name"), &mut errors);
        root.child("spec.fsGroupPolicy").optional_one_of(&mut errors, &["ReadWriteOnceWithFSType", "File", "None"]);
        for mode in root.items("spec.volumeLifecycleModes") {
            mode.one_of(&mut errors, &["Persistent", "Ephemeral"]);
        }
        let mut audiences = Seen::default();
        for request in root.items("spec.tokenRequests") {
            if !audiences.insert(request.child("audience").text()) {
                request.child("audience").duplicate(&mut errors);
            }
            let expiry = request.child("expirationSeconds");
            if expiry.exists() && expiry.int() < 600 {
                expiry.invalid(&mut errors, "may not specify a duration less than 10 minutes");
            }
        }
        errors
    }

    fn validate_update(&self, ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        let mut errors = self.validate_create(ctx, new);
        for field in ["attachRequired", "fsGroupPolicy", "volumeLifecycleModes"] {
            let path = format!("spec.{field}");
            Node::root(new).child(&path).immutable(&mut errors, &Node::root(old).child(&path));
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

fn driver_columns() -> Vec<Column> {
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

struct DriverNode;

impl Hooks for DriverNode {
    fn validate_create(&self, _ctx: &Context<'_>, node: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        let mut names = Seen::default();
        for driver in Node::root(node).items("spec.drivers") {
            let name = driver.child("name");
            if name.required(&mut errors, "") {
                csi_driver_name(&name, &mut errors);
                if !names.insert(name.text()) {
                    name.duplicate(&mut errors);
                }
            }
            driver.child("nodeID").required(&mut errors, "");
            driver.child("allocatable.count").non_negative(&mut errors);
        }
        errors
    }

    /// Drivers come and go; what is known of one stays, but for how much it can hold.
    fn validate_update(&self, ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        let mut errors = self.validate_create(ctx, new);
        let mut known = new.clone();
        for driver in super::value::list_mut(&mut known, "spec.drivers") {
            let before = list(old, "spec.drivers").iter().find(|old| text(old, "name") == text(driver, "name"));
            let Some(before) = before else { continue };
            let mut changed = driver.clone();
            super::value::copy(before, &mut changed, "allocatable");
            if !super::value::same(&changed, before) {
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

fn node_columns() -> Vec<Column> {
    named(vec![number("Drivers", "Drivers indicates the number of CSI drivers registered on the node")])
}

struct Capacity;

impl Hooks for Capacity {
    fn validate_create(&self, _ctx: &Context<'_>, capacity: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        let root = Node::root(capacity);
        root.child("storageClassName").format(&mut errors, names::dns1123_subdomain);
        if root.has("nodeTopology") {
            label_selector(&root.child("nodeTopology"), &mut errors);
        }
        for field in ["capacity", "maximumVolumeSize"] {
            if quantity(root.child(field).value).is_some_and(|amount| amount.is_negative()) {
                root.child(field).invalid(&mut errors, NON_NEGATIVE);
            }
        }
        errors
    }

    fn validate_update(&self, ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        let mut errors = self.validate_create(ctx, new);
        for field in ["nodeTopology", "storageClassName"] {
            Node::root(new).child(field).immutable(&mut errors, &Node::root(old).child(field));
        }
        errors
    }

    fn row(&self, capacity: &Value, _now: Timestamp) -> Vec<Value> {
        let amount = opt_text(capacity, "capacity").unwrap_or(UNSET);
        vec![super::value::name(capacity).into(), cell(capacity, "storageClassName"), amount.into()]
    }
}

fn capacity_columns() -> Vec<Column> {
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

struct Attachment;

impl Hooks for Attachment {
    fn validate_create(&self, _ctx: &Context<'_>, attachment: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        let spec = Node::root(attachment).child("spec");
        match (spec.has("source.persistentVolumeName"), spec.has("source.inlineVolumeSpec")) {
            (true, true) => spec
                .child("source")
                .forbidden(&mut errors, "must specify exactly one of inlineVolumeSpec and persistentVolumeName"),
            (false, false) => spec
                .child("source")
                .missing(&mut errors, "must specify exactly one of inlineVolumeSpec and persistentVolumeName"),
            (true, false) if spec.child("source.persistentVolumeName").text().is_empty() => {
                spec.child("source.persistentVolumeName")
                    .missing(&mut errors, "must specify non empty persistentVolumeName");
            }
            _ => {}
        }
        spec.child("nodeName").format(&mut errors, names::dns1123_subdomain);
        // Declared rules speak last.
        let attacher = spec.child("attacher");
        if attacher.required(&mut errors, "") {
            csi_driver_name(&attacher, &mut errors);
        }
        errors
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        Node::root(new).child("spec").immutable_declared(&mut errors, &Node::root(old).child("spec"));
        errors
    }

    fn validate_subresource_update(&self, _ctx: &Context<'_>, new: &Value, _old: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        let status = Node::root(new).child("status");
        for (key, value) in status.entries("attachmentMetadata") {
            if key.is_empty() {
                value.missing(&mut errors, "");
            }
        }
        for field in ["attachError", "detachError"] {
            let problem = status.child(field).child("message");
            if problem.text().len() > PARAMETER_BYTES {
                errors.push(Error::too_long(&problem.path, PARAMETER_BYTES));
            }
        }
        errors
    }

    fn row(&self, attachment: &Value, now: Timestamp) -> Vec<Value> {
        row(
            attachment,
            now,
            vec![
                cell(attachment, "spec.attacher"),
                cell(attachment, "spec.source.persistentVolumeName"),
                cell(attachment, "spec.nodeName"),
                flag(attachment, "status.attached").into(),
            ],
        )
    }
}

fn attachment_columns() -> Vec<Column> {
    let mut attacher = words(
        "Attacher",
        "attacher indicates the name of the volume driver that MUST handle this request. This is the name returned by GetPluginName().",
    );
    attacher.format = "name".into();
    named(vec![
        attacher,
        words("PV", "persistentVolumeName represents the name of the persistent volume to attach."),
        words("Node", "nodeName represents the node that the volume should be attached to."),
        boolean(
            "Attached",
            "attached indicates the volume is successfully attached. This field must only be set by the entity completing the attach operation, i.e. the external-attacher.",
        ),
    ])
}

struct Attributes;

impl Hooks for Attributes {
    fn validate_create(&self, _ctx: &Context<'_>, class: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        let root = Node::root(class);
        if root.child("driverName").required(&mut errors, "") {
            csi_driver_name(&root.child("driverName"), &mut errors);
        }
        parameters(&root.child("parameters"), false, &mut errors);
        errors
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        let root = Node::root(new);
        if !same_at(new, old, "driverName") {
            root.child("driverName").forbidden(&mut errors, "updates to driverName are forbidden.");
        }
        if !same_at(new, old, "parameters") {
            root.child("parameters").forbidden(&mut errors, "updates to parameters are forbidden.");
        }
        errors
    }

    fn row(&self, class: &Value, now: Timestamp) -> Vec<Value> {
        row(class, now, vec![cell(class, "driverName")])
    }
}

fn attributes_columns() -> Vec<Column> {
    named(vec![words("DriverName", "driverName is the name of the CSI driver This field is immutable.")])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::tested::{created, updated};
    use api::field::join;

    #[test]
    fn classes() {
        let mut class = json!({"metadata": {"name": "c", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}, "provisioner": "example.com/p"});
        Class.defaults(&mut class);
        assert_eq!(join(&validate_class(&class)), "[]");
        let shown: Vec<String> =
            Class.row(&class, Timestamp::UNIX_EPOCH).iter().map(|c| c.to_string().replace('"', "")).collect();
        assert_eq!(shown.join("|"), "c (default)|example.com/p|Delete|Immediate|false|<unknown>");
    }

    #[test]
    fn drivers_get_defaults() {
        let mut driver = json!({"metadata": {"name": "d"}, "spec": {}});
        Driver.defaults(&mut driver);
        assert_eq!(
            driver["spec"],
            json!({"attachRequired": true, "podInfoOnMount": false, "storageCapacity": false, "requiresRepublish": false,
            "seLinuxMount": false, "fsGroupPolicy": "ReadWriteOnceWithFSType", "volumeLifecycleModes": ["Persistent"]})
        );
    }

    #[test]
    fn refused() {
        let class = |extra: Value| {
            let mut class = json!({"metadata": {"name": "c"}, "provisioner": "example.com/p"});
            for (key, value) in extra.as_object().unwrap() {
                class[key] = value.clone();
            }
            class
        };
        for (extra, expected) in [
            (json!({}), "[]"),
            (json!({"provisioner": ""}), "provisioner: Required value"),
            (
                json!({"reclaimPolicy": "Recycle", "volumeBindingMode": "Never"}),
                "[reclaimPolicy: Unsupported value: \"Recycle\": supported values: \"Delete\", \"Retain\", \
                 volumeBindingMode: Unsupported value: \"Never\": supported values: \"Immediate\", \"WaitForFirstConsumer\"]",
            ),
            (
                json!({"allowedTopologies": [{"matchLabelExpressions": [{"key": "zone", "values": []}, {"key": "zone", "values": ["a", "a"]}]}]}),
                "[allowedTopologies[0].matchLabelExpressions[0].values: Required value, \
                 allowedTopologies[0].matchLabelExpressions[1].values[1]: Duplicate value: \"a\", \
                 allowedTopologies[0].matchLabelExpressions[1].key: Duplicate value: \"zone\"]",
            ),
        ] {
            assert_eq!(created(&Class, &class(extra.clone())), expected, "{extra}");
        }
        for (extra, expected) in [
            (json!({"allowVolumeExpansion": true}), "[]"),
            (json!({"provisioner": "q"}), "provisioner: Invalid value: null: field is immutable"),
            (json!({"parameters": {"a": "b"}}), "parameters: Invalid value: null: field is immutable"),
            (json!({"reclaimPolicy": "Retain"}), "reclaimPolicy: Invalid value: null: field is immutable"),
        ] {
            assert_eq!(updated(&Class, &class(json!({})), &class(extra.clone())), expected, "{extra}");
        }
        let attachment = |spec: Value| json!({"metadata": {"name": "a"}, "spec": spec});
        let whole = json!({"attacher": "d.example.com", "nodeName": "n", "source": {"persistentVolumeName": "v"}});
        for (spec, expected) in [
            (whole.clone(), "[]"),
            (
                json!({"nodeName": "n", "source": {}}),
                "[spec.source: Required value: must specify exactly one of inlineVolumeSpec and persistentVolumeName, spec.attacher: Required value]",
            ),
        ] {
            assert_eq!(created(&Attachment, &attachment(spec)), expected);
        }
        let moved =
            attachment(json!({"attacher": "d.example.com", "nodeName": "m", "source": {"persistentVolumeName": "v"}}));
        assert_eq!(updated(&Attachment, &attachment(whole), &moved), "spec: Invalid value: null: field is immutable");
        assert_eq!(
            created(&Attributes, &json!({"metadata": {"name": "v"}, "driverName": "d.example.com"})),
            "parameters: Required value: must contain at least one key/value pair"
        );
        let capacity = |class: &str, amount: &str| json!({"metadata": {"name": "c"}, "storageClassName": class, "capacity": amount});
        assert_eq!(
            created(&Capacity, &capacity("s", "-1")),
            "capacity: Invalid value: \"-1\": must be greater than or equal to 0"
        );
        assert_eq!(
            updated(&Capacity, &capacity("s", "1"), &capacity("t", "1")),
            "storageClassName: Invalid value: \"t\": field is immutable"
        );
        let node = |id: &str, count: i64| json!({"metadata": {"name": "n"}, "spec": {"drivers": [{"name": "d.example.com", "nodeID": id, "allocatable": {"count": count}}]}});
        assert_eq!(updated(&DriverNode, &node("a", 1), &node("a", 2)), "[]");
        assert!(updated(&DriverNode, &node("a", 1), &node("b", 1)).ends_with("field is immutable"));
    }
}

//! The `storage.k8s.io` group.

use api::field::{Error, ErrorList};
use api::names;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::check::{Node, Seen};
use super::core::pod::volume::csi_driver_name;
use super::table::{CreatedAt, NONE, UNSET, boolean, cell, created_at_columns, named, number, row, size, words};
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
                .columns(created_at_columns()),
            CreatedAt,
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
        for field in ["parameters", "provisioner", "reclaimPolicy"] {
            if !same_at(new, old, field) {
                Node::root(new).child(field).forbidden(&mut errors, format!("updates to {field} are forbidden."));
            }
        }
        Node::root(new).child("volumeBindingMode").immutable(&mut errors, &Node::root(old).child("volumeBindingMode"));
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
    if provisioner.required(&mut errors, "") {
        for problem in names::qualified_name(&provisioner.text().to_lowercase()) {
            provisioner.invalid(&mut errors, problem);
        }
    }
    for (key, parameter) in root.entries("parameters") {
        if key.is_empty() {
            errors.push(Error::invalid(&parameter.path, key, "field must not be empty"));
        }
    }
    root.child("reclaimPolicy").optional_one_of(&mut errors, &["Delete", "Retain"]);
    root.child("volumeBindingMode").required_one_of(&mut errors, &["Immediate", "WaitForFirstConsumer"]);
    errors
}

fn class_columns() -> Vec<Column> {
    named(vec![
        words("Provisioner", "provisioner indicates the type of the provisioner."),
        words(
            "ReclaimPolicy",
            "reclaimPolicy controls the reclaimPolicy for dynamically provisioned PersistentVolumes of this storage class.",
        ),
        words(
            "VolumeBindingMode",
            "volumeBindingMode indicates how PersistentVolumeClaims should be provisioned and bound.",
        ),
        boolean("AllowVolumeExpansion", "allowVolumeExpansion shows whether the storage class allow volume expand."),
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
        root.child("spec.fsGroupPolicy").optional_one_of(&mut errors, &["File", "None", "ReadWriteOnceWithFSType"]);
        for mode in root.items("spec.volumeLifecycleModes") {
            mode.one_of(&mut errors, &["Ephemeral", "Persistent"]);
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

    fn validate_update(&self, ctx: &Context<'_>, new: &Value, _old: &Value) -> ErrorList {
        self.validate_create(ctx, new)
    }

    fn row(&self, node: &Value, now: Timestamp) -> Vec<Value> {
        row(node, now, vec![size(node, "spec.drivers").into()])
    }
}

fn node_columns() -> Vec<Column> {
    named(vec![number("Drivers", "drivers is a list of information of all CSI Drivers existing on a node.")])
}

struct Attachment;

impl Hooks for Attachment {
    fn validate_create(&self, _ctx: &Context<'_>, attachment: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        let spec = Node::root(attachment).child("spec");
        spec.child("attacher").required(&mut errors, "");
        spec.child("nodeName").required(&mut errors, "");
        match (spec.has("source.persistentVolumeName"), spec.has("source.inlineVolumeSpec")) {
            (false, false) => spec
                .child("source")
                .missing(&mut errors, "must specify exactly one of inlineVolumeSpec and persistentVolumeName"),
            (true, true) => spec
                .child("source")
                .forbidden(&mut errors, "must specify exactly one of inlineVolumeSpec and persistentVolumeName"),
            _ => {}
        }
        errors
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        Node::root(new).child("spec").immutable(&mut errors, &Node::root(old).child("spec"));
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
    named(vec![
        words("Attacher", "attacher indicates the name of the volume driver that MUST handle this request."),
        words("PV", "persistentVolumeName represents the name of the persistent volume to attach."),
        words("Node", "nodeName represents the node that the volume should be attached to."),
        boolean("Attached", "attached indicates the volume is successfully attached."),
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
        root.child("parameters").required(&mut errors, "must contain at least one key/value pair");
        errors
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        for field in ["driverName", "parameters"] {
            if !same_at(new, old, field) {
                Node::root(new).child(field).forbidden(&mut errors, format!("updates to {field} are forbidden."));
            }
        }
        errors
    }

    fn row(&self, class: &Value, now: Timestamp) -> Vec<Value> {
        row(class, now, vec![cell(class, "driverName")])
    }
}

fn attributes_columns() -> Vec<Column> {
    named(vec![words("DriverName", "Name of the CSI driver")])
}

#[cfg(test)]
mod tests {
    use super::*;
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
}

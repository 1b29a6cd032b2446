//! VolumeAttachments: a volume that a node is to have.

use api::field::{Error, ErrorList};
use api::names;
use jiff::Timestamp;
use serde_json::Value;

use crate::kinds::check::Node;
use crate::kinds::core::inline_spec;
use crate::kinds::core::pod::volume::csi_driver_name;
use crate::kinds::table::{boolean, cell, named, row, words};
use crate::kinds::value::flag;
use crate::resource::{ALL_BUT_STATUS, Column, Context, Hooks, Paths};

const MAX_METADATA: usize = 256 * 1024;
const MAX_MESSAGE: usize = 1024;

pub struct Attachment;

impl Hooks for Attachment {
    fn reset_by_status(&self) -> Paths {
        ALL_BUT_STATUS
    }

    fn validate_create(&self, _ctx: &Context<'_>, attachment: &Value) -> ErrorList {
        let mut errors = validate(attachment);
        let spec = Node::root(attachment).child("spec");
        let volume = spec.child("source.persistentVolumeName");
        if volume.exists() {
            volume.format(&mut errors, names::dns1123_subdomain);
        }
        // Declared rules speak last.
        let attacher = spec.child("attacher");
        if attacher.required(&mut errors, "") {
            csi_driver_name(&attacher, &mut errors);
        }
        errors
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        let mut errors = validate(new);
        Node::root(new).child("spec").immutable_declared(&mut errors, &Node::root(old).child("spec"));
        errors
    }

    fn validate_subresource_update(&self, ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        self.validate_update(ctx, new, old)
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

fn validate(attachment: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let (spec, status) = (Node::root(attachment).child("spec"), Node::root(attachment).child("status"));
    source(&spec.child("source"), &mut errors);
    spec.child("nodeName").format(&mut errors, names::dns1123_subdomain);
    let metadata = status.child("attachmentMetadata");
    let size = |(key, value): (&str, Node<'_>)| key.len() + value.text().len();
    if status.entries("attachmentMetadata").into_iter().map(size).sum::<usize>() > MAX_METADATA {
        errors.push(Error::too_long(&metadata.path, MAX_METADATA));
    }
    for field in ["attachError", "detachError"] {
        let (message, code) = (status.child(field).child("message"), status.child(field).child("errorCode"));
        if message.text().len() > MAX_MESSAGE {
            errors.push(Error::too_long(&message.path, MAX_MESSAGE));
        }
        if code.int() < 0 {
            code.invalid(&mut errors, "must be between 0 and 2147483647, inclusive");
        }
    }
    errors
}

fn source(source: &Node<'_>, errors: &mut ErrorList) {
    const ONE: &str = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
    let (name, inline) = (source.child("persistentVolumeName"), source.child("inlineVolumeSpec"));
    match (name.exists(), inline.exists()) {
        (true, true) => source.forbidden(errors, ONE),
        (false, false) => source.missing(errors, ONE),
        (true, false) => {
            name.required(errors, "must specify non empty persistentVolumeName");
        }
        (false, true) => inline_spec(&inline, errors),
    }
}

pub fn columns() -> Vec<Column> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::tested::{created, updated, updated_sub};
    use serde_json::json;

    fn attachment(spec: Value) -> Value {
        json!({"metadata": {"name": "a"}, "spec": spec})
    }

    #[test]
    fn attachments_refused() {
        let whole = json!({"attacher": "d.example.com", "nodeName": "n", "source": {"persistentVolumeName": "v"}});
        let with = |source: Value| json!({"attacher": "d", "nodeName": "n", "source": source});
        let csi = json!({"driver": "d", "volumeHandle": "h"});
        for (spec, expected) in [
            (whole.clone(), "[]"),
            (
                json!({"nodeName": "n", "source": {}}),
                "[spec.source: Required value: must specify exactly one of inlineVolumeSpec and persistentVolumeName, spec.attacher: Required value]",
            ),
            (
                with(json!({"persistentVolumeName": "v", "inlineVolumeSpec": {}})),
                "spec.source: Forbidden: must specify exactly one of inlineVolumeSpec and persistentVolumeName",
            ),
            (with(json!({"inlineVolumeSpec": {"accessModes": ["ReadWriteOnce"], "csi": csi}})), "[]"),
            (
                with(
                    json!({"inlineVolumeSpec": {"capacity": {"storage": "1"}, "claimRef": {}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/x"}, "storageClassName": "s", "volumeMode": "Block", "persistentVolumeReclaimPolicy": "Delete", "nodeAffinity": {}}}),
                ),
                "[spec.source.inlineVolumeSpec.claimRef: Forbidden: may not be specified in the context of inline volumes, \
                 spec.source.inlineVolumeSpec.capacity: Forbidden: may not be specified in the context of inline volumes, \
                 spec.source.inlineVolumeSpec.csi: Required value: has to be specified in the context of inline volumes, \
                 spec.source.inlineVolumeSpec.persistentVolumeReclaimPolicy: Forbidden: may only be Retain in the context of inline volumes, \
                 spec.source.inlineVolumeSpec.nodeAffinity: Forbidden: may not be specified in the context of inline volumes, \
                 spec.source.inlineVolumeSpec.storageClassName: Forbidden: may not be specified in the context of inline volumes, \
                 spec.source.inlineVolumeSpec.volumeMode: Forbidden: may not specify volumeMode other than Filesystem in the context of inline volumes]",
            ),
        ] {
            assert_eq!(created(&Attachment, &attachment(spec)), expected);
        }
        let moved = json!({"attacher": "d.example.com", "nodeName": "m", "source": {"persistentVolumeName": "v"}});
        assert_eq!(
            updated(&Attachment, &attachment(whole), &attachment(moved)),
            "spec: Invalid value: null: field is immutable"
        );
    }

    #[test]
    fn statuses() {
        let mut new = attachment(json!({"attacher": "d", "nodeName": "n", "source": {"persistentVolumeName": "v"}}));
        let old = new.clone();
        new["status"] = json!({"attachError": {"message": "m".repeat(1025), "errorCode": -1}, "attachmentMetadata": {"a": "v".repeat(MAX_METADATA)}});
        assert_eq!(
            updated_sub(&Attachment, "status", &old, &new),
            "[status.attachmentMetadata: Too long: may not be more than 262144 bytes, \
             status.attachError.message: Too long: may not be more than 1024 bytes, \
             status.attachError.errorCode: Invalid value: -1: must be between 0 and 2147483647, inclusive]"
        );
    }
}

//! The `resource.k8s.io` group: dynamic resource allocation.

use api::field::{Error, ErrorList};
use api::names;
use jiff::Timestamp;
use serde_json::Value;

use super::check::{Node, Seen};
use super::table::{cell, named, row, words};
use super::value::{default, default_text, has, list, list_mut, text};
use crate::resource::{Column, Context, Descriptor, Hooks, Resource};

const GROUP: &str = "resource.k8s.io";

pub fn resources() -> Vec<Resource> {
    vec![
        Resource::plain(
            Descriptor::new(GROUP, "v1", "DeviceClass", "deviceclasses").cluster_scoped().with_generation(),
        ),
        Resource::plain(
            Descriptor::new(GROUP, "v1", "DeviceTaintRule", "devicetaintrules")
                .cluster_scoped()
                .with_status()
                .with_generation(),
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
    Descriptor::new(GROUP, "v1", "ResourceSlice", "resourceslices")
        .cluster_scoped()
        .with_generation()
        .selectable("spec.nodeName")
        .selectable("spec.driver")
}

/// Claims, and templates of claims whose claim spec is deeper.
struct Claim {
    spec: &'static str,
}

impl Hooks for Claim {
    fn defaults(&self, claim: &mut Value) {
        for request in list_mut(claim, &format!("{}.devices.requests", self.spec)) {
            if has(request, "exactly") {
                count_defaults(request, "exactly");
            }
            for option in list_mut(request, "firstAvailable") {
                default_text(option, "allocationMode", "ExactCount");
                if text(option, "allocationMode") == "ExactCount" {
                    default(option, "count", 1);
                }
            }
        }
    }

    fn validate_create(&self, _ctx: &Context<'_>, claim: &Value) -> ErrorList {
        validate_claim(&Node::root(claim).child(self.spec))
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        Node::root(new).child("spec").immutable(&mut errors, &Node::root(old).child("spec"));
        errors
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
        } else {
            states.push("pending");
        }
        if !list(claim, "status.reservedFor").is_empty() {
            states.push("reserved");
        }
        row(claim, now, vec![states.join(",").into()])
    }
}

fn count_defaults(request: &mut Value, field: &str) {
    default_text(request, &format!("{field}.allocationMode"), "ExactCount");
    if text(request, &format!("{field}.allocationMode")) == "ExactCount" {
        default(request, &format!("{field}.count"), 1);
    }
}

fn validate_claim(spec: &Node<'_>) -> ErrorList {
    let mut errors = ErrorList::new();
    let mut seen = Seen::default();
    for request in spec.items("devices.requests") {
        let name = request.child("name");
        if name.required_format(&mut errors, names::dns1123_label) && !seen.insert(name.text()) {
            errors.push(Error::duplicate(&name.path, name.text()));
        }
        let (exactly, first) = (request.has("exactly"), !request.items("firstAvailable").is_empty());
        if exactly == first {
            request.invalid(&mut errors, "exactly one of `exactly` or `firstAvailable` is required");
        }
        if exactly {
            device_request(&request.child("exactly"), &mut errors);
        }
        for option in request.items("firstAvailable") {
            option.child("name").required_format(&mut errors, names::dns1123_label);
            device_request(&option, &mut errors);
        }
    }
    if spec.items("devices.requests").len() > 32 {
        errors.push(Error::too_many(&spec.child("devices.requests").path, spec.items("devices.requests").len(), 32));
    }
    errors
}

fn device_request(request: &Node<'_>, errors: &mut ErrorList) {
    if request.child("deviceClassName").required(errors, "") {
        request.child("deviceClassName").format(errors, names::dns1123_subdomain);
    }
    let count = request.child("count");
    match request.child("allocationMode").text() {
        "All" => {
            if count.int() != 0 {
                count.invalid(errors, "must not be specified when allocationMode is 'All'");
            }
        }
        "ExactCount" => {
            if count.int() <= 0 {
                count.invalid(errors, "must be greater than zero");
            }
        }
        _ => {
            request.child("allocationMode").one_of(errors, &["All", "ExactCount"]);
        }
    }
}

fn claim_columns() -> Vec<Column> {
    named(vec![words("State", "A summary of the current state (allocated, pending, reserved, etc.).")])
}

struct Slice;

impl Hooks for Slice {
    fn validate_create(&self, _ctx: &Context<'_>, slice: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        let spec = Node::root(slice).child("spec");
        spec.child("driver").required(&mut errors, "");
        spec.child("pool.name").required(&mut errors, "");
        let placed = ["nodeName", "nodeSelector", "allNodes", "perDeviceNodeSelection"]
            .iter()
            .filter(|field| spec.has(field))
            .count();
        if placed != 1 {
            spec.invalid(
                &mut errors,
                "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required",
            );
        }
        let mut seen = Seen::default();
        for device in spec.items("devices") {
            let name = device.child("name");
            if name.required_format(&mut errors, names::dns1123_label) && !seen.insert(name.text()) {
                name.duplicate(&mut errors);
            }
        }
        errors
    }

    fn validate_update(&self, ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        let mut errors = self.validate_create(ctx, new);
        for field in ["driver", "nodeName", "pool.name"] {
            let path = format!("spec.{field}");
            Node::root(new).child(&path).immutable(&mut errors, &Node::root(old).child(&path));
        }
        errors
    }

    fn row(&self, slice: &Value, now: Timestamp) -> Vec<Value> {
        let node = match text(slice, "spec.nodeName") {
            "" => "<all>".into(),
            node => node.into(),
        };
        row(slice, now, vec![node, cell(slice, "spec.driver"), cell(slice, "spec.pool.name")])
    }
}

fn slice_columns() -> Vec<Column> {
    named(vec![
        words("Node", "NodeName identifies the node which provides the resources in this pool."),
        words("Driver", "Driver identifies the DRA driver providing the capacity information."),
        words("Pool", "Pool describes the pool that this ResourceSlice belongs to."),
    ])
}

//! The `flowcontrol.apiserver.k8s.io` group.

use std::cmp::Ordering;

use api::field::{Error, ErrorList, Path};
use jiff::Timestamp;
use serde_json::Value;

use super::check::Node;
use super::table::{NONE, count, named, row, row_wide, words};
use super::value::{default, default_int, has, int, list, name, opt_int, opt_text, text};
use crate::resource::{Column, Context, Descriptor, Hooks, Resource};

pub fn resources() -> Vec<Resource> {
    vec![
        Resource::new(descriptor("FlowSchema", "flowschemas").columns(schema_columns()), Schema),
        Resource::new(
            descriptor("PriorityLevelConfiguration", "prioritylevelconfigurations").columns(level_columns()),
            Level,
        ),
    ]
}

fn descriptor(kind: &'static str, plural: &'static str) -> Descriptor {
    let mut descriptor = Descriptor::new("flowcontrol.apiserver.k8s.io", "v1", kind, plural)
        .cluster_scoped()
        .with_status()
        .with_generation();
    descriptor.unconditional_update = false;
    descriptor
}

struct Schema;

impl Hooks for Schema {
    fn defaults(&self, schema: &mut Value) {
        default_int(schema, "spec.matchingPrecedence", 1000);
    }

    fn validate_create(&self, _ctx: &Context<'_>, schema: &Value) -> ErrorList {
        validate_schema(schema)
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, _old: &Value) -> ErrorList {
        validate_schema(new)
    }

    fn row(&self, schema: &Value, now: Timestamp) -> Vec<Value> {
        let dangling = list(schema, "status.conditions").iter().find(|condition| text(condition, "type") == "Dangling");
        let missing = dangling.map_or("?", |condition| text(condition, "status"));
        row_wide(
            schema,
            now,
            vec![
                text(schema, "spec.priorityLevelConfiguration.name").into(),
                count(schema, "spec.matchingPrecedence"),
                opt_text(schema, "spec.distinguisherMethod.type").unwrap_or(NONE).into(),
            ],
            vec![missing.into()],
        )
    }

    /// In the order in which schemas are tried.
    fn row_order(&self, one: &Value, other: &Value) -> Ordering {
        let key = |schema: &Value| (int(schema, "spec.matchingPrecedence"), name(schema).to_owned());
        key(one).cmp(&key(other))
    }
}

fn validate_schema(schema: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let spec = Node::root(schema).child("spec");
    let precedence = spec.child("matchingPrecedence");
    if precedence.int() < 1 {
        precedence.invalid(&mut errors, "must be a positive value");
    } else if precedence.int() > 10_000 {
        precedence.invalid(&mut errors, "must not be greater than 10000");
    } else if precedence.int() == 1 && name(schema) != "exempt" {
        precedence.invalid(&mut errors, "only the schema named 'exempt' may have matchingPrecedence 1");
    }
    spec.child("priorityLevelConfiguration.name").required(&mut errors, "must reference a priority level");
    if spec.has("distinguisherMethod") {
        spec.child("distinguisherMethod.type").one_of(&mut errors, &["ByNamespace", "ByUser"]);
    }
    for rules in spec.items("rules") {
        if rules.items("subjects").is_empty() {
            rules.child("subjects").missing(&mut errors, "subjects must contain at least one value");
        }
        if rules.items("resourceRules").is_empty() && rules.items("nonResourceRules").is_empty() {
            rules.missing(&mut errors, "at least one of resourceRules and nonResourceRules has to be non-empty");
        }
        for subject in rules.items("subjects") {
            subject.child("kind").one_of(&mut errors, &["Group", "ServiceAccount", "User"]);
        }
        for rule in rules.items("resourceRules") {
            for field in ["verbs", "apiGroups", "resources"] {
                rule.child(field).required(&mut errors, &format!("{field} must contain at least one value"));
            }
        }
        for rule in rules.items("nonResourceRules") {
            for field in ["verbs", "nonResourceURLs"] {
                rule.child(field).required(&mut errors, &format!("{field} must contain at least one value"));
            }
        }
    }
    errors
}

fn schema_columns() -> Vec<Column> {
    let mut columns = named(vec![
        words("PriorityLevel", "`name` is the name of the priority level configuration being referenced Required."),
        words(
            "MatchingPrecedence",
            "matchingPrecedence is used to choose among the FlowSchemas that match a given request.",
        ),
        words(
            "DistinguisherMethod",
            "`distinguisherMethod` defines how to compute the flow distinguisher for requests that match this schema. `nil` specifies that the distinguisher is disabled and thus will always be the empty string.",
        ),
    ]);
    columns.push(words("MissingPL", "references a broken or non-existent PriorityLevelConfiguration"));
    columns
}

struct Level;

impl Hooks for Level {
    fn defaults(&self, level: &mut Value) {
        if has(level, "spec.limited") {
            default(level, "spec.limited.nominalConcurrencyShares", 30);
            default(level, "spec.limited.lendablePercent", 0);
            if has(level, "spec.limited.limitResponse.queuing") {
                default_int(level, "spec.limited.limitResponse.queuing.queues", 64);
                default_int(level, "spec.limited.limitResponse.queuing.handSize", 8);
                default_int(level, "spec.limited.limitResponse.queuing.queueLengthLimit", 50);
            }
        }
        if has(level, "spec.exempt") {
            default(level, "spec.exempt.nominalConcurrencyShares", 0);
            default(level, "spec.exempt.lendablePercent", 0);
        }
    }

    fn validate_create(&self, _ctx: &Context<'_>, level: &Value) -> ErrorList {
        validate_level(level)
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, _old: &Value) -> ErrorList {
        validate_level(new)
    }

    fn row(&self, level: &Value, now: Timestamp) -> Vec<Value> {
        let kind = text(level, "spec.type");
        let shares = opt_int(level, "spec.limited.nominalConcurrencyShares");
        let queuing = |field: &str| -> Value {
            opt_int(level, &format!("spec.limited.limitResponse.queuing.{field}"))
                .map_or_else(|| NONE.into(), Value::from)
        };
        row(
            level,
            now,
            vec![
                kind.into(),
                shares.map_or_else(|| NONE.into(), Value::from),
                queuing("queues"),
                queuing("handSize"),
                queuing("queueLengthLimit"),
            ],
        )
    }
}

fn validate_level(level: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let spec = Node::root(level).child("spec");
    match spec.child("type").text() {
        "Exempt" => {
            if spec.has("limited") {
                spec.child("limited").forbidden(&mut errors, "must be nil if the type is not Limited");
            }
            if name(level) != "exempt" {
                errors.push(Error::invalid(
                    &Path::root("spec").child("type"),
                    "Exempt",
                    "must be 'Limited' for all priority levels but 'exempt'",
                ));
            }
        }
        "Limited" => {
            let limited = spec.child("limited");
            if !limited.exists() {
                limited.missing(&mut errors, "must not be empty when type is Limited");
                return errors;
            }
            limited.child("nominalConcurrencyShares").non_negative(&mut errors);
            let lendable = limited.child("lendablePercent");
            if !(0..=100).contains(&lendable.int()) {
                lendable.invalid(&mut errors, "must be between 0 and 100, inclusive");
            }
            let response = limited.child("limitResponse");
            match response.child("type").text() {
                "Reject" if response.has("queuing") => response
                    .child("queuing")
                    .forbidden(&mut errors, "must be nil if limited.limitResponse.type is not Limited"),
                "Reject" => {}
                "Queue" if !response.has("queuing") => response
                    .child("queuing")
                    .missing(&mut errors, "must not be empty if limited.limitResponse.type is Limited"),
                "Queue" => queuing(&response.child("queuing"), &mut errors),
                _ => {
                    response.child("type").one_of(&mut errors, &["Queue", "Reject"]);
                }
            }
        }
        _ => {
            spec.child("type").one_of(&mut errors, &["Exempt", "Limited"]);
        }
    }
    errors
}

fn queuing(queuing: &Node<'_>, errors: &mut ErrorList) {
    for field in ["queueLengthLimit", "queues", "handSize"] {
        if queuing.child(field).int() <= 0 {
            queuing.child(field).invalid(errors, "must be positive");
        }
    }
    let (hand, queues) = (queuing.child("handSize"), queuing.child("queues"));
    if hand.int() > queues.int() {
        hand.invalid(errors, format!("should not be greater than queues ({})", queues.int()));
    }
    if queues.int() > 10_000_000 {
        queues.invalid(errors, "must not be greater than 10000000");
    }
}

fn level_columns() -> Vec<Column> {
    named(vec![
        words("Type", "type indicates whether this priority level is subject to limitation on request execution."),
        words("NominalConcurrencyShares", "The shares of the server's concurrency that this priority level has."),
        words("Queues", "queues is the number of queues for this priority level."),
        words(
            "HandSize",
            "handSize is a small positive number that configures the shuffle sharding of requests into queues.",
        ),
        words(
            "QueueLengthLimit",
            "`queueLengthLimit` is the maximum number of requests allowed to be waiting in a given queue of this priority level at a time; excess requests are rejected.  This value must be positive.  If not specified, it will be defaulted to 50.",
        ),
    ])
}

//! PriorityLevelConfigurations: how many requests run at once, and which wait.

use api::field::ErrorList;
use jiff::Timestamp;
use serde_json::Value;

use super::{conditions, fixed};
use crate::kinds::check::Node;
use crate::kinds::core::pod::internal::{self, Field, Is};
use crate::kinds::table::{NONE, named, row, words};
use crate::kinds::value::{copy, default, default_int, has, name, opt_int, same, same_at, text};
use crate::resource::{ALL_BUT_STATUS, Column, Context, Hooks, Paths};

const MAX_QUEUES: i64 = 10_000_000;
/// Bits of a hash that may be used up by dealing a hand of queues.
const MAX_ENTROPY: f64 = 60.0;
const TYPES: [&str; 2] = ["Exempt", "Limited"];
const RESPONSES: [&str; 2] = ["Queue", "Reject"];
const ZERO_TO_HUNDRED: &str = "must be between 0 and 100, inclusive";

const SPEC: &[Field] = &[
    Field("type", "Type", Is::Text),
    Field(
        "limited",
        "Limited",
        Is::Of(&[
            Field("nominalConcurrencyShares", "NominalConcurrencyShares", Is::Nil),
            Field(
                "limitResponse",
                "LimitResponse",
                Is::Within(&[
                    Field("type", "Type", Is::Text),
                    Field(
                        "queuing",
                        "Queuing",
                        Is::Of(&[
                            Field("queues", "Queues", Is::Nil),
                            Field("handSize", "HandSize", Is::Nil),
                            Field("queueLengthLimit", "QueueLengthLimit", Is::Nil),
                        ]),
                    ),
                ]),
            ),
            Field("lendablePercent", "LendablePercent", Is::Nil),
            Field("borrowingLimitPercent", "BorrowingLimitPercent", Is::Nil),
        ]),
    ),
    Field(
        "exempt",
        "Exempt",
        Is::Of(&[
            Field("nominalConcurrencyShares", "NominalConcurrencyShares", Is::Nil),
            Field("lendablePercent", "LendablePercent", Is::Nil),
        ]),
    ),
];

pub struct Level;

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
        validate_level(level, None)
    }

    fn validate_update(&self, _ctx: &Context<'_>, new: &Value, old: &Value) -> ErrorList {
        validate_level(new, Some(old))
    }

    fn reset_by_status(&self) -> Paths {
        ALL_BUT_STATUS
    }

    fn validate_subresource_update(&self, _ctx: &Context<'_>, new: &Value, _old: &Value) -> ErrorList {
        conditions(new)
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

fn validate_level(level: &Value, old: Option<&Value>) -> ErrorList {
    let mut errors = ErrorList::new();
    let spec = Node::root(level).child("spec");
    let type_ = spec.child("type");
    if (name(level) == "exempt") != (type_.text() == "Exempt") {
        type_.invalid_text(&mut errors, "type must be 'Exempt' if and only if name is 'exempt'");
    }
    match type_.text() {
        "" => {}
        "Exempt" => exempt(&spec.child("exempt"), &mut errors),
        "Limited" => limited(&spec.child("limited"), &mut errors),
        _ => {
            type_.one_of(&mut errors, &TYPES);
        }
    }
    unchanged(&spec, level, &mut errors);
    // Declared rules speak last, and not of what was there before.
    if old.is_none_or(|old| !same_at(level, old, "spec")) {
        declared(&spec, &mut errors);
    }
    errors
}

/// Of the two that every cluster has, only the exempt level's shares may change.
fn unchanged(spec: &Node<'_>, level: &Value, errors: &mut ErrorList) {
    let Some(fixed) = fixed("prioritylevelconfigurations", level) else { return };
    let (mut munged, mut but) = (spec.value.clone(), "");
    if name(level) == "exempt" {
        copy(&fixed, &mut munged, "exempt");
        but = " except the 'spec.exempt' field";
    }
    if !same(&fixed, &munged) {
        let detail = format!("spec of '{}'{but} must equal the fixed value", name(level));
        errors.push(internal::invalid(&spec.path, spec.value, SPEC, &detail));
    }
}

/// What goes with which type.
fn declared(spec: &Node<'_>, errors: &mut ErrorList) {
    let (exempt, limited) = (spec.child("exempt"), spec.child("limited"));
    let is = |type_: &str| spec.child("type").text() == type_;
    if exempt.exists() && !is("Exempt") {
        exempt.forbidden(errors, "");
    }
    if limited.exists() != is("Limited") {
        if is("Limited") { limited.missing(errors, "") } else { limited.forbidden(errors, "") }
    }
    spec.child("type").required(errors, "");
    let response = limited.child("limitResponse");
    if limited.exists() {
        let (queuing, queues) = (response.child("queuing"), response.child("type").text() == "Queue");
        if queuing.exists() != queues {
            if queues { queuing.missing(errors, "") } else { queuing.forbidden(errors, "") }
        }
        response.child("type").required(errors, "");
    }
}

fn exempt(exempt: &Node<'_>, errors: &mut ErrorList) {
    let (shares, lendable) = (exempt.child("nominalConcurrencyShares"), exempt.child("lendablePercent"));
    if shares.int() < 0 {
        shares.invalid(errors, "must be a non-negative integer");
    }
    if !(0..=100).contains(&lendable.int()) {
        lendable.invalid(errors, ZERO_TO_HUNDRED);
    }
}

fn limited(limited: &Node<'_>, errors: &mut ErrorList) {
    if !limited.exists() {
        return;
    }
    let shares = limited.child("nominalConcurrencyShares");
    if shares.int() < 0 {
        shares.invalid(errors, "must be a non-negative integer");
    }
    let response = limited.child("limitResponse");
    match response.child("type").text() {
        "" | "Reject" => {}
        "Queue" => queuing(&response.child("queuing"), errors),
        _ => {
            response.child("type").one_of(errors, &RESPONSES);
        }
    }
    let (lendable, borrowed) = (limited.child("lendablePercent"), limited.child("borrowingLimitPercent"));
    if !(0..=100).contains(&lendable.int()) {
        lendable.invalid(errors, ZERO_TO_HUNDRED);
    }
    if borrowed.int() < 0 {
        borrowed.invalid(errors, "if specified, must be a non-negative integer");
    }
}

fn queuing(queuing: &Node<'_>, errors: &mut ErrorList) {
    if !queuing.exists() {
        return;
    }
    let (length, queues, hand) =
        (queuing.child("queueLengthLimit"), queuing.child("queues"), queuing.child("handSize"));
    if length.int() <= 0 {
        length.invalid(errors, "must be positive");
    }
    if queues.int() <= 0 {
        queues.invalid(errors, "must be positive");
    } else if queues.int() > MAX_QUEUES {
        queues.invalid(errors, format!("must not be greater than {MAX_QUEUES}"));
    }
    if hand.int() <= 0 {
        hand.invalid(errors, "must be positive");
    } else if hand.int() > queues.int() {
        hand.invalid(errors, format!("should not be greater than queues ({})", queues.int()));
    } else if ((queues.int() as f64).log2() * hand.int() as f64).ceil() > MAX_ENTROPY {
        let (deck, hand_size) = (queues.int(), hand.int());
        hand.invalid(
            errors,
            format!(
                "required entropy bits of deckSize {deck} and handSize {hand_size} should not be greater than {MAX_ENTROPY}"
            ),
        );
    }
}

pub fn columns() -> Vec<Column> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::tested::{created, updated};
    use serde_json::json;

    fn level(spec: Value) -> Value {
        json!({"metadata": {"name": "l"}, "spec": spec})
    }

    #[test]
    fn defaults_are_filled_in() {
        let mut limited =
            level(json!({"type": "Limited", "limited": {"limitResponse": {"type": "Queue", "queuing": {}}}}));
        Level.defaults(&mut limited);
        assert_eq!(
            limited["spec"]["limited"],
            json!({"nominalConcurrencyShares": 30, "lendablePercent": 0, "limitResponse": {"type": "Queue", "queuing": {"queues": 64, "handSize": 8, "queueLengthLimit": 50}}})
        );
        let mut none = level(json!({"type": "Limited", "limited": {"nominalConcurrencyShares": 0}}));
        Level.defaults(&mut none);
        assert_eq!(none["spec"]["limited"]["nominalConcurrencyShares"], 0);
    }

    #[test]
    fn levels_refused() {
        let at = "spec.limited.limitResponse";
        let queued = |queues: i64, hand: i64, length: i64| json!({"type": "Limited", "limited": {"limitResponse": {"type": "Queue", "queuing": {"queues": queues, "handSize": hand, "queueLengthLimit": length}}}});
        for (spec, expected) in [
            (json!({"type": "Limited", "limited": {"nominalConcurrencyShares": 0, "limitResponse": {"type": "Reject"}}}), "[]".to_owned()),
            (queued(64, 8, 50), "[]".to_owned()),
            (
                json!({}),
                "spec.type: Required value".to_owned(),
            ),
            (json!({"type": "Open"}), "spec.type: Unsupported value: \"Open\": supported values: \"Exempt\", \"Limited\"".to_owned()),
            (
                json!({"type": "Exempt", "limited": {"limitResponse": {"type": "Reject"}}}),
                "[spec.type: Invalid value: \"Exempt\": type must be 'Exempt' if and only if name is 'exempt', spec.limited: Forbidden]".to_owned(),
            ),
            (json!({"type": "Limited"}), "spec.limited: Required value".to_owned()),
            (
                json!({"type": "Limited", "exempt": {}, "limited": {"nominalConcurrencyShares": -1, "lendablePercent": 101, "borrowingLimitPercent": -1, "limitResponse": {"type": "Wait"}}}),
                format!(
                    "[spec.limited.nominalConcurrencyShares: Invalid value: -1: must be a non-negative integer, \
                     {at}.type: Unsupported value: \"Wait\": supported values: \"Queue\", \"Reject\", \
                     spec.limited.lendablePercent: Invalid value: 101: must be between 0 and 100, inclusive, \
                     spec.limited.borrowingLimitPercent: Invalid value: -1: if specified, must be a non-negative integer, \
                     spec.exempt: Forbidden]"
                ),
            ),
            (json!({"type": "Limited", "limited": {"limitResponse": {"type": "Queue"}}}), format!("{at}.queuing: Required value")),
            (json!({"type": "Limited", "limited": {"limitResponse": {"type": "Reject", "queuing": {}}}}), format!("{at}.queuing: Forbidden")),
            (json!({"type": "Limited", "limited": {}}), format!("{at}.type: Required value")),
            (
                queued(-1, -1, -1),
                format!(
                    "[{at}.queuing.queueLengthLimit: Invalid value: -1: must be positive, \
                     {at}.queuing.queues: Invalid value: -1: must be positive, \
                     {at}.queuing.handSize: Invalid value: -1: must be positive]"
                ),
            ),
            (queued(10_000_001, 1, 1), format!("{at}.queuing.queues: Invalid value: 10000001: must not be greater than 10000000")),
            (queued(7, 8, 1), format!("{at}.queuing.handSize: Invalid value: 8: should not be greater than queues (7)")),
            (
                queued(512, 8, 1),
                format!("{at}.queuing.handSize: Invalid value: 8: required entropy bits of deckSize 512 and handSize 8 should not be greater than 60"),
            ),
        ] {
            assert_eq!(created(&Level, &level(spec.clone())), expected, "{spec}");
        }
    }

    #[test]
    fn fixed_levels_stay() {
        let standard = crate::bootstrap::flowcontrol::objects("prioritylevelconfigurations");
        let of =
            |wanted: &str| standard.iter().find(|level| name(level) == wanted).expect("every cluster has it").clone();
        let (exempt, all) = (of("exempt"), of("catch-all"));
        let with = |level: &Value, path: &str, value: Value| {
            let mut level = level.clone();
            crate::kinds::value::set(&mut level, path, value);
            level
        };
        assert_eq!(updated(&Level, &exempt, &with(&exempt, "spec.exempt.lendablePercent", json!(50))), "[]");
        assert_eq!(
            updated(&Level, &exempt, &with(&exempt, "spec.exempt.lendablePercent", json!(-1))),
            "spec.exempt.lendablePercent: Invalid value: -1: must be between 0 and 100, inclusive"
        );
        assert_eq!(
            updated(
                &Level,
                &exempt,
                &with(&exempt, "spec", json!({"type": "Exempt", "limited": {"limitResponse": {"type": "Reject"}}}))
            ),
            "[spec: Invalid value: {\"Type\":\"Exempt\",\"Limited\":{\"NominalConcurrencyShares\":30,\"LimitResponse\":{\"Type\":\"Reject\",\"Queuing\":null},\"LendablePercent\":0,\"BorrowingLimitPercent\":null},\"Exempt\":null}: spec of 'exempt' except the 'spec.exempt' field must equal the fixed value, \
             spec.limited: Forbidden]"
        );
        assert_eq!(updated(&Level, &all, &all), "[]");
        assert!(
            updated(&Level, &all, &with(&all, "spec.limited.lendablePercent", json!(1)))
                .ends_with(": spec of 'catch-all' must equal the fixed value")
        );
    }
}

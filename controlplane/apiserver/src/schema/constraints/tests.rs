use super::*;
use proptest::prelude::*;
use serde_json::json;

fn schema() -> Value {
    json!({"type": "object", "required": ["spec"], "properties": {"spec": {"type": "object",
    "required": ["cronSpec"],
    "x-kubernetes-validations": [
        {"rule": "!has(self.replicas) || !has(self.minReplicas) || self.minReplicas <= self.replicas", "message": "replicas should be at least minReplicas"},
        {"rule": "!has(self.__namespace__) || self.__namespace__ != 'kube-system'", "reason": "FieldValueForbidden", "fieldPath": ".namespace"},
    ],
    "properties": {
        "cronSpec": {"type": "string", "pattern": "^[0-9* ]+$", "minLength": 1, "maxLength": 20},
        "replicas": {"type": "integer", "minimum": 1, "maximum": 10},
        "minReplicas": {"type": "integer", "format": "int32"},
        "ratio": {"type": "number", "exclusiveMinimum": true, "minimum": 0, "multipleOf": 0.5},
        "color": {"type": "string", "enum": ["red", "blue"]},
        "port": {"x-kubernetes-int-or-string": true},
        "tags": {"type": "array", "x-kubernetes-list-type": "set", "maxItems": 3, "items": {"type": "string"}},
        "hosts": {"type": "array", "minItems": 1, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
            "items": {"type": "object", "properties": {"name": {"type": "string"}, "ip": {"type": "string", "format": "ipv4"}},
                "x-kubernetes-validations": [{"rule": "self.ip == oldSelf.ip", "messageExpression": "'ip of ' + self.name + ' is immutable'"}]}},
        "labels": {"type": "object", "additionalProperties": {"type": "string", "maxLength": 2}, "minProperties": 1},
        "note": {"type": "string", "nullable": true},
        "namespace": {"type": "string"},
        "until": {"type": "string", "format": "date-time",
            "x-kubernetes-validations": [{"rule": "self > timestamp('2020-01-01T00:00:00Z')"}]},
        "either": {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}}, "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
    }}}})
}

fn check(spec: Value, old: Option<Value>) -> Vec<String> {
    let object = |spec: Value| json!({"apiVersion": "e.com/v1", "kind": "C", "metadata": {"name": "c"}, "spec": spec});
    let old = old.map(object);
    Constraints::new(&schema()).validate(&object(spec), old.as_ref()).iter().map(ToString::to_string).collect()
}

#[test]
fn values_that_fit_pass() {
    let spec = json!({"cronSpec": "* * 5", "replicas": 3, "minReplicas": 1, "ratio": 1.5, "color": "red", "port": "http", "tags": ["a", "b"],
        "hosts": [{"name": "a", "ip": "10.0.0.1"}], "labels": {"k": "v"}, "note": null, "until": "2024-01-01T00:00:00Z", "either": {"a": "x"}});
    assert_eq!(check(spec.clone(), None), Vec::<String>::new());
    assert_eq!(check(spec.clone(), Some(spec)), Vec::<String>::new());
}

#[test]
fn each_constraint_has_upstreams_message() {
    for (spec, message) in [
        (json!({}), "spec.cronSpec: Required value"),
        (
            json!({"cronSpec": "*", "minReplicas": 2_147_483_648_u32}),
            "<nil>: Invalid value: \"\": Checked value must be of type integer with format int32 in spec.minReplicas",
        ),
        (
            json!({"cronSpec": 5}),
            "spec.cronSpec: Invalid value: \"integer\": spec.cronSpec in body must be of type string: \"integer\"",
        ),
        (
            json!({"cronSpec": "x"}),
            "spec.cronSpec: Invalid value: \"x\": spec.cronSpec in body should match '^[0-9* ]+$'",
        ),
        (json!({"cronSpec": "000000000000000000000"}), "spec.cronSpec: Too long: may not be more than 20 bytes"),
        (
            json!({"cronSpec": "*", "replicas": 0}),
            "spec.replicas: Invalid value: 0: spec.replicas in body should be greater than or equal to 1",
        ),
        (
            json!({"cronSpec": "*", "replicas": 11}),
            "spec.replicas: Invalid value: 11: spec.replicas in body should be less than or equal to 10",
        ),
        (
            json!({"cronSpec": "*", "ratio": 0}),
            "spec.ratio: Invalid value: 0: spec.ratio in body should be greater than 0",
        ),
        (
            json!({"cronSpec": "*", "ratio": 0.7}),
            "spec.ratio: Invalid value: 0.7: spec.ratio in body should be a multiple of 0.5",
        ),
        (
            json!({"cronSpec": "*", "color": "green"}),
            "spec.color: Unsupported value: \"green\": supported values: \"red\", \"blue\"",
        ),
        (
            json!({"cronSpec": "*", "port": true}),
            "spec.port: Invalid value: \"boolean\": spec.port in body must be of type integer,string: \"boolean\"",
        ),
        (json!({"cronSpec": "*", "tags": ["a", "a"]}), "spec.tags[1]: Duplicate value: \"a\""),
        (json!({"cronSpec": "*", "tags": ["a", "b", "c", "d"]}), "spec.tags: Too many: 4: must have at most 3 items"),
        (
            json!({"cronSpec": "*", "hosts": []}),
            "spec.hosts: Invalid value: 0: spec.hosts in body should have at least 1 items",
        ),
        (
            json!({"cronSpec": "*", "hosts": [{"name": "a"}, {"name": "a"}]}),
            "spec.hosts[1]: Duplicate value: {\"name\":\"a\"}",
        ),
        (
            json!({"cronSpec": "*", "hosts": [{"name": "a", "ip": "x"}]}),
            "spec.hosts[0].ip: Invalid value: \"x\": spec.hosts[0].ip in body must be of type ipv4: \"x\"",
        ),
        (json!({"cronSpec": "*", "labels": {"k": "long"}}), "spec.labels.k: Too long: may not be more than 2 bytes"),
        (
            json!({"cronSpec": null}),
            "spec.cronSpec: Invalid value: \"null\": spec.cronSpec in body must be of type string: \"null\"",
        ),
        (
            json!({"cronSpec": "*", "either": {"a": "x", "b": "y"}}),
            "<nil>: Invalid value: \"\": \"spec.either\" must validate one and only one schema (oneOf). Found 2 valid alternatives",
        ),
    ] {
        let mut found = check(spec.clone(), None);
        found.retain(|error| !error.contains("some validation rules were not checked"));
        assert_eq!(found, [message], "{spec}");
    }
}

#[test]
fn what_was_twice_in_a_list_before_keeps_no_other_change_out() {
    let schema = json!({"type": "object", "properties": {
        "tags": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
        "map": {"type": "object", "additionalProperties": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}}},
    }});
    let constraints = Constraints::new(&schema);
    let found = |new: Value, old: Value| -> Vec<String> {
        constraints.validate(&new, Some(&old)).iter().map(ToString::to_string).collect()
    };
    let twice = json!({"tags": ["a", "a"]});
    assert_eq!(found(json!({"tags": ["a", "a", "b"]}), twice.clone()), Vec::<String>::new());
    assert_eq!(found(twice.clone(), json!({"tags": ["a"]})), ["tags[1]: Duplicate value: \"a\""]);
    assert_eq!(found(json!({"map": {"k": ["x", "x"]}}), json!({})), ["map[k][1]: Duplicate value: \"x\""]);
}

#[test]
fn items_of_a_long_list_are_found_again_by_their_keys() {
    let schema = json!({"type": "object", "properties": {"hosts": {"type": "array", "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["name"], "items": {"type": "object", "properties": {"name": {"type": "string"}},
            "x-kubernetes-validations": [{"rule": "self.ip == oldSelf.ip", "message": "changed"}]}}}});
    // Comparing each with each would take minutes.
    let hosts = |last: &str| -> Value {
        let ip = |at: i32| if at == 0 { last } else { "1" };
        let hosts: Vec<Value> = (0..20_000).map(|at| json!({"name": format!("h{at}"), "ip": ip(at)})).collect();
        json!({"hosts": hosts})
    };
    let mut new = hosts("2");
    new["hosts"].as_array_mut().unwrap().reverse();
    let found = Constraints::new(&schema).validate(&new, Some(&hosts("1")));
    let told: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert_eq!(told, ["hosts[19999]: Invalid value: changed"]);
}

#[test]
fn each_of_many_values_that_break_a_rule_has_its_own_message() {
    let rules = json!([{"rule": "self < 0", "messageExpression": "string(self) + ' is not negative'"}]);
    let schema = json!({"type": "object", "properties": {"list": {"type": "array",
        "items": {"type": "integer", "x-kubernetes-validations": rules}}}});
    // Compiling the message for each would take as long as all else together many times.
    let object = json!({"list": (0..5_000).collect::<Vec<i64>>()});
    let found = Constraints::new(&schema).validate(&object, None);
    assert_eq!(found.len(), 5_000);
    assert_eq!(found[4_999].to_string(), "list[4999]: Invalid value: 4999: 4999 is not negative");
}

#[test]
fn rules_run_unless_values_are_not_what_they_may_expect() {
    let not_checked = "<nil>: Invalid value: null: some validation rules were not checked because the object was invalid; correct the existing errors to complete validation";
    let fewer = "spec: Invalid value: replicas should be at least minReplicas";
    for (spec, last) in [
        (json!({"cronSpec": "x", "replicas": 1, "minReplicas": 2}), fewer),
        (json!({"cronSpec": "*", "tags": ["a", "a"], "replicas": 1, "minReplicas": 2}), fewer),
        (json!({"replicas": 1, "minReplicas": 2}), not_checked),
        (json!({"cronSpec": 1, "replicas": 1, "minReplicas": 2}), not_checked),
        (json!({"cronSpec": "*", "color": "green", "replicas": 1, "minReplicas": 2}), not_checked),
    ] {
        let found = check(spec.clone(), None);
        assert_eq!(found.len(), 2, "{spec}: {found:?}");
        assert_eq!(found[1], last, "{spec}");
    }
}

#[test]
fn a_write_to_the_status_is_held_to_the_schema_of_the_status() {
    let schema = json!({"type": "object", "required": ["spec"], "properties": {"spec": {"type": "object"},
        "status": {"type": "object", "properties": {"phase": {"type": "string", "enum": ["A"]}, "count": {"type": "integer"}},
            "anyOf": [{"required": ["phase"]}, {"required": ["count"]}]}}});
    let constraints = Constraints::new(&schema);
    let errors = |status: Value| {
        let found = constraints.status_values(&json!({"status": status}), &json!({}));
        found.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(errors(json!({"phase": "A"})), Vec::<String>::new(), "that there is no spec is let pass");
    assert_eq!(errors(json!({"phase": "B"})), ["status.phase: Unsupported value: \"B\": supported values: \"A\""]);
    assert_eq!(
        errors(json!({"count": "x"})),
        ["status.count: Invalid value: \"string\": count in body must be of type integer: \"string\""]
    );
    assert_eq!(errors(json!({}))[0], "status: Invalid value: \"\": \"\" must validate at least one schema (anyOf)");
}

#[test]
fn names_are_held_to_what_the_schema_says_of_them() {
    let schema = json!({"type": "object", "properties": {
        "kind": {"type": "string", "enum": ["C"]},
        "metadata": {"type": "object", "properties": {"name": {"type": "string", "maxLength": 3}}}}});
    let errors = |name: &str| {
        let object = json!({"apiVersion": "e.com/v1", "kind": "C", "metadata": {"name": name, "uid": "1"}});
        let found = Constraints::new(&schema).validate(&object, None);
        found.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(errors("abc"), Vec::<String>::new());
    assert_eq!(errors("abcd"), ["metadata.name: Too long: may not be more than 3 bytes"]);
}

#[test]
fn combinations_and_wrong_types_say_all_that_is_wrong() {
    for (part, value, expected) in [
        (
            json!({"oneOf": [{"required": ["a"]}, {"required": ["b"]}]}),
            json!({}),
            &[
                "<nil>: Invalid value: \"\": \"f\" must validate one and only one schema (oneOf). Found none valid",
                "f.a: Required value",
            ][..],
        ),
        (
            json!({"anyOf": [{"type": "integer"}, {"type": "string"}]}),
            json!(true),
            &[
                "<nil>: Invalid value: \"\": \"f\" must validate at least one schema (anyOf)",
                "f: Invalid value: \"boolean\": f in body must be of type integer: \"boolean\"",
            ],
        ),
        (
            json!({"allOf": [{"minimum": 2}, {"maximum": 5}]}),
            json!(1),
            &[
                "f: Invalid value: 1: f in body should be greater than or equal to 2",
                "<nil>: Invalid value: \"\": \"f\" must validate all the schemas (allOf)",
            ],
        ),
        (
            json!({"type": "integer"}),
            json!(1.5),
            &[
                "f: Invalid value: \"number\": f in body must be of type integer: \"number\"",
                "<nil>: Invalid value: \"\": Checked value must be of type integer (default format) in f",
            ],
        ),
        (
            json!({"not": {"required": ["a"]}}),
            json!({"a": 1}),
            &["<nil>: Invalid value: \"\": \"f\" must not validate the schema (not)"],
        ),
        (
            json!({"type": "string", "enum": ["a"]}),
            json!(1),
            &[
                "f: Invalid value: \"integer\": f in body must be of type string: \"integer\"",
                "f: Unsupported value: 1: supported values: \"a\"",
            ],
        ),
    ] {
        let schema = json!({"type": "object", "properties": {"f": part}});
        let found = Constraints::new(&schema).validate(&json!({"f": value}), None);
        assert_eq!(found.iter().map(ToString::to_string).collect::<Vec<_>>(), expected, "{part}");
    }
}

#[test]
fn rules_are_evaluated() {
    for (spec, message) in [
        (
            json!({"cronSpec": "*", "replicas": 1, "minReplicas": 2}),
            "spec: Invalid value: replicas should be at least minReplicas",
        ),
        (
            json!({"cronSpec": "*", "namespace": "kube-system"}),
            "spec.namespace: Forbidden: failed rule: !has(self.__namespace__) || self.__namespace__ != 'kube-system'",
        ),
        (
            json!({"cronSpec": "*", "until": "2019-01-01T00:00:00Z"}),
            "spec.until: Invalid value: \"2019-01-01T00:00:00Z\": failed rule: self > timestamp('2020-01-01T00:00:00Z')",
        ),
    ] {
        assert_eq!(check(spec.clone(), None), [message], "{spec}");
    }
    let spec = |ip: &str| json!({"cronSpec": "*", "hosts": [{"name": "a", "ip": ip}]});
    assert_eq!(check(spec("10.0.0.1"), None), Vec::<String>::new());
    assert_eq!(check(spec("10.0.0.1"), Some(spec("10.0.0.2"))), ["spec.hosts[0]: Invalid value: ip of a is immutable"]);
}

#[test]
fn what_was_wrong_before_and_did_not_change_is_let_pass() {
    let wrong = json!({"cronSpec": "x", "replicas": 3, "namespace": "kube-system"});
    let mut other = wrong.clone();
    other["replicas"] = json!(4);
    assert_eq!(
        check(other.clone(), Some(wrong.clone())),
        ["spec.namespace: Forbidden: failed rule: !has(self.__namespace__) || self.__namespace__ != 'kube-system'"]
    );
    other["namespace"] = json!("a");
    other["cronSpec"] = json!("y");
    assert_eq!(
        check(other, Some(wrong)),
        ["spec.cronSpec: Invalid value: \"y\": spec.cronSpec in body should match '^[0-9* ]+$'"]
    );
}

#[test]
fn rules_on_parts_of_what_did_not_change_are_let_pass() {
    let schema = json!({"type": "object", "properties": {
        "name": {"type": "string"},
        "list": {"type": "array", "items": {"type": "string", "x-kubernetes-validations": [{"rule": "self == 'a'"}]}},
    }});
    let errors = |new: Value, old: Value| {
        let found = Constraints::new(&schema).validate(&new, Some(&old));
        found.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let old = json!({"name": "x", "list": ["b"]});
    assert_eq!(errors(json!({"name": "y", "list": ["b"]}), old.clone()), Vec::<String>::new());
    assert_eq!(
        errors(json!({"name": "y", "list": ["b", "a"]}), old),
        ["list[0]: Invalid value: \"b\": failed rule: self == 'a'"]
    );
}

#[test]
fn rules_see_the_change_of_atomic_objects_and_name_keys_in_brackets() {
    let schema = json!({"type": "object", "properties": {
        "map": {"type": "object", "additionalProperties": {"type": "string", "x-kubernetes-validations": [{"rule": "self != 'x'"}]}},
        "ref": {"type": "object", "x-kubernetes-map-type": "atomic", "properties": {
            "major": {"type": "integer", "x-kubernetes-validations": [{"rule": "self == oldSelf"}]}}},
    }});
    let (new, old) = (json!({"map": {"k": "x"}, "ref": {"major": 2}}), json!({"ref": {"major": 1, "name": "a"}}));
    let found = Constraints::new(&schema).validate(&new, Some(&old));
    assert_eq!(
        found.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [
            "map[k]: Invalid value: \"x\": failed rule: self != 'x'",
            "ref.major: Invalid value: 2: failed rule: self == oldSelf"
        ]
    );
}

#[test]
fn what_is_let_pass_is_told() {
    let rules = json!([{"rule": "self.size() < 2"}, {"rule": "[1, 2][self.size()] > 0"}]);
    let schema =
        json!({"type": "object", "properties": {"name": {"type": "string", "x-kubernetes-validations": rules}}});
    let (new, old) = (json!({"name": "ab", "other": 1}), json!({"name": "ab"}));
    let mut errors = ErrorList::new();
    let let_pass = Constraints::new(&schema).then_rules(&new, Some(&old), &Path::empty(), &mut errors);
    assert_eq!(
        let_pass.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["name: Invalid value: \"ab\": failed rule: self.size() < 2"]
    );
    // A rule that cannot be evaluated is an error all the same.
    assert_eq!(errors.len(), 1, "{errors:?}");
}

#[test]
fn null_fields_are_absent_and_reserved_words_are_written_both_ways() {
    let rules = |object: Value, rule: &str| {
        let schema = json!({"type": "object", "x-kubernetes-validations": [{"rule": rule}], "properties": {
            "note": {"type": "string", "nullable": true}, "namespace": {"type": "string"},
            "map": {"type": "object", "additionalProperties": {"type": "string", "nullable": true}},
        }});
        let this = crate::cel::decl::Decl::of_schema(&schema, false).unwrap();
        crate::cel::compile_checked(rule, &[("self", this)]).unwrap();
        Constraints::new(&schema).validate(&object, None)
    };
    let object = json!({"note": null, "namespace": "a", "map": {"k": null}});
    for rule in [
        "!has(self.note) && self.map.size() == 1 && type(self.map['k']) == null_type",
        "has(self.namespace) && self.namespace == self.__namespace__",
    ] {
        assert_eq!(rules(object.clone(), rule), Vec::new(), "{rule}");
    }
}

#[test]
fn expensive_rules_end_with_an_error() {
    // Each search walks through nine million characters: nearly all that one rule may cost.
    let object = json!({"text": "a".repeat(9_000_000)});
    let errors = |rules: Vec<Value>| {
        let schema =
            json!({"type": "object", "properties": {"text": {"type": "string"}}, "x-kubernetes-validations": rules});
        Constraints::new(&schema).validate(&object, None)
    };
    let twice = json!({"rule": "!self.text.contains('b') && !self.text.contains('c')"});
    let found = errors(vec![twice, json!({"rule": "false", "message": "not reached"})]);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0].detail.contains("no further validation rules will be run due to call cost exceeds limit for rule"),
        "{}",
        found[0].detail
    );
    let found = errors(vec![json!({"rule": "!self.text.contains('b')"}); 20]);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(
        found[0].detail,
        "validation failed due to running out of cost budget, no further validation rules will be run"
    );
}

proptest! {
    #[test]
    fn random_values_never_panic(text in ".{0,20}", number in any::<f64>(), flag in any::<bool>()) {
        for value in [json!(text), json!(number), json!(flag), json!([text]), json!({"name": text})] {
            for name in ["cronSpec", "replicas", "ratio", "color", "port", "tags", "hosts", "labels", "note", "until", "either"] {
                let _ = check(json!({"cronSpec": "*", name: value}), None);
            }
        }
    }
}

#[test]
fn the_order_of_sets_and_keyed_lists_does_not_count() {
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object",
    "x-kubernetes-validations": [
        {"rule": "self.tags == oldSelf.tags && self.hosts == oldSelf.hosts", "message": "immutable"},
        {"rule": "self == oldSelf", "message": "the same as a whole"},
        {"rule": "(self.tags + ['x', 'y']).size() <= 3", "message": "at most three"},
    ],
    "properties": {
        "tags": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
        "hosts": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["namespace"],
            "items": {"type": "object", "properties": {"namespace": {"type": "string"}, "ip": {"type": "string"}}}},
    }}}});
    let constraints = Constraints::new(&schema);
    let check = |tags: &[&str], hosts: &[(&str, &str)]| -> Vec<String> {
        let object = |tags: &[&str], hosts: &[(&str, &str)]| {
            let hosts: Vec<Value> = hosts.iter().map(|(name, ip)| json!({"namespace": name, "ip": ip})).collect();
            json!({"apiVersion": "e.com/v1", "kind": "C", "metadata": {"name": "c"}, "spec": {"tags": tags, "hosts": hosts}})
        };
        let old = object(&["x", "a"], &[("one", "1"), ("two", "2")]);
        constraints.validate(&object(tags, hosts), Some(&old)).iter().map(ToString::to_string).collect()
    };
    assert_eq!(check(&["a", "x"], &[("two", "2"), ("one", "1")]), Vec::<String>::new());
    let changed = ["spec: Invalid value: immutable", "spec: Invalid value: the same as a whole"];
    assert_eq!(check(&["a", "x"], &[("two", "2"), ("one", "3")]), changed);
    assert_eq!(check(&["a", "y"], &[("one", "1"), ("two", "2")]), changed);
    assert_eq!(check(&["a", "b"], &[("one", "1"), ("two", "2")])[2], "spec: Invalid value: at most three");
}

use api::field::join;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::*;
use crate::kinds::tested;

fn definition() -> Value {
    let mut object = json!({"metadata": {"name": "widgets.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
        "names": {"plural": "widgets", "kind": "Widget"},
        "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}}]}});
    Definition.defaults(&mut object);
    object
}

#[test]
fn sound_and_unsound() {
    let sound = definition();
    assert_eq!(join(&validate(&sound, None)), "[]");
    assert_eq!(
        (&sound["spec"]["names"]["singular"], &sound["spec"]["names"]["listKind"]),
        (&json!("widget"), &json!("WidgetList"))
    );
    for (path, value, expected) in [
        (
            "metadata.name",
            json!("x"),
            "metadata.name: Invalid value: \"x\": must be spec.names.plural+\".\"+spec.group",
        ),
        (
            "spec.scope",
            json!("x"),
            "spec.scope: Unsupported value: \"x\": supported values: \"Cluster\", \"Namespaced\"",
        ),
        (
            "spec.versions",
            json!([{"name": "v1", "storage": true}]),
            "spec.versions[0].schema.openAPIV3Schema: Required value",
        ),
        (
            "spec.conversion",
            json!({"strategy": "Webhook"}),
            "[spec.conversion.webhookClientConfig: Required value: required when strategy is set to Webhook, spec.conversion.conversionReviewVersions: Required value]",
        ),
    ] {
        let mut changed = definition();
        set(&mut changed, path, value);
        assert_eq!(join(&validate(&changed, None)), expected, "{path}");
    }
    let mut two = definition();
    two["spec"]["versions"][0]["storage"] = json!(false);
    assert!(join(&validate(&two, None)).ends_with("must have exactly one version marked as storage version"));
}
/// The errors of a definition whose one version has this schema of `spec`, and more of itself.
fn with(spec: Value, more: &Value) -> String {
    let mut object = definition();
    let version = &mut object["spec"]["versions"][0];
    version["schema"]["openAPIV3Schema"]["properties"] = json!({"spec": spec});
    for (key, value) in more.as_object().into_iter().flatten() {
        version[key] = value.clone();
    }
    join(&validate(&object, None))
}

#[test]
fn schemas_are_structural_and_sound() {
    let base = "spec.validation.openAPIV3Schema.properties[spec]";
    for (schema, expected) in [
        (json!({}), format!("{base}.type: Required value: must not be empty for specified object fields")),
        (json!({"type": "array"}), format!("{base}.items: Required value: must be specified")),
        (
            json!({"type": "text"}),
            format!(
                "{base}.type: Unsupported value: \"text\": supported values: \"array\", \"boolean\", \"integer\", \"number\", \"object\", \"string\""
            ),
        ),
        (
            json!({"type": "string", "pattern": "("}),
            format!(
                "{base}.pattern: Invalid value: \"(\": must be a valid regular expression, but isn't: error parsing regexp: missing closing ): `(`"
            ),
        ),
        (
            json!({"type": "object", "anyOf": [{"type": "object"}]}),
            format!("{base}.anyOf[0].type: Forbidden: must be empty to be structural"),
        ),
        (
            json!({"type": "integer", "default": "x"}),
            format!(
                "{base}.default: Invalid value: \"string\": {base}.default in body must be of type integer: \"string\""
            ),
        ),
        (
            json!({"type": "object", "default": {"a": 1}}),
            format!("{base}.default: Invalid value: {{\"a\":1}}: must not have unknown fields"),
        ),
        (
            json!({"type": "array", "items": {"type": "object", "properties": {"k": {"type": "string"}}}, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"]}),
            format!(
                "{base}.items.properties[k].default: Required value: this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property"
            ),
        ),
        (
            json!({"type": "array", "items": {"type": "string"}, "uniqueItems": true}),
            format!(
                "{base}.uniqueItems: Forbidden: uniqueItems cannot be set to true since the runtime complexity becomes quadratic"
            ),
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": {"type": "string"}}),
            format!("{base}.additionalProperties: Forbidden: additionalProperties and properties are mutual exclusive"),
        ),
    ] {
        let found = with(schema.clone(), &json!({}));
        assert!(
            found.starts_with(&expected) || found.contains(&format!("[{expected}")),
            "{schema}\n{found}\n{expected}"
        );
    }
    let sound = json!({"type": "object", "properties": {
        "port": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]},
        "any": {"x-kubernetes-preserve-unknown-fields": true},
        "raw": {"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true},
        "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}, "default": ["a"]},
    }});
    assert_eq!(with(sound, &json!({})), "[]");
}

#[test]
fn rules_are_compiled_typed_and_estimated() {
    let base = "spec.validation.openAPIV3Schema.properties[spec].x-kubernetes-validations[0]";
    let spec = |rule: &str, more: Value| {
        let mut rule_object = json!({"rule": rule});
        for (key, value) in more.as_object().into_iter().flatten() {
            rule_object[key] = value.clone();
        }
        json!({"type": "object", "x-kubernetes-validations": [rule_object], "properties": {
            "size": {"type": "integer"}, "name": {"type": "string"}, "few": {"type": "array", "maxItems": 5, "items": {"type": "string", "maxLength": 10}},
            "many": {"type": "array", "items": {"type": "string"}}, "port": {"x-kubernetes-int-or-string": true},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}}, "when": {"type": "string", "format": "date-time"}}})
    };
    for rule in [
        "self.size > 3 && self.name.startsWith('a')",
        "!has(self.few) || self.few.all(x, x.size() < 4 && x.matches('^a+$'))",
        "self.few.map(x, x + 'a').exists(x, x in self.few)",
        "self.port == 3 || string(self.port) == 'a'",
        "self.labels.all(k, v, k != v) && 'a' in self.labels",
        // As the CRD of Gateway API: keys have no bound that a schema could name.
        "self.labels.all(k, k.split('/')[0].size() < 253 && k.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$'))",
        "self.when > timestamp('2020-01-01T00:00:00Z') && self.?size.orValue(2) == 2",
        "self.few.filter(x, x != 'a').size() == [1, 2].sum()",
        "quantity(self.name).isGreaterThan(quantity('1')) && oldSelf.size == self.size",
        "sign(quantity(self.name)) == 1",
    ] {
        assert_eq!(with(spec(rule, json!({})), &json!({})), "[]", "{rule}");
    }
    for (rule, more, expected) in [
        (
            "self.sise > 3",
            json!({}),
            "compilation failed: ERROR: <input>:1:5: undefined field 'sise'\n | self.sise > 3\n | ....^",
        ),
        ("self.size == 'a'", json!({}), "found no matching overload for '_==_' applied to '(int, string)'"),
        ("self.size + 'a' == 'b'", json!({}), "found no matching overload for '_+_' applied to '(int, string)'"),
        (
            "self.size.startsWith('a')",
            json!({}),
            "found no matching overload for 'startsWith' applied to 'int.(string)'",
        ),
        (
            "quantity(self.name).sign() == 1",
            json!({}),
            "found no matching overload for 'sign' applied to 'kubernetes.Quantity.()'",
        ),
        ("nothing == 1", json!({}), "undeclared reference to 'nothing' (in container '')"),
        ("self.few.all(x, x > 1)", json!({}), "found no matching overload for '_>_' applied to '(string, int)'"),
        (
            "self.size",
            json!({}),
            "rule: Invalid value: {\"Rule\":\"self.size\",\"Message\":\"\",\"MessageExpression\":\"\",\"Reason\":null,\"FieldPath\":\"\",\"OptionalOldSelf\":null}: cel expression must evaluate to a bool",
        ),
        ("self.size >", json!({}), "{\"Rule\":\"self.size \\u003e\","),
        ("self.size >", json!({}), "compilation failed: ERROR: <input>:1:12: Syntax error"),
        ("true", json!({"messageExpression": "self.size"}), "messageExpression must evaluate to a string"),
        ("true", json!({"optionalOldSelf": true}), "may not be set if oldSelf is not used in rule"),
        ("true", json!({"fieldPath": ".nothing"}), "fieldPath: Invalid value: \".nothing\": must be a valid path"),
        ("true", json!({"reason": "No"}), "Unsupported value: \"No\""),
        ("", json!({}), "rule: Required value: rule is not specified"),
        (
            "self.many.all(x, self.many.all(y, x == y))",
            json!({}),
            "rule: Forbidden: estimated rule cost exceeds budget by factor of more than 100x (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)",
        ),
    ] {
        let found = with(spec(rule, more), &json!({}));
        assert!(found.contains(expected) && found.contains(base), "{rule}\n{found}\n{expected}");
    }
    let inside = json!({"type": "array", "items": {"type": "string", "x-kubernetes-validations": [{"rule": "self == oldSelf"}]}});
    assert!(with(inside, &json!({})).contains("oldSelf cannot be used on the uncorrelatable portion of the schema within spec.validation.openAPIV3Schema.properties[spec]"));
}

#[test]
fn versions_say_how_they_are_shown() {
    let spec = json!({"type": "object", "properties": {"color": {"type": "string"}, "deep": {"type": "object"}}});
    for (more, expected) in [
        (
            json!({"additionalPrinterColumns": [{"name": "A", "type": "text", "jsonPath": "spec"}]}),
            "[spec.additionalPrinterColumns[0].type: Invalid value: \"text\": must be one of boolean,date,integer,number,string, spec.additionalPrinterColumns[0].JSONPath: Invalid value: \"spec\": must be a simple json path starting with .]",
        ),
        (
            json!({"selectableFields": [{"jsonPath": ".spec.none"}]}),
            "spec.selectableFields[0].jsonPath: Invalid value: \".spec.none\": is an invalid path: does not refer to a valid field",
        ),
        (
            json!({"selectableFields": [{"jsonPath": ".spec.deep"}]}),
            "spec.selectableFields[0].jsonPath: Invalid value: \".spec.deep\": must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.",
        ),
        (json!({"selectableFields": [{"jsonPath": ".spec.color"}]}), "[]"),
        (
            json!({"subresources": {"scale": {"specReplicasPath": ".status.a", "statusReplicasPath": "x", "labelSelectorPath": ".spec.a"}}}),
            "[spec.subresources.scale.specReplicasPath: Invalid value: \".status.a\": should be a json path under .spec, spec.subresources.scale.statusReplicasPath: Invalid value: \"x\": must be a simple json path starting with .]",
        ),
        (
            json!({"deprecationWarning": "x"}),
            "spec.versions[0].deprecationWarning: Invalid value: \"x\": can only be set for deprecated versions",
        ),
    ] {
        assert_eq!(with(spec.clone(), &more), expected, "{more}");
    }
}

#[test]
fn names_and_stored_versions() {
    let changed = |path: &str, value: Value| {
        let mut object = definition();
        set(&mut object, path, value);
        object
    };
    for (object, expected) in [
        (definition(), "[]"),
        (
            changed("spec.scope", json!("Galaxy")),
            "spec.scope: Unsupported value: \"Galaxy\": supported values: \"Cluster\", \"Namespaced\"",
        ),
        (
            changed("spec.names.listKind", json!("Widget")),
            "spec.names.listKind: Invalid value: \"Widget\": kind and listKind may not be the same",
        ),
        (
            changed("spec.versions", json!([{"name": "v1", "served": true, "storage": true}])),
            "spec.versions[0].schema.openAPIV3Schema: Required value",
        ),
    ] {
        assert_eq!(tested::created(&Definition, &object), expected);
    }
    let mut old = definition();
    set(&mut old, "status.storedVersions", json!(["v1"]));
    let with = |path: &str, value: Value| {
        let mut object = old.clone();
        set(&mut object, path, value);
        object
    };
    let status =
        |stored: Value| tested::updated_sub(&Definition, "status", &old, &with("status.storedVersions", stored));
    assert_eq!(status(json!(["v1"])), "[]");
    assert_eq!(status(json!([])), "status.storedVersions: Invalid value: []: must have at least one stored version");
    assert_eq!(
        status(json!(["v0"])),
        "[status.storedVersions: Invalid value: [\"v0\"]: must have the storage version v1, \
         status.storedVersions[0]: Invalid value: \"v0\": missing from spec.versions; v0 was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in v0 and removes v0 from status.storedVersions]"
    );
    // Scope and kind may change until the definition is established.
    let cluster = with("spec.scope", json!("Cluster"));
    assert_eq!(tested::updated(&Definition, &old, &cluster), "[]");
    let mut established = old.clone();
    set(&mut established, "status.conditions", json!([{"type": "Established", "status": "True"}]));
    assert_eq!(
        tested::updated(&Definition, &established, &cluster),
        "spec.scope: Invalid value: \"Cluster\": field is immutable"
    );
}

#[test]
fn protected_groups() {
    let of = |approval: Option<&str>| {
        let mut object = definition();
        set(&mut object, "spec.group", "x.k8s.io");
        set(&mut object, "metadata.name", "widgets.x.k8s.io");
        if let Some(approval) = approval {
            object["metadata"]["annotations"] = json!({"api-approved.kubernetes.io": approval});
        }
        set(&mut object, "status.storedVersions", json!(["v1"]));
        object
    };
    for approval in ["https://github.com/x/y/pull/1", "unapproved, for tests"] {
        assert_eq!(tested::created(&Definition, &of(Some(approval))), "[]");
    }
    let missing = tested::created(&Definition, &of(None));
    assert!(
        missing.starts_with("metadata.annotations[api-approved.kubernetes.io]: Required value: protected groups"),
        "{missing}"
    );
    assert!(tested::created(&Definition, &of(Some("http"))).contains("either a URL or a reason"));
    // One that is stored without approval may stay so.
    assert_eq!(tested::updated(&Definition, &of(None), &of(None)), "[]");
}

#[test]
fn conversions_are_named_as_upstream_keeps_them() {
    let webhook = |bundle: &str, versions: Value| json!({"strategy": "Webhook", "webhook": {"conversionReviewVersions": versions, "clientConfig": {"url": "https://e.com/x", "caBundle": bundle}}});
    let mut established = definition();
    established["status"]["conditions"] = json!([{"type": "Established", "status": "True"}]);
    let mut unusable = established.clone();
    unusable["spec"]["conversion"] = webhook("Cg==", json!(["v7"]));
    let pem = |text: &str| BASE64_STANDARD.encode(text);
    let invalid = |bundle: &str, why: &str| {
        format!(
            "spec.conversion.webhookClientConfig.caBundle: Invalid value: {bundle:?}: unable to load root certificates: {why}"
        )
    };
    let (key, broken) = (
        pem("-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n"),
        pem("-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"),
    );
    for (old, conversion, expected) in [
        (None, webhook("Cg==", json!(["v1"])), "[]".to_owned()),
        (Some(&established), webhook("Cg==", json!(["v1"])), invalid("Cg==", "unable to parse bytes as PEM block")),
        (Some(&established), webhook(&key, json!(["v1"])), invalid(&key, "no valid certificate authority data seen")),
        (
            Some(&established),
            webhook(&broken, json!(["v1"])),
            invalid(&broken, "failed to parse certificate: x509: malformed certificate"),
        ),
        (Some(&unusable), webhook("Cg==", json!(["v8"])), "[]".to_owned()),
        (
            Some(&established),
            webhook("", json!(["v8", "v8", "-"])),
            "[spec.conversion.conversionReviewVersions[1]: Invalid value: \"v8\": duplicate version, \
             spec.conversion.conversionReviewVersions[2]: Invalid value: \"-\": a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?'), \
             spec.conversion.conversionReviewVersions: Invalid value: [\"v8\",\"v8\",\"-\"]: must include at least one of v1, v1beta1]".to_owned(),
        ),
        (
            None,
            json!({"strategy": "None", "webhook": {"clientConfig": {"url": "https://e.com"}, "conversionReviewVersions": ["v1"]}}),
            "[spec.conversion.webhookClientConfig: Forbidden: should not be set when strategy is not set to Webhook, \
             spec.conversion.conversionReviewVersions: Forbidden: should not be set when strategy is not set to Webhook]".to_owned(),
        ),
        (None, json!({"strategy": ""}), "spec.conversion.strategy: Required value".to_owned()),
    ] {
        let mut object = definition();
        object["spec"]["conversion"] = conversion;
        let errors = validate_spec(&object, old);
        assert_eq!(join(&errors), expected, "{}", object["spec"]["conversion"]);
    }
}

//! Targets of fuzzing: each takes any bytes, as a client might send them, and must return.
//!
//! The tests here run every target on random bytes and on changed copies of sound ones; the crate
//! in `fuzz/` runs the same targets under libFuzzer for as long as one likes.

use api::selector::Selector;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::cel;
use crate::patch;
use crate::resource::GroupVersionKind;
use crate::schema::{self, ContentType};

/// Name, function, and inputs that get far into it.
pub type Target = (&'static str, fn(&[u8]), &'static [&'static str]);

pub const TARGETS: &[Target] = &[
    ("json", json_body, &[POD]),
    (
        "yaml",
        yaml_body,
        &["a: &x [1, 2]\nb: [*x, *x]\n", "metadata: {name: a}\nspec:\n  containers:\n  - name: a\n    image: b\n"],
    ),
    ("protobuf", protobuf_body, &["k8s\0\n\u{9}\n\u{2}v1\u{12}\u{3}Pod\u{12}\u{8}\n\u{6}\n\u{1}a\u{12}\u{1}b"]),
    (
        "json_patch",
        json_patch,
        &[r#"[{"op":"copy","from":"/spec","path":"/spec/template"},{"op":"test","path":"/kind","value":"Pod"}]"#],
    ),
    ("merge_patch", merge_patch, &[r#"{"metadata":{"labels":{"a":null}},"spec":{"containers":[]}}"#]),
    (
        "strategic_patch",
        strategic_patch,
        &[
            r#"{"spec":{"containers":[{"name":"a","$patch":"delete"}],"$setElementOrder/containers":[{"name":"a"}],"$retainKeys":["volumes"]}}"#,
        ],
    ),
    ("apply", apply, &[POD]),
    (
        "cel",
        expression,
        &[
            "object.spec.replicas <= 5 && object.l.all(k, v, v.matches('^a+$')) ? [1, 2].map(x, x + 1)[0] : quantity('1Gi').asInteger()",
        ],
    ),
    ("selectors", selectors, &["a=b,c!=d,e in (f,g),!h", "metadata.name=a,spec.nodeName!=b"]),
    ("json_path", json_path, &[".a.b[0]['c.d'][?(@.x==\"y\")].z", "{.a[*].b}"]),
    ("quantity", quantity, &["1.5e3", "128Mi", "-0.1n"]),
    ("stored", stored, &[POD]),
];

const POD: &str = r#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"a","namespace":"b","labels":{"x":"y"}},"spec":{"containers":[{"name":"a","image":"b","ports":[{"containerPort":80}],"resources":{"limits":{"cpu":"1500m"}}}]}}"#;

fn pod_kind() -> GroupVersionKind {
    GroupVersionKind::new("", "v1", "Pod")
}

fn pod() -> Value {
    serde_json::from_str(POD).unwrap_or_default()
}

fn document(data: &[u8]) -> Option<Value> {
    schema::parse(data, ContentType::Json).ok().map(|parsed| parsed.value)
}

fn normalized(mut value: Value) {
    if let Some(schema) = schema::lookup(&pod_kind()) {
        let _ = schema::normalize(&schema, &mut value, &pod_kind());
    }
}

fn json_body(data: &[u8]) {
    if let Some(value) = document(data) {
        normalized(value);
    }
}

fn yaml_body(data: &[u8]) {
    if let Ok(parsed) = schema::parse(data, ContentType::Yaml) {
        normalized(parsed.value);
    }
}

fn protobuf_body(data: &[u8]) {
    if let Ok(value) = crate::protobuf::decode(data) {
        normalized(value);
    }
}

fn json_patch(data: &[u8]) {
    if let Some(patch) = document(data)
        && let Ok(patched) = patch::json(&pod(), &patch)
    {
        normalized(patched);
    }
}

fn merge_patch(data: &[u8]) {
    if let Some(patch) = document(data)
        && let Ok(patched) = patch::merge(&pod(), &patch)
    {
        normalized(patched);
    }
}

fn strategic_patch(data: &[u8]) {
    if let (Some(patch), Some(schema)) = (document(data), schema::lookup(&pod_kind()))
        && let Ok(patched) = patch::strategic(&schema, &pod(), &patch)
    {
        normalized(patched);
    }
}

fn apply(data: &[u8]) {
    let (Some(config), Some(schema)) = (document(data), schema::lookup(&pod_kind())) else { return };
    let versions = patch::apply::versions::Only::of(&pod(), schema);
    let apply = |live: &serde_json::Value, config: &serde_json::Value, manager, force| {
        let write = patch::apply::Write {
            versions: &versions,
            version: &versions.version,
            manager,
            subresource: "",
            ownable: crate::resource::Ownable::AllBut(&[&["status"]]),
            now: Timestamp::UNIX_EPOCH,
        };
        futures::executor::block_on(patch::apply::apply(&write, Some(live), config, force))
    };
    let Ok(first) = apply(&pod(), &config, "a", true) else { return };
    let _ = apply(&first, &pod(), "b", false);
}

fn expression(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let object = cel::from_json(&json!({"spec": {"replicas": 3}, "l": {"a": "b"}}));
    if let Ok(program) = cel::compile(text) {
        let _ = program.evaluate(&[("object", object)]);
    }
    let _ = cel::compile_checked(text, &[("object", cel::decl::Decl::dynamic())]);
}

fn selectors(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for parsed in [Selector::parse_labels(text), Selector::parse_fields(text)].into_iter().flatten() {
        let _ = parsed.matches_json(pod()["metadata"].get("labels"));
    }
}

fn json_path(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = crate::crd::jsonpath::find(&pod(), text);
    }
}

fn quantity(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = text.parse::<api::quantity::Quantity>().map(|quantity| quantity.to_string());
    }
}

/// What another server may have written into a shared store.
fn stored(data: &[u8]) {
    let descriptor = crate::resource::Descriptor::new("", "v1", "Pod", "pods");
    let parts = crate::cache::item::parts(&descriptor);
    if let Ok(item) = crate::cache::item::Item::new(&descriptor, &parts, "b/a".into(), data, 7) {
        let _ = (item.metadata(), item.decode(), item.bytes_at(8));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A seed with a part of it changed, doubled, or cut out.
    fn changed(seed: &[u8], at: usize, length: usize, how: u8, bytes: &[u8]) -> Vec<u8> {
        let from = at % (seed.len() + 1);
        let to = (from + length).min(seed.len());
        let mut out = seed[..from].to_vec();
        match how % 4 {
            0 => out.extend_from_slice(bytes),
            1 => out.extend(seed[from..to].repeat(bytes.len().min(20))),
            2 => {}
            _ => out
                .extend(seed[from..to].iter().zip(bytes.iter().chain(std::iter::repeat(&0))).map(|(a, b)| a ^ (b & 3))),
        }
        out.extend_from_slice(&seed[to..]);
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn every_decoder_takes_whatever_it_gets(
            random in prop::collection::vec(any::<u8>(), 0..200),
            at in any::<usize>(), length in 0..40_usize, how in any::<u8>(),
        ) {
            for (_, target, seeds) in TARGETS {
                target(&random);
                for seed in *seeds {
                    target(&changed(seed.as_bytes(), at, length, how, &random));
                }
            }
        }
    }

    #[test]
    fn deep_nesting_is_refused_by_every_decoder() {
        for (open, close) in
            [("[", "]"), ("{\"a\":", "}"), ("(", ")"), ("{1:", "}"), ("- ", ""), ("a: {", "}"), ("!", ""), ("-", "")]
        {
            for times in [130, 5_000, 100_000] {
                let text = format!("{}1{}", open.repeat(times), close.repeat(times));
                TARGETS.iter().for_each(|(_, target, _)| target(text.as_bytes()));
            }
        }
        let aliases: String = (1..40).map(|n| format!("a{n}: &a{n} [*a{0}, *a{0}]\n", n - 1)).collect();
        yaml_body(format!("a0: &a0 [x, x]\n{aliases}").as_bytes());
    }
}

//! JSONPath as printer columns use it: client-go's grammar, with what definitions in the world have
//! come to rely on. `['a.b']` means the members `a` and then `b`, as `.a.b` does, and `['a\.b']` one
//! member; `[]` is the first element; the first result is shown, and nothing where Go would fail.
//!
//! Layer: below `crd::resource`, which makes cells of what is found. [`parse`] reads a path,
//! [`evaluate`] follows it. Pure.
//!
//! Upstream: `k8s.io/client-go/util/jsonpath`.

mod evaluate;
mod parse;

use serde_json::Value;

/// A path: each step is applied to all that the one before it found.
type Path = Vec<Step>;

#[derive(Debug, Clone, PartialEq)]
enum Step {
    Member(String),
    /// Every member of objects, every element of lists.
    All,
    /// Elements of a list.
    Slice(Slice),
    /// Each object and list from here down.
    Descend,
    /// What any of these paths finds.
    Union(Vec<Path>),
    /// Elements of a list that pass.
    Where(Filter),
}

/// `[from:to:step]`; negative numbers count from the end.
#[derive(Debug, Clone, PartialEq)]
struct Slice {
    from: Option<i64>,
    to: Option<i64>,
    step: Option<i64>,
    /// One index was given, and `to` is the next.
    single: bool,
}

#[derive(Debug, Clone, PartialEq)]
struct Filter {
    left: Operand,
    /// Operator and right side; none: an element passes that has something on the left.
    test: Option<(String, Operand)>,
}

#[derive(Debug, Clone, PartialEq)]
enum Operand {
    /// Below the element that is looked at.
    Path(Path),
    Literal(Value),
}

/// Whether it is a path; Kubernetes shows no column from the first on whose path is none.
pub fn is_path(text: &str) -> bool {
    parse::path(text).is_some()
}

/// The first value that `path` finds in `object`.
pub fn find<'a>(object: &'a Value, path: &str) -> Option<&'a Value> {
    evaluate::walk(&parse::path(path)?, vec![object])?.first().copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object() -> Value {
        json!({"spec": {"replicas": 3, "hosts": ["a", "b"], "none": null, "rules": [{"match": {"port": 80}}]},
        "metadata": {"labels": {"a.b/c": "x", "a": {"b/c": "y"}}},
        "status": {"empty": [], "conditions": [
            {"type": "Ready", "status": "True", "count": 1, "reason": "a) ok"},
            {"type": "Other", "status": "False", "count": 2},
        ]}})
    }

    #[test]
    fn paths_of_printer_columns() {
        let object = object();
        for (path, found) in [
            (".spec.replicas", json!(3)),
            ("$.spec.replicas", json!(3)),
            (".spec.none", json!(null)),
            (".spec.hosts[1]", json!("b")),
            (".spec.hosts[-1]", json!("b")),
            (".spec.hosts[-1:]", json!("b")),
            (".spec.hosts[:1]", json!("a")),
            (".spec.hosts[1:]", json!("b")),
            (".spec.hosts[0:2:2]", json!("a")),
            (".spec.hosts[1,0]", json!("b")),
            (".spec.hosts[*]", json!("a")),
            (".spec.hosts.*", json!("a")),
            (".spec.hosts[]", json!("a")),
            (".spec.rules[].match.port", json!(80)),
            (".spec['hosts'][0]", json!("a")),
            (".spec['none','replicas']", json!(null)),
            (".spec..port", json!(80)),
            (".status.conditions[?(@.type==\"Other\")].status", json!("False")),
            (".status.conditions[?(@.type=='Ready')].status", json!("True")),
            (".status.conditions[?(@.type == 'Other')].status", json!("False")),
            (".status.conditions[?(@.type!='Ready')].status", json!("False")),
            (".status.conditions[?(@.count>1)].type", json!("Other")),
            (".status.conditions[?(@.count<=1)].type", json!("Ready")),
            (".status.conditions[?(@.reason)].type", json!("Ready")),
            (".status.conditions[?(@.reason==\"a) ok\")].type", json!("Ready")),
            (".status.conditions[?(@.type=='Ready')].reason", json!("a) ok")),
            (".metadata.labels.a\\.b/c", json!("x")),
            (".metadata.labels['a\\.b/c']", json!("x")),
            // A quoted name is read like one behind a dot.
            (".metadata.labels['a.b/c']", json!("y")),
        ] {
            assert_eq!(find(&object, path), Some(&found), "{path}");
        }
    }

    #[test]
    fn nothing_is_found_where_go_fails() {
        let object = object();
        for path in [
            ".none.more",
            ".spec.hosts.[0]",
            ".spec.hosts[9]",
            ".spec.hosts[2:1]",
            ".spec.hosts[0:2:0]",
            ".spec.replicas[0]",
            ".spec.replicas[?(@.a=='b')]",
            ".status.empty[*]",
            ".status.empty[0]",
            // Other types cannot be compared, a word without quotes is none of them.
            ".status.conditions[?(@.count=='1')].type",
            ".status.conditions[?(@.count>1.5)].type",
            ".status.conditions[?(@.type==Ready)].status",
            ".status.conditions[?(@.type=\"Ready\")].status",
            ".status.conditions[?(@.x)]",
        ] {
            assert_eq!(find(&object, path), None, "{path}");
        }
    }

    #[test]
    fn some_texts_are_no_paths() {
        for path in [".", ".a", ".a[0]", ".a[?(@.b)]", ".a['b', 'c']", ".a[?(@.b==true)]", ".a[?(@.b=c)]"] {
            assert!(is_path(path), "{path}");
        }
        for path in [".a[", ".a[\"b\"]", ".a[b]", ".a[?(@.b]", ".a[?(@.b) ]", ".....", ".a[?(@.b=='c)]", ".a}"] {
            assert!(!is_path(path), "{path}");
        }
    }
}

//! Reads `schema/kubernetes.txt` (its head explains the format) and writes inline fields out.

use std::collections::BTreeMap;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    Single,
    List,
    Map,
}

#[derive(Clone)]
pub struct Field {
    pub name: String,
    pub number: u16,
    /// Numbers of the nested protobuf messages this field sits in, outermost first; 0 for none.
    pub via: [u8; 2],
    pub pointer: bool,
    pub shape: Shape,
    pub base: String,
    pub flags: Vec<String>,
}

pub struct Type {
    /// As in OpenAPI: `io.k8s.api.core.v1.Pod`.
    pub name: String,
    pub object: bool,
    pub atomic: bool,
    pub body: Body,
}

pub enum Body {
    Struct(Vec<Field>),
    Named { to: Field, message: bool, values: Vec<String> },
}

/// Types by their short name (`core/v1.Pod`).
pub type Types = BTreeMap<String, Type>;

pub fn parse(text: &str) -> Result<Types, String> {
    let mut types = Types::new();
    let mut current = String::new();
    for (index, line) in text.lines().enumerate() {
        if line.starts_with('#') || line.trim().is_empty() {
            continue;
        }
        let fail = |what: &str| format!("schema/kubernetes.txt:{}: {what}: {line}", index + 1);
        let mut words = line.split_ascii_whitespace();
        let mut word = || words.next();
        if line.starts_with("  ") {
            let name = word().ok_or_else(|| fail("no name"))?;
            let number = word().and_then(|n| n.parse().ok()).ok_or_else(|| fail("no number"))?;
            let kind = word().ok_or_else(|| fail("no type"))?;
            let field = field(name, number, kind, words.map(str::to_owned).collect());
            match types.get_mut(&current).map(|t| &mut t.body) {
                Some(Body::Struct(fields)) => fields.push(field),
                _ => return Err(fail("a field outside a struct")),
            }
            continue;
        }
        let keyword = word();
        current = word().ok_or_else(|| fail("no type name"))?.to_owned();
        let body = match keyword {
            Some("struct") => Body::Struct(Vec::new()),
            Some("named") => {
                let to = field("", 0, word().ok_or_else(|| fail("no type"))?, Vec::new());
                Body::Named { to, message: false, values: Vec::new() }
            }
            _ => return Err(fail("neither struct nor named")),
        };
        let mut parsed = Type { name: openapi_name(&current), object: false, atomic: false, body };
        for flag in words {
            match (flag, &mut parsed.body) {
                ("object", _) => parsed.object = true,
                ("atomic", _) => parsed.atomic = true,
                ("message", Body::Named { message, .. }) => *message = true,
                (flag, Body::Named { values, .. }) if flag.starts_with("enum=") => {
                    values.extend(flag[5..].split(',').filter(|v| !v.is_empty()).map(|v| v.replace('~', " ")));
                }
                _ => return Err(fail("unknown flag")),
            }
        }
        types.insert(current.clone(), parsed);
    }
    flatten_all(&mut types)?;
    Ok(types)
}

fn field(name: &str, number: u16, kind: &str, flags: Vec<String>) -> Field {
    let pointer = kind.starts_with('*');
    let kind = kind.trim_start_matches('*');
    let (shape, base) = match (kind.strip_prefix("[]"), kind.strip_prefix("{}")) {
        (Some(base), _) => (Shape::List, base),
        (_, Some(base)) => (Shape::Map, base),
        _ => (Shape::Single, kind),
    };
    Field { name: name.to_owned(), number, via: [0, 0], pointer, shape, base: base.to_owned(), flags }
}

fn openapi_name(short: &str) -> String {
    let (package, name) = short.split_once('.').unwrap_or(("", short));
    let prefix = match package {
        "meta/v1" => "io.k8s.apimachinery.pkg.apis.meta.v1".to_owned(),
        "apiextensions/v1" => "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1".to_owned(),
        "apiregistration/v1" => "io.k8s.kube-aggregator.pkg.apis.apiregistration.v1".to_owned(),
        other => format!("io.k8s.api.{}", other.replace('/', ".")),
    };
    format!("{prefix}.{name}")
}

/// Replaces inline fields by the fields of their type.
fn flatten_all(types: &mut Types) -> Result<(), String> {
    let mut flat = Vec::new();
    for (name, kind) in types.iter() {
        if let Body::Struct(_) = kind.body {
            flat.push((name.clone(), flatten(types, name, [0, 0], 0)?));
        }
    }
    for (name, fields) in flat {
        if let Some(entry) = types.get_mut(&name) {
            entry.body = Body::Struct(fields);
        }
    }
    Ok(())
}

fn flatten(types: &Types, name: &str, via: [u8; 2], depth: usize) -> Result<Vec<Field>, String> {
    let Some(Body::Struct(fields)) = types.get(name).map(|t| &t.body) else {
        return Err(format!("{name} is inlined but is no struct"));
    };
    let mut flat = Vec::new();
    for field in fields {
        if !field.flags.iter().any(|flag| flag == "inline") {
            flat.push(Field { via, ..field.clone() });
            continue;
        }
        if depth >= 2 {
            return Err(format!("{name}: inlined more than twice"));
        }
        let mut deeper = via;
        deeper[depth] = u8::try_from(field.number).map_err(|_| format!("{name}: number too large"))?;
        flat.extend(flatten(types, &field.base, deeper, depth + 1)?);
    }
    Ok(flat)
}

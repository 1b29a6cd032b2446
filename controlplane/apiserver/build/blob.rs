//! Writes the table in the layout that `src/schema/table.rs` reads.
//!
//! ```text
//! header   magic "SKT2", number of types u32, number of fields u32, reserved u32
//! types    16 bytes: name u32, first field u32, fields u16, flags u16, reserved u32; sorted by name
//! fields   20 bytes: name u32, base u16, shape u8, via u8 u8, pad u8, number u16, flags u32, extra u32
//! ```
//! Strings lie in a file of their own, `strings.txt`, end to end; where one is named, the upper 24 bits
//! say where it begins, the lower 8 how long it is.
//!
//! A named type's first field is what it stands for; the others are the values it allows.
//! `descriptions.bin` holds, zlib-deflated, for each type its own text and then its fields', each
//! ended by a NUL.

use std::collections::HashMap;
use std::io::Write;

use crate::describe::Descriptions;
use crate::facts::{Body, Field, Shape, Type, Types};

const SCALARS: [&str; 17] = [
    "string",
    "bool",
    "int32",
    "int64",
    "float64",
    "bytes",
    "quantity",
    "intorstring",
    "time",
    "microtime",
    "duration",
    "fieldsv1",
    "raw",
    "json",
    "schemaorbool",
    "schemaorarray",
    "schemaorstrings",
];
const SCALAR_BASE: u16 = 0xff00;

/// Bits of a type's flags.
mod type_flag {
    pub const OBJECT: u16 = 1;
    pub const ATOMIC: u16 = 2;
    pub const NAMED: u16 = 4;
    pub const MESSAGE: u16 = 8;
}

#[derive(Default)]
struct Strings {
    text: String,
    known: HashMap<String, u32>,
}

impl Strings {
    fn add(&mut self, text: &str) -> Result<u32, String> {
        if let Some(at) = self.known.get(text) {
            return Ok(*at);
        }
        let length = u8::try_from(text.len()).map_err(|_| format!("{text:?} is longer than 255 bytes"))?;
        let start = u32::try_from(self.text.len()).ok().filter(|start| *start < 1 << 24);
        let at = start.ok_or("there are more than 16 MiB of strings")? << 8 | u32::from(length);
        self.text.push_str(text);
        self.known.insert(text.to_owned(), at);
        Ok(at)
    }
}

/// What the embedded files hold.
pub struct Encoded {
    pub table: Vec<u8>,
    pub strings: String,
    pub descriptions: Vec<u8>,
}

pub fn encode(types: &Types, descriptions: &Descriptions) -> Result<Encoded, String> {
    let mut sorted: Vec<(&String, &Type)> = types.iter().collect();
    sorted.sort_by(|a, b| a.1.name.cmp(&b.1.name));
    let index: HashMap<&str, u16> = sorted.iter().zip(0..).map(|((short, _), i)| (short.as_str(), i)).collect();
    let mut strings = Strings::default();
    strings.add("")?;
    let (mut records, mut fields, mut texts) = (Vec::new(), Vec::new(), Vec::new());
    for (_, kind) in &sorted {
        let members = members(kind);
        let mut flags = 0;
        flags |= if kind.object { type_flag::OBJECT } else { 0 };
        flags |= if kind.atomic { type_flag::ATOMIC } else { 0 };
        if let Body::Named { message, .. } = kind.body {
            flags |= type_flag::NAMED | if message { type_flag::MESSAGE } else { 0 };
        }
        records.extend(strings.add(&kind.name)?.to_le_bytes());
        records.extend(((fields.len() / 20) as u32).to_le_bytes());
        records.extend((members.len() as u16).to_le_bytes());
        records.extend(flags.to_le_bytes());
        records.extend([0; 4]);
        describe(&mut texts, descriptions, &kind.name, "");
        for member in &members {
            field_record(&mut fields, member, &index, &mut strings)?;
            describe(&mut texts, descriptions, &kind.name, &member.name);
        }
    }
    let mut table = b"SKT2".to_vec();
    for count in [sorted.len(), fields.len() / 20, 0] {
        table.extend((count as u32).to_le_bytes());
    }
    table.extend(records);
    table.extend(fields);
    let mut deflated = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    deflated.write_all(&texts).map_err(|e| e.to_string())?;
    let descriptions = deflated.finish().map_err(|e| e.to_string())?;
    Ok(Encoded { table, strings: strings.text, descriptions })
}

/// The fields as the table holds them: a struct's by name, with apiVersion and kind.
fn members(kind: &Type) -> Vec<Field> {
    let plain = |name: &str, base: &str, flags: &[&str]| Field {
        name: name.to_owned(),
        number: 0,
        via: [0, 0],
        pointer: false,
        shape: Shape::Single,
        base: base.to_owned(),
        flags: flags.iter().map(|f| (*f).to_owned()).collect(),
    };
    match &kind.body {
        Body::Struct(fields) => {
            let mut fields = fields.clone();
            if kind.object {
                fields.extend(["apiVersion", "kind"].map(|name| plain(name, "string", &["omit"])));
            }
            fields.sort_by(|a, b| a.name.cmp(&b.name));
            fields
        }
        Body::Named { to, values, .. } => {
            let mut fields = vec![to.clone()];
            fields.extend(values.iter().map(|value| plain(value, "string", &[])));
            fields
        }
    }
}

fn field_record(
    out: &mut Vec<u8>,
    field: &Field,
    index: &HashMap<&str, u16>,
    strings: &mut Strings,
) -> Result<(), String> {
    let base = match SCALARS.iter().position(|scalar| *scalar == field.base) {
        Some(at) => SCALAR_BASE + at as u16,
        None => *index.get(field.base.as_str()).ok_or_else(|| format!("no type {} for {}", field.base, field.name))?,
    };
    let shape = match field.shape {
        Shape::Single => 0_u8,
        Shape::List => 1,
        Shape::Map => 2,
    };
    let (mut bits, mut extra) = (u32::from(field.pointer), ["", "", ""]);
    for flag in &field.flags {
        let (name, value) = flag.split_once('=').unwrap_or((flag, ""));
        bits |= match (name, value) {
            ("omit", _) => 1 << 1,
            ("zero", _) => 1 << 2,
            ("req", _) => 1 << 3,
            ("list", "atomic") => 1 << 4,
            ("list", "set") => 1 << 5,
            ("list", keys) => {
                extra[0] = keys.strip_prefix("map:").ok_or_else(|| format!("list type {keys}"))?;
                1 << 6
            }
            ("map" | "struct", "atomic") => 1 << 7,
            ("struct" | "map", "granular") => 1 << 8,
            ("patch", "replace") => 1 << 12,
            ("patch", value) => {
                let (strategies, key) = value.split_once(':').unwrap_or((value, ""));
                extra[1] = key;
                strategies.split(',').fold(0, |bits, s| bits | if s == "merge" { 1 << 9 } else { 1 << 10 })
            }
            ("default", value) => {
                extra[2] = value;
                1 << 11
            }
            other => return Err(format!("flag {other:?} of {}", field.name)),
        };
    }
    out.extend(strings.add(&field.name)?.to_le_bytes());
    out.extend(base.to_le_bytes());
    out.extend([shape, field.via[0], field.via[1], 0]);
    out.extend(field.number.to_le_bytes());
    out.extend(bits.to_le_bytes());
    let extra = if extra == ["", "", ""] { String::new() } else { extra.join("\u{1}") };
    out.extend(strings.add(&extra)?.to_le_bytes());
    Ok(())
}

fn describe(texts: &mut Vec<u8>, descriptions: &Descriptions, kind: &str, property: &str) {
    let known = descriptions.get(&(kind.to_owned(), property.to_owned())).cloned();
    let text = known.unwrap_or_else(|| standard_text(kind, property, descriptions));
    texts.extend(text.bytes().filter(|b| *b != 0));
    texts.push(0);
}

/// What the types crate has no text for: lists and the fields which all objects share.
fn standard_text(kind: &str, property: &str, descriptions: &Descriptions) -> String {
    let shared = |property: &str| {
        let pod = ("io.k8s.api.core.v1.Pod".to_owned(), property.to_owned());
        descriptions.get(&pod).cloned().unwrap_or_default()
    };
    let item = kind.rsplit('.').next().and_then(|name| name.strip_suffix("List"));
    match (property, item) {
        ("apiVersion" | "kind", _) => shared(property),
        ("", Some(item)) => format!("{item}List is a list of {item} objects."),
        ("items", Some(item)) => format!("items is the list of {item} objects."),
        ("metadata", Some(_)) => "Standard list metadata. More info: \
            https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds"
            .to_owned(),
        _ => String::new(),
    }
}

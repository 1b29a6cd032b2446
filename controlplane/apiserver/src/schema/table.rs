//! The embedded table of built-in types: read in place, nothing is unpacked or allocated.
//!
//! `build/blob.rs` writes it and documents the layout. [`TypeId`] names a type, [`Field`] a field
//! of one, [`Element`] what a value at one place is: a shape (single, list, map) of a [`Base`].

use std::cmp::Ordering;
use std::io::Read;

static TABLE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/schema.bin"));
static STRINGS: &str = include_str!(concat!(env!("OUT_DIR"), "/strings.txt"));
static DESCRIPTIONS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptions.bin"));

const HEADER: usize = 16;
const TYPE_SIZE: usize = 16;
const FIELD_SIZE: usize = 20;
const SCALAR_BASE: u16 = 0xff00;

fn u16_at(at: usize) -> u16 {
    u16::from_le_bytes([TABLE[at], TABLE[at + 1]])
}

fn u32_at(at: usize) -> u32 {
    u32::from_le_bytes([TABLE[at], TABLE[at + 1], TABLE[at + 2], TABLE[at + 3]])
}

fn type_count() -> usize {
    u32_at(4) as usize
}

fn fields_start() -> usize {
    HEADER + type_count() * TYPE_SIZE
}

fn string(place: u32) -> &'static str {
    let start = place as usize >> 8;
    // The build step wrote places of whole strings.
    STRINGS.get(start..start + (place as usize & 0xff)).unwrap_or_default()
}

/// What a single value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    String,
    Bool,
    Int32,
    Int64,
    Float,
    /// Base64 in JSON.
    Bytes,
    Quantity,
    IntOrString,
    Time,
    MicroTime,
    Duration,
    FieldsV1,
    /// Any JSON object (`runtime.RawExtension`).
    Raw,
    /// Any JSON value.
    Json,
    SchemaOrBool,
    SchemaOrArray,
    SchemaOrStrings,
    Type(TypeId),
}

impl Base {
    const SCALARS: [Base; 17] = [
        Base::String,
        Base::Bool,
        Base::Int32,
        Base::Int64,
        Base::Float,
        Base::Bytes,
        Base::Quantity,
        Base::IntOrString,
        Base::Time,
        Base::MicroTime,
        Base::Duration,
        Base::FieldsV1,
        Base::Raw,
        Base::Json,
        Base::SchemaOrBool,
        Base::SchemaOrArray,
        Base::SchemaOrStrings,
    ];

    fn from_code(code: u16) -> Base {
        match code.checked_sub(SCALAR_BASE) {
            Some(scalar) => Self::SCALARS.get(scalar as usize).copied().unwrap_or(Base::Json),
            None => Base::Type(TypeId(code)),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    Single,
    List,
    Map,
}

/// A type of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TypeId(u16);

impl TypeId {
    /// By OpenAPI name, e.g. `io.k8s.api.core.v1.Pod`.
    pub fn named(name: &str) -> Option<TypeId> {
        let (mut low, mut high) = (0, type_count());
        while low < high {
            let middle = low + (high - low) / 2;
            // The table is smaller than 2^16 types.
            let candidate = TypeId(middle as u16);
            match candidate.name().cmp(name) {
                Ordering::Equal => return Some(candidate),
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
            }
        }
        None
    }

    pub fn all() -> impl Iterator<Item = TypeId> {
        (0..type_count() as u16).map(TypeId)
    }

    fn record(self) -> usize {
        HEADER + self.0 as usize * TYPE_SIZE
    }

    pub fn name(self) -> &'static str {
        string(u32_at(self.record()))
    }

    /// Without the package: `Pod`.
    pub fn kind(self) -> &'static str {
        let name = self.name();
        &name[name.rfind('.').map_or(0, |dot| dot + 1)..]
    }

    /// As Go names it in messages: `v1.Pod`.
    pub fn go_name(self) -> &'static str {
        let name = self.name();
        let dot = name.rfind('.').unwrap_or(0);
        &name[name[..dot].rfind('.').map_or(0, |dot| dot + 1)..]
    }

    fn first(self) -> usize {
        u32_at(self.record() + 4) as usize
    }

    fn count(self) -> usize {
        u16_at(self.record() + 8) as usize
    }

    fn flags(self) -> u16 {
        u16_at(self.record() + 10)
    }

    /// Carries apiVersion and kind.
    pub fn is_object(self) -> bool {
        self.flags() & 1 != 0
    }

    /// Server-side apply owns it as a whole.
    pub fn is_atomic(self) -> bool {
        self.flags() & 2 != 0
    }

    /// A protobuf message although it is a list in JSON.
    pub fn is_message(self) -> bool {
        self.flags() & 8 != 0
    }

    /// What a named type stands for; `None` for a struct.
    pub fn stands_for(self) -> Option<Element> {
        (self.flags() & 4 != 0).then(|| Field(self.first()).element())
    }

    /// The values that a named string allows; empty when it is open.
    pub fn values(self) -> impl Iterator<Item = &'static str> {
        let count = if self.flags() & 4 == 0 { 0 } else { self.count() };
        (self.first() + 1..self.first() + count.max(1)).map(|at| Field(at).name())
    }

    /// A struct's fields, by name.
    pub fn fields(self) -> impl Iterator<Item = Field> + Clone {
        let count = if self.flags() & 4 == 0 { self.count() } else { 0 };
        (self.first()..self.first() + count).map(Field)
    }

    pub fn field(self, name: &str) -> Option<Field> {
        if self.flags() & 4 != 0 {
            return None;
        }
        let (mut low, mut high) = (self.first(), self.first() + self.count());
        while low < high {
            let middle = low + (high - low) / 2;
            match Field(middle).name().cmp(name) {
                Ordering::Equal => return Some(Field(middle)),
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
            }
        }
        None
    }
}

/// A field of a struct, as JSON has it: fields of inlined structs count as the outer struct's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field(usize);

/// How a list merges in server-side apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListType {
    Atomic,
    Set,
    /// By these keys, comma-separated.
    Map(&'static str),
}

impl Field {
    fn record(self) -> usize {
        fields_start() + self.0 * FIELD_SIZE
    }

    pub fn name(self) -> &'static str {
        string(u32_at(self.record()))
    }

    pub fn element(self) -> Element {
        let at = self.record();
        let shape = match TABLE[at + 6] {
            0 => Shape::Single,
            1 => Shape::List,
            _ => Shape::Map,
        };
        Element { base: Base::from_code(u16_at(at + 4)), shape, field: Some(self) }
    }

    /// Numbers of the nested protobuf messages it sits in, outermost first; 0 for none.
    pub fn via(self) -> [u8; 2] {
        let at = self.record();
        [TABLE[at + 7], TABLE[at + 8]]
    }

    /// Protobuf field number; 0 when the field has no protobuf form.
    pub fn number(self) -> u16 {
        u16_at(self.record() + 10)
    }

    fn bit(self, bit: u32) -> bool {
        u32_at(self.record() + 12) & (1 << bit) != 0
    }

    fn extra(self, index: usize) -> &'static str {
        string(u32_at(self.record() + 16)).split('\u{1}').nth(index).unwrap_or_default()
    }

    /// Go has a pointer: absent differs from empty.
    pub fn is_pointer(self) -> bool {
        self.bit(0)
    }

    pub fn omit_empty(self) -> bool {
        self.bit(1)
    }

    pub fn omit_zero(self) -> bool {
        self.bit(2)
    }

    pub fn is_required(self) -> bool {
        self.bit(3)
    }

    pub fn list_type(self) -> Option<ListType> {
        match (self.bit(4), self.bit(5), self.bit(6)) {
            (true, ..) => Some(ListType::Atomic),
            (_, true, _) => Some(ListType::Set),
            (.., true) => Some(ListType::Map(self.extra(0))),
            _ => None,
        }
    }

    pub fn is_atomic(self) -> bool {
        self.bit(7)
    }

    pub fn is_granular(self) -> bool {
        self.bit(8)
    }

    /// Strategic merge patch merges this list (by [`Field::patch_merge_key`] if it has objects).
    pub fn patch_merges(self) -> bool {
        self.bit(9)
    }

    /// Strategic merge patch replaces this object as a whole.
    pub fn patch_replaces(self) -> bool {
        self.bit(12)
    }

    pub fn patch_retains_keys(self) -> bool {
        self.bit(10)
    }

    pub fn patch_merge_key(self) -> Option<&'static str> {
        Some(self.extra(1)).filter(|key| !key.is_empty())
    }

    /// JSON of the declared default.
    pub fn default_json(self) -> Option<&'static str> {
        self.bit(11).then(|| self.extra(2))
    }
}

/// What a value at one place is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Element {
    pub base: Base,
    pub shape: Shape,
    /// The field it was reached by, whose flags say how it merges.
    pub field: Option<Field>,
}

impl Element {
    pub fn of_type(id: TypeId) -> Element {
        Element { base: Base::Type(id), shape: Shape::Single, field: None }
    }

    /// Replaces a named type by what it stands for.
    pub fn resolved(self) -> Element {
        match (self.shape, self.base) {
            (Shape::Single, Base::Type(id)) => match id.stands_for() {
                Some(target) => Element { field: self.field, ..target }.resolved(),
                None => self,
            },
            _ => self,
        }
    }

    /// The named type it is written with in Go, for messages.
    pub fn named(self) -> Option<TypeId> {
        match self.base {
            Base::Type(id) => Some(id),
            _ => None,
        }
    }

    /// One item of a list or value of a map.
    pub fn item(self) -> Element {
        Element { base: self.base, shape: Shape::Single, field: None }
    }

    /// The struct it is, if it is one.
    pub fn structure(self) -> Option<TypeId> {
        match (self.shape, self.base) {
            (Shape::Single, Base::Type(id)) if id.stands_for().is_none() => Some(id),
            _ => None,
        }
    }
}

/// All descriptions, unpacked; in the order of the table. Hold it only while needed (half a MiB).
pub struct Descriptions {
    text: String,
    /// Where each type's texts start.
    starts: Vec<u32>,
}

impl Descriptions {
    pub fn unpack() -> Descriptions {
        let mut bytes = Vec::new();
        // The build step deflated it; a short read only loses texts.
        let _ = flate2::read::ZlibDecoder::new(DESCRIPTIONS).read_to_end(&mut bytes);
        let text = String::from_utf8(bytes).unwrap_or_default();
        let mut ends = text.bytes().enumerate().filter(|(_, b)| *b == 0).map(|(at, _)| at as u32 + 1);
        let mut starts = Vec::with_capacity(type_count());
        let mut next = 0;
        for id in TypeId::all() {
            starts.push(next);
            next = ends.nth(id.count()).unwrap_or(text.len() as u32);
        }
        Descriptions { text, starts }
    }

    /// The type's own text, then its fields' in the order of [`TypeId::fields`].
    pub fn of(&self, id: TypeId) -> impl Iterator<Item = &str> {
        let start = self.starts.get(id.0 as usize).copied().unwrap_or_default() as usize;
        self.text[start..].split('\0').take(1 + id.count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_found_by_name() {
        let pod = TypeId::named("io.k8s.api.core.v1.Pod").unwrap();
        assert_eq!((pod.kind(), pod.go_name(), pod.is_object()), ("Pod", "v1.Pod", true));
        assert!(TypeId::named("io.k8s.api.core.v1.Nothing").is_none());
        for id in TypeId::all() {
            assert_eq!(TypeId::named(id.name()), Some(id));
            let names: Vec<_> = id.fields().map(Field::name).collect();
            assert!(names.is_sorted(), "{}", id.name());
            assert!(names.iter().all(|name| id.field(name).is_some()), "{}", id.name());
        }
    }

    /// Fields that came late in a release are lost on the way to the store when the table has not heard of them.
    #[test]
    fn fields_of_the_last_days_before_a_release_are_known() {
        for (name, field) in [
            ("io.k8s.api.core.v1.NodeSystemInfo", "runningInUserNamespace"),
            ("io.k8s.api.resource.v1.DeviceCounterConsumption", "compatibilityGroups"),
            ("io.k8s.api.resource.v1.DeviceSubRequest", "derivedAttributes"),
            ("io.k8s.api.resource.v1.ExactDeviceRequest", "derivedAttributes"),
            ("io.k8s.api.resource.v1.DeviceDerivedAttribute", "expression"),
        ] {
            assert!(TypeId::named(name).unwrap().field(field).is_some(), "{name}.{field}");
        }
    }

    #[test]
    fn fields_carry_their_facts() {
        let spec = TypeId::named("io.k8s.api.core.v1.PodSpec").unwrap();
        let volumes = spec.field("volumes").unwrap();
        assert_eq!((volumes.number(), volumes.list_type()), (1, Some(ListType::Map("name"))));
        assert!(volumes.patch_merges() && volumes.patch_retains_keys() && volumes.omit_empty());
        assert_eq!(volumes.patch_merge_key(), Some("name"));
        let volume = TypeId::named("io.k8s.api.core.v1.Volume").unwrap();
        let secret = volume.field("secret").unwrap();
        assert_eq!((secret.via(), secret.number()), ([2, 0], 6));
        let port = TypeId::named("io.k8s.api.core.v1.ContainerPort").unwrap().field("protocol").unwrap();
        assert_eq!(port.default_json(), Some("\"TCP\""));
        let protocol = port.element().named().unwrap();
        assert_eq!(protocol.values().collect::<Vec<_>>(), ["SCTP", "TCP", "UDP"]);
        let rules = TypeId::named("io.k8s.api.admissionregistration.v1.NamedRuleWithOperations").unwrap();
        assert_eq!(rules.field("apiGroups").unwrap().via(), [2, 2]);
    }

    #[test]
    fn descriptions_line_up_with_the_table() {
        let texts = Descriptions::unpack();
        let pod = TypeId::named("io.k8s.api.core.v1.Pod").unwrap();
        let all: Vec<_> = texts.of(pod).collect();
        assert!(all[0].starts_with("Pod is a collection of containers"), "{}", all[0]);
        let spec = pod.fields().position(|field| field.name() == "spec").unwrap();
        assert!(all[spec + 1].starts_with("Specification of the desired behavior of the pod."));
        let described: usize = TypeId::all().map(|id| texts.of(id).filter(|text| !text.is_empty()).count()).sum();
        assert!(described > 2000, "only {described} descriptions");
    }
}

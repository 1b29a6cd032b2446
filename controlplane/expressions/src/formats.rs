//! Named formats (`format.dns1123Label().validate(text)`;
//! `k8s.io/apiserver/pkg/cel/library/format.go`).

use api::{formats, names};
use cel::objects::Opaque;

pub const NAMES: [&str; 13] = [
    "dns1123Label",
    "dns1123Subdomain",
    "dns1035Label",
    "qualifiedName",
    "dns1123LabelPrefix",
    "dns1123SubdomainPrefix",
    "dns1035LabelPrefix",
    "labelValue",
    "uri",
    "uuid",
    "byte",
    "date",
    "datetime",
];

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedFormat(&'static str);

impl Opaque for NamedFormat {
    fn runtime_type_name(&self) -> &str {
        "kubernetes.NamedFormat"
    }
}

impl NamedFormat {
    pub fn named(name: &str) -> Option<NamedFormat> {
        NAMES.into_iter().find(|known| *known == name).map(NamedFormat)
    }

    /// What is wrong with a text; none if it fits.
    pub fn problem(&self, text: &str) -> Option<String> {
        // A prefix may end with the dash that joins it to a generated suffix, whatever is before it.
        let mut start = text.chars();
        let masked = start.next_back() == Some('-') && start.next_back().is_some();
        let prefix = if masked { &format!("{}a", start.as_str()) } else { text };
        let first = |problems: Vec<String>| problems.into_iter().next();
        let by_format = |format: &str, why: &str| (!formats::fits(format, text)).then(|| why.to_owned());
        match self.0 {
            "dns1123Label" => first(names::dns1123_label(text)),
            "dns1123Subdomain" => first(names::dns1123_subdomain(text)),
            "dns1035Label" => first(names::dns1035_label(text)),
            "qualifiedName" => first(names::qualified_name(text)),
            "dns1123LabelPrefix" => first(names::dns1123_label(prefix)),
            "dns1123SubdomainPrefix" => first(names::dns1123_subdomain(prefix)),
            "dns1035LabelPrefix" => first(names::dns1035_label(prefix)),
            "labelValue" => first(names::label_value(text)),
            "uri" => by_format("uri", "invalid URI"),
            "uuid" => by_format("uuid", "does not match the UUID format"),
            "byte" => by_format("byte", "invalid base64"),
            "date" => by_format("date", "invalid date"),
            _ => by_format("date-time", "invalid datetime"),
        }
    }
}

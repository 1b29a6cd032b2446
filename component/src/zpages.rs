//! `/statusz` and `/flagz`: what runs here and how it was configured, as text for people or, where it is
//! asked for by name, as an object of `config.k8s.io` (`k8s.io/component-base/zpages`).

use jiff::Timestamp;
use serde_json::{Map, Value, json};

const GROUP: &str = "config.k8s.io";
const WARNING: &str = "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility guarantees and is for debugging purposes only.";

/// What a page can be had as.
pub const ACCEPTED: &[&str] = &["application/json", "application/yaml", "text/plain"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Page {
    Statusz,
    Flagz,
}

impl Page {
    pub fn name(self) -> &'static str {
        match self {
            Self::Statusz => "statusz",
            Self::Flagz => "flagz",
        }
    }

    fn kind(self) -> &'static str {
        match self {
            Self::Statusz => "Statusz",
            Self::Flagz => "Flagz",
        }
    }
}

/// How a client wants a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Text,
    Object { yaml: bool, version: &'static str },
}

impl Form {
    /// The first that the client takes; none for nothing at all. `accept` is the header.
    pub fn negotiate(accept: &str, page: Page) -> Option<Self> {
        if accept.trim().is_empty() {
            return Some(Self::Text);
        }
        accept.split(',').find_map(|clause| {
            let mut parts = clause.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default();
            let has = |wanted: &str| clause.split(';').any(|part| part.trim() == wanted);
            let converts = parts.any(|part| ["as=", "g=", "v="].iter().any(|key| part.starts_with(key)));
            let yaml = match media {
                "text/plain" | "text/*" | "*/*" if !converts => return Some(Self::Text),
                "application/json" | "application/*" | "*/*" => false,
                "application/yaml" => true,
                _ => return None,
            };
            let named = has(&format!("as={}", page.kind())) && has(&format!("g={GROUP}"));
            let version = ["v1beta1", "v1alpha1"].into_iter().find(|version| has(&format!("v={version}")));
            version.filter(|_| named).map(|version| Self::Object { yaml, version })
        })
    }

    /// The header `Warning` of a form that will go.
    pub fn warning(self, page: Page) -> Option<String> {
        matches!(self, Self::Object { version: "v1alpha1", .. }).then(|| {
            let page = page.name();
            format!("299 - \"This version of the {page} endpoint is deprecated. Please use a newer version.\"")
        })
    }
}

/// A component's state, for `/statusz`.
#[derive(Debug, Clone)]
pub struct Status {
    pub started: Timestamp,
    pub go_version: String,
    /// `major.minor`
    pub binary_version: String,
    pub emulation_version: String,
    /// What else there is to look at.
    pub paths: Vec<String>,
}

impl Status {
    fn uptime(&self) -> u64 {
        u64::try_from(Timestamp::now().duration_since(self.started).as_secs()).unwrap_or(0)
    }

    pub fn text(&self, component: &str) -> String {
        let up = self.uptime();
        let lines = format!(
            "\nStarted: {}\nUp: {} hr {:02} min {:02} sec\nGo version: {}\nBinary version: {}\nEmulation version: {}\nPaths: {}\n",
            self.started.strftime("%a %b %e %H:%M:%S UTC %Y"),
            up / 3600,
            up / 60 % 60,
            up % 60,
            self.go_version,
            self.binary_version,
            self.emulation_version,
            self.paths.join(" "),
        );
        text(component, Page::Statusz, &lines)
    }

    pub fn object(&self, component: &str, version: &str) -> Value {
        let started = Timestamp::from_second(self.started.as_second()).unwrap_or(self.started);
        let content = json!({
            "startTime": started.to_string(), "uptimeSeconds": self.uptime(), "goVersion": self.go_version,
            "binaryVersion": self.binary_version, "emulationVersion": self.emulation_version, "paths": self.paths,
        });
        object(component, Page::Statusz, version, content)
    }
}

/// A component's flags, for `/flagz`.
#[derive(Debug, Clone, Default)]
pub struct Flags(pub Map<String, Value>);

impl Flags {
    pub fn text(&self, component: &str) -> String {
        let line = |(name, value): (&String, &Value)| format!("{name}={}\n", value.as_str().unwrap_or_default());
        text(component, Page::Flagz, &self.0.iter().map(line).collect::<String>())
    }

    pub fn object(&self, component: &str, version: &str) -> Value {
        object(component, Page::Flagz, version, json!({"flags": self.0}))
    }
}

fn text(component: &str, page: Page, lines: &str) -> String {
    format!("\n{component} {}\n{WARNING}\n{lines}", page.name())
}

fn object(component: &str, page: Page, version: &str, content: Value) -> Value {
    let mut object = json!({
        "kind": page.kind(), "apiVersion": format!("{GROUP}/{version}"), "metadata": {"name": component},
    });
    if let (Some(object), Value::Object(content)) = (object.as_object_mut(), content) {
        object.extend(content);
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_for_those_who_name_them() {
        let object = |yaml, version| Some(Form::Object { yaml, version });
        for (accept, form) in [
            ("", Some(Form::Text)),
            ("*/*", Some(Form::Text)),
            ("application/json, */*", Some(Form::Text)),
            ("application/json", None),
            ("application/json;as=Statusz;g=config.k8s.io;v=v1beta1", object(false, "v1beta1")),
            ("application/yaml;v=v1alpha1;g=config.k8s.io;as=Statusz", object(true, "v1alpha1")),
            ("application/json;as=Flagz;g=config.k8s.io;v=v1beta1", None),
            ("application/vnd.kubernetes.protobuf", None),
        ] {
            assert_eq!(Form::negotiate(accept, Page::Statusz), form, "{accept}");
        }
    }

    #[test]
    fn pages_as_text() {
        let flags = Flags([("port".to_owned(), "1".into()), ("v".to_owned(), "2".into())].into_iter().collect());
        let text = flags.text("kubelet");
        assert!(text.starts_with("\nkubelet flagz\nWarning: ") && text.ends_with("\nport=1\nv=2\n"), "{text}");
        assert_eq!(flags.object("kubelet", "v1beta1")["flags"]["port"], "1");
    }
}

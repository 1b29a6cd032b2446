//! Name formats (`k8s.io/apimachinery/pkg/util/validation`): each check returns Kubernetes' own
//! message, or none when the text is well-formed.

const LABEL_FORMAT: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN_FORMAT: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL_1035_FORMAT: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const QUALIFIED_FORMAT: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE_FORMAT: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";

type Problem = Option<String>;

fn too_long(max: usize) -> String {
    format!("must be no more than {max} bytes")
}

fn lower_alnum(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

/// Starts and ends with `edge`, all of it `edge` or in `inner`.
fn shaped(text: &str, edge: fn(u8) -> bool, inner: &[u8]) -> bool {
    let bytes = text.as_bytes();
    match (bytes.first(), bytes.last()) {
        (Some(&first), Some(&last)) => {
            edge(first) && edge(last) && bytes.iter().all(|&byte| edge(byte) || inner.contains(&byte))
        }
        _ => false,
    }
}

fn is_label(text: &str) -> bool {
    shaped(text, lower_alnum, b"-")
}

fn is_qualified(text: &str) -> bool {
    shaped(text, |byte| byte.is_ascii_alphanumeric(), b"-_.")
}

/// RFC 1123 label: namespaces, containers, most names in pods.
pub fn dns1123_label(text: &str) -> Problem {
    if text.len() > 63 {
        Some(too_long(63))
    } else if !is_label(text) {
        Some(LABEL_FORMAT.to_owned())
    } else {
        None
    }
}

/// RFC 1123 subdomain: names of most objects.
pub fn dns1123_subdomain(text: &str) -> Problem {
    if text.len() > 253 {
        Some(too_long(253))
    } else if text.is_empty() || !text.split('.').all(is_label) {
        Some(SUBDOMAIN_FORMAT.to_owned())
    } else {
        None
    }
}

/// RFC 1035 label: Services.
pub fn dns1035_label(text: &str) -> Problem {
    if text.len() > 63 {
        Some(too_long(63))
    } else if !is_label(text) || !text.as_bytes()[0].is_ascii_lowercase() {
        Some(LABEL_1035_FORMAT.to_owned())
    } else {
        None
    }
}

/// Names that only have to be usable as one path segment: RBAC objects.
pub fn path_segment(text: &str) -> Problem {
    if text == "." || text == ".." {
        return Some(format!("may not be '{text}'"));
    }
    ["/", "%"].iter().find(|illegal| text.contains(**illegal)).map(|illegal| format!("may not contain '{illegal}'"))
}

/// Label and annotation keys: `prefix/name` or `name`.
pub fn qualified_name(text: &str) -> Problem {
    let (prefix, name) = match text.split_once('/') {
        None => (None, text),
        Some((_, name)) if name.contains('/') => {
            return Some(
                "a qualified name must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]') with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')".to_owned(),
);
        }
        Some((prefix, name)) => (Some(prefix), name),
    };
    if let Some(prefix) = prefix {
        if prefix.is_empty() {
            return Some("prefix part must be non-empty".to_owned());
        }
        if let Some(problem) = dns1123_subdomain(prefix) {
            return Some(format!("prefix part {problem}"));
        }
    }
    if name.is_empty() {
        Some("name part must be non-empty".to_owned())
    } else if name.len() > 63 {
        Some(format!("name part {}", too_long(63)))
    } else if !is_qualified(name) {
        Some(QUALIFIED_FORMAT.to_owned())
    } else {
        None
    }
}

pub fn label_value(text: &str) -> Problem {
    if text.len() > 63 {
        Some(too_long(63))
    } else if !text.is_empty() && !is_qualified(text) {
        Some(LABEL_VALUE_FORMAT.to_owned())
    } else {
        None
    }
}

/// Keys of ConfigMaps and Secrets.
pub fn config_map_key(text: &str) -> Problem {
    if text.len() > 253 {
        return Some(too_long(253));
    }
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
        return Some("a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')".to_owned());
    }
    match text {
        "." | ".." => Some(format!("must not be '{text}'")),
        _ if text.starts_with("..") => Some("must not start with '..'".to_owned()),
        _ => None,
    }
}

/// Environment variable names: any printable ASCII but `=`.
pub fn env_var_name(text: &str) -> Problem {
    if text.is_empty() || !text.bytes().all(|byte| (0x20..0x7f).contains(&byte) && byte != b'=') {
        return Some(
            "a valid environment variable name must consist only of printable ASCII characters other than '='"
                .to_owned(),
        );
    }
    None
}

/// Names of container and Service ports (IANA service names).
pub fn port_name(text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    if text.len() > 15 {
        problems.push("must be no more than 15 characters".to_owned());
    }
    if !text.bytes().all(|byte| lower_alnum(byte) || byte == b'-') {
        problems.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !text.bytes().any(|byte| byte.is_ascii_lowercase()) {
        problems.push("must contain at least one letter (a-z)".to_owned());
    }
    if text.contains("--") {
        problems.push("must not contain consecutive hyphens".to_owned());
    }
    if text.starts_with('-') || text.ends_with('-') {
        problems.push("must not begin or end with a hyphen".to_owned());
    }
    problems
}

/// `must be between 1 and 65535, inclusive` unless it is.
pub fn port_number(port: i64) -> Problem {
    (!(1..=65535).contains(&port)).then(|| "must be between 1 and 65535, inclusive".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepted_and_refused() {
        let long = "a".repeat(64);
        type Check = fn(&str) -> Problem;
        let table: [(Check, &[&str], &[&str]); 7] = [
            (dns1123_label, &["a", "a-b", "0a"], &["", "A", "-a", "a-", "a.b", &long]),
            (dns1123_subdomain, &["a.b", "a-1.b"], &["", "a..b", ".a", "a_b", "A"]),
            (dns1035_label, &["a1"], &["1a", "", "a."]),
            (path_segment, &["system:node", "a b"], &["a/b", "..", "50%"]),
            (qualified_name, &["a", "a.b/C_d", "A"], &["", "/a", "a/", "a/b/c", "A/b", "-a"]),
            (label_value, &["", "A-b_c.d"], &["-a", "a b", &long]),
            (config_map_key, &["a.b", "_", "...".trim_end_matches("..")], &["", "..", "..a", "a/b"]),
        ];
        for (index, (check, good, bad)) in table.into_iter().enumerate() {
            for text in good.iter().filter(|text| **text != ".") {
                assert_eq!(check(text), None, "table {index}: {text}");
            }
            for text in bad {
                assert!(check(text).is_some(), "table {index}: {text}");
            }
        }
        assert!(port_name("http").is_empty() && !port_name("80").is_empty() && !port_name("a--b").is_empty());
    }
}

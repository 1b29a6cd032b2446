//! Name formats (`k8s.io/apimachinery/pkg/util/validation`): each check returns Kubernetes' own
//! messages, or none when the text is well-formed.

const LABEL_FORMAT: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN_FORMAT: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const SUBDOMAIN_WITH_UNDERSCORE_FORMAT: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*')";
const CONFIG_KEY_FORMAT: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
const LABEL_1035_FORMAT: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const QUALIFIED_FORMAT: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE_FORMAT: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";

type Problem = Option<String>;

/// Everything that is wrong with a text; empty when it is well-formed.
type Problems = Vec<String>;

const LONGER_THAN_LABEL: &str = "must be no more than 63 characters";
const LONGER_THAN_SUBDOMAIN: &str = "must be no more than 253 characters";
/// As label keys and values word it.
const MORE_THAN_63_BYTES: &str = "must be no more than 63 bytes";
const MORE_THAN_253_BYTES: &str = "must be no more than 253 bytes";

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

fn is_subdomain(text: &str) -> bool {
    text.split('.').all(is_label)
}

fn is_qualified(text: &str) -> bool {
    shaped(text, |byte| byte.is_ascii_alphanumeric(), b"-_.")
}

/// The problems of `part` (with a space behind it, or empty) among `checks`: whether it holds, and its
/// words.
fn problems<const N: usize>(part: &str, checks: [(bool, &str); N]) -> Problems {
    checks.into_iter().filter(|(holds, _)| !holds).map(|(_, words)| [part, words].concat()).collect()
}

/// RFC 1123 label: namespaces, containers, most names in pods.
pub fn dns1123_label(text: &str) -> Problems {
    let format = if is_subdomain(text) { "must not contain dots" } else { LABEL_FORMAT };
    problems("", [(text.len() <= 63, LONGER_THAN_LABEL), (is_label(text), format)])
}

/// RFC 1123 subdomain: names of most objects.
pub fn dns1123_subdomain(text: &str) -> Problems {
    problems("", [(text.len() <= 253, LONGER_THAN_SUBDOMAIN), (is_subdomain(text), SUBDOMAIN_FORMAT)])
}

/// As a subdomain, but underscores are letters of it too: DNS search paths.
pub fn dns1123_subdomain_with_underscore(text: &str) -> Problems {
    let part = |part: &str| shaped(part.strip_prefix('_').unwrap_or(part), lower_alnum, b"-_");
    let checks =
        [(text.len() <= 253, LONGER_THAN_SUBDOMAIN), (text.split('.').all(part), SUBDOMAIN_WITH_UNDERSCORE_FORMAT)];
    problems("", checks)
}

/// RFC 1035 label: Services.
pub fn dns1035_label(text: &str) -> Problems {
    let shaped = is_label(text) && text.as_bytes()[0].is_ascii_lowercase();
    problems("", [(text.len() <= 63, LONGER_THAN_LABEL), (shaped, LABEL_1035_FORMAT)])
}

/// Names that only have to be usable as one path segment: RBAC objects.
pub fn path_segment(text: &str) -> Problems {
    if text == "." || text == ".." {
        return vec![format!("may not be '{text}'")];
    }
    ["/", "%"]
        .iter()
        .filter(|illegal| text.contains(**illegal))
        .map(|illegal| format!("may not contain '{illegal}'"))
        .collect()
}

/// Label and annotation keys: `prefix/name` or `name`.
pub fn qualified_name(text: &str) -> Problems {
    let (prefix, name) = match text.split_once('/') {
        None => (None, text),
        Some((_, name)) if name.contains('/') => {
            return vec![format!(
                "a valid label key {QUALIFIED_FORMAT} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
        Some((prefix, name)) => (Some(prefix), name),
    };
    let mut found = Vec::new();
    if let Some(prefix) = prefix {
        if prefix.is_empty() {
            found.push("prefix part must be non-empty".to_owned());
        } else {
            let checks = [(prefix.len() <= 253, MORE_THAN_253_BYTES), (is_subdomain(prefix), SUBDOMAIN_FORMAT)];
            found.extend(problems("prefix part ", checks));
        }
    }
    let checks = [
        (!name.is_empty(), "must be non-empty"),
        (name.len() <= 63, MORE_THAN_63_BYTES),
        (is_qualified(name), QUALIFIED_FORMAT),
    ];
    found.extend(problems("name part ", checks));
    found
}

pub fn label_value(text: &str) -> Problems {
    let checks = [(text.len() <= 63, MORE_THAN_63_BYTES), (text.is_empty() || is_qualified(text), LABEL_VALUE_FORMAT)];
    problems("", checks)
}

/// Keys of ConfigMaps and Secrets.
pub fn config_map_key(text: &str) -> Problems {
    let shaped = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    let relative = match text {
        "." => "must not be '.'",
        ".." => "must not be '..'",
        _ => "must not start with '..'",
    };
    let checks = [
        (text.len() <= 253, LONGER_THAN_SUBDOMAIN),
        (shaped, CONFIG_KEY_FORMAT),
        (text != "." && !text.starts_with(".."), relative),
    ];
    problems("", checks)
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
        type Check = fn(&str) -> Problems;
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
                assert_eq!(check(text), Problems::new(), "table {index}: {text}");
            }
            for text in bad {
                assert!(!check(text).is_empty(), "table {index}: {text}");
            }
        }
        let words = |problems: Problems| problems.join("; ");
        assert_eq!(words(dns1123_label("a.b")), "must not contain dots");
        assert_eq!(words(qualified_name("")), format!("name part must be non-empty; name part {QUALIFIED_FORMAT}"));
        assert_eq!(words(label_value(&format!("{long}/"))), format!("{MORE_THAN_63_BYTES}; {LABEL_VALUE_FORMAT}"));
        assert_eq!(words(dns1123_label(&long)), "must be no more than 63 characters");
        assert!(dns1123_subdomain_with_underscore("_tcp.a_b").is_empty());
        assert!(!dns1123_subdomain_with_underscore("a_.b").is_empty());
        assert!(port_name("http").is_empty() && !port_name("80").is_empty() && !port_name("a--b").is_empty());
    }
}

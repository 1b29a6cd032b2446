//! Where a webhook is: `WebhookClientConfig`, also of conversions.

use api::field::{Error, ErrorList};
use api::names;

use crate::kinds::check::Node;

pub fn client_config(config: &Node<'_>, errors: &mut ErrorList) {
    let (url, service) = (config.child("url"), config.child("service"));
    match (url.exists(), service.exists()) {
        (true, false) => webhook_url(&url, errors),
        (false, true) => webhook_service(&service, errors),
        _ => config.missing(errors, "exactly one of url or service is required"),
    }
}

/// `https://host[/path]`: nobody's name, no query and no fragment in it. The part that is wrong is
/// what is shown.
fn webhook_url(url: &Node<'_>, errors: &mut ErrorList) {
    const FORM: &str = "; desired format: https://host[/path]";
    let mut refuse = |part: &str, detail: String| errors.push(Error::invalid(&url.path, part, detail));
    let (rest, fragment) = url.text().split_once('#').unwrap_or((url.text(), ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (scheme, rest) = match rest.split_once(':') {
        Some((scheme, rest)) if !scheme.contains('/') => (scheme, rest),
        _ => ("", rest),
    };
    let authority = rest.strip_prefix("//").map_or("", |rest| rest.split('/').next().unwrap_or(""));
    let (user, host) = authority.rsplit_once('@').map_or((None, authority), |(user, host)| (Some(user), host));
    if !scheme.eq_ignore_ascii_case("https") {
        refuse(scheme, format!("'https' is the only allowed URL scheme{FORM}"));
    }
    if host.is_empty() {
        refuse(host, format!("host must be specified{FORM}"));
    }
    if let Some(user) = user {
        refuse(user, "user information is not permitted in the URL".to_owned());
    }
    if !fragment.is_empty() {
        refuse(fragment, "fragments are not permitted in the URL".to_owned());
    }
    if !query.is_empty() {
        refuse(query, "query parameters are not permitted in the URL".to_owned());
    }
}

fn webhook_service(service: &Node<'_>, errors: &mut ErrorList) {
    for field in ["name", "namespace"] {
        service.child(field).required(errors, "");
    }
    let port = service.child("port");
    if let Some(problem) = names::port_number(port.int()) {
        port.invalid(errors, format!("port is not valid: {problem}"));
    }
    let path = service.child("path");
    match path.text() {
        "" | "/" => return,
        "//" => return path.invalid(errors, "segment[0] may not be empty"),
        _ => {}
    }
    if !path.text().starts_with('/') {
        path.invalid(errors, "must start with a '/'");
    }
    // The first letter is taken for the slash, whatever it is.
    let mut letters = path.text().chars();
    letters.next();
    let inner = letters.as_str().strip_suffix('/').unwrap_or(letters.as_str());
    for (index, segment) in inner.split('/').enumerate() {
        if segment.is_empty() {
            path.invalid(errors, format!("segment[{index}] may not be empty"));
        } else {
            for problem in names::dns1123_subdomain(segment) {
                path.invalid(errors, format!("segment[{index}]: {problem}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::field::join;
    use serde_json::json;

    #[test]
    fn client_configs() {
        for (config, expected) in [
            (json!({"url": "https://example.com/x"}), "[]"),
            (json!({}), "c: Required value: exactly one of url or service is required"),
            (
                json!({"url": "http://u:p@/x?q=1#f"}),
                "[c.url: Invalid value: \"http\": 'https' is the only allowed URL scheme; desired format: https://host[/path], \
                 c.url: Invalid value: \"\": host must be specified; desired format: https://host[/path], \
                 c.url: Invalid value: \"u:p\": user information is not permitted in the URL, \
                 c.url: Invalid value: \"f\": fragments are not permitted in the URL, \
                 c.url: Invalid value: \"q=1\": query parameters are not permitted in the URL]",
            ),
            (
                json!({"service": {"name": "s", "port": 0, "path": "a//b"}}),
                "[c.service.namespace: Required value, \
                 c.service.port: Invalid value: 0: port is not valid: must be between 1 and 65535, inclusive, \
                 c.service.path: Invalid value: \"a//b\": must start with a '/', \
                 c.service.path: Invalid value: \"a//b\": segment[0] may not be empty, \
                 c.service.path: Invalid value: \"a//b\": segment[1] may not be empty]",
            ),
        ] {
            let mut errors = ErrorList::new();
            client_config(&Node::new(&config, api::field::Path::root("c")), &mut errors);
            assert_eq!(join(&errors), expected, "{config}");
        }
    }
}

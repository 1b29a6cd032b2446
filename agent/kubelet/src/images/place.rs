//! Registries and parts of them as logins and providers name them: `host[:port][/path]`, a `*` in the
//! host for letters of one label (`pkg/credentialprovider: URLsMatch`). Pure.
//!
//! ```text
//! *.example.com     a.example.com/app yes     a.b.example.com/app, example.com/app no
//! r.io:8080/team    r.io:8080/team/app yes    r.io/team/app no
//! ```

/// Where images are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place<'a> {
    pub host: &'a str,
    /// Empty for the usual one.
    pub port: &'a str,
    /// From its slash on.
    pub path: &'a str,
}

/// What a host may hold besides letters and digits, as Go reads URLs.
const IN_HOSTS: &str = "-_.~!$&'()*+,;=:[]<>\"";

impl<'a> Place<'a> {
    /// The error is what Go says of such a URL.
    pub fn parse(text: &'a str) -> Result<Self, String> {
        let url = format!("https://{text}");
        let wrong = |why: String| Err(format!("parse {url:?}: {why}"));
        if text.chars().any(|c| c.is_ascii_control()) {
            return wrong("net/url: invalid control character in URL".to_owned());
        }
        let named = text.split(['?', '#']).next().unwrap_or_default();
        let (authority, path) = named.find('/').map_or((named, ""), |slash| named.split_at(slash));
        let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        let strange = |c: &char| c.is_ascii() && !c.is_ascii_alphanumeric() && !IN_HOSTS.contains(*c);
        if let Some(c) = authority.chars().find(strange) {
            return wrong(format!("invalid character {:?} in host name", String::from(c)));
        }
        let (host, port) = split_port(authority);
        if !port.chars().all(|c| c.is_ascii_digit()) {
            return wrong(format!("invalid port \":{port}\" after host"));
        }
        Ok(Self { host, port, path })
    }

    /// Whether `other` lies in here.
    pub fn holds(&self, other: &Place<'_>) -> bool {
        let mut labels = self.host.split('.').zip(other.host.split('.'));
        self.port == other.port
            && self.host.split('.').count() == other.host.split('.').count()
            && other.path.starts_with(self.path)
            && labels.all(|(pattern, label)| glob(pattern, label))
    }
}

/// Whether an image, named in full and without its tag, is of the place that `pattern` names.
pub fn covers(pattern: &str, image: &str) -> bool {
    match (Place::parse(pattern), Place::parse(image)) {
        (Ok(place), Ok(image)) => place.holds(&image),
        _ => false,
    }
}

/// A colon within brackets is an IPv6 address's.
fn split_port(authority: &str) -> (&str, &str) {
    authority.rsplit_once(':').filter(|(_, port)| !port.contains(']')).unwrap_or((authority, ""))
}

fn glob(pattern: &str, label: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == label };
    let Some(mut left) = label.strip_prefix(first) else { return false };
    let (middle, last) = rest.rsplit_once('*').unwrap_or(("", rest));
    for part in middle.split('*') {
        match left.find(part) {
            Some(at) => left = &left[at + part.len()..],
            None => return false,
        }
    }
    left.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_cover_images() {
        for (pattern, image, expected) in [
            ("r.io", "r.io/app", true),
            ("r.io", "r.io:5000/app", false),
            ("r.io:5000", "r.io:5000/app", true),
            ("r.io/team", "r.io/team/app", true),
            ("r.io/team", "r.io/other/app", false),
            ("*.r.io", "a.r.io/app", true),
            ("*.r.io", "r.io/app", false),
            ("*.r.io", "a.b.r.io/app", false),
            ("*.*.r.io:8/x", "a.b.r.io:8/x/y", true),
            ("app*.r.io", "app2.r.io/x", true),
            ("a*b*c.io", "aXbYc.io/x", true),
            ("a*b*c.io", "ac.io/x", false),
            ("ab*b.io", "ab.io/x", false),
            ("r.*", "r.io/app", true),
            ("[::1]:5000", "[::1]:5000/app", true),
            ("[::1]", "[::1]:5000/app", false),
            ("", "r.io/app", false),
        ] {
            assert_eq!(covers(pattern, image), expected, "{pattern} {image}");
        }
    }

    #[test]
    fn places_are_refused_in_gos_words() {
        for (text, words) in [
            ("r.io:80a/x", "parse \"https://r.io:80a/x\": invalid port \":80a\" after host"),
            ("r .io", "parse \"https://r .io\": invalid character \" \" in host name"),
            ("r\n", "parse \"https://r\\n\": net/url: invalid control character in URL"),
        ] {
            assert_eq!(Place::parse(text), Err(words.to_owned()));
        }
        assert_eq!(Place::parse("me@r.io:1/p?q"), Ok(Place { host: "r.io", port: "1", path: "/p" }));
    }
}

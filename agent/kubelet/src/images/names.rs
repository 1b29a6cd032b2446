//! Image references: what a pod may write, and what it means. Pure.

/// Adds `:latest` where neither tag nor digest is given. The error is the reference parser's
/// (`github.com/distribution/reference: ParseNormalizedNamed`).
pub fn with_default_tag(image: &str) -> Result<String, String> {
    let invalid = || "invalid reference format".to_owned();
    if image.len() == 64 && image.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f')) {
        return Err(format!("invalid repository name ({image}), cannot specify 64-byte hexadecimal strings"));
    }
    let remote = remote(image);
    if remote.chars().any(char::is_uppercase) {
        return Err(format!("invalid reference format: repository name ({remote}) must be lowercase"));
    }
    let (name_and_tag, digest) = match image.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (image, None),
    };
    if digest.is_some_and(|digest| !valid_digest(digest)) {
        return Err(invalid());
    }
    let last_slash = name_and_tag.rfind('/').map_or(0, |at| at + 1);
    let (name, tag) = match name_and_tag[last_slash..].find(':') {
        Some(colon) => {
            let at = last_slash + colon;
            (&name_and_tag[..at], Some(&name_and_tag[at + 1..]))
        }
        None => (name_and_tag, None),
    };
    if tag.is_some_and(|tag| !valid_tag(tag)) {
        return Err(invalid());
    }
    let (domain, path) = split_domain(name);
    if !path.split('/').all(valid_component) || domain.is_some_and(|domain| !valid_domain(domain)) {
        return Err(invalid());
    }
    Ok(if tag.is_none() && digest.is_none() { format!("{image}:latest") } else { image.to_owned() })
}

/// The path behind the registry up to the first colon, as the parser sees it before all else.
fn remote(image: &str) -> String {
    let (domain, path) = split_domain(image);
    let path = path.split(':').next().unwrap_or_default();
    let official = matches!(domain, None | Some("docker.io")) && !path.contains('/');
    if official { format!("library/{path}") } else { path.to_owned() }
}

/// The registry, if the first component is one. No namespace has capitals, so what has is a registry.
fn split_domain(name: &str) -> (Option<&str>, &str) {
    let is_domain =
        |first: &str| first.contains(['.', ':']) || first == "localhost" || first.chars().any(char::is_uppercase);
    match name.split_once('/') {
        Some((first, rest)) if is_domain(first) => (Some(first), rest),
        _ => (None, name),
    }
}

/// The name as far as the tag or digest.
fn bare(image: &str) -> &str {
    let name = image.split('@').next().unwrap_or(image);
    let last_slash = name.rfind('/').map_or(0, |at| at + 1);
    name[last_slash..].find(':').map_or(name, |colon| &name[..last_slash + colon])
}

/// `host/path` of the repository with Docker Hub's defaults spelled out, no tag or digest.
pub fn repository(image: &str) -> String {
    let name = bare(image);
    match split_domain(name) {
        (None | Some("docker.io" | "index.docker.io"), path) if path.contains('/') => format!("docker.io/{path}"),
        (None | Some("docker.io" | "index.docker.io"), path) => format!("docker.io/library/{path}"),
        (Some(_), _) => name.to_owned(),
    }
}

/// The whole reference as runtimes list it: by digest where there is one, else by tag.
pub fn normalized(image: &str) -> String {
    let repository = repository(image);
    match image.split_once('@') {
        Some((_, digest)) => format!("{repository}@{digest}"),
        None => {
            let tag = image[bare(image).len()..].trim_start_matches(':');
            format!("{repository}:{}", if tag.is_empty() { "latest" } else { tag })
        }
    }
}

/// What `imagePullPolicy` defaults to.
pub fn default_policy(image: &str) -> &'static str {
    if image.ends_with(":latest") && !image.contains('@') { "Always" } else { "IfNotPresent" }
}

fn valid_tag(tag: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    !tag.is_empty() && tag.len() <= 128 && tag.starts_with(word) && tag.chars().all(|c| word(c) || c == '.' || c == '-')
}

fn valid_digest(digest: &str) -> bool {
    let Some((algorithm, hex)) = digest.split_once(':') else { return false };
    !algorithm.is_empty() && hex.len() >= 32 && hex.chars().all(|c| c.is_ascii_hexdigit() && !c.is_ascii_uppercase())
}

/// Lower-case words joined by `.`, `_`, `__` or dashes.
fn valid_component(component: &str) -> bool {
    let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let mut separator = 0;
    let mut previous = ' ';
    for c in component.chars() {
        if word(c) {
            separator = 0;
        } else {
            let allowed = match c {
                '.' => separator == 0,
                '_' => separator == 0 || (separator == 1 && previous == '_'),
                '-' => separator == 0 || previous == '-',
                _ => false,
            };
            if !allowed {
                return false;
            }
            separator += 1;
        }
        previous = c;
    }
    component.starts_with(word) && component.ends_with(word)
}

fn valid_domain(domain: &str) -> bool {
    let (host, port) =
        domain.rsplit_once(':').filter(|_| !domain.ends_with(']')).map_or((domain, None), |(h, p)| (h, Some(p)));
    let port_fits = port.is_none_or(|port| !port.is_empty() && port.chars().all(|c| c.is_ascii_digit()));
    let bracketed = host.starts_with('[') && host.ends_with(']');
    let label = |label: &str| {
        !label.is_empty()
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    port_fits && (bracketed || host.split('.').all(label))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references() {
        for (image, result) in [
            ("nginx", Ok("nginx:latest")),
            ("nginx:1.25", Ok("nginx:1.25")),
            ("localhost:5000/a/b", Ok("localhost:5000/a/b:latest")),
            ("r.example.com/a_b/c--d:v1.0-x", Ok("r.example.com/a_b/c--d:v1.0-x")),
            ("n@sha256:0123456789abcdef0123456789abcdef", Ok("n@sha256:0123456789abcdef0123456789abcdef")),
            ("", Err("invalid reference format")),
            ("Nginx", Err("invalid reference format: repository name (library/Nginx) must be lowercase")),
            ("Bad Image", Err("invalid reference format: repository name (library/Bad Image) must be lowercase")),
            ("me/App:1", Err("invalid reference format: repository name (me/App) must be lowercase")),
            ("quay.io/me/App:1", Err("invalid reference format: repository name (me/App) must be lowercase")),
            ("Me/app:1", Ok("Me/app:1")),
            ("nginx:", Err("invalid reference format")),
            ("nginx:a b", Err("invalid reference format")),
            ("a//b", Err("invalid reference format")),
            ("busybox@sha256:xyz", Err("invalid reference format")),
            ("-x", Err("invalid reference format")),
        ] {
            assert_eq!(with_default_tag(image), result.map(str::to_owned).map_err(str::to_owned), "{image}");
        }
    }

    #[test]
    fn parts() {
        for (image, repository_of, whole) in [
            ("nginx:1", "docker.io/library/nginx", "docker.io/library/nginx:1"),
            ("nginx", "docker.io/library/nginx", "docker.io/library/nginx:latest"),
            ("docker.io/nginx", "docker.io/library/nginx", "docker.io/library/nginx:latest"),
            ("index.docker.io/me/app", "docker.io/me/app", "docker.io/me/app:latest"),
            ("me/app", "docker.io/me/app", "docker.io/me/app:latest"),
            ("localhost:5000/app:v1", "localhost:5000/app", "localhost:5000/app:v1"),
            ("localhost:5000/app", "localhost:5000/app", "localhost:5000/app:latest"),
            ("quay.io/a/b@sha256:00", "quay.io/a/b", "quay.io/a/b@sha256:00"),
            ("quay.io/a/b:1@sha256:00", "quay.io/a/b", "quay.io/a/b@sha256:00"),
        ] {
            assert_eq!((repository(image).as_str(), normalized(image).as_str()), (repository_of, whole));
        }
        assert_eq!((default_policy("a:latest"), default_policy("a:1")), ("Always", "IfNotPresent"));
    }
}

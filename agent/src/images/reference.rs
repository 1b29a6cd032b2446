//! Image names as people write them and as containerd stores them.

use super::ImageError;

/// The full form of an image name: `nginx` is `docker.io/library/nginx:latest`. A digest form is
/// kept without a tag.
pub fn normalize(name: &str) -> Result<String, ImageError> {
    let bad = || ImageError::BadName(name.to_owned());
    if name.is_empty() || name.contains(char::is_whitespace) || name.starts_with('/') {
        return Err(bad());
    }
    let (rest, digest) = match name.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (name, None),
    };
    let (domain, path) = match rest.split_once('/') {
        Some((first, path)) if first.contains(['.', ':']) || first == "localhost" => (first, path.to_owned()),
        Some(_) => ("docker.io", rest.to_owned()),
        None => ("docker.io", format!("library/{rest}")),
    };
    let repository = path.rsplit_once(':').map_or(path.as_str(), |(repository, _)| repository);
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-/".contains(c);
    if repository.is_empty() || repository.ends_with('/') || !repository.chars().all(allowed) {
        return Err(bad());
    }
    let domain = if domain == "index.docker.io" { "docker.io" } else { domain };
    Ok(match digest {
        Some(digest) => format!("{domain}/{repository}@{digest}"),
        None if path == repository => format!("{domain}/{path}:latest"),
        None => format!("{domain}/{path}"),
    })
}

#[cfg(test)]
mod tests {
    use super::normalize;

    #[test]
    fn names_get_domain_and_tag() {
        let cases = [
            ("nginx", "docker.io/library/nginx:latest"),
            ("nginx:1.25", "docker.io/library/nginx:1.25"),
            ("bitnami/redis", "docker.io/bitnami/redis:latest"),
            ("localhost/app:1", "localhost/app:1"),
            ("registry.k8s.io/pause:3.9", "registry.k8s.io/pause:3.9"),
            ("localhost:5000/app", "localhost:5000/app:latest"),
            ("nginx@sha256:aa", "docker.io/library/nginx@sha256:aa"),
            ("nginx:1@sha256:aa", "docker.io/library/nginx@sha256:aa"),
        ];
        for (given, expected) in cases {
            assert_eq!(normalize(given).unwrap(), expected, "{given}");
        }
        for bad in ["", "a b", "/x", "UPPER", "x/"] {
            assert!(normalize(bad).is_err(), "{bad:?}");
        }
    }
}

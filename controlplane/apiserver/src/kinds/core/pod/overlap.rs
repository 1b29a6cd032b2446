//! Files that one volume writes over each other: a warning names both.

use serde_json::Value;

use crate::kinds::value::{at, has, list, text};

/// A file or directory, and what writes it (`""` when that is the volume itself).
struct Written<'a> {
    path: &'a str,
    source: String,
}

impl Written<'_> {
    fn shown(&self) -> String {
        if self.source.is_empty() { format!("{:?}", self.path) } else { format!("{:?} ({})", self.path, self.source) }
    }

    /// The same path, or one below the other.
    fn collides(&self, other: &Self) -> bool {
        let below = |inner: &str, outer: &str| inner.strip_prefix(outer).is_some_and(|rest| rest.starts_with('/'));
        self.path == other.path || below(self.path, other.path) || below(other.path, self.path)
    }
}

pub fn warnings(spec: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for volume in list(spec, "volumes") {
        for (kind, named, name) in
            [("configMap", "ConfigMap", "name"), ("secret", "Secret", "secretName"), ("downwardAPI", "DownwardAPI", "")]
        {
            let source = at(volume, kind);
            let described =
                if name.is_empty() { named.to_owned() } else { format!("{named} {:?}", text(source, name)) };
            collisions(volume, &described, items(source, ""), &mut found);
        }
        let projected = list(volume, "projected.sources").iter().flat_map(projected).collect();
        collisions(volume, "Projected", projected, &mut found);
    }
    found
}

fn items<'a>(source: &'a Value, written_by: &str) -> Vec<Written<'a>> {
    let paths = list(source, "items").iter().map(|item| text(item, "path").trim_end_matches('/'));
    paths.map(|path| Written { path, source: written_by.to_owned() }).collect()
}

fn projected(source: &Value) -> Vec<Written<'_>> {
    let one = |field: &str, path: &str, described: String| {
        let path = text(at(source, field), path).trim_end_matches('/');
        if path.is_empty() { Vec::new() } else { vec![Written { path, source: described }] }
    };
    if has(source, "configMap") {
        items(at(source, "configMap"), &format!("ConfigMap {:?}", text(source, "configMap.name")))
    } else if has(source, "secret") {
        items(at(source, "secret"), &format!("Secret {:?}", text(source, "secret.name")))
    } else if has(source, "downwardAPI") {
        items(at(source, "downwardAPI"), "DownwardAPI")
    } else if has(source, "serviceAccountToken") {
        one("serviceAccountToken", "path", "ServiceAccountToken".to_owned())
    } else if has(source, "clusterTrustBundle") {
        let name = match text(source, "clusterTrustBundle.name") {
            "" => text(source, "clusterTrustBundle.signerName"),
            name => name,
        };
        one("clusterTrustBundle", "path", format!("ClusterTrustBundle {name:?}"))
    } else {
        ["credentialBundlePath", "keyPath", "certificateChainPath"]
            .iter()
            .flat_map(|field| one("podCertificate", field, "PodCertificate chain".to_owned()))
            .collect()
    }
}

fn collisions(volume: &Value, described: &str, written: Vec<Written<'_>>, found: &mut Vec<String>) {
    for (index, this) in written.iter().enumerate() {
        for other in written[..index].iter().filter(|other| this.collides(other)) {
            found.push(format!(
                "volume {:?} ({described}): overlapping paths: {} with {}",
                text(volume, "name"),
                this.shown(),
                other.shown()
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths_over_each_other() {
        let item = |path: &str| json!({"key": "k", "path": path});
        let spec = json!({"volumes": [
            {"name": "a", "configMap": {"name": "m", "items": [item("x"), item("x/y"), item("xy")]}},
            {"name": "b", "projected": {"sources": [
                {"serviceAccountToken": {"path": "t"}}, {"secret": {"name": "s", "items": [item("t"), item("u")]}}]}},
        ]});
        assert_eq!(
            warnings(&spec),
            [
                "volume \"a\" (ConfigMap \"m\"): overlapping paths: \"x/y\" with \"x\"",
                "volume \"b\" (Projected): overlapping paths: \"t\" (Secret \"s\") with \"t\" (ServiceAccountToken)",
            ]
        );
    }
}

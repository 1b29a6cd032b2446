//! What a remote server says of itself, in the form of our own discovery. Pure.

use serde_json::{Value, json};

/// `APIResourceList` as the `APIResourceDiscovery` objects of one version.
pub fn from_list(group: &str, version: &str, list: &Value) -> Vec<Value> {
    let kind = |resource: &Value| {
        let or = |key: &str, own: &str| match resource[key].as_str() {
            Some(named) if !named.is_empty() => named.to_owned(),
            _ => own.to_owned(),
        };
        json!({"group": or("group", group), "version": or("version", version), "kind": resource["kind"]})
    };
    let entries: Vec<&Value> = list["resources"].as_array().into_iter().flatten().collect();
    let mut found: Vec<Value> = Vec::new();
    for entry in &entries {
        let name = entry["name"].as_str().unwrap_or_default();
        let (main, sub) = name.split_once('/').unwrap_or((name, ""));
        let scope = if entry["namespaced"] == true { "Namespaced" } else { "Cluster" };
        let at = found.iter().position(|resource| resource["resource"] == main).unwrap_or_else(|| {
            found.push(json!({"resource": main, "scope": scope, "singularResource": "", "verbs": []}));
            found.len() - 1
        });
        if !sub.is_empty() {
            let subresource = json!({"subresource": sub, "responseKind": kind(entry), "verbs": entry["verbs"]});
            match found[at]["subresources"].as_array_mut() {
                Some(held) => held.push(subresource),
                None => found[at]["subresources"] = json!([subresource]),
            }
            continue;
        }
        let resource = &mut found[at];
        resource["responseKind"] = kind(entry);
        resource["verbs"] = entry["verbs"].clone();
        resource["singularResource"] = entry["singularName"].as_str().unwrap_or_default().into();
        for key in ["shortNames", "categories"] {
            if entry[key].is_array() {
                resource[key] = entry[key].clone();
            }
        }
    }
    found
}

/// The query of a group version's document in an OpenAPI v3 index; empty if it has none.
pub fn document_query(index: &Value, group: &str, version: &str) -> Option<String> {
    let url = index["paths"][format!("apis/{group}/{version}")]["serverRelativeURL"].as_str()?;
    Some(url.split_once('?').map_or("", |(_, query)| query).to_owned())
}

/// The paths of one group version in an OpenAPI v2 document, with all its definitions.
pub fn part_of_v2(mut document: Value, group: &str, version: &str) -> Value {
    let own = format!("/apis/{group}/{version}/");
    let mut take = |key: &str| document.get_mut(key).map(Value::take).unwrap_or_default();
    let (mut paths, definitions) = (take("paths"), take("definitions"));
    if let Some(paths) = paths.as_object_mut() {
        paths.retain(|path, _| format!("{}/", path.trim_end_matches('/')).starts_with(&own));
    }
    json!({"paths": paths, "definitions": definitions})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_resources_becomes_discovery() {
        let list = json!({"resources": [
            {"name": "nodes", "singularName": "node", "namespaced": false, "kind": "NodeMetrics", "verbs": ["get", "list"], "shortNames": ["no"]},
            {"name": "widgets", "singularName": "", "namespaced": true, "kind": "Widget", "verbs": ["get"]},
            {"name": "widgets/scale", "namespaced": true, "kind": "Scale", "group": "autoscaling", "version": "v1", "verbs": ["get"]},
        ]});
        let found = from_list("m.io", "v1", &list);
        assert_eq!(
            found[0],
            json!({"resource": "nodes", "scope": "Cluster", "singularResource": "node", "verbs": ["get", "list"], "shortNames": ["no"],
                "responseKind": {"group": "m.io", "version": "v1", "kind": "NodeMetrics"}})
        );
        assert_eq!(found[1]["scope"], "Namespaced");
        assert_eq!(found[1]["subresources"][0]["responseKind"]["group"], "autoscaling");
        assert_eq!(found.len(), 2);
        assert!(from_list("m.io", "v1", &json!("nonsense")).is_empty());
    }

    #[test]
    fn of_an_old_document_the_own_group_version_is_taken() {
        let paths =
            json!({"/apis/m.io/v1/": {}, "/apis/m.io/v1/nodes": {}, "/apis/m.io/v10/nodes": {}, "/version": {}});
        let part = part_of_v2(json!({"swagger": "2.0", "paths": paths, "definitions": {"A": {}}}), "m.io", "v1");
        assert_eq!(part, json!({"paths": {"/apis/m.io/v1/": {}, "/apis/m.io/v1/nodes": {}}, "definitions": {"A": {}}}));
        assert!(part_of_v2(json!([]), "m.io", "v1")["paths"].is_null());
    }

    #[test]
    fn documents_are_found_in_an_index() {
        let index = json!({"paths": {"apis/m.io/v1": {"serverRelativeURL": "/openapi/v3/apis/m.io/v1?hash=AB"}}});
        assert_eq!(document_query(&index, "m.io", "v1").as_deref(), Some("hash=AB"));
        assert_eq!(document_query(&index, "m.io", "v2"), None);
    }
}

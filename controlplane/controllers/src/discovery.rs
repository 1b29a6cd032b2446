//! What the API server serves, for the controllers that work on every kind.

use futures::future::join_all;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{APIGroup, APIResourceList};
use kube::Client;
use kube::core::{ApiResource, GroupVersionKind};

use crate::error::{During, Result, is_not_found};

/// One resource in its group's preferred version.
#[derive(Debug, Clone, PartialEq)]
pub struct Served {
    pub api: ApiResource,
    pub namespaced: bool,
    pub verbs: Vec<String>,
}

impl Served {
    pub fn can(&self, verbs: &[&str]) -> bool {
        verbs.iter().all(|verb| self.verbs.iter().any(|have| have == verb))
    }

    /// `pods`, `deployments.apps`.
    pub fn name(&self) -> String {
        if self.api.group.is_empty() {
            self.api.plural.clone()
        } else {
            format!("{}.{}", self.api.plural, self.api.group)
        }
    }
}

#[derive(Debug, Default)]
pub struct Discovered {
    pub resources: Vec<Served>,
    /// Groups that did not answer, with why: their resources are unknown, not absent.
    pub failures: Vec<String>,
}

/// Resources by their preferred versions. One group that fails does not hide the others.
pub async fn discover(client: &Client) -> Result<Discovered> {
    let core = client.list_core_api_resources("v1").await.during("discovering the resources of", "v1")?;
    let groups = client.list_api_groups().await.during("discovering the groups of", "the API server")?;
    let mut found = Discovered { resources: served("v1", core), failures: Vec::new() };
    let versions: Vec<String> = groups.groups.iter().filter_map(preferred).collect();
    let lists = join_all(versions.iter().map(|version| client.list_api_group_resources(version))).await;
    for (version, list) in versions.iter().zip(lists) {
        match list {
            Ok(list) => found.resources.extend(served(version, list)),
            Err(error) => found.failures.push(format!("{version}: {}", crate::error::message(&error))),
        }
    }
    Ok(found)
}

fn preferred(group: &APIGroup) -> Option<String> {
    let preferred = group.preferred_version.as_ref().or_else(|| group.versions.first())?;
    Some(preferred.group_version.clone())
}

fn served(group_version: &str, list: APIResourceList) -> Vec<Served> {
    let (group, version) = group_version.rsplit_once('/').unwrap_or(("", group_version));
    let top = list.resources.into_iter().filter(|resource| !resource.name.contains('/'));
    top.map(|resource| {
        let gvk = GroupVersionKind::gvk(
            resource.group.as_deref().filter(|group| !group.is_empty()).unwrap_or(group),
            resource.version.as_deref().filter(|version| !version.is_empty()).unwrap_or(version),
            &resource.kind,
        );
        Served {
            api: ApiResource::from_gvk_with_plural(&gvk, &resource.name),
            namespaced: resource.namespaced,
            verbs: resource.verbs,
        }
    })
    .collect()
}

/// The resources of one kind in every version of its group that is served, the preferred one first: what
/// refers to an object for good may name a version that is long gone.
pub async fn kind(client: &Client, group: &str, kind: &str) -> std::result::Result<Vec<Served>, kube::Error> {
    let mut found = Vec::new();
    for group_version in versions(client, group).await? {
        let resources = version(client, &group_version).await?;
        found.extend(resources.into_iter().filter(|served| served.api.kind == kind));
    }
    Ok(found)
}

/// The group in an `apiVersion`; none is the core group.
pub fn group_of(api_version: Option<&str>) -> &str {
    api_version.and_then(|version| version.split_once('/')).map_or("", |(group, _)| group)
}

/// The versions of a group, as in `apps/v1`; none of a group that is not served.
async fn versions(client: &Client, group: &str) -> std::result::Result<Vec<String>, kube::Error> {
    if group.is_empty() {
        return Ok(vec!["v1".to_owned()]);
    }
    let request = http::Request::get(format!("/apis/{group}")).body(Vec::new()).map_err(kube::Error::HttpError)?;
    match client.request::<APIGroup>(request).await {
        Ok(group) => Ok(preferred_first(&group)),
        Err(error) if is_not_found(&error) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn preferred_first(group: &APIGroup) -> Vec<String> {
    let first = preferred(group);
    let all = group.versions.iter().map(|version| version.group_version.clone());
    let others: Vec<String> = all.filter(|version| Some(version) != first.as_ref()).collect();
    first.into_iter().chain(others).collect()
}

/// The resources of one version, e.g. `v1` or `apps/v1`.
pub async fn version(client: &Client, api_version: &str) -> std::result::Result<Vec<Served>, kube::Error> {
    let list = match api_version.contains('/') {
        true => client.list_api_group_resources(api_version).await?,
        false => client.list_core_api_resources(api_version).await?,
    };
    Ok(served(api_version, list))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::GroupVersionForDiscovery;

    use super::*;

    #[test]
    fn the_preferred_version_comes_first() {
        let named = |version: &str| GroupVersionForDiscovery {
            group_version: format!("apps/{version}"),
            version: version.to_owned(),
        };
        let mut group = APIGroup { versions: vec![named("v2"), named("v1")], ..Default::default() };
        assert_eq!(preferred_first(&group), ["apps/v2", "apps/v1"]);
        group.preferred_version = Some(named("v1"));
        assert_eq!(preferred_first(&group), ["apps/v1", "apps/v2"]);
    }

    #[test]
    fn groups_of_versions() {
        for (version, group) in [(None, ""), (Some(""), ""), (Some("v1"), ""), (Some("apps/v1beta2"), "apps")] {
            assert_eq!(group_of(version), group, "{version:?}");
        }
    }
}

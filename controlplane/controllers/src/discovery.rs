//! What the API server serves, for the controllers that work on every kind.

use futures::future::join_all;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{APIGroup, APIResourceList};
use kube::Client;
use kube::core::{ApiResource, GroupVersionKind};

use crate::error::{During, Result};

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

/// The resources of one version, e.g. `v1` or `apps/v1`.
pub async fn version(client: &Client, api_version: &str) -> std::result::Result<Vec<Served>, kube::Error> {
    let list = match api_version.contains('/') {
        true => client.list_api_group_resources(api_version).await?,
        false => client.list_core_api_resources(api_version).await?,
    };
    Ok(served(api_version, list))
}

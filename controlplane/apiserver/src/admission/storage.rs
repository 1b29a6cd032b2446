//! `DefaultStorageClass`, `StorageObjectInUseProtection` and `PersistentVolumeClaimResize`.

use async_trait::async_trait;
use serde_json::Value;

use super::{creates, updates};
use crate::admit::{Admission, Attributes, Cluster};
use crate::error::Result;
use crate::kinds::core::claim::class;
use crate::kinds::core::pod::quantity;
use crate::kinds::value::{annotation, at, ensure_list, flag, name, set, text};

const GROUP: &str = "storage.k8s.io";

pub struct DefaultStorageClass;

#[async_trait]
impl Admission for DefaultStorageClass {
    fn name(&self) -> &'static str {
        "DefaultStorageClass"
    }

    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        creates(attributes, "", "persistentvolumeclaims")
    }

    async fn mutate(&self, attributes: &mut Attributes<'_>, cluster: &dyn Cluster) -> Result<()> {
        // An empty class is a choice: no dynamic provisioning.
        if class(&attributes.object).is_some() {
            return Ok(());
        }
        if let Some(default) = newest_default(
            cluster.list(GROUP, "storageclasses", "").await?.iter().map(AsRef::as_ref),
            &["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"],
        ) {
            set(&mut attributes.object, "spec.storageClassName", default);
        }
        Ok(())
    }
}

/// The name of the newest object that an annotation marks as default; of equally old ones the
/// first by name.
pub fn newest_default<'a>(objects: impl Iterator<Item = &'a Value>, annotations: &[&str]) -> Option<String> {
    let marked = objects.filter(|object| annotations.iter().any(|key| annotation(object, key) == Some("true")));
    let mut found: Vec<&Value> = marked.collect();
    found.sort_by(|a, b| {
        text(b, "metadata.creationTimestamp")
            .cmp(text(a, "metadata.creationTimestamp"))
            .then_with(|| name(a).cmp(name(b)))
    });
    found.first().map(|object| name(object).to_owned())
}

pub struct StorageObjectInUseProtection;

#[async_trait]
impl Admission for StorageObjectInUseProtection {
    fn name(&self) -> &'static str {
        "StorageObjectInUseProtection"
    }

    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        creates(attributes, "", "persistentvolumeclaims") || creates(attributes, "", "persistentvolumes")
    }

    async fn mutate(&self, attributes: &mut Attributes<'_>, _cluster: &dyn Cluster) -> Result<()> {
        let claim = attributes.is("", "persistentvolumeclaims");
        let finalizer = if claim { "kubernetes.io/pvc-protection" } else { "kubernetes.io/pv-protection" };
        let finalizers = ensure_list(&mut attributes.object, "metadata.finalizers");
        if !finalizers.iter().any(|present| present == finalizer) {
            finalizers.push(finalizer.into());
        }
        Ok(())
    }
}

pub struct PersistentVolumeClaimResize;

#[async_trait]
impl Admission for PersistentVolumeClaimResize {
    fn name(&self) -> &'static str {
        "PersistentVolumeClaimResize"
    }

    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        updates(attributes, "", "persistentvolumeclaims")
    }

    async fn validate(&self, attributes: &mut Attributes<'_>, cluster: &dyn Cluster) -> Result<()> {
        let Some(old) = attributes.old else { return Ok(()) };
        let size = |claim: &Value| quantity(at(claim, "spec.resources.requests.storage"));
        let (now, was) = (size(&attributes.object), size(old));
        if now.zip(was).is_none_or(|(now, was)| now <= was) {
            return Ok(());
        }
        if text(old, "status.phase") != "Bound" {
            return Err(attributes.forbid("Only bound persistent volume claims can be expanded"));
        }
        let expandable = match class(&attributes.object).filter(|class| !class.is_empty()) {
            Some(class) => cluster
                .get(GROUP, "storageclasses", "", class)
                .await?
                .is_some_and(|class| flag(&class, "allowVolumeExpansion")),
            None => false,
        };
        if expandable {
            return Ok(());
        }
        Err(attributes.forbid("only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::{Fixed, Request};
    use super::*;
    use crate::admit::Operation;
    use crate::kinds::value::list;
    use serde_json::json;

    #[tokio::test]
    async fn default_class() {
        let marked = |name: &str, created: &str| json!({"metadata": {"name": name, "creationTimestamp": created, "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}});
        let cluster = Fixed::with(&[
            (GROUP, "storageclasses", marked("old", "2026-01-01T00:00:00Z")),
            (GROUP, "storageclasses", marked("new", "2026-01-02T00:00:00Z")),
        ]);
        let mut request = Request::create("", "persistentvolumeclaims", json!({"metadata": {"name": "c"}, "spec": {}}));
        request.admit(&DefaultStorageClass, &cluster).await.unwrap();
        assert_eq!(request.object["spec"]["storageClassName"], "new");
        request.admit(&StorageObjectInUseProtection, &cluster).await.unwrap();
        assert_eq!(list(&request.object, "metadata.finalizers"), [json!("kubernetes.io/pvc-protection")]);
        let mut chosen = Request::create("", "persistentvolumeclaims", json!({"spec": {"storageClassName": ""}}));
        chosen.admit(&DefaultStorageClass, &cluster).await.unwrap();
        assert_eq!(chosen.object["spec"]["storageClassName"], "");
    }

    #[tokio::test]
    async fn resize_needs_a_class_that_can() {
        let cluster = Fixed::with(&[(
            GROUP,
            "storageclasses",
            json!({"metadata": {"name": "grows"}, "allowVolumeExpansion": true}),
        )]);
        let claim = |size: &str, class: &str| json!({"metadata": {"name": "c"}, "spec": {"storageClassName": class, "resources": {"requests": {"storage": size}}}, "status": {"phase": "Bound"}});
        for (class, fits) in [("grows", true), ("fixed", false)] {
            let mut request = Request::new("", "persistentvolumeclaims", Operation::Update, claim("2Gi", class));
            request.old = Some(claim("1Gi", class));
            assert_eq!(request.admit(&PersistentVolumeClaimResize, &cluster).await.is_ok(), fits, "{class}");
        }
    }
}

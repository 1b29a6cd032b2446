//! `DefaultIngressClass`: Ingresses that name no class get the one marked as default.

use async_trait::async_trait;

use super::creates;
use super::storage::newest_default;
use crate::admit::{Admission, Attributes, Cluster};
use crate::error::Result;
use crate::kinds::value::{annotation, has, set};

const GROUP: &str = "networking.k8s.io";

pub struct DefaultIngressClass;

#[async_trait]
impl Admission for DefaultIngressClass {
    fn name(&self) -> &'static str {
        "DefaultIngressClass"
    }

    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        creates(attributes, GROUP, "ingresses")
    }

    async fn mutate(&self, attributes: &mut Attributes<'_>, cluster: &dyn Cluster) -> Result<()> {
        let named = has(&attributes.object, "spec.ingressClassName")
            || annotation(&attributes.object, "kubernetes.io/ingress.class").is_some();
        if named {
            return Ok(());
        }
        let classes = cluster.list(GROUP, "ingressclasses", "").await?;
        if let Some(default) =
            newest_default(classes.iter().map(AsRef::as_ref), &["ingressclass.kubernetes.io/is-default-class"])
        {
            set(&mut attributes.object, "spec.ingressClassName", default);
        }
        Ok(())
    }
}

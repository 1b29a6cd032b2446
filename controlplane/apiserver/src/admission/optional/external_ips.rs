//! `DenyServiceExternalIPs`: Services take no address that they did not have before.

use async_trait::async_trait;

use crate::admit::{Admission, Attributes, Cluster, Operation};
use crate::error::Result;
use crate::kinds::value::texts;

pub struct DenyServiceExternalIps;

#[async_trait]
impl Admission for DenyServiceExternalIps {
    fn name(&self) -> &'static str {
        "DenyServiceExternalIPs"
    }

    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        attributes.is("", "services")
            && attributes.subresource.is_empty()
            && matches!(attributes.operation, Operation::Create | Operation::Update)
    }

    async fn validate(&self, attributes: &mut Attributes<'_>, _cluster: &dyn Cluster) -> Result<()> {
        let before = attributes.old.map_or_else(Vec::new, |old| texts(old, "spec.externalIPs"));
        if texts(&attributes.object, "spec.externalIPs").iter().all(|address| before.contains(address)) {
            return Ok(());
        }
        Err(attributes.forbid("Use of external IPs is denied by admission control"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::fake::{Fixed, Request};
    use super::*;
    use serde_json::json;

    /// Upstream's rows (`TestAdmission`).
    #[tokio::test]
    async fn only_what_was_there() {
        for (old, new, allowed) in [
            (None, &[][..], true),
            (None, &["1.2.3.4"], false),
            (Some(&[][..]), &[], true),
            (Some(&[]), &["1.2.3.4"], false),
            (Some(&["1.2.3.4", "5.6.7.8"]), &["1.2.3.4", "5.6.7.8"], true),
            (Some(&["1.2.3.4", "5.6.7.8"]), &["5.6.7.8"], true),
            (Some(&["1.2.3.4", "5.6.7.8"]), &["5.6.7.8", "1.2.3.4"], true),
            (Some(&["1.2.3.4", "5.6.7.8"]), &[], true),
            (Some(&["1.2.3.4"]), &["5.6.7.8"], false),
            (Some(&["1.2.3.4"]), &["1.2.3.4", "5.6.7.8"], false),
        ] {
            let service = |addresses: &[&str]| json!({"metadata": {"name": "s"}, "spec": {"externalIPs": addresses}});
            let operation = if old.is_some() { Operation::Update } else { Operation::Create };
            let mut request = Request::new("", "services", operation, service(new));
            request.old = old.map(service);
            let expected = if allowed {
                Ok(())
            } else {
                Err("services \"s\" is forbidden: Use of external IPs is denied by admission control".to_owned())
            };
            assert_eq!(request.admit(&DenyServiceExternalIps, &Fixed::default()).await, expected, "{old:?} {new:?}");
        }
    }
}

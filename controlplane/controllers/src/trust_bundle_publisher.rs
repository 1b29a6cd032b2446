//! The cluster CA as a ClusterTrustBundle of signer `kubernetes.io/kube-apiserver-serving`, so that
//! pods can mount what verifies the API server.
//!
//! The name holds the content's hash: a new CA is another bundle, and the old one goes once the new
//! one is there.

use std::fmt::Write;
use std::sync::Arc;

use component::{Outcome, WorkQueue};
use k8s_openapi::api::certificates::v1::{ClusterTrustBundle, ClusterTrustBundleSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, ResourceExt};
use sha2::{Digest, Sha256};

use crate::context::{Context, Controller, synced};
use crate::error::{During, Result};

const SIGNER: &str = "kubernetes.io/kube-apiserver-serving";

pub fn start(context: &Context) {
    let queue = WorkQueue::<()>::new();
    let controller = context.controller("kube-apiserver-serving-clustertrustbundle-publisher");
    let bundles = context.informers.selected::<ClusterTrustBundle>(&format!("spec.signerName={SIGNER}"));
    let changed = queue.clone();
    bundles.on_change(move |_| changed.add(()));
    // there is nothing to change before the first bundle
    queue.add(());
    let (writer, wanted) = (controller.clone(), Arc::new(bundle(&context.config.ca_certificate)));
    controller.run(&queue, 1, synced!(bundles), move |()| {
        let (bundles, writer, wanted) = (bundles.clone(), writer.clone(), wanted.clone());
        async move {
            publish(&writer, &bundles.list(), &wanted).await?;
            Ok(Outcome::Done)
        }
    });
}

fn bundle(ca: &str) -> ClusterTrustBundle {
    let mut name = format!("{}:", SIGNER.replace('/', ":"));
    for byte in &Sha256::digest(ca)[..12] {
        // writing to a String cannot fail
        let _ = write!(name, "{byte:02x}");
    }
    ClusterTrustBundle {
        metadata: ObjectMeta { name: Some(name), ..Default::default() },
        spec: ClusterTrustBundleSpec { signer_name: Some(SIGNER.to_owned()), trust_bundle: ca.to_owned() },
    }
}

async fn publish(
    controller: &Controller,
    existing: &[Arc<ClusterTrustBundle>],
    wanted: &ClusterTrustBundle,
) -> Result<()> {
    let (api, name): (Api<ClusterTrustBundle>, _) = (controller.cluster(), wanted.name_any());
    match existing.iter().find(|bundle| bundle.name_any() == name) {
        None => {
            api.create(&PostParams::default(), wanted).await.during("publishing trust bundle", &name)?;
        }
        Some(known) if known.spec != wanted.spec => {
            let changed = ClusterTrustBundle { spec: wanted.spec.clone(), ..(**known).clone() };
            api.replace(&name, &PostParams::default(), &changed).await.during("mending trust bundle", &name)?;
        }
        Some(_) => {}
    }
    for old in existing.iter().map(|bundle| bundle.name_any()).filter(|old| *old != name) {
        api.delete(&old, &DeleteParams::default()).await.unless_gone("deleting old trust bundle", &old)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_ca_is_another_bundle() {
        let (one, other) = (bundle("one"), bundle("other"));
        let name = one.name_any();
        let (prefix, hash) = name.split_at(SIGNER.len() + 1);
        assert_eq!((prefix, hash.len()), ("kubernetes.io:kube-apiserver-serving:", 24));
        assert!(hash.bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert_ne!(one.name_any(), other.name_any());
        assert_eq!(one.spec.signer_name.as_deref(), Some(SIGNER));
    }
}

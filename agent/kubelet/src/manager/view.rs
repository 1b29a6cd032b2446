//! The node's pods as the 10250 server reads them.

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;

use super::Manager;
use crate::cgroups::Cgroups;
use crate::cri::Runtime;
use crate::pod::mailbox::Snapshot;
use crate::pod::observed::Run;
use crate::server_contract::{ContainerRun, NodePods, PodRuntimeView};
use crate::volume_contract::{CertificateStates, VolumeUsage};

fn container_run(run: &Run) -> ContainerRun {
    ContainerRun {
        name: run.name.clone(),
        id: run.id.clone(),
        attempt: run.restart_count,
        running: run.is_running(),
        started_at: run.started_at,
        finished_at: run.finished_at,
        log_path: run.log_path.clone().into(),
    }
}

#[async_trait]
impl NodePods for Manager {
    fn pods(&self) -> Vec<Arc<Pod>> {
        self.snapshots().into_iter().map(|snapshot| snapshot.pod).collect()
    }

    fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let named = |pod: &Pod| {
            pod.metadata.namespace.as_deref() == Some(namespace) && pod.metadata.name.as_deref() == Some(name)
        };
        let mut found: Vec<Snapshot> = self.snapshots().into_iter().filter(|snapshot| named(&snapshot.pod)).collect();
        // Of two with one name, the one that still lives.
        found.sort_by_key(|snapshot| snapshot.ended);
        found.into_iter().next().map(|snapshot| snapshot.pod)
    }

    fn runtime_view(&self, pod_uid: &str) -> PodRuntimeView {
        let mailbox = {
            let state = self.state.lock();
            let by_mirror = || {
                let found = state.mirrors.iter().find(|(_, mirror)| mirror.metadata.uid.as_deref() == Some(pod_uid));
                found.and_then(|(uid, _)| state.pods.get(uid)).cloned()
            };
            state.pods.get(pod_uid).cloned().or_else(by_mirror)
        };
        let Some(mailbox) = mailbox else { return PodRuntimeView::default() };
        let observed = mailbox.snapshot().observed;
        PodRuntimeView {
            sandbox_id: observed.ready_sandbox().map(|sandbox| sandbox.id.clone()),
            containers: observed.runs.iter().map(container_run).collect(),
        }
    }

    async fn volume_usage(&self, pod: &Pod) -> Vec<VolumeUsage> {
        self.node.volumes.usage(pod).await
    }

    fn certificates(&self) -> CertificateStates {
        self.node.volumes.certificates()
    }

    fn runtime(&self) -> &Runtime {
        &self.node.runtime
    }

    fn cgroups(&self) -> &Cgroups {
        &self.node.cgroups
    }

    fn probe_metrics(&self) -> String {
        self.node.probe_totals.page()
    }

    fn image_metrics(&self) -> String {
        self.node.images.metrics()
    }

    fn pods_api_metrics(&self) -> String {
        self.node.feed_totals.page()
    }

    fn user_namespace_metrics(&self) -> String {
        self.node.user_namespaces.metrics()
    }

    async fn healthy(&self) -> Result<(), String> {
        self.node.runtime.version().await.map(|_| ()).map_err(|error| error.to_string())
    }
}

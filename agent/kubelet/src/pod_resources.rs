//! Which pod has which devices, for programs on this node that measure or map them
//! (`pkg/kubelet/apis/podresources`): gRPC on `<root>/pod-resources/kubelet.sock`.
//!
//! Layer: beside the 10250 server; it reads the manager's pods, and what [`crate::devices`] and
//! [`crate::dra`] gave them.

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Container, Pod};
use proto::v1::pod_resources_lister_server::{PodResourcesLister, PodResourcesListerServer};
use proto::v1::{
    AllocatableResourcesRequest, AllocatableResourcesResponse, CdiDevice, ClaimResource, ContainerDevices,
    ContainerResources, DynamicResource, GetPodResourcesRequest, GetPodResourcesResponse, ListPodResourcesRequest,
    ListPodResourcesResponse, PodResources,
};
use tonic::{Request, Response, Status};

use crate::context::NodeContext;
use crate::manager::Manager;
use crate::pod::actions::is_sidecar;
use crate::server_contract::NodePods;
use crate::unix_server::{self, Limiter};

struct Server {
    node: Arc<NodeContext>,
    manager: Arc<Manager>,
    limiter: Limiter,
}

/// Serves for as long as the task lives.
pub async fn serve(node: Arc<NodeContext>, manager: Arc<Manager>) {
    let socket = node.config.layout.pod_resources().join("kubelet.sock");
    let server = Server { node, manager, limiter: Limiter::default() };
    unix_server::serve(&socket, "which pods have which devices", PodResourcesListerServer::new(server)).await;
}

#[async_trait]
impl PodResourcesLister for Server {
    /// Pods that have ended have given back what they had.
    async fn list(&self, _: Request<ListPodResourcesRequest>) -> Result<Response<ListPodResourcesResponse>, Status> {
        self.limiter.admit()?;
        let active = self.manager.snapshots().into_iter().filter(|snapshot| !snapshot.ended);
        let pod_resources = active.map(|snapshot| self.of_pod(&snapshot.pod)).collect();
        Ok(Response::new(ListPodResourcesResponse { pod_resources }))
    }

    async fn get(&self, request: Request<GetPodResourcesRequest>) -> Result<Response<GetPodResourcesResponse>, Status> {
        self.limiter.admit()?;
        let GetPodResourcesRequest { pod_name, pod_namespace } = request.into_inner();
        let found = self.manager.pod(&pod_namespace, &pod_name);
        let found =
            found.ok_or_else(|| Status::unknown(format!("pod {pod_name} in namespace {pod_namespace} not found")))?;
        let pod_resources = Some(self.of_pod(&found));
        Ok(Response::new(GetPodResourcesResponse { pod_resources }))
    }

    async fn get_allocatable_resources(
        &self,
        _: Request<AllocatableResourcesRequest>,
    ) -> Result<Response<AllocatableResourcesResponse>, Status> {
        self.limiter.admit()?;
        let devices = self.node.devices.healthy().into_iter().map(devices).collect();
        Ok(Response::new(AllocatableResourcesResponse { devices, ..Default::default() }))
    }
}

fn devices((resource_name, device_ids): (String, Vec<String>)) -> ContainerDevices {
    ContainerDevices { resource_name, device_ids, topology: None }
}

/// The containers that are told of: those that run for as long as their pod.
fn lasting(pod: &Pod) -> impl Iterator<Item = &Container> {
    let spec = pod.spec.iter();
    spec.flat_map(|spec| {
        let sidecars = spec.init_containers.iter().flatten().filter(|container| is_sidecar(container));
        sidecars.chain(&spec.containers)
    })
}

impl Server {
    fn of_pod(&self, pod: &Pod) -> PodResources {
        PodResources {
            name: pod.metadata.name.clone().unwrap_or_default(),
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            containers: lasting(pod).map(|container| self.of_container(pod, container)).collect(),
            ..Default::default()
        }
    }

    fn of_container(&self, pod: &Pod, container: &Container) -> ContainerResources {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        ContainerResources {
            name: container.name.clone(),
            devices: self.node.devices.of_container(uid, &container.name).into_iter().map(devices).collect(),
            dynamic_resources: self.node.dra.of_container(pod, container).into_iter().map(dynamic).collect(),
            ..Default::default()
        }
    }
}

fn dynamic(claim: crate::dra::Held) -> DynamicResource {
    let resources = claim.devices.into_iter().map(|(driver_name, device)| ClaimResource {
        cdi_devices: device.cdi_device_ids.into_iter().map(|name| CdiDevice { name }).collect(),
        driver_name,
        pool_name: device.pool_name,
        device_name: device.device_name,
        share_id: None,
    });
    DynamicResource { claim_name: claim.name, claim_namespace: claim.namespace, claim_resources: resources.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_that_end_before_the_others_begin_are_not_told_of() {
        let pod: Pod = serde_json::from_value(serde_json::json!({"spec": {
            "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}], "containers": [{"name": "c"}]}}))
        .unwrap();
        assert_eq!(lasting(&pod).map(|container| container.name.as_str()).collect::<Vec<_>>(), ["s", "c"]);
    }
}

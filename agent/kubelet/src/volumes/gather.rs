//! Fetching what volumes of files show: objects, tokens, the pod itself.

use std::sync::Arc;
use std::time::Duration;

use api::resources::Amounts;
use component::{Supervisor, brief};
use k8s_openapi::api::certificates::v1::ClusterTrustBundle;
use k8s_openapi::api::core::v1::{
    ClusterTrustBundleProjection, ConfigMap, KeyToPath, Pod, PodCertificateProjection, ProjectedVolumeSource, Secret,
    ServiceAccountTokenProjection, Volume, VolumeProjection,
};
use kube::api::ListParams;
use kube::{Api, Client};

use super::objects::Objects;
use super::owner::Owner;
use super::payload::{self, DEFAULT_MODE, File, Payload, Selection};
use super::pod_certificates::{self, PodCertificates};
use super::tokens::Tokens;

/// A volume's files, and when they should be fetched again although no object changed.
#[derive(Debug, Default)]
pub struct Gathered {
    pub payload: Payload,
    pub renew_after: Option<Duration>,
}

impl From<Payload> for Gathered {
    fn from(payload: Payload) -> Self {
        Self { payload, renew_after: None }
    }
}

/// Everything that volumes of files are fed from.
pub struct Sources {
    client: Client,
    pub config_maps: Objects<ConfigMap>,
    pub secrets: Objects<Secret>,
    pub tokens: Tokens,
    pub certificates: Arc<PodCertificates>,
    /// The node's allocatable resources: limits that a container does not set.
    pub allocatable: Arc<dyn Fn() -> Amounts + Send + Sync>,
}

/// Whether a volume's content is files that the agent writes, and which plugin directory it is in.
/// The second value says whether it is kept in memory only.
pub fn plugin_of(volume: &Volume) -> Option<(&'static str, bool)> {
    if volume.config_map.is_some() {
        Some(("kubernetes.io/configmap", false))
    } else if volume.secret.is_some() {
        Some(("kubernetes.io/secret", true))
    } else if volume.downward_api.is_some() {
        Some(("kubernetes.io/downward-api", true))
    } else if volume.projected.is_some() {
        Some(("kubernetes.io/projected", true))
    } else {
        None
    }
}

impl Sources {
    pub fn new(
        client: Client,
        allocatable: Arc<dyn Fn() -> Amounts + Send + Sync>,
        changed: Arc<dyn Fn(&str) + Send + Sync>,
        certificates: Arc<PodCertificates>,
        supervisor: &Supervisor,
    ) -> Self {
        Self {
            certificates,
            config_maps: Objects::new(client.clone(), supervisor, changed.clone()),
            secrets: Objects::new(client.clone(), supervisor, changed),
            tokens: Tokens::new(client.clone()),
            client,
            allocatable,
        }
    }

    pub fn release(&self, pod_uid: &str) {
        self.config_maps.release(pod_uid);
        self.secrets.release(pod_uid);
        self.tokens.release(pod_uid);
        self.certificates.release(pod_uid);
    }

    /// The files of one volume, which [`plugin_of`] recognised.
    pub async fn gather(&self, pod: &Pod, volume: &Volume, owner: Owner) -> Result<Gathered, String> {
        if let Some(source) = &volume.config_map {
            let selection = selection(
                source.items.as_deref(),
                source.default_mode.unwrap_or(DEFAULT_MODE),
                source.default_user,
                source.optional,
            );
            return self.config_map(pod, &source.name, selection).await.map(Into::into);
        }
        if let Some(source) = &volume.secret {
            let selection = selection(
                source.items.as_deref(),
                source.default_mode.unwrap_or(DEFAULT_MODE),
                source.default_user,
                source.optional,
            );
            return self
                .secret(pod, source.secret_name.as_deref().unwrap_or_default(), selection)
                .await
                .map(Into::into);
        }
        if let Some(source) = &volume.downward_api {
            let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
            let items = source.items.as_deref().unwrap_or_default();
            return payload::of_downward(pod, items, mode, source.default_user, &(self.allocatable)()).map(Into::into);
        }
        match &volume.projected {
            Some(source) => self.projected(pod, &volume.name, source, owner).await,
            None => Ok(Gathered::default()),
        }
    }

    async fn config_map(&self, pod: &Pod, name: &str, selection: Selection<'_>) -> Result<Payload, String> {
        let object = self.config_maps.get(namespace(pod), name, uid(pod)).await?;
        payload::of_config_map(name, object.as_deref(), selection)
    }

    async fn secret(&self, pod: &Pod, name: &str, selection: Selection<'_>) -> Result<Payload, String> {
        let object = self.secrets.get(namespace(pod), name, uid(pod)).await?;
        payload::of_secret(name, object.as_deref(), selection)
    }

    /// All sources at once; a later source wins where two have the same path.
    async fn projected(
        &self,
        pod: &Pod,
        name: &str,
        volume: &ProjectedVolumeSource,
        owner: Owner,
    ) -> Result<Gathered, String> {
        let sources = volume.sources.iter().flatten().enumerate();
        let parts = sources.map(|(index, source)| self.projection(pod, (name, index), volume, source, owner));
        let mut all = Gathered::default();
        for part in futures::future::join_all(parts).await {
            let part = part?;
            all.payload.extend(part.payload);
            all.renew_after = all.renew_after.into_iter().chain(part.renew_after).min();
        }
        Ok(all)
    }

    /// `place`: the volume's name, and which of its sources it is.
    async fn projection(
        &self,
        pod: &Pod,
        place: (&str, usize),
        volume: &ProjectedVolumeSource,
        source: &VolumeProjection,
        owner: Owner,
    ) -> Result<Gathered, String> {
        let mode = volume.default_mode.unwrap_or(DEFAULT_MODE);
        let user = volume.default_user;
        if let Some(source) = &source.config_map {
            let selection = selection(source.items.as_deref(), mode, user, source.optional);
            return self.config_map(pod, &source.name, selection).await.map(Into::into);
        }
        if let Some(source) = &source.secret {
            let selection = selection(source.items.as_deref(), mode, user, source.optional);
            return self.secret(pod, &source.name, selection).await.map(Into::into);
        }
        if let Some(source) = &source.downward_api {
            let items = source.items.as_deref().unwrap_or_default();
            return payload::of_downward(pod, items, mode, user, &(self.allocatable)()).map(Into::into);
        }
        if let Some(source) = &source.service_account_token {
            return self.token(pod, source, mode, owner).await;
        }
        if let Some(source) = &source.cluster_trust_bundle {
            return self.trust_bundle(source, mode, user).await.map(Into::into);
        }
        match &source.pod_certificate {
            Some(source) => self.certificate(pod, place, source, mode, owner).map(Into::into),
            None => Ok(Gathered::default()),
        }
    }

    async fn token(
        &self,
        pod: &Pod,
        source: &ServiceAccountTokenProjection,
        mode: i32,
        owner: Owner,
    ) -> Result<Gathered, String> {
        let lent = self.tokens.get(pod, source.audience.as_deref(), source.expiration_seconds).await?;
        let file = confidential(lent.value.into_bytes(), source.user, mode, owner);
        let payload = Payload::from([(payload::clean(&source.path), file)]);
        Ok(Gathered { payload, renew_after: Some(lent.renew_after) })
    }

    /// What there is now: the pod is told when there is another.
    fn certificate(
        &self,
        pod: &Pod,
        (volume, index): (&str, usize),
        source: &PodCertificateProjection,
        mode: i32,
        owner: Owner,
    ) -> Result<Payload, String> {
        let credential = self.certificates.get(pod, volume, index)?;
        let file = |data: Vec<u8>| confidential(data, source.user, mode, owner);
        Ok(pod_certificates::files(source, &credential, file))
    }

    /// The certificates of one bundle, or of all bundles of a signer that the labels select.
    async fn trust_bundle(
        &self,
        source: &ClusterTrustBundleProjection,
        mode: i32,
        default_user: Option<i64>,
    ) -> Result<Payload, String> {
        let api: Api<ClusterTrustBundle> = Api::all(self.client.clone());
        let bundles = match (&source.name, &source.signer_name) {
            (Some(name), _) => api.get_opt(name).await.map_err(|error| brief(&error))?.into_iter().collect(),
            (None, Some(signer)) => {
                // As the API documents: no selector selects nothing, an empty one everything.
                match &source.label_selector {
                    None => Vec::new(),
                    Some(selector) => {
                        let selector = kube::core::Selector::try_from(selector.clone())
                            .map_err(|error| format!("clusterTrustBundle label selector: {error}"))?;
                        let params = ListParams::default().fields(&format!("spec.signerName={signer}"));
                        api.list(&params.labels_from(&selector)).await.map_err(|error| brief(&error))?.items
                    }
                }
            }
            (None, None) => Vec::new(),
        };
        trust_payload(source, bundles, mode, default_user)
    }
}

/// A file for its pod's user alone where there is one, else readable as the volume says.
fn confidential(data: Vec<u8>, user: Option<i64>, mode: i32, owner: Owner) -> File {
    let user = user.and_then(payload::user_id).or(owner.user);
    let mode = if user.is_some() || owner.group.is_some() { 0o600 } else { payload::mode_bits(mode) };
    File { data, mode, user }
}

fn trust_payload(
    source: &ClusterTrustBundleProjection,
    bundles: Vec<ClusterTrustBundle>,
    mode: i32,
    default_user: Option<i64>,
) -> Result<Payload, String> {
    if bundles.is_empty() && !source.optional.unwrap_or(false) {
        let what = source.name.as_deref().or(source.signer_name.as_deref()).unwrap_or_default();
        return Err(format!("clustertrustbundle {what:?} not found"));
    }
    let text: String = bundles.iter().map(|bundle| format!("{}\n", bundle.spec.trust_bundle.trim_end())).collect();
    let user = source.user.or(default_user).and_then(payload::user_id);
    let file = File { data: text.into_bytes(), mode: payload::mode_bits(mode), user };
    Ok(Payload::from([(payload::clean(&source.path), file)]))
}

fn selection(
    items: Option<&[KeyToPath]>,
    default_mode: i32,
    default_user: Option<i64>,
    optional: Option<bool>,
) -> Selection<'_> {
    Selection { items: items.unwrap_or_default(), default_mode, default_user, optional: optional.unwrap_or(false) }
}

fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or("default")
}

fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

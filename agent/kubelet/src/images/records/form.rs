//! What lies in the files: `ImagePullIntent` and `ImagePulledRecord` of `kubelet.config.k8s.io`.
//! Read strictly, as Kubernetes reads them: a field that is not known may be one that forbids. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::images::keyring::{Coordinates, Credential, Source};

/// What is written.
pub const VERSION: &str = "kubelet.config.k8s.io/v1beta1";
/// What is read, too.
const OLDER_VERSION: &str = "kubelet.config.k8s.io/v1alpha1";

/// A pull began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PullIntent {
    kind: String,
    api_version: String,
    /// As the pod writes it.
    pub image: String,
}

impl PullIntent {
    pub fn new(image: &str) -> Self {
        Self { kind: Self::KIND.to_owned(), api_version: VERSION.to_owned(), image: image.to_owned() }
    }
}

/// An image that pods' pulls brought to the node, and which of them may use it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PulledRecord {
    kind: String,
    api_version: String,
    /// To the second.
    last_updated_time: Option<Time>,
    /// The runtime's id of the image.
    pub image_ref: String,
    /// By the image's name in full, without tag and digest. Names that are missing have to be pulled.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub credential_mapping: BTreeMap<String, PullCredentials>,
}

impl PulledRecord {
    pub fn new(image_ref: &str, now: Timestamp) -> Self {
        Self {
            kind: Self::KIND.to_owned(),
            api_version: VERSION.to_owned(),
            last_updated_time: Some(Time(now)),
            image_ref: image_ref.to_owned(),
            credential_mapping: BTreeMap::new(),
        }
    }

    /// Seconds since 1970.
    pub fn updated(&self) -> i64 {
        self.last_updated_time.as_ref().map_or(i64::MIN, |time| time.0.as_second())
    }

    /// The same, changed at `now`.
    #[must_use]
    pub fn touched(&self, now: Timestamp) -> Self {
        Self { last_updated_time: Some(Time(now)), ..self.renewed() }
    }
}

/// Whose pulls of an image succeeded.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PullCredentials {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kubernetes_secrets: Vec<PullSecret>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kubernetes_service_accounts: Vec<Coordinates>,
    /// No credentials were needed, or the node's own.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub node_pods_accessible: bool,
}

impl PullCredentials {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What a pull with this credential, or with none, proved.
    pub fn of(used: Option<&Credential>) -> Self {
        match used.map(|credential| (&credential.source, credential)) {
            None | Some((Source::Node, _)) => Self { node_pods_accessible: true, ..Self::default() },
            Some((Source::Secret(_), credential)) => {
                Self { kubernetes_secrets: PullSecret::of(credential).into_iter().collect(), ..Self::default() }
            }
            Some((Source::ServiceAccount(account), _)) => {
                Self { kubernetes_service_accounts: vec![account.clone()], ..Self::default() }
            }
        }
    }
}

/// A Secret and the login in it that fitted. In the order of lists: by namespace, name and UID.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PullSecret {
    pub uid: String,
    pub namespace: String,
    pub name: String,
    pub credential_hash: String,
}

impl PullSecret {
    /// None if the login is from no Secret.
    pub fn of(credential: &Credential) -> Option<Self> {
        let Source::Secret(Coordinates { uid, namespace, name }) = &credential.source else { return None };
        let (uid, namespace, name) = (uid.clone(), namespace.clone(), name.clone());
        Some(Self { uid, namespace, name, credential_hash: credential.login.hash() })
    }

    /// Whether both are of one Secret, whatever it holds by now.
    pub fn is_same_object(&self, other: &Self) -> bool {
        self.key() == other.key()
    }

    pub fn key(&self) -> (&str, &str, &str) {
        (&self.namespace, &self.name, &self.uid)
    }
}

/// A kind of file.
pub trait Form: Serialize + DeserializeOwned {
    const KIND: &'static str;
    fn type_meta(&self) -> (&str, &str);

    /// The same in today's version.
    #[must_use]
    fn renewed(&self) -> Self;

    /// Whether another version of Kubernetes wrote it.
    fn is_older(&self) -> bool {
        self.type_meta().1 == OLDER_VERSION
    }

    /// The error says what is wrong with it.
    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let read: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let (kind, version) = read.type_meta();
        if kind != Self::KIND || ![VERSION, OLDER_VERSION].contains(&version) {
            return Err(format!("it is a {kind:?} of {version:?}"));
        }
        Ok(read)
    }
}

impl Form for PullIntent {
    const KIND: &'static str = "ImagePullIntent";

    fn type_meta(&self) -> (&str, &str) {
        (&self.kind, &self.api_version)
    }

    fn renewed(&self) -> Self {
        Self::new(&self.image)
    }
}

impl Form for PulledRecord {
    const KIND: &'static str = "ImagePulledRecord";

    fn type_meta(&self) -> (&str, &str) {
        (&self.kind, &self.api_version)
    }

    fn renewed(&self) -> Self {
        Self { api_version: VERSION.to_owned(), ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubernetes_files_are_read_and_written() {
        let intent =
            r#"{"kind":"ImagePullIntent","apiVersion":"kubelet.config.k8s.io/v1beta1","image":"docker.io/a/b:latest"}"#;
        assert_eq!(serde_json::to_string(&PullIntent::parse(intent.as_bytes()).unwrap()).unwrap(), intent);
        let record = r#"{"kind":"ImagePulledRecord","apiVersion":"kubelet.config.k8s.io/v1beta1","lastUpdatedTime":"2024-10-21T12:26:40Z","imageRef":"sha256:1","credentialMapping":{"docker.io/a/b":{"kubernetesSecrets":[{"uid":"u","namespace":"n","name":"s","credentialHash":"h"}]},"r/open":{"nodePodsAccessible":true},"r/sa":{"kubernetesServiceAccounts":[{"uid":"u","namespace":"n","name":"a"}]}}}"#;
        let read = PulledRecord::parse(record.as_bytes()).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), record);
        assert_eq!(read.updated(), 1_729_513_600);
    }

    #[test]
    fn what_is_something_else_is_refused() {
        let alpha = r#"{"kind":"ImagePullIntent","apiVersion":"kubelet.config.k8s.io/v1alpha1","image":"a"}"#;
        assert!(PullIntent::parse(alpha.as_bytes()).unwrap().is_older());
        for text in [
            "",
            "{}",
            r#"{"kind":"ImagePulledRecord","apiVersion":"kubelet.config.k8s.io/v1beta1","image":"a"}"#,
            r#"{"kind":"ImagePullIntent","apiVersion":"kubelet.config.k8s.io/v2","image":"a"}"#,
            r#"{"kind":"ImagePullIntent","apiVersion":"kubelet.config.k8s.io/v1beta1","image":"a","more":1}"#,
        ] {
            assert!(PullIntent::parse(text.as_bytes()).is_err(), "{text}");
        }
    }
}

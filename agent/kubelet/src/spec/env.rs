//! A container's environment: envFrom, env, and a variable set for every Service in the namespace
//! (`pkg/kubelet/envvars`, `kubelet_pods.go: makeEnvironmentVariables`). Pure over [`Sources`].

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use api::resources::Amounts;
use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVar, FileKeySelector, Pod, Secret, Service};

use super::command::expand;
use super::env_file;
use crate::downward::{self, DownwardError};
use crate::pod::actions::pod_id;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvError {
    #[error("configmap \"{0}\" not found")]
    NoConfigMap(String),
    #[error("secret \"{0}\" not found")]
    NoSecret(String),
    #[error("couldn't find key {key} in ConfigMap {namespace}/{name}")]
    NoConfigMapKey { key: String, namespace: String, name: String },
    #[error("couldn't find key {key} in Secret {namespace}/{name}")]
    NoSecretKey { key: String, namespace: String, name: String },
    #[error("cannot find the volume {0:?} referenced by FileKeyRef")]
    NoFileVolume(String),
    #[error("environment variable key {0:?} exceeds maximum length of {most} characters", most = MOST_OF_KEY)]
    LongFileKey(String),
    #[error("couldn't parse env file")]
    BadFile,
    #[error("environment variable key {key:?} not found in file {path:?}")]
    NoFileKey { key: String, path: String },
    #[error("the value of environment variable key {0:?} exceeds maximum length of {most} bytes", most = MOST_OF_VALUE)]
    LongFileValue(String),
    #[error(transparent)]
    Downward(#[from] DownwardError),
}

/// What a key in a file, and its value, may have.
const MOST_OF_KEY: usize = 128;
const MOST_OF_VALUE: usize = 32 << 10;

/// What there is of a file in a volume: its text, none if there is no such file, or why it cannot be read.
pub type FileText = Result<Option<String>, String>;

/// Objects that values may come from. Missing ones are absent.
#[derive(Debug, Default)]
pub struct Sources {
    pub config_maps: HashMap<String, Arc<ConfigMap>>,
    pub secrets: HashMap<String, Arc<Secret>>,
    /// By the volume's name and the path in it. Absent if the pod has no such volume.
    pub files: HashMap<(String, String), FileText>,
    /// Those of the pod's namespace, and `default/kubernetes`.
    pub services: Vec<Arc<Service>>,
    /// The node's, for limits that are not set.
    pub allocatable: Amounts,
}

/// The ConfigMaps and Secrets a container's environment names.
pub fn referenced(container: &Container) -> (Vec<String>, Vec<String>) {
    let mut config_maps = Vec::new();
    let mut secrets = Vec::new();
    for from in container.env_from.iter().flatten() {
        config_maps.extend(from.config_map_ref.iter().map(|reference| reference.name.clone()));
        secrets.extend(from.secret_ref.iter().map(|reference| reference.name.clone()));
    }
    for source in container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref()) {
        config_maps.extend(source.config_map_key_ref.iter().map(|reference| reference.name.clone()));
        secrets.extend(source.secret_key_ref.iter().map(|reference| reference.name.clone()));
    }
    config_maps.sort();
    config_maps.dedup();
    secrets.sort();
    secrets.dedup();
    (config_maps, secrets)
}

/// Variables in the order the container gets them. `pod.status` must hold the addresses.
pub fn environment(pod: &Pod, container: &Container, sources: &Sources) -> Result<Vec<(String, String)>, EnvError> {
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let links = pod.spec.as_ref().and_then(|spec| spec.enable_service_links).unwrap_or(true);
    let services = service_variables(&namespace, links, &sources.services);
    let mut found: Vec<(String, String)> = Vec::new();
    let set = |found: &mut Vec<(String, String)>, name: String, value: String| match found
        .iter_mut()
        .find(|(known, _)| *known == name)
    {
        Some(entry) => entry.1 = value,
        None => found.push((name, value)),
    };
    for (name, value) in from_whole_objects(container, sources)? {
        set(&mut found, name, value);
    }
    for variable in container.env.iter().flatten() {
        let value = {
            let lookup = |name: &str| {
                found
                    .iter()
                    .find(|(known, _)| known == name)
                    .map(|(_, value)| value.clone())
                    .or_else(|| services.get(name).cloned())
            };
            value_of(pod, &namespace, container, variable, sources, lookup)?
        };
        if let Some(value) = value {
            set(&mut found, variable.name.clone(), value);
        }
    }
    for (name, value) in services {
        if !found.iter().any(|(known, _)| *known == name) {
            found.push((name, value));
        }
    }
    Ok(found)
}

fn from_whole_objects(container: &Container, sources: &Sources) -> Result<Vec<(String, String)>, EnvError> {
    let mut variables = Vec::new();
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        if let Some(reference) = &from.config_map_ref {
            match sources.config_maps.get(&reference.name) {
                Some(object) => {
                    for (key, value) in object.data.iter().flatten() {
                        variables.push((format!("{prefix}{key}"), value.clone()));
                    }
                }
                None if reference.optional == Some(true) => {}
                None => return Err(EnvError::NoConfigMap(reference.name.clone())),
            }
        }
        if let Some(reference) = &from.secret_ref {
            match sources.secrets.get(&reference.name) {
                Some(object) => {
                    for (key, value) in object.data.iter().flatten() {
                        variables.push((format!("{prefix}{key}"), String::from_utf8_lossy(&value.0).into_owned()));
                    }
                }
                None if reference.optional == Some(true) => {}
                None => return Err(EnvError::NoSecret(reference.name.clone())),
            }
        }
    }
    Ok(variables)
}

/// None leaves the variable out: an optional reference to nothing.
fn value_of(
    pod: &Pod,
    namespace: &str,
    container: &Container,
    variable: &EnvVar,
    sources: &Sources,
    lookup: impl Fn(&str) -> Option<String>,
) -> Result<Option<String>, EnvError> {
    let Some(from) = &variable.value_from else {
        return Ok(Some(expand(variable.value.as_deref().unwrap_or_default(), lookup)));
    };
    if let Some(reference) = &from.field_ref {
        return Ok(Some(downward::field(pod, &reference.field_path)?));
    }
    if let Some(selector) = &from.resource_field_ref {
        return Ok(Some(downward::resource(pod, selector, Some(&container.name), &sources.allocatable)?));
    }
    if let Some(reference) = &from.config_map_key_ref {
        let optional = reference.optional == Some(true);
        let Some(object) = sources.config_maps.get(&reference.name) else {
            return if optional { Ok(None) } else { Err(EnvError::NoConfigMap(reference.name.clone())) };
        };
        return match object.data.as_ref().and_then(|data| data.get(&reference.key)) {
            Some(value) => Ok(Some(value.clone())),
            None if optional => Ok(None),
            None => Err(EnvError::NoConfigMapKey {
                key: reference.key.clone(),
                namespace: namespace.to_owned(),
                name: reference.name.clone(),
            }),
        };
    }
    if let Some(reference) = &from.secret_key_ref {
        let optional = reference.optional == Some(true);
        let Some(object) = sources.secrets.get(&reference.name) else {
            return if optional { Ok(None) } else { Err(EnvError::NoSecret(reference.name.clone())) };
        };
        return match object.data.as_ref().and_then(|data| data.get(&reference.key)) {
            Some(value) => Ok(Some(String::from_utf8_lossy(&value.0).into_owned())),
            None if optional => Ok(None),
            None => Err(EnvError::NoSecretKey {
                key: reference.key.clone(),
                namespace: namespace.to_owned(),
                name: reference.name.clone(),
            }),
        };
    }
    if let Some(reference) = &from.file_key_ref {
        return of_file(pod, reference, sources);
    }
    Ok(Some(String::new()))
}

/// The files that a container's environment names.
pub fn files(container: &Container) -> impl Iterator<Item = &FileKeySelector> {
    let sources = container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref());
    sources.filter_map(|source| source.file_key_ref.as_ref())
}

fn of_file(pod: &Pod, reference: &FileKeySelector, sources: &Sources) -> Result<Option<String>, EnvError> {
    let FileKeySelector { key, optional, path, volume_name } = reference;
    let Some(text) = sources.files.get(&(volume_name.clone(), path.clone())) else {
        return Err(EnvError::NoFileVolume(volume_name.clone()));
    };
    if key.chars().count() > MOST_OF_KEY {
        return Err(EnvError::LongFileKey(key.clone()));
    }
    let optional = *optional == Some(true);
    // What is wrong with the file is not for whoever may only read the pod's events.
    let bad = |error: &str| {
        tracing::warn!(pod = pod_id(pod), volume = volume_name, path, error, "a file of variables cannot be read");
        EnvError::BadFile
    };
    let value = match text {
        Ok(Some(text)) => env_file::parse(text, key).map_err(|error| bad(&error))?.unwrap_or_default(),
        Ok(None) if optional => String::new(),
        Ok(None) => return Err(bad("there is no such file")),
        Err(error) => return Err(bad(error)),
    };
    match value.len() {
        0 if optional => Ok(None),
        0 => Err(EnvError::NoFileKey { key: key.clone(), path: path.clone() }),
        1..=MOST_OF_VALUE => Ok(Some(value)),
        _ => Err(EnvError::LongFileValue(key.clone())),
    }
}

/// The variables of Services: of the namespace's if `links`, and always of `default/kubernetes`.
fn service_variables(namespace: &str, links: bool, services: &[Arc<Service>]) -> BTreeMap<String, String> {
    let mut chosen: BTreeMap<&str, &Service> = BTreeMap::new();
    for service in services {
        let name = service.metadata.name.as_deref().unwrap_or_default();
        let own = service.metadata.namespace.as_deref() == Some(namespace);
        let master = name == "kubernetes" && service.metadata.namespace.as_deref() == Some("default");
        if own && links {
            chosen.insert(name, service);
        } else if master {
            chosen.entry(name).or_insert(service);
        }
    }
    let mut variables = BTreeMap::new();
    for (name, service) in chosen {
        add_service(&mut variables, name, service);
    }
    variables
}

fn add_service(variables: &mut BTreeMap<String, String>, name: &str, service: &Service) {
    let Some(spec) = &service.spec else { return };
    let address = spec.cluster_ip.as_deref().unwrap_or_default();
    let Some(ports) = spec.ports.as_deref().filter(|ports| !ports.is_empty()) else { return };
    if address.is_empty() || address == "None" {
        return;
    }
    let upper = |text: &str| text.replace('-', "_").to_uppercase();
    let prefix = upper(name);
    variables.insert(format!("{prefix}_SERVICE_HOST"), address.to_owned());
    variables.insert(format!("{prefix}_SERVICE_PORT"), ports[0].port.to_string());
    for port in ports {
        if let Some(port_name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            variables.insert(format!("{prefix}_SERVICE_PORT_{}", upper(port_name)), port.port.to_string());
        }
    }
    // An IPv6 address needs brackets inside a URL.
    let host = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
    for (index, port) in ports.iter().enumerate() {
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let url = format!("{}://{host}:{}", protocol.to_lowercase(), port.port);
        if index == 0 {
            variables.insert(format!("{prefix}_PORT"), url.clone());
        }
        let port_prefix = format!("{prefix}_PORT_{}_{}", port.port, protocol.to_uppercase());
        variables.insert(format!("{port_prefix}_PROTO"), protocol.to_lowercase());
        variables.insert(format!("{port_prefix}_PORT"), port.port.to_string());
        variables.insert(format!("{port_prefix}_ADDR"), address.to_owned());
        variables.insert(port_prefix, url);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(container: serde_json::Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n"},
            "spec": {"containers": [container]}, "status": {"podIP": "10.1.1.1"}
        }))
        .unwrap()
    }

    fn sources() -> Sources {
        let config: ConfigMap = serde_json::from_value(json!({"data": {"k": "v", "other": "o"}})).unwrap();
        let secret: Secret = serde_json::from_value(json!({"data": {"pw": "aHVzaA=="}})).unwrap();
        let service = |namespace: &str, name: &str, ip: &str| -> Arc<Service> {
            Arc::new(
                serde_json::from_value(json!({"metadata": {"name": name, "namespace": namespace},
                    "spec": {"clusterIP": ip, "ports": [{"name": "web", "port": 80, "protocol": "TCP"}]}}))
                .unwrap(),
            )
        };
        Sources {
            config_maps: HashMap::from([("cm".to_owned(), Arc::new(config))]),
            secrets: HashMap::from([("s".to_owned(), Arc::new(secret))]),
            files: HashMap::from([
                (("v".to_owned(), "vars".to_owned()), Ok(Some("K='from a file'\nE=\n".to_owned()))),
                (("v".to_owned(), "wrong".to_owned()), Ok(Some("K=1".to_owned()))),
                (("v".to_owned(), "none".to_owned()), Ok(None)),
            ]),
            services: vec![
                service("n", "my-svc", "10.43.0.9"),
                service("default", "kubernetes", "10.43.0.1"),
                service("n", "headless", "None"),
            ],
            allocatable: Amounts::new(),
        }
    }

    fn environment_of(container: serde_json::Value) -> Result<BTreeMap<String, String>, EnvError> {
        let pod = pod(container);
        let container = pod.spec.as_ref().unwrap().containers[0].clone();
        Ok(environment(&pod, &container, &sources())?.into_iter().collect())
    }

    #[test]
    fn values_from_everywhere() {
        let variables = environment_of(json!({"name": "c",
            "envFrom": [{"prefix": "P_", "configMapRef": {"name": "cm"}}, {"secretRef": {"name": "none", "optional": true}}],
            "env": [
                {"name": "A", "value": "1"}, {"name": "B", "value": "$(A)$(P_k)-$(MY_SVC_SERVICE_HOST)-$$(A)"},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "PW", "valueFrom": {"secretKeyRef": {"name": "s", "key": "pw"}}},
                {"name": "GONE", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "none", "optional": true}}},
                {"name": "P_other", "value": "mine"}]}))
        .unwrap();
        for (name, value) in [
            ("P_k", "v"),
            ("P_other", "mine"),
            ("B", "1v-10.43.0.9-$(A)"),
            ("IP", "10.1.1.1"),
            ("PW", "hush"),
            ("MY_SVC_SERVICE_PORT", "80"),
            ("MY_SVC_SERVICE_PORT_WEB", "80"),
            ("MY_SVC_PORT", "tcp://10.43.0.9:80"),
            ("MY_SVC_PORT_80_TCP_ADDR", "10.43.0.9"),
            ("KUBERNETES_SERVICE_HOST", "10.43.0.1"),
        ] {
            assert_eq!(variables.get(name).map(String::as_str), Some(value), "{name}");
        }
        assert!(!variables.contains_key("GONE") && !variables.contains_key("HEADLESS_SERVICE_HOST"));
    }

    #[test]
    fn what_is_missing_is_named() {
        for (env, message) in [
            (json!({"configMapKeyRef": {"name": "x", "key": "k"}}), "configmap \"x\" not found"),
            (json!({"configMapKeyRef": {"name": "cm", "key": "z"}}), "couldn't find key z in ConfigMap n/cm"),
            (json!({"secretKeyRef": {"name": "x", "key": "k"}}), "secret \"x\" not found"),
            (json!({"secretKeyRef": {"name": "s", "key": "z"}}), "couldn't find key z in Secret n/s"),
        ] {
            let error = environment_of(json!({"name": "c", "env": [{"name": "V", "valueFrom": env}]})).unwrap_err();
            assert_eq!(error.to_string(), message);
        }
    }

    #[test]
    fn values_from_files() {
        let long = "k".repeat(129);
        for (volume, path, key, optional, expected) in [
            ("v", "vars", "K", false, Ok(Some("from a file"))),
            ("v", "vars", "X", true, Ok(None)),
            ("v", "vars", "X", false, Err("environment variable key \"X\" not found in file \"vars\"".to_owned())),
            ("v", "vars", "E", false, Err("environment variable key \"E\" not found in file \"vars\"".to_owned())),
            ("v", "wrong", "K", true, Err("couldn't parse env file".to_owned())),
            ("v", "none", "K", true, Ok(None)),
            ("v", "none", "K", false, Err("couldn't parse env file".to_owned())),
            ("w", "vars", "K", true, Err("cannot find the volume \"w\" referenced by FileKeyRef".to_owned())),
            (
                "v",
                "vars",
                &long,
                false,
                Err(format!("environment variable key \"{long}\" exceeds maximum length of 128 characters")),
            ),
        ] {
            let reference = json!({"volumeName": volume, "path": path, "key": key, "optional": optional});
            let container = json!({"name": "c", "env": [{"name": "V", "valueFrom": {"fileKeyRef": reference}}]});
            let value =
                environment_of(container).map(|found| found.get("V").cloned()).map_err(|error| error.to_string());
            assert_eq!(value, expected.map(|value| value.map(str::to_owned)), "{reference}");
        }
    }

    #[test]
    fn links_can_be_switched_off() {
        let mut pod = pod(json!({"name": "c"}));
        pod.spec.as_mut().unwrap().enable_service_links = Some(false);
        let container = pod.spec.as_ref().unwrap().containers[0].clone();
        let variables = environment(&pod, &container, &sources()).unwrap();
        assert!(variables.iter().all(|(name, _)| name.starts_with("KUBERNETES_")) && !variables.is_empty());
    }
}

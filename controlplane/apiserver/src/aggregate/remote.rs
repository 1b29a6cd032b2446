//! One remote server: where it is, whether it answers, and what it serves.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use component::Supervisor;
use http::StatusCode;
use parking_lot::RwLock;
use rustls::ClientConfig;
use serde_json::Value;
use tokio::time::Instant;

use super::available::{self, Condition};
use super::{PLURAL, Priority, discovery, forward, register};
use crate::admit::Cluster;
use crate::authn::UserInfo;
use crate::error::{ApiError, Result};
use crate::proxy::dial::{self, Security};
use crate::proxy::target::Target;
use crate::registry::metadata;
use crate::server::Api;

/// A server that answers is asked again this often, also for what it serves.
const RECHECK: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_secs(1);
const CHECK: Duration = Duration::from_secs(6);

pub struct Remote {
    /// Of the APIService.
    pub name: String,
    pub group: String,
    pub version: String,
    pub priority: Priority,
    uid: Value,
    spec: Value,
    known: RwLock<Known>,
    supervisor: Supervisor,
}

#[derive(Clone, Default)]
struct Known {
    available: bool,
    /// `APIResourceDiscovery` objects, from the last good answer.
    resources: Arc<[Value]>,
    /// The query of its OpenAPI v3 document, if it has one.
    openapi: Option<String>,
    /// `paths` and `definitions` of its OpenAPI v2 document.
    openapi_v2: Option<Arc<Value>>,
    tls: Option<Arc<ClientConfig>>,
}

impl Remote {
    /// A server as an APIService names it, and the task that looks after it.
    pub fn start(api: &Arc<Api>, object: &Value) -> Arc<Self> {
        let spec = &object["spec"];
        let text = |key: &str| spec[key].as_str().unwrap_or_default().to_owned();
        let number = |key: &str| spec[key].as_i64().unwrap_or(0);
        let name = metadata::text(object, "name").to_owned();
        let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
        let available = conditions.filter(|held| held["type"] == "Available").any(|held| held["status"] == "True");
        let remote = Arc::new(Self {
            group: text("group"),
            version: text("version"),
            priority: Priority { group: number("groupPriorityMinimum"), version: number("versionPriority") },
            uid: object["metadata"]["uid"].clone(),
            spec: spec.clone(),
            known: RwLock::new(Known { available, ..Known::default() }),
            supervisor: api.supervisor.child(format_args!("apiservice {name}")),
            name,
        });
        let (api, task) = (api.clone(), remote.clone());
        remote.supervisor.spawn("availability", async move { task.look_after(&api).await });
        remote
    }

    pub fn stop(&self) {
        self.supervisor.cancel();
    }

    pub fn is_of(&self, object: &Value) -> bool {
        self.uid == object["metadata"]["uid"] && self.spec == object["spec"]
    }

    pub fn is_available(&self) -> bool {
        self.known.read().available
    }

    /// `APIResourceDiscovery` objects as last seen.
    pub fn resources(&self) -> Arc<[Value]> {
        self.known.read().resources.clone()
    }

    /// The query of its OpenAPI v3 document (`hash=...`), if it has one.
    pub fn openapi(&self) -> Option<String> {
        self.known.read().openapi.clone()
    }

    pub fn openapi_v2(&self) -> Option<Arc<Value>> {
        self.known.read().openapi_v2.clone()
    }

    fn service(&self, key: &str) -> &str {
        self.spec["service"][key].as_str().unwrap_or_default()
    }

    async fn look_after(&self, api: &Api) {
        let resources = api.resources();
        let cache = |group: &str, plural: &str| resources.by_hub(group, plural).map(|found| found.cache.subscribe());
        let (Some(mut services), Some(mut slices)) =
            (cache("", "services"), cache("discovery.k8s.io", "endpointslices"))
        else {
            return;
        };
        let (mut due, mut seen, mut pause) = (Instant::now(), None, RETRY);
        loop {
            let inputs = self.inputs(api).await.ok();
            if inputs.is_none() || inputs != seen || Instant::now() >= due {
                let condition = match &inputs {
                    Some((service, slices)) => self.check(api, service.as_deref(), slices).await,
                    None => Condition::failed("ServiceAccessError", "the Service cannot be read".to_owned()),
                };
                pause = if condition.available { RECHECK } else { (pause * 2).clamp(RETRY, RECHECK) };
                self.known.write().available = condition.available;
                if let Err(error) = self.publish(api, condition).await {
                    tracing::debug!(%error, name = self.name, "writing the condition of an APIService; trying again");
                    pause = RETRY;
                }
                due = Instant::now() + pause;
                seen = inputs;
            }
            tokio::select! {
                gone = services.changed() => if gone.is_err() { return },
                gone = slices.changed() => if gone.is_err() { return },
                () = tokio::time::sleep_until(due) => {}
            }
        }
    }

    /// The Service and its EndpointSlices.
    async fn inputs(&self, api: &Api) -> Result<(Option<Arc<Value>>, Vec<Arc<Value>>)> {
        let (namespace, name) = (self.service("namespace"), self.service("name"));
        let service = api.get("", "services", namespace, name).await?;
        let mut slices = api.list("discovery.k8s.io", "endpointslices", namespace).await?;
        slices.retain(|slice| slice["metadata"]["labels"]["kubernetes.io/service-name"] == name);
        Ok((service, slices))
    }

    async fn check(&self, api: &Api, service: Option<&Value>, slices: &[Arc<Value>]) -> Condition {
        let slices: Vec<&Value> = slices.iter().map(|slice| &**slice).collect();
        if let Err(condition) = available::reachable(&self.spec, service, &slices) {
            return condition;
        }
        match tokio::time::timeout(CHECK, self.discover(api)).await {
            Ok(Ok(())) => Condition::passed(),
            Ok(Err(message)) => Condition::failed("FailedDiscoveryCheck", message),
            Err(_) => {
                Condition::failed("FailedDiscoveryCheck", format!("timed out waiting for {}", self.url(&self.path())))
            }
        }
    }

    fn path(&self) -> String {
        format!("/apis/{}/{}", self.group, self.version)
    }

    fn url(&self, path: &str) -> String {
        let port = self.spec["service"]["port"].as_u64().unwrap_or(443);
        format!("https://{}.{}.svc:{port}{path}", self.service("name"), self.service("namespace"))
    }

    /// Asks for the list of resources: at once the proof that it answers and what it serves.
    async fn discover(&self, api: &Api) -> Result<(), String> {
        self.known.write().tls = Some(self.tls(api)?);
        let path = self.path();
        let failing = |why: String| format!("failing or missing response from {}: {why}", self.url(&path));
        let (status, body) = self.fetch(api, &path).await.map_err(failing)?;
        if !status.is_success() {
            return Err(failing(format!("bad status from {}: {}", self.url(&path), status.as_u16())));
        }
        let list: Value = serde_json::from_slice(&body).map_err(|error| failing(format!("it is no JSON: {error}")))?;
        let resources = discovery::from_list(&self.group, &self.version, &list);
        let index = self.document(api, "/openapi/v3").await;
        let old = self.document(api, "/openapi/v2").await;
        let old = old.map(|document| discovery::part_of_v2(document, &self.group, &self.version));
        let mut known = self.known.write();
        known.resources = resources.into();
        known.openapi = index.and_then(|index| discovery::document_query(&index, &self.group, &self.version));
        if known.openapi_v2.as_deref() != old.as_ref() {
            known.openapi_v2 = old.map(Arc::new);
        }
        Ok(())
    }

    /// A JSON document, if the server has it.
    async fn document(&self, api: &Api, path: &str) -> Option<Value> {
        let (status, body) = self.fetch(api, path).await.ok()?;
        status.is_success().then(|| serde_json::from_slice(&body).ok()).flatten()
    }

    fn tls(&self, api: &Api) -> Result<Arc<ClientConfig>, String> {
        let trust = match self.spec["insecureSkipTLSVerify"].as_bool() {
            Some(true) => dial::Trust::Anyone,
            _ => dial::Trust::Roots(dial::roots(self.spec["caBundle"].as_str().unwrap_or_default())?),
        };
        dial::client_config(trust, api.config.front_proxy_client.as_ref().map(dial::identity).transpose()?)
    }

    /// GETs a document as the aggregator itself.
    async fn fetch(&self, api: &Api, path: &str) -> Result<(StatusCode, Bytes), String> {
        let mut target = self.target(api, path.to_owned()).await.map_err(|error| error.message().to_owned())?;
        let user = UserInfo::new("system:kube-aggregator", &["system:masters"]);
        forward::identify(&mut target.headers, &user);
        dial::get(api, &target).await
    }

    /// Where a request goes now.
    pub async fn target(&self, api: &Api, path: String) -> Result<Target> {
        let (namespace, name) = (self.service("namespace"), self.service("name"));
        let port = self.spec["service"]["port"].as_u64().unwrap_or(443);
        let (address, port) = crate::proxy::resolve(api, namespace, name, port).await.map_err(ApiError::unavailable)?;
        let known = self.known.read().tls.clone();
        let tls = known.map_or_else(|| self.tls(api), Ok).map_err(ApiError::unavailable)?;
        let security = Security::Verified(tls, format!("{name}.{namespace}.svc"));
        Ok(Target::passing(security, address, port, path))
    }

    async fn publish(&self, api: &Api, condition: Condition) -> Result<()> {
        let Some(object) = api.get(register::OWN_GROUP, PLURAL, "", &self.name).await? else { return Ok(()) };
        let now = api::scalar::time(jiff::Timestamp::now());
        let Some(status) = condition.into_status(&object, &now) else { return Ok(()) };
        let mut changed = (*object).clone();
        changed["status"] = status;
        api.update(register::OWN_GROUP, PLURAL, "status", changed).await.map(drop)
    }
}

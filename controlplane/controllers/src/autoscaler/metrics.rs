//! Reading metrics, and what each asks for.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::quantity::{Format, Quantity};
use api::resources::{self, Side};
use api::selector::Selector;
use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{
    ContainerResourceMetricStatus, CrossVersionObjectReference, ExternalMetricStatus, HorizontalPodAutoscaler,
    MetricIdentifier, MetricSpec, MetricStatus, MetricTarget, MetricValueStatus, ObjectMetricStatus, PodsMetricStatus,
    ResourceMetricStatus,
};
use k8s_openapi::api::core::v1::Pod;
use kube::{Client, ResourceExt};
use serde_json::Value;

use super::behavior;
use super::replicas::{self, Groups, Input, Sample, Samples, Values};
use crate::context::Pods;
use crate::{discovery, meta};

#[derive(Debug)]
pub struct Problem {
    pub reason: &'static str,
    /// As the metric's own event and the condition say it.
    pub text: String,
    /// What goes before it where several metrics are summed up, e.g. `failed to get pods metric value`.
    frame: String,
}

impl Problem {
    fn new(reason: &'static str, text: impl Into<String>) -> Self {
        Self { reason, text: text.into(), frame: String::new() }
    }

    pub fn nothing_to_measure() -> Self {
        Self::new("InvalidMetricSourceType", "no metrics are specified")
    }

    fn framed(self, frame: String) -> Self {
        Self { frame, ..self }
    }

    pub fn whole(&self) -> String {
        if self.frame.is_empty() { self.text.clone() } else { format!("{}: {}", self.frame, self.text) }
    }
}

pub struct Proposal {
    pub replicas: i32,
    /// In the condition's words, e.g. `cpu resource utilization (percentage of request)`.
    pub metric: String,
    pub status: MetricStatus,
}

pub struct Reader<'a> {
    client: &'a Client,
    namespace: String,
    selector: &'a str,
    pods: Vec<Arc<Pod>>,
    current: i32,
    tolerance: (f64, f64),
    now: Timestamp,
}

fn encode(text: &str) -> String {
    let keep = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|byte| if keep(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

fn milli(text: Option<&Value>) -> Option<i64> {
    text?.as_str()?.parse::<Quantity>().ok().map(|quantity| quantity.milli())
}

fn target_milli(quantity: Option<&k8s_openapi::apimachinery::pkg::api::resource::Quantity>) -> Option<i64> {
    quantity.map(|quantity| Quantity::from(quantity).milli())
}

fn quantity(milli: i64) -> Option<k8s_openapi::apimachinery::pkg::api::resource::Quantity> {
    Some(Quantity::from_milli(milli, Format::DecimalSi).into())
}

impl<'a> Reader<'a> {
    pub fn new(
        client: &'a Client,
        pods: &Pods,
        scaler: &HorizontalPodAutoscaler,
        selector: &'a str,
        current: i32,
        now: Timestamp,
    ) -> Self {
        let namespace = scaler.namespace().unwrap_or_default();
        let labels = Selector::parse_labels(selector).unwrap_or_else(|_| Selector::nothing());
        let mut own = pods.by_namespace.get(&namespace);
        own.retain(|pod| labels.matches(meta::labels(&pod.metadata)));
        Self { client, namespace, selector, pods: own, current, tolerance: behavior::tolerance(&scaler.spec), now }
    }

    /// The pods that the target's selector selects.
    pub fn pods(&self) -> &[Arc<Pod>] {
        &self.pods
    }

    pub async fn propose(&self, spec: &MetricSpec) -> Result<Proposal, Problem> {
        let missing = |what: &str| {
            let text = format!("metric source of type {:?} has no {what}", spec.type_);
            Problem::new("InvalidMetricSourceType", text)
        };
        match spec.type_.as_str() {
            "Resource" => {
                let source = spec.resource.as_ref().ok_or_else(|| missing("resource"))?;
                let found = self.resource(&source.name, None, &source.target).await;
                found.map_err(|problem| problem.framed(format!("failed to get {} resource metric value", source.name)))
            }
            "ContainerResource" => {
                let source = spec.container_resource.as_ref().ok_or_else(|| missing("containerResource"))?;
                let found = self.resource(&source.name, Some(&source.container), &source.target).await;
                let frame = format!("failed to get {} container metric value", source.container);
                found.map_err(|problem| problem.framed(frame))
            }
            "Pods" => {
                let source = spec.pods.as_ref().ok_or_else(|| missing("pods"))?;
                let found = self.of_pods(&source.metric, &source.target).await;
                found.map_err(|problem| problem.framed("failed to get pods metric value".to_owned()))
            }
            "Object" => {
                let source = spec.object.as_ref().ok_or_else(|| missing("object"))?;
                let found = self.of_object(&source.metric, &source.described_object, &source.target).await;
                found.map_err(|problem| problem.framed("failed to get object metric value".to_owned()))
            }
            "External" => {
                let source = spec.external.as_ref().ok_or_else(|| missing("external"))?;
                let found = self.external(&source.metric, &source.target).await;
                let frame = format!("failed to get {} external metric value", source.metric.name);
                found.map_err(|problem| problem.framed(frame))
            }
            _ => Err(missing("known type")),
        }
    }

    /// `api` is which of the metrics APIs is asked: `resource`, `custom` or `external`.
    async fn get(&self, path: &str, api: &str) -> Result<Value, String> {
        self.ask(path).await.map_err(|error| unfetched(api, &error))
    }

    async fn ask(&self, path: &str) -> Result<Value, kube::Error> {
        self.client.request(http_get(path)?).await
    }

    /// Of the newest version that is served: metrics servers are older than v1.
    async fn pod_metrics(&self) -> Result<Value, String> {
        let selector = encode(self.selector);
        let path = |version: &str| {
            format!("/apis/metrics.k8s.io/{version}/namespaces/{}/pods?labelSelector={selector}", self.namespace)
        };
        let answer = match self.ask(&path("v1")).await {
            Err(error) if crate::error::is_not_found(&error) => self.ask(&path("v1beta1")).await,
            answer => answer,
        };
        answer.map_err(|error| unfetched("resource", &error))
    }

    /// Whether anything can be told from these values at all.
    fn check(&self, groups: &Groups) -> Result<(), &'static str> {
        if self.pods.is_empty() {
            return Err("no pods returned by selector while calculating replica count");
        }
        if groups.measured.is_empty() {
            return Err("did not receive metrics for targeted pods (pods might be unready)");
        }
        Ok(())
    }

    fn input<'i>(&self, values: &'i Values, groups: &'i Groups) -> Input<'i> {
        Input { values, groups, current: self.current, tolerance: self.tolerance }
    }

    fn ready_pods(&self) -> i32 {
        self.pods.iter().filter(|pod| crate::podstate::is_ready(pod)).count() as i32
    }

    async fn resource(&self, name: &str, container: Option<&str>, target: &MetricTarget) -> Result<Proposal, Problem> {
        let reason = if container.is_some() { "FailedGetContainerResourceMetric" } else { "FailedGetResourceMetric" };
        let problem = |text: String| Problem::new(reason, text);
        let group = |values: &Values, samples: &Samples| {
            let cpu = (name == "cpu").then_some(samples);
            replicas::group(&self.pods, values, cpu, self.now)
        };
        let (replicas, metric, shown) = match (target.average_value.as_ref(), target.average_utilization) {
            (Some(_), _) => {
                let failed = |why: String| problem(format!("failed to get {name} usage: {why}"));
                let (values, samples) = self.usage(name, container).await.map_err(failed)?;
                let groups = group(&values, &samples);
                self.check(&groups).map_err(|why| failed(why.to_owned()))?;
                let average = target_milli(target.average_value.as_ref()).unwrap_or(1);
                let (replicas, shown) = replicas::by_average(&self.input(&values, &groups), average);
                let status = MetricValueStatus { average_value: quantity(shown), ..Default::default() };
                (replicas, format!("{name} resource"), status)
            }
            (None, Some(percent)) => {
                let failed = |why: String| problem(format!("failed to get {name} utilization: {why}"));
                let (values, samples) = self.usage(name, container).await.map_err(failed)?;
                let groups = group(&values, &samples);
                self.check(&groups).map_err(|why| failed(why.to_owned()))?;
                let requests = self.requests(name, container).map_err(failed)?;
                let (replicas, shown) = replicas::by_utilization(&self.input(&values, &groups), &requests, percent);
                let average = values.values().sum::<i64>() / values.len() as i64;
                let status = MetricValueStatus {
                    average_utilization: Some(shown),
                    average_value: quantity(average),
                    value: None,
                };
                let of = if container.is_some() { " container" } else { "" };
                (replicas, format!("{name}{of} resource utilization (percentage of request)"), status)
            }
            (None, None) => {
                return Err(problem(
                    "invalid resource metric source: neither an average utilization target nor an average value \
                     (usage) target was set"
                        .to_owned(),
                ));
            }
        };
        let status = match container {
            None => MetricStatus {
                type_: "Resource".to_owned(),
                resource: Some(ResourceMetricStatus { name: name.to_owned(), current: shown }),
                ..Default::default()
            },
            Some(container) => MetricStatus {
                type_: "ContainerResource".to_owned(),
                container_resource: Some(ContainerResourceMetricStatus {
                    name: name.to_owned(),
                    container: container.to_owned(),
                    current: shown,
                }),
                ..Default::default()
            },
        };
        Ok(Proposal { replicas, metric, status })
    }

    /// What each pod (or its `container`) uses of a resource, and when that was measured; never empty.
    async fn usage(&self, name: &str, container: Option<&str>) -> Result<(Values, Samples), String> {
        let problem = |why: &str| format!("unable to get metrics for resource {name}: {why}");
        let answer = self.pod_metrics().await.map_err(|why| problem(&why))?;
        let (mut values, mut samples) = (Values::new(), Samples::new());
        for item in answer["items"].as_array().into_iter().flatten() {
            let containers = item["containers"].as_array().into_iter().flatten();
            let chosen = containers.filter(|c| container.is_none_or(|wanted| c["name"] == wanted));
            let amounts: Option<Vec<i64>> = chosen.map(|c| milli(c["usage"].get(name))).collect();
            if let (Some(pod), Some(amounts)) = (item["metadata"]["name"].as_str(), amounts.filter(|a| !a.is_empty())) {
                values.insert(pod.to_owned(), amounts.iter().sum());
                samples.extend(sample(item).map(|sample| (pod.to_owned(), sample)));
            }
        }
        if values.is_empty() {
            return Err(problem("no metrics returned from resource metrics API"));
        }
        Ok((values, samples))
    }

    fn requests(&self, name: &str, container: Option<&str>) -> Result<BTreeMap<String, i64>, String> {
        let mut requests = BTreeMap::new();
        for pod in &self.pods {
            let spec = pod.spec.clone().unwrap_or_default();
            let sidecars = spec.init_containers.iter().flatten().filter(|c| resources::is_sidecar(c));
            let chosen =
                spec.containers.iter().chain(sidecars).filter(|c| container.is_none_or(|wanted| c.name == wanted));
            let mut sum = 0;
            for c in chosen {
                let amounts = resources::of_container(c, Side::Requests);
                let Some(amount) = amounts.get(name) else {
                    let pod = pod.name_any();
                    return Err(format!("missing request for {name} in container {} of Pod {pod}", c.name));
                };
                sum += amount.milli();
            }
            requests.insert(pod.name_any(), sum);
        }
        Ok(requests)
    }

    async fn of_pods(&self, metric: &MetricIdentifier, target: &MetricTarget) -> Result<Proposal, Problem> {
        let path = format!(
            "/apis/custom.metrics.k8s.io/v1beta1/namespaces/{}/pods/*/{}?labelSelector={}",
            self.namespace,
            encode(&metric.name),
            encode(self.selector)
        );
        let problem = |text: String| Problem::new("FailedGetPodsMetric", text);
        let unable = |why: &str| problem(format!("unable to get metric {}: {why}", metric.name));
        let answer = self.get(&path, "custom").await.map_err(|why| unable(&why))?;
        let items = answer["items"].as_array().into_iter().flatten();
        let values: Values = items
            .filter_map(|item| Some((item["describedObject"]["name"].as_str()?.to_owned(), milli(item.get("value"))?)))
            .collect();
        if values.is_empty() {
            return Err(unable("no metrics returned from custom metrics API"));
        }
        let groups = replicas::group(&self.pods, &values, None, self.now);
        self.check(&groups).map_err(|why| problem(why.to_owned()))?;
        let (replicas, shown) = replicas::by_average(
            &self.input(&values, &groups),
            target_milli(target.average_value.as_ref()).unwrap_or(1),
        );
        let status = MetricStatus {
            type_: "Pods".to_owned(),
            pods: Some(PodsMetricStatus {
                metric: metric.clone(),
                current: MetricValueStatus { average_value: quantity(shown), ..Default::default() },
            }),
            ..Default::default()
        };
        Ok(Proposal { replicas, metric: format!("pods metric {}", metric.name), status })
    }

    async fn of_object(
        &self,
        metric: &MetricIdentifier,
        object: &CrossVersionObjectReference,
        target: &MetricTarget,
    ) -> Result<Proposal, Problem> {
        let problem = |text: String| Problem::new("FailedGetObjectMetric", text);
        let group = discovery::group_of(object.api_version.as_deref());
        let served = discovery::kind(self.client, group, &object.kind).await;
        let served = served.map_err(|e| problem(crate::error::message(&e)))?.into_iter().next();
        let served =
            served.ok_or_else(|| problem(format!("no matches for kind \"{}\" in group \"{group}\"", object.kind)))?;
        let path = format!(
            "/apis/custom.metrics.k8s.io/v1beta1/namespaces/{}/{}/{}/{}",
            self.namespace,
            served.name(),
            encode(&object.name),
            encode(&metric.name)
        );
        let unable = |why: String| {
            let object = format!("{} {}/{}", object.kind, self.namespace, object.name);
            problem(format!("unable to get metric {}: {why} on {object}", metric.name))
        };
        let answer = self.get(&path, "custom").await.map_err(unable)?;
        let value = milli(answer["items"][0].get("value"))
            .ok_or_else(|| unable("no metrics returned from custom metrics API".to_owned()))?;
        let (replicas, shown) = self.by_targets(value, target);
        let name = format!("{} metric {}", object.kind, metric.name);
        let status = MetricStatus {
            type_: "Object".to_owned(),
            object: Some(ObjectMetricStatus {
                metric: metric.clone(),
                described_object: object.clone(),
                current: shown,
            }),
            ..Default::default()
        };
        Ok(Proposal { replicas, metric: name, status })
    }

    async fn external(&self, metric: &MetricIdentifier, target: &MetricTarget) -> Result<Proposal, Problem> {
        let selector = match Selector::from_label_selector(metric.selector.as_ref()) {
            Ok(selector) if metric.selector.is_some() => selector.to_string(),
            _ => String::new(),
        };
        let path = format!(
            "/apis/external.metrics.k8s.io/v1beta1/namespaces/{}/{}?labelSelector={}",
            self.namespace,
            encode(&metric.name),
            encode(&selector)
        );
        let unable = |why: String| {
            let text = format!("unable to get external metric {}/{}/{selector}: {why}", self.namespace, metric.name);
            Problem::new("FailedGetExternalMetric", text)
        };
        let answer = self.get(&path, "external").await.map_err(unable)?;
        let items = answer["items"].as_array().filter(|items| !items.is_empty());
        let items = items.ok_or_else(|| unable("no metrics returned from external metrics API".to_owned()))?;
        let value = items.iter().filter_map(|item| milli(item.get("value"))).sum();
        let (replicas, shown) = self.by_targets(value, target);
        let status = MetricStatus {
            type_: "External".to_owned(),
            external: Some(ExternalMetricStatus { metric: metric.clone(), current: shown }),
            ..Default::default()
        };
        Ok(Proposal { replicas, metric: format!("external metric {}", metric.name), status })
    }

    /// One value, against a target for all or per pod.
    fn by_targets(&self, value: i64, target: &MetricTarget) -> (i32, MetricValueStatus) {
        match (target_milli(target.value.as_ref()), target_milli(target.average_value.as_ref())) {
            (None, Some(average)) => {
                let replicas = replicas::by_value_per_pod(value, average, self.current, self.tolerance);
                let shown = value / i64::from(self.current.max(1));
                (replicas, MetricValueStatus { average_value: quantity(shown), ..Default::default() })
            }
            (whole, _) => {
                let whole = whole.unwrap_or(1);
                let replicas = replicas::by_value(value, whole, self.ready_pods(), self.current, self.tolerance);
                (replicas, MetricValueStatus { value: quantity(value), ..Default::default() })
            }
        }
    }
}

/// When a pod's metrics were measured; seconds that were begun count.
fn sample(metrics: &Value) -> Option<Sample> {
    let at: Timestamp = metrics["timestamp"].as_str()?.parse().ok()?;
    let nanos = api::scalar::go_duration(metrics["window"].as_str()?).ok()?;
    Some(Sample { at, window: nanos.saturating_add(999_999_999) / 1_000_000_000 })
}

fn http_get(path: &str) -> Result<http::Request<Vec<u8>>, kube::Error> {
    http::Request::get(path).body(Vec::new()).map_err(kube::Error::HttpError)
}

fn unfetched(api: &str, error: &kube::Error) -> String {
    format!("unable to fetch metrics from {api} metrics API: {}", crate::error::message(error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn samples_say_when_and_over_how_long() {
        let of = |window: &str| sample(&json!({"timestamp": "1970-01-01T00:01:00Z", "window": window}));
        let at = Timestamp::from_second(60).expect("a small number is a timestamp");
        assert_eq!(of("15s"), Some(Sample { at, window: 15 }));
        assert_eq!(of("1m2.001s"), Some(Sample { at, window: 63 }));
        assert_eq!((of("soon"), sample(&json!({}))), (None, None));
    }
}

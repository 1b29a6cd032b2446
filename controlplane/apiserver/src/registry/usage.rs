//! `metrics.k8s.io`: what nodes and pods use now, asked of the kubelets when somebody wants to know.
//!
//! Nothing is collected while nobody asks. A rate needs two looks at a CPU counter: the last look is
//! kept for the next question, and the first question takes both, [`FIRST_WINDOW`] apart. An
//! APIService that names another server for a version of the group takes the place of all of them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use http::{Response, StatusCode};
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::Call;
use crate::admit::Cluster;
use crate::aggregate::register;
use crate::cache::watch::Selection;
use crate::error::{ApiError, Result};
use crate::http::body::Body;
use crate::http::negotiate::Output;
use crate::http::pipeline::Asked;
use crate::http::{render, resources};
use crate::proxy;
use crate::resource::api_version;
use crate::server::Api;

pub const GROUP: &str = "metrics.k8s.io";

/// Between the two looks of a first question.
const FIRST_WINDOW: Duration = Duration::from_secs(1);
/// A look serves later questions for this long.
const LAST_WINDOW: Duration = Duration::from_secs(60);
/// A look older than this makes way for a new one.
const RENEW: Duration = Duration::from_secs(15);
/// Of one kubelet.
const ANSWER: Duration = Duration::from_secs(10);
/// Kubelets asked at once.
const AT_ONCE: usize = 32;

/// CPU counters in nanoseconds at one time: of the node under an empty key, of containers under
/// `pod uid/name`.
#[derive(Debug, Clone)]
struct Look {
    at: Instant,
    counters: HashMap<String, u64>,
}

/// The last look at each node.
#[derive(Default)]
pub struct Looks {
    nodes: Mutex<HashMap<String, Arc<Look>>>,
}

/// What a kubelet says now, and what it said before.
struct Measured {
    summary: Value,
    before: Arc<Look>,
    now: Look,
}

/// Answers for nodes and pods, one or a list.
pub async fn answer(asked: &Asked, call: &Call) -> Result<Response<Body>> {
    if register::displaced(GROUP, &call.api.aggregator.remotes()) {
        return Err(ApiError::page_not_found());
    }
    let version = &api_version(GROUP, &call.info.version);
    let plural = &*call.descriptor().plural;
    // One object is asked for by its name alone.
    let selection = if call.info.name.is_empty() { call.selection()? } else { Selection::default() };
    let mut objects = call.api.list("", plural, call.namespace()).await?;
    objects.retain(|object| {
        (call.info.name.is_empty() || object["metadata"]["name"] == call.info.name) && selects(&selection, object)
    });
    call.api.looks.forget_old(Instant::now());
    let node_of = |object: &Value| match plural {
        "nodes" => object["metadata"]["name"].as_str().map(str::to_owned),
        _ => object["spec"]["nodeName"].as_str().map(str::to_owned),
    };
    let mut nodes: Vec<String> = objects.iter().filter_map(|object| node_of(object)).collect();
    nodes.sort_unstable();
    nodes.dedup();
    let measured: HashMap<String, Measured> = futures::stream::iter(nodes)
        .map(|node| async move { measure(&call.api, &node).await.map(|measured| (node, measured)) })
        .buffer_unordered(AT_ONCE)
        .filter_map(std::future::ready)
        .collect()
        .await;
    let mut items: Vec<Value> = objects
        .iter()
        .filter_map(|object| {
            let measured = measured.get(&node_of(object)?)?;
            if plural == "nodes" {
                node_metrics(version, object, measured)
            } else {
                pod_metrics(version, object, measured)
            }
        })
        .collect();
    if call.info.name.is_empty() {
        let kind = format!("{}List", call.descriptor().kind);
        let list = json!({"kind": kind, "apiVersion": version, "metadata": {}, "items": items});
        return shown(asked, &list);
    }
    match items.pop() {
        Some(one) => shown(asked, &one),
        None => Err(call.not_found()),
    }
}

fn selects(selection: &Selection, object: &Value) -> bool {
    let metadata = &object["metadata"];
    let field = |label: &str| label.strip_prefix("metadata.").and_then(|name| metadata[name].as_str());
    selection.labels.matches_with(|key| metadata["labels"][key].as_str())
        && selection.fields.matches_with(|label| Some(field(label).unwrap_or_default()))
}

/// JSON, also for those who would rather have protobuf (kubectl top): these kinds have no other form,
/// and clients go by the answer's content type.
fn shown(asked: &Asked, object: &Value) -> Result<Response<Body>> {
    let output = asked.output(false, false).unwrap_or_else(|_| Output::plain());
    Ok(resources::ok(StatusCode::OK, &output, render::encode(object, &output)?, asked))
}

/// None for a node whose kubelet does not answer: it is left out, as metrics-server does.
async fn measure(api: &Api, node: &str) -> Option<Measured> {
    let held = api.looks.nodes.lock().get(node).cloned();
    let usable = |look: &Arc<Look>| (FIRST_WINDOW..LAST_WINDOW).contains(&look.at.elapsed());
    let before = match held.filter(usable) {
        Some(look) => look,
        None => {
            let first = Arc::new(Look::of(&summary(api, node).await?));
            tokio::time::sleep(FIRST_WINDOW).await;
            first
        }
    };
    let summary = summary(api, node).await?;
    let now = Look::of(&summary);
    let kept = if before.at.elapsed() > RENEW { Arc::new(now.clone()) } else { before.clone() };
    api.looks.nodes.lock().insert(node.to_owned(), kept);
    Some(Measured { summary, before, now })
}

async fn summary(api: &Api, node: &str) -> Option<Value> {
    match tokio::time::timeout(ANSWER, proxy::ask_kubelet(api, node, "/stats/summary")).await {
        Ok(Ok(summary)) => Some(summary),
        Ok(Err(why)) => {
            tracing::debug!(node, why, "a kubelet does not say what it uses");
            None
        }
        Err(_) => None,
    }
}

impl Looks {
    /// Nodes come and go: what is too old to be of use is not kept.
    fn forget_old(&self, now: Instant) {
        self.nodes.lock().retain(|_, look| now.duration_since(look.at) < LAST_WINDOW);
    }
}

impl Look {
    fn of(summary: &Value) -> Self {
        let counter = |of: &Value| of["cpu"]["usageCoreNanoSeconds"].as_u64();
        let mut counters: HashMap<String, u64> =
            counter(&summary["node"]).map(|node| (String::new(), node)).into_iter().collect();
        for pod in list(&summary["pods"]) {
            let containers = list(&pod["containers"]).iter();
            counters.extend(containers.filter_map(|container| Some((key(pod, container), counter(container)?))));
        }
        Self { at: Instant::now(), counters }
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn key(pod: &Value, container: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    format!("{}/{}", text(&pod["podRef"]["uid"]), text(&container["name"]))
}

impl Measured {
    fn window(&self) -> Duration {
        self.now.at.duration_since(self.before.at)
    }

    /// `usage` of what has this counter; none before it has been seen twice, or after it began anew.
    fn usage(&self, counter: &str, memory: &Value) -> Option<Value> {
        let used = self.now.counters.get(counter)?.checked_sub(*self.before.counters.get(counter)?)?;
        let nanocores = (used as f64 / self.window().as_secs_f64().max(0.001)) as u64;
        let kibibytes = memory["workingSetBytes"].as_u64()? / 1024;
        Some(json!({"cpu": format!("{nanocores}n"), "memory": format!("{kibibytes}Ki")}))
    }

    /// The head that both kinds share.
    fn metrics(&self, version: &str, kind: &str, object: &Value) -> Value {
        let mut metadata = json!({"name": object["metadata"]["name"], "creationTimestamp": now()});
        for key in ["namespace", "labels"] {
            if !object["metadata"][key].is_null() {
                metadata[key] = object["metadata"][key].clone();
            }
        }
        let window = format!("{:.3}s", self.window().as_secs_f64());
        json!({"kind": kind, "apiVersion": version, "metadata": metadata, "timestamp": now(), "window": window})
    }
}

fn now() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn node_metrics(version: &str, node: &Value, measured: &Measured) -> Option<Value> {
    let mut metrics = measured.metrics(version, "NodeMetrics", node);
    metrics["usage"] = measured.usage("", &measured.summary["node"]["memory"])?;
    Some(metrics)
}

/// None while a container has no rate yet.
fn pod_metrics(version: &str, pod: &Value, measured: &Measured) -> Option<Value> {
    let stats =
        list(&measured.summary["pods"]).iter().find(|stats| stats["podRef"]["uid"] == pod["metadata"]["uid"])?;
    let containers = list(&stats["containers"]).iter().map(|container| {
        let usage = measured.usage(&key(stats, container), &container["memory"])?;
        Some(json!({"name": container["name"], "usage": usage}))
    });
    let containers = containers.collect::<Option<Vec<Value>>>().filter(|containers| !containers.is_empty())?;
    let mut metrics = measured.metrics(version, "PodMetrics", pod);
    metrics["containers"] = containers.into();
    Some(metrics)
}

#[cfg(test)]
mod tests {
    use api::selector::Selector;

    use super::*;

    fn summary(node: u64, container: u64) -> Value {
        json!({"node": {"cpu": {"usageCoreNanoSeconds": node}, "memory": {"workingSetBytes": 2_097_152}},
            "pods": [{"podRef": {"name": "p", "uid": "u"}, "containers": [
                {"name": "c", "cpu": {"usageCoreNanoSeconds": container}, "memory": {"workingSetBytes": 1_048_576}}]}]})
    }

    #[test]
    fn rates_are_taken_between_two_looks() {
        let (first, second) = (summary(1_000_000_000, 500), summary(2_000_000_000, 200_000_500));
        let before = Arc::new(Look::of(&first));
        let now = Look { at: before.at + Duration::from_secs(2), ..Look::of(&second) };
        let measured = Measured { summary: second, before, now };
        let node = node_metrics("g/v1", &json!({"metadata": {"name": "n", "labels": {"a": "b"}}}), &measured).unwrap();
        assert_eq!(node["usage"], json!({"cpu": "500000000n", "memory": "2048Ki"}));
        assert_eq!((&node["apiVersion"], &node["kind"]), (&json!("g/v1"), &json!("NodeMetrics")));
        assert_eq!((&node["window"], &node["metadata"]["labels"]["a"]), (&json!("2.000s"), &json!("b")));
        let pod =
            pod_metrics("g/v1", &json!({"metadata": {"name": "p", "namespace": "x", "uid": "u"}}), &measured).unwrap();
        assert_eq!(pod["containers"], json!([{"name": "c", "usage": {"cpu": "100000000n", "memory": "1024Ki"}}]));
        assert!(pod_metrics("g/v1", &json!({"metadata": {"name": "q", "uid": "other"}}), &measured).is_none());
    }

    /// `kubectl top pod --field-selector`.
    #[test]
    fn fields_select_as_labels_do() {
        let pod = json!({"metadata": {"name": "p", "namespace": "x", "labels": {"a": "b"}}});
        for (labels, fields, want) in [
            ("a=b", "", true),
            ("a!=b", "", false),
            ("", "metadata.name=p,metadata.namespace=x", true),
            ("", "metadata.name=q", false),
            ("a=b", "metadata.namespace!=x", false),
        ] {
            let selection = Selection {
                labels: Selector::parse_labels(labels).unwrap(),
                fields: Selector::parse_fields(fields).unwrap(),
                ..Selection::default()
            };
            assert_eq!(selects(&selection, &pod), want, "{labels} {fields}");
        }
    }

    #[test]
    fn looks_at_nodes_that_are_gone_are_forgotten() {
        let looks = Looks::default();
        let look = Arc::new(Look::of(&summary(1, 1)));
        looks.nodes.lock().insert("gone".to_owned(), look.clone());
        looks.forget_old(look.at + LAST_WINDOW / 2);
        assert_eq!(looks.nodes.lock().len(), 1);
        looks.forget_old(look.at + LAST_WINDOW);
        assert!(looks.nodes.lock().is_empty());
    }

    #[test]
    fn a_container_that_began_anew_has_no_rate() {
        let (first, second) = (summary(1, 500), summary(2, 3));
        let before = Arc::new(Look::of(&first));
        let now = Look { at: before.at + Duration::from_secs(2), ..Look::of(&second) };
        let measured = Measured { summary: second, before, now };
        assert!(pod_metrics("g/v1", &json!({"metadata": {"uid": "u"}}), &measured).is_none());
        assert!(node_metrics("g/v1", &json!({"metadata": {"name": "n"}}), &measured).is_some());
        assert!(Look::of(&json!("nonsense")).counters.is_empty());
    }
}

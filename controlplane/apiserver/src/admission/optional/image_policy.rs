//! `ImagePolicyWebhook`: another server says which images may run (`imagepolicy.k8s.io/v1alpha1`
//! `ImageReview`); its answers are remembered.

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::super::config::Configuration;
use crate::admit::{Admission, Attributes, Cluster, Operation};
use crate::error::Result;
use crate::kinds::value::{ensure_map, entries, list, text};
use crate::remembered::Remembered;
use crate::remote::{Remote, RemoteError};
use api::scalar::go_duration_text;

/// Of one question.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Of all attempts at one, where the request has no time limit of its own.
const ALL: Duration = Duration::from_secs(60);
/// Attempts at one question, each after a longer pause.
const ATTEMPTS: i32 = 5;
const AUDIT_PREFIX: &str = "imagepolicywebhook.image-policy.k8s.io/";
const FAILED_OPEN: &str = "alpha.image-policy.k8s.io/failed-open";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    image_policy: Policy,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Policy {
    #[serde(default)]
    kube_config_file: PathBuf,
    /// Seconds; 0: five minutes, -1: not remembered.
    #[serde(rename = "allowTTL", default)]
    allow: i64,
    /// Seconds; 0: half a minute, -1: not remembered.
    #[serde(rename = "denyTTL", default)]
    deny: i64,
    /// Milliseconds; 0: half a second, -1: none.
    #[serde(default)]
    retry_backoff: i64,
    #[serde(default)]
    default_allow: bool,
}

pub struct ImagePolicyWebhook {
    remote: Remote,
    times: Times,
    default_allow: bool,
    known: Remembered<Value>,
}

#[derive(Debug, PartialEq, Eq)]
struct Times {
    backoff: Duration,
    allow: Duration,
    deny: Duration,
}

impl Policy {
    fn times(&self) -> std::result::Result<Times, String> {
        const MINUTE: Duration = Duration::from_secs(60);
        let (milli, second) = (Duration::from_millis(1), Duration::from_secs(1));
        let nano = Duration::from_nanos(1);
        Ok(Times {
            backoff: time(self.retry_backoff, milli, nano, 5 * MINUTE, Duration::from_millis(500))?,
            allow: time(self.allow, second, second, 30 * MINUTE, 5 * MINUTE)?,
            deny: time(self.deny, second, second, 30 * MINUTE, Duration::from_secs(30))?,
        })
    }
}

/// A number of `unit`s, more than `least`, and no more than `most`.
fn time(
    given: i64,
    unit: Duration,
    least: Duration,
    most: Duration,
    default: Duration,
) -> std::result::Result<Duration, String> {
    match given {
        -1 => return Ok(Duration::ZERO),
        0 => return Ok(default),
        _ => {}
    }
    let count = u32::try_from(given).ok();
    let time = count.and_then(|count| unit.checked_mul(count));
    time.filter(|time| *time > least && *time <= most).ok_or_else(|| {
        let nanos = |time: Duration| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX);
        let got = given.saturating_mul(nanos(unit));
        format!(
            "valid value is between {} and {}, got {}",
            go_duration_text(nanos(least)),
            go_duration_text(nanos(most)),
            go_duration_text(got)
        )
    })
}

impl ImagePolicyWebhook {
    /// # Errors
    ///
    /// No configuration, what is wrong with it, or with the kubeconfig that it names.
    pub async fn new(given: Option<&Configuration>) -> std::result::Result<Self, String> {
        let given = given
            .ok_or("ImagePolicyWebhook: it needs a configuration; name it with --admission-control-config-file")?;
        let File { image_policy: policy } = given.untyped()?;
        let times = policy.times().map_err(|why| given.wrong(why))?;
        let remote = Remote::from_kubeconfig(&policy.kube_config_file).await;
        let remote = remote.map_err(|error| given.wrong(error.message()))?;
        Ok(Self { remote, times, default_allow: policy.default_allow, known: Remembered::default() })
    }

    /// The `status` of the answer about `spec`, or why there was none before `ends`.
    async fn ask(&self, spec: Value, ends: Instant) -> std::result::Result<Value, RemoteError> {
        let question = spec.to_string();
        if let Some(status) = self.known.get(&question) {
            return Ok(status);
        }
        let review = json!({"kind": "ImageReview", "apiVersion": "imagepolicy.k8s.io/v1alpha1",
            "metadata": {"creationTimestamp": null}, "spec": spec, "status": {"allowed": false}});
        let left = || ends.saturating_duration_since(Instant::now());
        let mut answer = self.remote.post(review.to_string(), TIMEOUT.min(left())).await;
        for attempt in 1..ATTEMPTS {
            let pause = self.times.backoff.mul_f64(1.5_f64.powi(attempt - 1));
            if !answer.as_ref().is_err_and(is_transient) || pause >= left() {
                break;
            }
            tokio::time::sleep(pause).await;
            answer = self.remote.post(review.to_string(), TIMEOUT.min(left())).await;
        }
        let status = answer?["status"].clone();
        let time = if status["allowed"] == true { self.times.allow } else { self.times.deny };
        self.known.put(&question, status.clone(), time);
        Ok(status)
    }
}

/// Who was silent for as long as one question may take is not asked again: the client waits.
fn is_transient(error: &RemoteError) -> bool {
    error.is_worth_retrying() && !matches!(error, RemoteError::TimedOut { .. })
}

/// When all attempts have to be over: a tenth of the request's time is kept for what comes after
/// them, so that a policy that lets pods through, or says why not, is heard.
fn end_of_attempts(deadline: Option<Instant>, now: Instant) -> Instant {
    let whole = deadline.map_or(ALL, |deadline| deadline.saturating_duration_since(now));
    now + whole.mul_f64(0.9)
}

/// `ImageReviewSpec`. Pure.
fn spec(pod: &Value, subresource: &str, namespace: &str) -> Value {
    let fields: &[&str] = match subresource {
        "" => &["spec.containers", "spec.initContainers", "spec.ephemeralContainers"],
        _ => &["spec.ephemeralContainers"],
    };
    let containers = fields.iter().flat_map(|field| list(pod, field));
    let containers: Vec<Value> = containers.map(|container| json!({"image": text(container, "image")})).collect();
    let annotations = entries(pod, "metadata.annotations").filter(|(key, _)| key.contains(".image-policy.k8s.io/"));
    let annotations: Map<String, Value> = annotations.map(|(key, value)| (key.to_owned(), value.clone())).collect();
    let mut spec = json!({"containers": containers, "namespace": namespace});
    if !annotations.is_empty() {
        spec["annotations"] = annotations.into();
    }
    spec
}

#[async_trait]
impl Admission for ImagePolicyWebhook {
    fn name(&self) -> &'static str {
        "ImagePolicyWebhook"
    }

    fn handles(&self, attributes: &Attributes<'_>) -> bool {
        attributes.is("", "pods")
            && matches!(attributes.subresource, "" | "ephemeralcontainers")
            && matches!(attributes.operation, Operation::Create | Operation::Update)
    }

    async fn validate(&self, attributes: &mut Attributes<'_>, _cluster: &dyn Cluster) -> Result<()> {
        let spec = spec(&attributes.object, attributes.subresource, attributes.namespace);
        let status = match self.ask(spec, end_of_attempts(attributes.deadline, Instant::now())).await {
            Ok(status) => status,
            Err(error) if self.default_allow => {
                tracing::warn!(%error, "asking the image policy webhook; the pod is let through");
                attributes.audit.push((format!("{AUDIT_PREFIX}failed-open"), "true".to_owned()));
                ensure_map(&mut attributes.object, "metadata.annotations")
                    .insert(FAILED_OPEN.to_owned(), "true".into());
                return Ok(());
            }
            Err(error) => return Err(attributes.forbid(error)),
        };
        for (key, value) in entries(&status, "auditAnnotations") {
            attributes.audit.push((format!("{AUDIT_PREFIX}{key}"), value.as_str().unwrap_or_default().to_owned()));
        }
        if status["allowed"] == true {
            return Ok(());
        }
        Err(match text(&status, "reason") {
            "" => attributes.forbid("one or more images rejected by webhook backend"),
            why => attributes.forbid(format!("image policy webhook backend denied one or more images: {why}")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::config::given;
    use super::*;

    /// Upstream's rows (`TestConfigNormalization`, `TestNewBackend`).
    #[test]
    fn times_have_bounds() {
        let read = |body: Value| given(json!({"imagePolicy": body})).untyped::<File>().unwrap().image_policy.times();
        let times = |backoff, allow, deny| Times {
            backoff: Duration::from_millis(backoff),
            allow: Duration::from_secs(allow),
            deny: Duration::from_secs(deny),
        };
        for (body, expected) in [
            (json!({}), Ok(times(500, 300, 30))),
            (json!({"allowTTL": 10, "denyTTL": 10, "retryBackoff": 10}), Ok(times(10, 10, 10))),
            (json!({"allowTTL": -1, "denyTTL": -1, "retryBackoff": -1}), Ok(times(0, 0, 0))),
            (json!({"allowTTL": 1800, "denyTTL": 1800, "retryBackoff": 300_000}), Ok(times(300_000, 1800, 1800))),
            (json!({"allowTTL": 1}), Err("valid value is between 1s and 30m0s, got 1s")),
            (json!({"denyTTL": 1801}), Err("valid value is between 1s and 30m0s, got 30m1s")),
            (json!({"retryBackoff": 300_001}), Err("valid value is between 1ns and 5m0s, got 5m0.001s")),
            (json!({"allowTTL": -2}), Err("valid value is between 1s and 30m0s, got -2s")),
        ] {
            assert_eq!(read(body.clone()), expected.map_err(str::to_owned), "{body}");
        }
    }

    #[tokio::test]
    async fn mistakes_are_named() {
        for (config, expected) in [
            (json!({"imagePolicy": {"kubeConfigFile": "/nowhere"}}), "plugin: file: "),
            (json!({"imagePolicy": {"kubeConfigFile": "/nowhere"}}), "/nowhere"),
            (json!({}), "missing field `imagePolicy`"),
            (json!({"imagePolicy": {"ttl": 1}}), "unknown field `ttl`"),
        ] {
            let error = ImagePolicyWebhook::new(Some(&given(config))).await.err().unwrap();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn attempts_end_before_their_request() {
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        assert_eq!(end_of_attempts(Some(now + 10 * second), now), now + 9 * second);
        assert_eq!(end_of_attempts(Some(now), now + second), now + second, "too late already");
        assert_eq!(end_of_attempts(None, now), now + 54 * second);
    }

    #[test]
    fn what_is_asked() {
        let pod = json!({"metadata": {"annotations": {"a": "b", "x.image-policy.k8s.io/y": "z"}}, "spec": {
            "containers": [{"image": "good"}], "initContainers": [{"image": "init"}],
            "ephemeralContainers": [{"image": "debug"}]}});
        let annotations = json!({"x.image-policy.k8s.io/y": "z"});
        assert_eq!(
            spec(&pod, "", "n"),
            json!({"containers": [{"image": "good"}, {"image": "init"}, {"image": "debug"}], "annotations": annotations, "namespace": "n"})
        );
        assert_eq!(spec(&pod, "ephemeralcontainers", "n")["containers"], json!([{"image": "debug"}]));
    }
}

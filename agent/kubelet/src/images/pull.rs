//! Pulling: by turns, with back-off, with each credential until one is accepted
//! (`image_manager.go: pullImage`, `kuberuntime_image.go`).

use std::time::Instant;

use component::EventType;
use jiff::{SignedDuration, Timestamp};
use proto::runtime::v1::{AuthConfig, Image};
use tonic::Code;

use super::credentials::Lookup;
use super::keyring::Credential;
use super::{Images, Wish, failure};
use crate::cri::RuntimeError;
use crate::pod::actions::{Failure, Waiting};

/// After this long a failed pull shows as waiting for its next try.
const SHOW_FAILURE: SignedDuration = SignedDuration::from_secs(3);
/// What cannot be tried before something else was mended.
const RETRY: SignedDuration = SignedDuration::from_secs(10);

/// Why a pull failed, until it is tried again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LastError {
    reason: &'static str,
    message: String,
    at: Timestamp,
}

impl Images {
    pub(super) async fn pull(&self, wish: &Wish<'_>, lookup: &Lookup<'_>) -> Result<Image, Failure> {
        let key = wish.key();
        if let Some(waiting) = self.backed_off(wish, &key) {
            return Err(waiting);
        }
        let credentials = lookup.get().await.map_err(|error| failure(&error.to_string(), error.to_string(), RETRY))?;
        let noted = self.records.begin(&wish.given).map_err(|error| {
            let reason = format!("failed to record image pull intent: {error}");
            let message =
                format!("Failed to record image pull intent for container image \"{}\": {reason}", wish.given);
            failure(&reason, message, RETRY)
        })?;
        let began = Instant::now();
        // The semaphore is never closed.
        let permit = self.pulls.acquire().await;
        wish.event(EventType::Normal, "Pulling", format!("Pulling image \"{}\"", wish.given));
        let pulling = Instant::now();
        let outcome = self.pull_with(wish, credentials).await;
        drop(permit);
        match outcome {
            Ok((found, used)) => {
                noted.succeeded(&found.id, used);
                self.forget(&key);
                let took = (go_elapsed(pulling.elapsed()), go_elapsed(began.elapsed()));
                let message = format!(
                    "Successfully pulled image \"{}\" in {} ({} including waiting). Image size: {} bytes.",
                    wish.given, took.0, took.1, found.size
                );
                wish.event(EventType::Normal, "Pulled", message);
                Ok(found)
            }
            Err(error) => {
                noted.failed();
                Err(self.pull_failed(wish, &key, error))
            }
        }
    }

    /// While a failed pull may not be tried again: the reason, and for how long.
    fn backed_off(&self, wish: &Wish<'_>, key: &str) -> Option<Failure> {
        let LastError { reason, message: error, at } = self.last_error.lock().get(key).cloned()?;
        let (_, until) = self.backoff.lock().waiting(key, at, Timestamp::now())?;
        let message = format!("Back-off pulling image \"{}\"", wish.given);
        wish.event(EventType::Normal, "BackOff", message.clone());
        let waiting =
            Waiting { reason: "ImagePullBackOff".to_owned(), message: format!("{message}: {reason}: {error}") };
        Some(Failure { waiting, retry_at: until })
    }

    fn pull_failed(&self, wish: &Wish<'_>, key: &str, error: String) -> Failure {
        let at = Timestamp::now();
        wish.event(EventType::Warning, "Failed", format!("Failed to pull image \"{}\": {error}", wish.given));
        let (reason, message) = reason_of(&wish.given, error);
        self.backoff.lock().advance(key, at, at);
        self.last_error.lock().insert(key.to_owned(), LastError { reason, message: message.clone(), at });
        failure(reason, message, SHOW_FAILURE)
    }

    /// The image, and the credential that was accepted; without any, it is pulled anonymously.
    async fn pull_with<'c>(
        &self,
        wish: &Wish<'_>,
        credentials: &'c [Credential],
    ) -> Result<(Image, Option<&'c Credential>), String> {
        let mut errors = Vec::new();
        if credentials.is_empty() {
            match self.pull_once(wish, None).await {
                Ok(image) => return Ok((image, None)),
                Err(error) => errors.push(error),
            }
        }
        for credential in credentials {
            match self.pull_once(wish, Some(credential.login.as_auth())).await {
                Ok(image) => return Ok((image, Some(credential))),
                Err(error) => errors.push(error),
            }
        }
        Err(aggregate(errors))
    }

    async fn pull_once(&self, wish: &Wish<'_>, auth: Option<AuthConfig>) -> Result<Image, String> {
        let sandbox = Some(wish.sandbox.clone());
        self.runtime.pull_image(&wish.image, auth, sandbox).await.map_err(|error| pull_message(&error))?;
        let found = self.runtime.image_status(&wish.image).await.map_err(|error| error.runtime_message())?;
        found.ok_or_else(|| "the image was pulled and is not there".to_owned())
    }

    fn forget(&self, key: &str) {
        self.backoff.lock().forget(key);
        self.last_error.lock().remove(key);
    }

    /// Forgets a pod that is gone.
    pub fn forget_pod(&self, uid: &str) {
        self.providers.forget_pod(uid);
        let prefix = format!("{uid}/");
        let mut errors = self.last_error.lock();
        let gone: Vec<String> = errors.keys().filter(|key| key.starts_with(&prefix)).cloned().collect();
        for key in gone {
            errors.remove(&key);
            self.backoff.lock().forget(&key);
        }
    }
}

/// The runtime's words; a code that says nothing is left out of them.
fn pull_message(error: &RuntimeError) -> String {
    match error {
        RuntimeError::Answer { code: Code::Unknown, message, .. } => message.clone(),
        other => other.runtime_message(),
    }
}

/// Errors that runtimes call by name (`cri-api/pkg/errors`) are reasons of their own.
fn reason_of(image: &str, error: String) -> (&'static str, String) {
    let named = [
        ("RegistryUnavailable", "the registry is unavailable"),
        ("SignatureValidationFailed", "the signature validation failed"),
    ];
    for (reason, words) in named {
        if let Some(rest) = error.strip_prefix(reason) {
            return (reason, format!("image pull failed for {image} because {words}{rest}"));
        }
    }
    ("ErrImagePull", error)
}

/// Several errors as Go's aggregates print them: each once, in brackets.
fn aggregate(errors: Vec<String>) -> String {
    let mut seen: Vec<String> = Vec::new();
    for error in errors {
        if !seen.contains(&error) {
            seen.push(error);
        }
    }
    if seen.len() == 1 { seen.remove(0) } else { format!("[{}]", seen.join(", ")) }
}

/// A duration as Go prints it, to the millisecond.
fn go_elapsed(elapsed: std::time::Duration) -> String {
    let millis = elapsed.as_millis();
    if millis < 1000 { format!("{millis}ms") } else { format!("{}s", millis as f64 / 1000.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_told_as_kubernetes_tells_them() {
        let answer =
            |code, message: &str| RuntimeError::Answer { call: "PullImage", code, message: message.to_owned() };
        for (errors, reason, message) in [
            (vec![answer(Code::Unknown, "refused")], "ErrImagePull", "refused"),
            (vec![answer(Code::NotFound, "none")], "ErrImagePull", "rpc error: code = NotFound desc = none"),
            (vec![answer(Code::Unknown, "a"), answer(Code::Unknown, "b")], "ErrImagePull", "[a, b]"),
            (vec![answer(Code::Unknown, "a"), answer(Code::Unknown, "a")], "ErrImagePull", "a"),
            (
                vec![answer(Code::Unknown, "RegistryUnavailable: down")],
                "RegistryUnavailable",
                "image pull failed for r.io/a because the registry is unavailable: down",
            ),
        ] {
            let told = reason_of("r.io/a", aggregate(errors.iter().map(pull_message).collect()));
            assert_eq!(told, (reason, message.to_owned()));
        }
    }

    #[test]
    fn times_are_told_as_go_tells_them() {
        for (millis, text) in [(7, "7ms"), (999, "999ms"), (1000, "1s"), (1250, "1.25s")] {
            assert_eq!(go_elapsed(std::time::Duration::from_millis(millis)), text);
        }
    }
}

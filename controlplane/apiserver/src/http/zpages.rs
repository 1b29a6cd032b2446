//! `/statusz` and `/flagz`: what runs here and how it was configured, as text for people or, where it
//! is asked for by name, as an object of `config.k8s.io` (`k8s.io/apiserver/pkg/server/{statusz,flagz}`).

use http::{HeaderValue, Response, StatusCode, header};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::body::Body;
use super::negotiate::{Media, Output, View};
use super::pipeline::Asked;
use super::{paths, render};
use crate::error::{ApiError, Result};
use crate::schema;
use crate::server::Config;

const COMPONENT: &str = "apiserver";
const ACCEPTED: &[&str] = &["application/json", "application/yaml", "text/plain"];
const GROUP: &str = "config.k8s.io";
const WARNING: &str = "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility guarantees and is for debugging purposes only.";

/// Answers `/statusz` (`flags` false) or `/flagz`.
pub fn handle(asked: &Asked, flags: bool) -> Result<Response<Body>> {
    let page = if flags { "flagz" } else { "statusz" };
    let kind = if flags { "Flagz" } else { "Statusz" };
    let accept = asked.header(header::ACCEPT);
    let Some(form) = Form::negotiate(accept, kind).ok_or_else(|| ApiError::not_acceptable(ACCEPTED))? else {
        let lines = if flags { flag_lines(&asked.api.config) } else { status_lines(asked) };
        return Ok(render::page(StatusCode::OK, format!("\n{COMPONENT} {page}\n{WARNING}\n{lines}")));
    };
    let mut object = json!({
        "kind": kind, "apiVersion": format!("{GROUP}/{}", form.version), "metadata": {"name": COMPONENT},
    });
    let content = if flags { json!({"flags": flags_of(&asked.api.config)}) } else { status(asked) };
    if let (Some(object), Value::Object(content)) = (object.as_object_mut(), content) {
        object.extend(content);
    }
    let output = Output { media: form.media, view: View::Object, pretty: false };
    let mut response = render::response(StatusCode::OK, form.media.name(), render::encode(&object, &output)?);
    if form.version == "v1alpha1" {
        let text = format!("299 - \"This version of the {page} endpoint is deprecated. Please use a newer version.\"");
        if let Ok(text) = HeaderValue::from_str(&text) {
            response.headers_mut().insert(header::WARNING, text);
        }
    }
    Ok(response)
}

/// An object as the answer.
#[derive(Debug, PartialEq)]
struct Form {
    media: Media,
    version: &'static str,
}

impl Form {
    /// The first that the client takes: none inside for text, none outside for nothing at all.
    fn negotiate(accept: &str, kind: &str) -> Option<Option<Self>> {
        if accept.trim().is_empty() {
            return Some(None);
        }
        accept.split(',').find_map(|clause| {
            let mut parts = clause.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default();
            let has = |wanted: &str| clause.split(';').any(|part| part.trim() == wanted);
            let converts = parts.any(|part| ["as=", "g=", "v="].iter().any(|key| part.starts_with(key)));
            let media = match media {
                "text/plain" | "text/*" | "*/*" if !converts => return Some(None),
                "application/json" | "application/*" | "*/*" => Media::Json,
                "application/yaml" => Media::Yaml,
                _ => return None,
            };
            let named = has(&format!("as={kind}")) && has(&format!("g={GROUP}"));
            let version = ["v1beta1", "v1alpha1"].into_iter().find(|version| has(&format!("v={version}")));
            version.filter(|_| named).map(|version| Some(Self { media, version }))
        })
    }
}

fn status(asked: &Asked) -> Value {
    let started = asked.api.started;
    let version = paths::version();
    let part = |major: &str, minor: &str| {
        format!("{}.{}", version[major].as_str().unwrap_or_default(), version[minor].as_str().unwrap_or_default())
    };
    let seconds = Timestamp::now().duration_since(started).as_secs().max(0);
    json!({
        "startTime": schema::time_text(started), "uptimeSeconds": seconds, "goVersion": version["goVersion"],
        "binaryVersion": part("major", "minor"), "emulationVersion": part("emulationMajor", "emulationMinor"),
        "paths": debugging_paths(asked),
    })
}

/// What there is to look at, by its first step.
fn debugging_paths(asked: &Asked) -> Vec<String> {
    const OTHERS: [&str; 5] = ["apis", "api", "openid", "openapi", ".well-known"];
    let firsts = paths::listed(asked);
    let firsts = firsts.iter().filter_map(|path| path.split('/').nth(1)).filter(|first| !OTHERS.contains(first));
    let mut firsts: Vec<String> = firsts.map(|first| format!("/{first}")).collect();
    firsts.dedup();
    firsts
}

fn status_lines(asked: &Asked) -> String {
    let status = status(asked);
    let text = |key: &str| status[key].as_str().unwrap_or_default().to_owned();
    let up = status["uptimeSeconds"].as_u64().unwrap_or_default();
    let started = asked.api.started.strftime("%a %b %e %H:%M:%S UTC %Y");
    format!(
        "\nStarted: {started}\nUp: {} hr {:02} min {:02} sec\nGo version: {}\nBinary version: {}\nEmulation version: {}\nPaths: {}\n",
        up / 3600,
        up / 60 % 60,
        up % 60,
        text("goVersion"),
        text("binaryVersion"),
        text("emulationVersion"),
        debugging_paths(asked).join(" "),
    )
}

/// The configuration under the names of `kube-apiserver`'s flags.
fn flags_of(config: &Config) -> Map<String, Value> {
    let options = &config.options;
    let file = |path: &std::path::Path| path.display().to_string();
    let seconds = |time: std::time::Duration| format!("{}s", time.as_secs());
    let names = |names: &[String]| format!("[{}]", names.join(","));
    let admission = &options.admission;
    [
        ("admission-control-config-file", admission.config_file.as_deref().map(file).unwrap_or_default()),
        ("advertise-address", config.advertise_address.to_string()),
        ("client-ca-file", file(&config.client_ca)),
        ("disable-admission-plugins", names(&admission.disable)),
        ("enable-admission-plugins", names(&admission.enable)),
        ("encryption-provider-config", config.encryption.as_deref().map(file).unwrap_or_default()),
        ("encryption-provider-config-automatic-reload", config.encryption_reload.to_string()),
        ("max-mutating-requests-inflight", options.max_in_flight.1.to_string()),
        ("max-requests-inflight", options.max_in_flight.0.to_string()),
        ("request-timeout", seconds(options.request_timeout)),
        ("secure-port", config.port.to_string()),
        ("service-account-issuer", config.issuer.clone()),
        ("service-cluster-ip-range", config.service_cidr.clone()),
        ("shutdown-delay-duration", seconds(config.shutdown_delay)),
        ("tls-cert-file", file(&config.serving.certificate)),
        ("tls-private-key-file", file(&config.serving.key)),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value.into()))
    .collect()
}

fn flag_lines(config: &Config) -> String {
    flags_of(config).iter().map(|(name, value)| format!("{name}={}\n", value.as_str().unwrap_or_default())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_for_those_who_name_them() {
        let object = |media, version| Some(Some(Form { media, version }));
        for (accept, form) in [
            ("", Some(None)),
            ("*/*", Some(None)),
            ("application/json, */*", Some(None)),
            ("application/json", None),
            ("application/json;as=Statusz;g=config.k8s.io;v=v1beta1", object(Media::Json, "v1beta1")),
            ("application/yaml;v=v1alpha1;g=config.k8s.io;as=Statusz", object(Media::Yaml, "v1alpha1")),
            ("application/json;as=Flagz;g=config.k8s.io;v=v1beta1", None),
            ("application/vnd.kubernetes.protobuf", None),
        ] {
            assert_eq!(Form::negotiate(accept, "Statusz"), form, "{accept}");
        }
    }
}

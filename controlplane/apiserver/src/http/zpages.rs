//! `/statusz` and `/flagz`: what runs here and how it was configured, as text for people or, where it
//! is asked for by name, as an object of `config.k8s.io` (`k8s.io/apiserver/pkg/server/{statusz,flagz}`).

use api::version;
use component::zpages::{self, Flags, Form, Page, Status};
use http::{HeaderValue, Response, StatusCode, header};

use super::body::Body;
use super::negotiate::{Media, Output, View};
use super::pipeline::Asked;
use super::{paths, render};
use crate::error::{ApiError, Result};
use crate::server::Config;

const COMPONENT: &str = "apiserver";

/// Answers `/statusz` or `/flagz`.
pub fn handle(asked: &Asked, page: Page) -> Result<Response<Body>> {
    let form = Form::negotiate(asked.header(header::ACCEPT), page);
    let (yaml, version) = match form.ok_or_else(|| ApiError::not_acceptable(zpages::ACCEPTED))? {
        Form::Text => {
            let text = match page {
                Page::Statusz => status(asked).text(COMPONENT),
                Page::Flagz => flags_of(&asked.api.config).text(COMPONENT),
            };
            return Ok(render::page(StatusCode::OK, text));
        }
        Form::Object { yaml, version } => (yaml, version),
    };
    let object = match page {
        Page::Statusz => status(asked).object(COMPONENT, version),
        Page::Flagz => flags_of(&asked.api.config).object(COMPONENT, version),
    };
    let media = if yaml { Media::Yaml } else { Media::Json };
    let output = Output { media, view: View::Object, pretty: false };
    let mut response = render::response(StatusCode::OK, media.name(), render::encode(&object, &output)?);
    let warning = Form::Object { yaml, version }.warning(page);
    if let Some(warning) = warning.and_then(|text| HeaderValue::from_str(&text).ok()) {
        response.headers_mut().insert(header::WARNING, warning);
    }
    Ok(response)
}

fn status(asked: &Asked) -> Status {
    Status {
        started: asked.api.started,
        go_version: version::GO.to_owned(),
        binary_version: version::SHORT.to_owned(),
        emulation_version: version::SHORT.to_owned(),
        paths: debugging_paths(asked),
    }
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

/// The configuration under the names of `kube-apiserver`'s flags.
fn flags_of(config: &Config) -> Flags {
    let options = &config.options;
    let file = |path: &std::path::Path| path.display().to_string();
    let seconds = |time: std::time::Duration| format!("{}s", time.as_secs());
    let names = |names: &[String]| format!("[{}]", names.join(","));
    let admission = &options.admission;
    let flags = [
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
    .map(|(name, value)| (name.to_owned(), value.into()));
    Flags(flags.collect())
}

//! What the kubelet tells of itself: `/statusz`, `/flagz`, how its health checks went
//! (`/metrics/slis`), and `/healthz` for those on this machine.

use std::fmt::Write;
use std::net::SocketAddr;

use api::version;
use component::local_http;
use component::zpages::{self, Flags, Form, Page, Status};
use http::{HeaderValue, StatusCode, header};
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::{Map, Value};

use super::reply::{self, Reply};

const COMPONENT: &str = "kubelet";
const PATHS: [&str; 6] = ["/configz", "/flagz", "/healthz", "/metrics", "/pods", "/statusz"];

/// `configuration` is what `/configz` shows.
pub fn zpage(page: Page, accept: &str, started: Timestamp, configuration: &Value) -> Reply {
    let Some(form) = Form::negotiate(accept, page) else {
        let message = format!("only the following media types are accepted: {}", zpages::ACCEPTED.join(", "));
        return reply::error(StatusCode::NOT_ACCEPTABLE, message);
    };
    let status = || Status {
        started,
        go_version: version::GO.to_owned(),
        binary_version: version::SHORT.to_owned(),
        emulation_version: version::SHORT.to_owned(),
        paths: PATHS.map(str::to_owned).to_vec(),
    };
    let (yaml, object) = match (form, page) {
        (Form::Text, Page::Statusz) => return reply::text(StatusCode::OK, status().text(COMPONENT)),
        (Form::Text, Page::Flagz) => return reply::text(StatusCode::OK, flags(configuration).text(COMPONENT)),
        (Form::Object { yaml, version }, Page::Statusz) => (yaml, status().object(COMPONENT, version)),
        (Form::Object { yaml, version }, Page::Flagz) => (yaml, flags(configuration).object(COMPONENT, version)),
    };
    let mut answer = match yaml {
        false => reply::json(&object),
        true => match serde_saphyr::to_string(&object) {
            Ok(text) => reply::with_type(StatusCode::OK, "application/yaml", text),
            Err(error) => {
                let message = format!("encoding the answer: {error}");
                return reply::error(StatusCode::INTERNAL_SERVER_ERROR, message);
            }
        },
    };
    if let Some(warning) = form.warning(page).and_then(|text| HeaderValue::from_str(&text).ok()) {
        answer.headers_mut().insert(header::WARNING, warning);
    }
    answer
}

/// The configuration under the names of Kubernetes' flags: `maxPods` is `--max-pods`.
fn flags(configuration: &Value) -> Flags {
    let fields = configuration.as_object().into_iter().flatten();
    let settings = fields.filter(|(name, value)| !["kind", "apiVersion"].contains(&name.as_str()) && !value.is_null());
    Flags(settings.map(|(name, value)| (flag_name(name), flag_value(value).into())).collect::<Map<_, _>>())
}

fn flag_name(field: &str) -> String {
    let letters: Vec<char> = field.chars().collect();
    let mut name = String::new();
    for (at, c) in letters.iter().enumerate() {
        let lower = |at: Option<usize>| at.and_then(|at| letters.get(at)).is_some_and(char::is_ascii_lowercase);
        let begins_word = at > 0 && (lower(at.checked_sub(1)) || lower(Some(at + 1)));
        if c.is_ascii_uppercase() && begins_word {
            name.push('-');
        }
        name.push(c.to_ascii_lowercase());
    }
    name
}

fn flag_value(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(list) => format!("[{}]", list.iter().map(flag_value).collect::<Vec<_>>().join(",")),
        Value::Object(map) => {
            map.iter().map(|(key, value)| format!("{key}={}", flag_value(value))).collect::<Vec<_>>().join(",")
        }
        other => other.to_string(),
    }
}

/// How the checks of `/healthz` went, as often as somebody asked.
#[derive(Default)]
pub struct Checks(Mutex<Option<Asked>>);

#[derive(Default, Clone, Copy)]
struct Asked {
    well: bool,
    good: u64,
    bad: u64,
}

impl Checks {
    pub fn note(&self, well: bool) {
        let mut asked = self.0.lock();
        let asked = asked.get_or_insert_default();
        asked.well = well;
        *(if well { &mut asked.good } else { &mut asked.bad }) += 1;
    }

    pub fn page(&self) -> String {
        let (name, total) = ("kubernetes_healthcheck", "kubernetes_healthchecks_total");
        let mut text = format!(
            "# HELP {name} [STABLE] This metric records the result of a single healthcheck.\n# TYPE {name} gauge\n"
        );
        let asked = *self.0.lock();
        // Whoever gets an answer finds these two well.
        let checks = asked.into_iter().flat_map(|asked| {
            let always = Asked { well: true, good: asked.good + asked.bad, bad: 0 };
            [("log", always), ("ping", always), ("syncloop", asked)]
        });
        let checks: Vec<_> = checks.collect();
        // Writing to text cannot fail.
        for (check, asked) in &checks {
            let _ = writeln!(text, "{name}{{name=\"{check}\",type=\"healthz\"}} {}", u8::from(asked.well));
        }
        let help = "[STABLE] This metric records the results of all healthcheck.";
        let _ = write!(text, "# HELP {total} {help}\n# TYPE {total} counter\n");
        for (check, asked) in &checks {
            for (status, count) in [("error", asked.bad), ("success", asked.good)].iter().filter(|one| one.1 > 0) {
                let _ = writeln!(text, "{total}{{name=\"{check}\",status=\"{status}\",type=\"healthz\"}} {count}");
            }
        }
        text
    }
}

/// Answers `/healthz` to whoever can reach the address, until cancelled.
pub async fn serve_healthz(address: SocketAddr) {
    local_http::serve("the kubelet's /healthz", address, local_answer).await;
}

fn local_answer(path: &str) -> local_http::Answer {
    match path {
        "/healthz" | "/healthz/ping" => local_http::text(StatusCode::OK, "ok"),
        _ => local_http::not_found(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn flags_have_the_names_of_flags() {
        for (field, flag) in [
            ("maxPods", "max-pods"),
            ("clusterDNS", "cluster-dns"),
            ("imageGCHighThresholdPercent", "image-gc-high-threshold-percent"),
            ("evictionHard", "eviction-hard"),
        ] {
            assert_eq!(flag_name(field), flag);
        }
        let flags = flags(
            &json!({"kind": "KubeletConfiguration", "maxPods": 110, "clusterDNS": ["10.0.0.1"], "staticPodPath": null, "evictionHard": {"a": "1", "b": "2"}}),
        );
        let expected = json!({"max-pods": "110", "cluster-dns": "[10.0.0.1]", "eviction-hard": "a=1,b=2"});
        assert_eq!(Value::Object(flags.0), expected);
    }

    #[test]
    fn checks_are_counted_once_somebody_asked() {
        let checks = Checks::default();
        assert!(!checks.page().contains("name="));
        checks.note(true);
        checks.note(false);
        let page = checks.page();
        for line in [
            "kubernetes_healthcheck{name=\"ping\",type=\"healthz\"} 1",
            "kubernetes_healthcheck{name=\"syncloop\",type=\"healthz\"} 0",
            "kubernetes_healthchecks_total{name=\"syncloop\",status=\"error\",type=\"healthz\"} 1",
        ] {
            assert!(page.lines().any(|found| found == line), "{page}");
        }
    }

    #[test]
    fn pages_are_text_unless_an_object_is_named() {
        let answer = |accept: &str| zpage(Page::Statusz, accept, Timestamp::UNIX_EPOCH, &json!({})).status();
        assert_eq!(answer(""), StatusCode::OK);
        assert_eq!(answer("application/json;as=Statusz;g=config.k8s.io;v=v1beta1"), StatusCode::OK);
        assert_eq!(answer("application/json"), StatusCode::NOT_ACCEPTABLE);
    }
}

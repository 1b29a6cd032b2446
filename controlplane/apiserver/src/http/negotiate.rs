//! Which representation a client wants: media type and view, from `Accept` and the query.

use http::StatusCode;
use serde_json::json;

use crate::error::{ApiError, Result};

use super::query::Query;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Media {
    Json,
    Yaml,
    Protobuf,
}

impl Media {
    pub fn name(self) -> &'static str {
        match self {
            Media::Json => "application/json",
            Media::Yaml => "application/yaml",
            Media::Protobuf => "application/vnd.kubernetes.protobuf",
        }
    }
}

/// How objects are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    Object,
    /// `meta.k8s.io/<version>` `Table`.
    Table {
        version: &'static str,
    },
    /// `PartialObjectMetadata`, or its list.
    Metadata {
        version: &'static str,
        /// Asked for as `PartialObjectMetadataList`.
        list: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Output {
    pub media: Media,
    pub view: View,
    pub pretty: bool,
}

pub const ACCEPTED: &[&str] = &["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];

/// What watches are sent in.
pub const STREAMS: [&str; 2] = ["application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch"];

impl Output {
    /// JSON, as it is.
    pub fn plain() -> Self {
        Self { media: Media::Json, view: View::Object, pretty: false }
    }

    /// `protobuf`: whether the resource has that representation. `views`: whether the request may
    /// ask for tables and metadata.
    pub fn negotiate(accept: &str, mut pretty: bool, protobuf: bool, views: bool) -> Result<Self> {
        if accept.trim().is_empty() {
            return Ok(Self { pretty, ..Self::plain() });
        }
        for clause in by_quality(accept) {
            if let Some((media, view)) = accepted(clause, protobuf, views) {
                pretty |= clause.split(';').any(|part| part.trim() == "pretty=1");
                return Ok(Self { media, view, pretty });
            }
        }
        let accepted = if protobuf { ACCEPTED } else { &ACCEPTED[..2] };
        Err(ApiError::not_acceptable(accepted))
    }
}

/// Refuses what no route of a built-in resource produces, whatever the parameters. Custom resources
/// have no routes.
pub fn check_route(accept: &str, streams: bool) -> Result<()> {
    let produced = |clause: &str| {
        let media = clause.split(';').next().unwrap_or_default().trim();
        media == "*/*" || ACCEPTED.contains(&media)
    };
    if accept.is_empty() || accept.split(',').any(produced) {
        return Ok(());
    }
    let streams = if streams { &STREAMS[..] } else { &[] };
    let available = [ACCEPTED, streams].concat().join(", ");
    let why = format!("406: Not Acceptable\n\nAvailable representations: {available}");
    Err(ApiError::new(StatusCode::NOT_ACCEPTABLE, "NotAcceptable", why).with_details(json!({})))
}

/// People with curl or a browser get indented JSON, as upstream does.
pub fn pretty(query: &Query, user_agent: &str) -> bool {
    match query.get("pretty").filter(|value| !value.is_empty()) {
        Some(value) => matches!(value, "1" | "t" | "T" | "true" | "TRUE" | "True"),
        None => ["curl", "Wget", "Mozilla/5.0"].iter().any(|agent| user_agent.starts_with(agent)),
    }
}

/// Clauses of an `Accept` header, the preferred first; of equal ones those that name a type, then in
/// their order.
fn by_quality(accept: &str) -> Vec<&str> {
    let quality = |clause: &&str| {
        let q = clause.split(';').find_map(|part| part.trim().strip_prefix("q="));
        q.and_then(|text| text.parse::<f32>().ok()).unwrap_or(1.0)
    };
    let mut clauses: Vec<&str> = accept.split(',').map(str::trim).filter(|clause| !clause.is_empty()).collect();
    let vague = |clause: &&str| {
        let (kind, subtype) = clause.split(';').next().and_then(|media| media.split_once('/')).unwrap_or_default();
        (kind.trim() == "*", subtype.trim() == "*")
    };
    clauses.sort_by(|a, b| quality(b).total_cmp(&quality(a)).then_with(|| vague(a).cmp(&vague(b))));
    clauses
}

fn accepted(clause: &str, protobuf: bool, views: bool) -> Option<(Media, View)> {
    let mut parts = clause.split(';').map(str::trim);
    let media = match parts.next()? {
        "application/json" | "*/*" | "application/*" => Media::Json,
        "application/yaml" => Media::Yaml,
        "application/vnd.kubernetes.protobuf" => Media::Protobuf,
        _ => return None,
    };
    let (mut kind, mut version, mut group) = ("", "", "");
    for part in parts {
        match part.split_once('=') {
            Some(("as", value)) => kind = value,
            Some(("v", value)) => version = value,
            Some(("g", value)) => group = value,
            Some(("stream", value)) if !matches!(value, "" | "watch") || media == Media::Yaml => return None,
            // q, charset, ...: no say in what is shown
            _ => {}
        }
    }
    if kind.is_empty() && version.is_empty() && group.is_empty() {
        return (protobuf || media != Media::Protobuf).then_some((media, View::Object));
    }
    let version = match version {
        "v1" => "v1",
        "v1beta1" => "v1beta1",
        _ => return None,
    };
    if group != "meta.k8s.io" || !views {
        return None;
    }
    match kind {
        // Tables have no protobuf; metadata has it of every kind.
        "Table" if media != Media::Protobuf => Some((media, View::Table { version })),
        "PartialObjectMetadata" => Some((media, View::Metadata { version, list: false })),
        "PartialObjectMetadataList" => Some((media, View::Metadata { version, list: true })),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_acceptable_clause_wins() {
        let table = View::Table { version: "v1" };
        for (accept, media, view) in [
            ("", Media::Json, View::Object),
            ("*/*", Media::Json, View::Object),
            ("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", Media::Json, table),
            ("application/json;as=Table;v=v2;g=meta.k8s.io, application/json", Media::Json, View::Object),
            ("application/vnd.kubernetes.protobuf,application/json", Media::Protobuf, View::Object),
            ("text/html, application/yaml;q=0.5", Media::Yaml, View::Object),
            ("application/json;q=0.1,application/yaml", Media::Yaml, View::Object),
            ("*/*,application/yaml", Media::Yaml, View::Object),
            ("application/yaml;q=0.5,*/*", Media::Json, View::Object),
            (
                "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io",
                Media::Json,
                View::Metadata { version: "v1", list: true },
            ),
        ] {
            let output = Output::negotiate(accept, false, true, true).unwrap();
            assert_eq!((output.media, output.view), (media, view), "{accept}");
        }
        let refused = Output::negotiate("text/html", false, true, true).unwrap_err();
        assert_eq!(refused.code(), 406);
    }
}

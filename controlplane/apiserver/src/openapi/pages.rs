//! What the server answers beside its resources: which groups and versions there are, what it is, and the
//! documents of its tokens' issuer.
//!
//! Each page has a document of version 3 of its own, beside those of group versions.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::definitions::{Definitions, META, Reference, Version};
use super::{Source, info, paths, security};
use crate::http::negotiate::ACCEPTED;
use crate::schema::table::Descriptions;
use crate::schema::type_of;

/// The schema of `/version`, which is no kind.
pub const VERSION_INFO: &str = "io.k8s.apimachinery.pkg.version.Info";

/// Kinds that pages answer.
pub const KINDS: [&str; 3] = ["APIGroup", "APIGroupList", "APIVersions"];

pub struct Page {
    /// Where its document of version 3 is, e.g. `apis/apps`.
    pub document: String,
    pub path: String,
    description: &'static str,
    operation: String,
    tag: String,
    answer: Answer,
    media: &'static [&'static str],
}

#[derive(Clone, Copy)]
enum Answer {
    /// A document that Kubernetes has no schema for.
    Text,
    /// A kind of `meta/v1`.
    Kind(&'static str),
    Version,
}

impl Answer {
    fn schema(self) -> Option<String> {
        match self {
            Answer::Text => None,
            Answer::Kind(kind) => Some(format!("{META}{kind}")),
            Answer::Version => Some(VERSION_INFO.to_owned()),
        }
    }
}

/// The pages of a server with these groups, custom ones left out.
pub fn pages(groups: &BTreeSet<String>) -> Vec<Page> {
    let page = |document: &str,
                path: &str,
                description: &'static str,
                operation: &str,
                tag: &str,
                answer: Answer,
                media: &'static [&'static str]| Page {
        document: document.to_owned(),
        path: path.to_owned(),
        description,
        operation: operation.to_owned(),
        tag: tag.to_owned(),
        answer,
        media,
    };
    let versions = "get available API versions";
    let mut pages = vec![
        page(
            ".well-known",
            "/.well-known/openid-configuration",
            "get the OpenID configuration of the issuer of service account tokens",
            "getServiceAccountIssuerOpenIDConfiguration",
            "WellKnown",
            Answer::Text,
            &["application/json"],
        ),
        page("api", "/api/", versions, "getCoreAPIVersions", "core", Answer::Kind("APIVersions"), ACCEPTED),
        page("apis", "/apis/", versions, "getAPIVersions", "apis", Answer::Kind("APIGroupList"), ACCEPTED),
        page(
            "openid/v1",
            "/openid/v1/jwks",
            "get the public keys of the issuer of service account tokens",
            "getServiceAccountIssuerOpenIDKeyset",
            "openid",
            Answer::Text,
            &["application/jwk-set+json"],
        ),
        page(
            "version",
            "/version/",
            "get the version of the server",
            "getCodeVersion",
            "version",
            Answer::Version,
            &["application/json"],
        ),
    ];
    pages.extend(groups.iter().map(|group| {
        let (document, tag) = (format!("apis/{group}"), paths::group_tag(group));
        Page {
            path: format!("/{document}/"),
            document,
            description: "get information of a group",
            operation: format!("get{}APIGroup", paths::capitalised(&tag)),
            tag,
            answer: Answer::Kind("APIGroup"),
            media: ACCEPTED,
        }
    }));
    pages
}

/// The groups of built-in resources, the core group left out.
pub fn groups<'a>(sources: impl Iterator<Item = &'a Source>) -> BTreeSet<String> {
    let built_in = sources.filter(|source| !source.descriptor.custom);
    let served = built_in.flat_map(|source| source.descriptor.served.iter().filter(|served| served.served));
    served.filter(|served| !served.group.is_empty()).map(|served| served.group.to_string()).collect()
}

impl Page {
    pub fn item(&self, version: Version) -> Value {
        let schema = self.answer.schema();
        let mut operation = json!({
            "description": self.description,
            "operationId": self.operation,
            "tags": [self.tag],
            "responses": {
                "200": paths::response(version, "OK", schema.as_deref(), self.media),
                "401": {"description": "Unauthorized"},
            },
        });
        if version == Version::V2 {
            operation["schemes"] = json!(["https"]);
            operation["produces"] = json!(self.media);
        }
        json!({"get": operation})
    }

    /// Its document of version 3.
    pub fn document(&self) -> Value {
        let mut paths = Map::new();
        paths.insert(self.path.clone(), self.item(Version::V3));
        json!({
            "openapi": "3.0.0",
            "info": info(),
            "paths": paths,
            "components": {"schemas": self.schemas(), "securitySchemes": security()},
        })
    }

    fn schemas(&self) -> Map<String, Value> {
        let texts = Descriptions::unpack();
        let mut definitions = Definitions::new(Version::V3, &texts);
        let mut schemas = Map::new();
        match self.answer {
            Answer::Text => {}
            Answer::Version => {
                schemas.insert(VERSION_INFO.to_owned(), version_info());
            }
            Answer::Kind(kind) => {
                if let Some(id) = type_of("", "v1", kind) {
                    definitions.refer(Reference::Type(id));
                }
            }
        }
        let mut next = 0;
        while let Some(target) = definitions.needed.get(next).copied() {
            let name = target.name();
            let kind = name.strip_prefix(META).filter(|kind| KINDS.contains(kind));
            let kind = kind.map(|kind| json!({"group": "", "kind": kind, "version": "v1"}));
            let schema = definitions.render(target, kind.as_slice());
            schemas.insert(name, schema);
            next += 1;
        }
        schemas
    }
}

pub fn version_info() -> Value {
    let required =
        ["major", "minor", "gitVersion", "gitCommit", "gitTreeState", "buildDate", "goVersion", "compiler", "platform"];
    let optional = ["emulationMajor", "emulationMinor", "minCompatibilityMajor", "minCompatibilityMinor"];
    let text = |name: &&str| ((*name).to_owned(), json!({"type": "string"}));
    let properties: Map<String, Value> = required.iter().chain(&optional).map(text).collect();
    json!({
        "description": "Info says which version the server has.",
        "type": "object",
        "properties": properties,
        "required": required,
    })
}

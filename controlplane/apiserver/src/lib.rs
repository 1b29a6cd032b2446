//! The Kubernetes API server: HTTP, authentication, authorization, admission, registry, watch
//! cache, discovery, OpenAPI. The only user of [`store`].
//!
//! A request goes through, in this order:
//!
//! ```text
//! http      TLS, HTTP/1.1 and 2, request info, body limits, content types
//! authn     who: client certificate, bearer token, anonymous; impersonation
//! audit     what is written down of it
//! flowcontrol  how many at once: priority levels, seats, fair queues
//! authz     may they: RBAC, node authorizer, system:masters, webhooks
//! registry  decode, convert, default, admit, validate, store: one road for every resource
//! cache     reads: lists, gets at a version, watches, from shared bytes
//! ```
//!
//! What a resource is, is data and pure functions: see [`resource`] for the contract that
//! `kinds` fills in, and [`admit`] for the one of admission plugins. `schema`, `patch`, `openapi`
//! and `protobuf` are machinery on JSON values that knows no kind by name.
//!
//! What the pipeline expects of the machinery (a schema is looked up once per resource and kept):
//!
//! ```text
//! schema::lookup(&GroupVersionKind) -> Option<Schema>          cheap to clone; also built from a CRD
//! schema::parse(bytes, ContentType) -> Result<Parsed, ApiError> JSON or YAML; finds duplicate fields
//! schema::normalize(&Schema, &mut Value, kind) -> Result<Vec<String>, ApiError>
//!     drops unknown fields and returns them ("unknown field \"spec.foo\""), canonicalises
//!     quantities and numbers, drops empty values as Go's omitempty does; wrong types are errors
//! patch::json(&Value, patch) / patch::merge(&Value, patch) / patch::strategic(&Schema, &Value, patch)
//!     -> Result<Value, ApiError>
//! patch::apply::apply(&Write, live, config, force) -> Result<Value, ApiError>     async: other versions
//! patch::apply::track_update(&Write, live: Option<&Value>, new: &mut Value)        may need a webhook
//! openapi::v3_index() / v3(group_version) / v2(accept)          bytes with an ETag
//! protobuf::decode(bytes) -> Result<Value, ApiError>            with kind and apiVersion
//! protobuf::encode(&Value) -> Result<Vec<u8>, ApiError>         lists and watch events too
//! kinds::all() -> Vec<Resource>, admission::build(&AdmissionOptions, &Supervisor) -> Vec<Arc<dyn Admission>>
//! ```

pub mod admission;
pub mod admit;
mod aggregate;
pub mod audit;
pub mod authn;
pub mod authz;
mod bootstrap;
pub mod cache;
pub mod cel;
mod crd;
mod discovery;
mod encryption;
pub mod error;
mod flowcontrol;
#[cfg(any(test, feature = "testing"))]
pub mod fuzz;
pub mod http;
pub mod kinds;
pub mod openapi;
pub mod patch;
mod policy;
pub mod protobuf;
mod proxy;
pub mod registry;

mod reload;
mod remembered;
mod remote;
pub mod resource;
mod resources;
pub mod schema;
mod selectable;
mod server;
mod table;
#[cfg(feature = "testing")]
pub mod testing;
mod timed_store;
mod webhook;

pub use admission::AdmissionOptions;
pub use audit::{AuditConfig, LogConfig};
pub use authn::UserInfo;
pub use authn::requestheader::Names as RequestHeaderNames;
pub use authn::{AuthenticationOptions, OidcOptions};
pub use authz::{AuthorizationOptions, go_duration};
pub use error::ApiError;
pub use server::{ApiServer, Config, KeyPair, Options};

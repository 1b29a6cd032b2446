//! kubeconfig files (`clientcmd/api/v1`), with certificates inlined so that one file can be copied.

use base64::Engine;
use serde_json::{Value, json};

use crate::pki::Pair;

/// A kubeconfig for one cluster and one client certificate, as JSON (which is YAML too).
pub fn with_certificate(cluster: &str, server: &str, ca: &str, user: &str, client: &Pair) -> Value {
    let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": cluster, "cluster": {"server": server, "certificate-authority-data": encode(ca)}}],
        "users": [{"name": user, "user": {
            "client-certificate-data": encode(&client.certificate),
            "client-key-data": encode(&client.key),
        }}],
        "contexts": [{"name": cluster, "context": {"cluster": cluster, "user": user}}],
        "current-context": cluster,
    })
}

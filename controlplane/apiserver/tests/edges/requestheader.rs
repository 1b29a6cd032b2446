//! Proxies in front of the server name users in headers, with a certificate of their own authority.

use apiserver::testing::{Cluster, authority, leaf};

use super::{connect, exchange};

const WHO: &str = "POST /apis/authentication.k8s.io/v1/selfsubjectreviews HTTP/1.1\ncontent-type: application/json\ncontent-length: 79\nx-remote-user: jane\nx-remote-group: dev\nx-remote-extra-example.com%2fa: 1\n\n{\"apiVersion\": \"authentication.k8s.io/v1\", \"kind\": \"SelfSubjectReview\"}        ";

#[tokio::test]
async fn a_front_proxy_names_users_and_nobody_else_does() {
    let dir = tempfile::tempdir().unwrap();
    let (ca, pem) = authority();
    let file = dir.path().join("front-proxy-ca.crt");
    std::fs::write(&file, pem).unwrap();
    let cluster = Cluster::start_with(|config| config.front_proxy_ca = Some(file)).await;
    let address = cluster.listen().await;
    let ask = async |identity, request| {
        let stream = connect(cluster.ca_pem(), identity, address).await.unwrap();
        exchange(stream, request).await.unwrap()
    };

    let proxy = leaf(dir.path(), &ca, "front-proxy-client", &[], false);
    let answer = ask(Some(&proxy), WHO).await;
    assert!(answer.starts_with("HTTP/1.1 201") && answer.contains("\"username\":\"jane\""), "{answer}");
    assert!(answer.contains("\"dev\"") && answer.contains("\"example.com/a\":[\"1\"]"), "{answer}");

    // An ordinary client's headers say nothing.
    let joe = cluster.key_pair("joe", &["ops"]);
    let answer = ask(Some(&joe), WHO).await;
    assert!(answer.contains("\"username\":\"joe\"") && !answer.contains("jane"), "{answer}");
    // Nor do those of a proxy that is not among the names.
    let other = leaf(dir.path(), &ca, "other", &[], false);
    let answer = ask(Some(&other), WHO).await;
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    // A proxy's certificate is no client's.
    let answer = ask(Some(&proxy), "GET /api HTTP/1.1").await;
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    let answer = ask(None, WHO).await;
    assert!(!answer.contains("jane"), "{answer}");
}

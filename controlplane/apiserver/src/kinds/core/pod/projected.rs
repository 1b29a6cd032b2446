//! Validation of projected volumes: several sources in one directory.

use api::field::{Error, ErrorList};
use api::names;

use super::volume::{Written, downward_file, key_to_path, local_path, mode};
use crate::kinds::certificates::signer_name;
use crate::kinds::check::{Node, label_selector};

const KEY_TYPES: [&str; 6] = ["RSA3072", "RSA4096", "ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519"];
const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;

pub fn validate(volume: &Node<'_>, errors: &mut ErrorList) {
    mode(&volume.child("defaultMode"), errors);
    let mut written = Written::default();
    for source in volume.items("sources") {
        let mut sources = 0;
        for kind in
            ["secret", "configMap", "downwardAPI", "serviceAccountToken", "clusterTrustBundle", "podCertificate"]
        {
            if !source.has(kind) {
                continue;
            }
            sources += 1;
            let found = source.child(kind);
            match kind {
                "secret" | "configMap" => keys(volume, &found, &mut written, errors),
                "downwardAPI" => downward(volume, &found, &mut written, errors),
                "serviceAccountToken" => token(volume, &found, errors),
                "clusterTrustBundle" => trust_bundle(volume, &found, &mut written, errors),
                _ => certificate(volume, &found, &mut written, errors),
            }
        }
        if sources > 1 {
            source.forbidden(errors, "may not specify more than 1 volume type per source");
        }
    }
}

fn keys(volume: &Node<'_>, source: &Node<'_>, written: &mut Written, errors: &mut ErrorList) {
    let name = source.child("name");
    name.required(errors, "");
    for item in source.items("items") {
        key_to_path(&item, errors);
        let path = item.child("path").text();
        if !path.is_empty() {
            written.insert(path, volume, name.text(), errors);
        }
    }
}

fn downward(volume: &Node<'_>, source: &Node<'_>, written: &mut Written, errors: &mut ErrorList) {
    for item in source.items("items") {
        downward_file(&item, source, errors);
        let path = item.child("path").text();
        if !path.is_empty() {
            written.insert(path, volume, path, errors);
        }
    }
}

fn token(volume: &Node<'_>, source: &Node<'_>, errors: &mut ErrorList) {
    let expiry = source.child("expirationSeconds");
    if !expiry.exists() {
        expiry.missing(errors, "");
    } else if expiry.int() < 600 {
        expiry.invalid(errors, "may not specify a duration less than 10 minutes");
    } else if expiry.int() > 1 << 32 {
        expiry.invalid(errors, "may not specify a duration larger than 2^32 seconds");
    }
    // Kubernetes names the volume here, not the source.
    let path = Node::new(source.child("path").value, volume.path.child("path"));
    if path.required(errors, "") {
        local_path(&path, errors);
    }
}

fn trust_bundle(volume: &Node<'_>, source: &Node<'_>, written: &mut Written, errors: &mut ErrorList) {
    let (name, signer) = (source.child("name"), source.child("signerName"));
    match (name.exists(), signer.exists()) {
        (true, true) => source.invalid(errors, "only one of name and signerName may be used"),
        (true, false) => {
            name.required(errors, "must be a valid object name");
            for problem in names::dns1123_subdomain(name.text().rsplit(':').next().unwrap_or("")) {
                name.invalid(errors, format!("not a valid clustertrustbundlename: {problem}"));
            }
            if source.has("labelSelector") {
                source.child("labelSelector").invalid(errors, "labelSelector must be unset if name is specified");
            }
        }
        (false, true) => {
            if signer.required(errors, "must be a valid signer name") {
                signer_name(&signer, errors);
            }
            label_selector(&source.child("labelSelector"), errors);
        }
        (false, false) => source.missing(errors, "either name or signerName must be specified"),
    }
    let path = source.child("path");
    path.required(errors, "");
    local_path(&path, errors);
    written.insert(path.text(), volume, path.text(), errors);
}

fn certificate(volume: &Node<'_>, source: &Node<'_>, written: &mut Written, errors: &mut ErrorList) {
    let signer = source.child("signerName");
    signer_name(&signer, errors);
    source.child("keyType").one_of(errors, &KEY_TYPES);
    let lifetime = source.child("maxExpirationSeconds");
    if lifetime.exists() {
        let most = if signer.text().starts_with("kubernetes.io/") { DAY } else { 91 * DAY };
        if lifetime.int() < HOUR {
            lifetime.invalid(errors, format!("if provided, maxExpirationSeconds must be >= {HOUR}"));
        }
        if lifetime.int() > most {
            lifetime.invalid(errors, format!("if provided, maxExpirationSeconds must be <= {most}"));
        }
    }
    let mut paths = 0;
    for field in ["credentialBundlePath", "keyPath", "certificateChainPath"] {
        let path = source.child(field);
        if path.text().is_empty() {
            continue;
        }
        paths += 1;
        local_path(&path, errors);
        written.insert(path.text(), volume, path.text(), errors);
    }
    if paths == 0 {
        errors.push(Error::required(
            &source.path,
            "specify at least one of credentialBundlePath, keyPath, and certificateChainPath",
        ));
    }
}

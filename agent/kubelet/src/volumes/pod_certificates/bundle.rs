//! What a pod reads of a certificate: pure functions from a key and its chain to files.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::core::v1::PodCertificateProjection;

use crate::volumes::payload::{self, File, Payload};

/// Characters in a line of PEM.
const LINE: usize = 64;

/// A private key and the chain that was issued to it, both PEM. Shows itself to no log.
#[derive(PartialEq, Eq)]
pub struct Credential {
    pub key: String,
    pub chain: String,
}

/// The files that the source wants. The bundle is the key, then the chain: one read gives a pair that
/// fits, also while it is renewed.
pub fn files(source: &PodCertificateProjection, credential: &Credential, file: impl Fn(Vec<u8>) -> File) -> Payload {
    let bundle = format!("{}{}", credential.key, credential.chain);
    let wanted = [
        (&source.credential_bundle_path, bundle),
        (&source.key_path, credential.key.clone()),
        (&source.certificate_chain_path, credential.chain.clone()),
    ];
    let mut payload = Payload::new();
    for (path, text) in wanted {
        if let Some(path) = path.as_deref().filter(|path| !path.is_empty()) {
            payload.insert(payload::clean(path), file(text.into_bytes()));
        }
    }
    payload
}

/// A signer's chain without headers and without what stands between its blocks.
pub fn clean(chain: &str) -> String {
    let (mut cleaned, mut open) = (String::new(), None::<(&str, String)>);
    for line in chain.lines().map(str::trim_end) {
        let marked = |mark: &str| line.strip_prefix(mark).and_then(|rest| rest.strip_suffix("-----"));
        if let Some(label) = marked("-----BEGIN ") {
            open = Some((label, String::new()));
        } else if let Some(end) = marked("-----END ") {
            let block = open.take().filter(|(label, _)| *label == end);
            if let Some(der) = block.and_then(|(_, body)| STANDARD.decode(body).ok()) {
                cleaned.push_str(&encode(&der));
            }
        } else if let Some((_, body)) = open.as_mut().filter(|_| !line.contains(':')) {
            body.push_str(line);
        }
    }
    cleaned
}

/// One certificate as a PEM block.
pub fn encode(der: &[u8]) -> String {
    let mut text = "-----BEGIN CERTIFICATE-----\n".to_owned();
    let body = STANDARD.encode(der);
    let mut rest = body.as_str();
    while !rest.is_empty() {
        // base64 is ASCII: every index is a boundary of characters.
        let (line, after) = rest.split_at(rest.len().min(LINE));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(data: Vec<u8>) -> File {
        File { data, mode: 0o600, user: None }
    }

    #[test]
    fn each_path_gets_its_part() {
        let credential = Credential { key: "K\n".to_owned(), chain: "C\n".to_owned() };
        let source = PodCertificateProjection {
            credential_bundle_path: Some("a//bundle.pem".to_owned()),
            key_path: Some("key.pem".to_owned()),
            certificate_chain_path: Some(String::new()),
            ..Default::default()
        };
        let payload = files(&source, &credential, file);
        let expected = [("a/bundle.pem", "K\nC\n"), ("key.pem", "K\n")];
        assert_eq!(payload, Payload::from(expected.map(|(path, text)| (path.to_owned(), file(text.into())))));
    }

    #[test]
    fn chains_are_blocks_of_certificates_and_nothing_else() {
        let (one, two) = (encode(&[1; 100]), encode(&[2; 3]));
        assert_eq!(one.lines().map(str::len).collect::<Vec<_>>(), [27, 64, 64, 8, 25]);
        let with_header = two.replacen('\n', "\nProc-Type: 4,ENCRYPTED\n\n", 1);
        for (chain, expected) in [
            (one.clone(), one.clone()),
            (format!("leaf:\n{one}issuer:\n{two}end"), format!("{one}{two}")),
            (with_header, two.clone()),
            (one.replace('\n', "\r\n"), one.clone()),
            ("-----BEGIN CERTIFICATE-----\n?\n-----END CERTIFICATE-----\n".to_owned(), String::new()),
            (String::new(), String::new()),
        ] {
            assert_eq!(clean(&chain), expected, "{chain}");
        }
    }
}

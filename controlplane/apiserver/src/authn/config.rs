//! Which issuers of tokens are trusted: `AuthenticationConfiguration` (`apiserver.config.k8s.io`),
//! and the `--oidc-*` flags, which say the same of one issuer.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::oidc::Jwt;

/// What an operator says about authentication.
#[derive(Debug, Clone, Default)]
pub struct AuthenticationOptions {
    /// Lines of `token,user,uid,"group1,group2"`.
    pub token_file: Option<PathBuf>,
    /// Whether requests without credentials are those of `system:anonymous`; they are by default.
    pub anonymous: Option<bool>,
    /// An `AuthenticationConfiguration`.
    pub config_file: Option<PathBuf>,
    pub oidc: OidcOptions,
    /// A kubeconfig of who reviews tokens, and how long his answers hold.
    pub webhook: Option<(PathBuf, Duration)>,
    /// More keys whose ServiceAccount tokens are good: PEM, public or private.
    pub account_keys: Vec<PathBuf>,
    /// Signs ServiceAccount tokens instead of the server's own key.
    pub signing_key: Option<PathBuf>,
}

/// The `--oidc-*` flags.
#[derive(Debug, Clone, Default)]
pub struct OidcOptions {
    pub issuer_url: Option<String>,
    pub client_id: String,
    pub username_claim: String,
    pub username_prefix: String,
    pub groups_claim: String,
    pub groups_prefix: String,
    /// `claim=value`
    pub required_claims: Vec<String>,
    pub ca_file: Option<PathBuf>,
    /// Empty: RS256.
    pub signing_algorithms: Vec<String>,
}

/// Who asks without credentials.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Anonymous {
    pub enabled: bool,
    #[serde(default)]
    pub conditions: Vec<PathCondition>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PathCondition {
    pub path: String,
}

impl Anonymous {
    pub fn may_ask(&self, path: &str) -> bool {
        self.enabled && (self.conditions.is_empty() || self.conditions.iter().any(|condition| condition.path == path))
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    #[serde(rename = "apiVersion")]
    api_version: String,
    kind: String,
    #[serde(default)]
    jwt: Vec<Value>,
    anonymous: Option<Anonymous>,
}

/// Issuers, and what is said of anonymous requests.
pub struct Trust {
    pub issuers: Vec<Jwt>,
    pub anonymous: Anonymous,
}

const GROUP: &str = "apiserver.config.k8s.io/";

/// Puts file and flags together; `own`: the issuer that this server is itself; `anybody_may`: the flags
/// say that everybody may do everything. Then nobody is anonymous unless the file says so.
pub fn trust(options: &AuthenticationOptions, own: &str, anybody_may: bool) -> Result<Trust, String> {
    let enabled = options.anonymous.unwrap_or(true) && !anybody_may;
    let anonymous = Anonymous { enabled, conditions: Vec::new() };
    let Some(path) = &options.config_file else {
        let issuers = match from_flags(&options.oidc)? {
            Some(flags) => vec![Jwt::compile(&flags, &options.oidc.signing_algorithms)?],
            None => Vec::new(),
        };
        return Ok(Trust { issuers, anonymous });
    };
    if options.oidc.issuer_url.is_some() {
        return Err("--authentication-config and the --oidc-* flags exclude each other".to_owned());
    }
    let text = std::fs::read_to_string(path).map_err(|error| format!("reading {}: {error}", path.display()))?;
    let mut trust = parse(&text, own).map_err(|why| format!("{}: {why}", path.display()))?;
    if trust.1 && options.anonymous.is_some() {
        return Err("--anonymous-auth cannot be set together with anonymous in --authentication-config".to_owned());
    }
    if !trust.1 {
        trust.0.anonymous = anonymous;
    }
    Ok(trust.0)
}

/// Also whether the file says anything of anonymous requests.
fn parse(text: &str, own: &str) -> Result<(Trust, bool), String> {
    let file: File = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
    let version = file.api_version.strip_prefix(GROUP).unwrap_or_default();
    if file.kind != "AuthenticationConfiguration" || !matches!(version, "v1" | "v1beta1" | "v1alpha1") {
        return Err(format!(
            "it is a {} of {:?}; an AuthenticationConfiguration of \"{GROUP}v1\" is needed",
            file.kind, file.api_version
        ));
    }
    let mut issuers: Vec<Jwt> = Vec::new();
    for (at, jwt) in file.jwt.iter().enumerate() {
        let compiled = Jwt::compile(jwt, &[]).map_err(|why| format!("jwt[{at}]{why}"))?;
        if compiled.url == own {
            return Err(format!(
                "jwt[{at}].issuer.url: Invalid value: {own:?}: URL must not overlap with disallowed issuers: [{own}]"
            ));
        }
        if issuers.iter().any(|other| other.url == compiled.url) {
            return Err(format!("jwt[{at}].issuer.url: Duplicate value: {:?}", compiled.url));
        }
        issuers.push(compiled);
    }
    let said = file.anonymous.is_some();
    let anonymous = file.anonymous.unwrap_or(Anonymous { enabled: true, conditions: Vec::new() });
    Ok((Trust { issuers, anonymous }, said))
}

/// The flags as one entry of the file.
fn from_flags(flags: &OidcOptions) -> Result<Option<Value>, String> {
    let Some(url) = &flags.issuer_url else { return Ok(None) };
    if flags.client_id.is_empty() {
        return Err("--oidc-issuer-url needs --oidc-client-id".to_owned());
    }
    let claim = if flags.username_claim.is_empty() { "sub" } else { &flags.username_claim };
    let prefix = match flags.username_prefix.as_str() {
        "-" => String::new(),
        "" if claim != "email" => format!("{url}#"),
        prefix => prefix.to_owned(),
    };
    let rules = flags.required_claims.iter().map(|pair| {
        let (claim, value) =
            pair.split_once('=').ok_or(format!("--oidc-required-claim {pair:?} must be claim=value"))?;
        Ok(json!({"claim": claim, "requiredValue": value}))
    });
    let mut jwt = json!({
        "issuer": {"url": url, "audiences": [flags.client_id]},
        "claimValidationRules": rules.collect::<Result<Vec<_>, String>>()?,
        "claimMappings": {"username": {"claim": claim, "prefix": prefix}},
    });
    if !flags.groups_claim.is_empty() {
        jwt["claimMappings"]["groups"] = json!({"claim": flags.groups_claim, "prefix": flags.groups_prefix});
    }
    if let Some(path) = &flags.ca_file {
        let pem = std::fs::read_to_string(path).map_err(|error| format!("reading {}: {error}", path.display()))?;
        jwt["issuer"]["certificateAuthority"] = pem.into();
    }
    Ok(Some(jwt))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_one_issuer() {
        let options = AuthenticationOptions {
            oidc: OidcOptions {
                issuer_url: Some("https://issuer".into()),
                client_id: "me".into(),
                groups_claim: "groups".into(),
                groups_prefix: "oidc:".into(),
                required_claims: vec!["hd=example.com".into()],
                ..OidcOptions::default()
            },
            ..AuthenticationOptions::default()
        };
        let trust = trust(&options, "https://own", false).unwrap();
        let user = trust.issuers[0]
            .user(&json!({"iss": "https://issuer", "aud": "me", "sub": "jane", "hd": "example.com", "groups": ["dev"]}))
            .unwrap();
        assert_eq!((user.name.as_str(), user.groups), ("https://issuer#jane", vec!["oidc:dev".to_owned()]));
        let other = trust.issuers[0].user(&json!({"aud": "me", "sub": "jane", "hd": "other.com"})).unwrap_err();
        assert_eq!(other, "oidc: required claim hd value does not match. Got = other.com, want = example.com");
        assert!(trust.anonymous.may_ask("/anything"));
    }

    #[test]
    fn nobody_is_anonymous_where_everybody_may_do_everything() {
        for (anonymous, anybody_may, want) in
            [(None, false, true), (None, true, false), (Some(true), true, false), (Some(false), false, false)]
        {
            let options = AuthenticationOptions { anonymous, ..AuthenticationOptions::default() };
            let trust = trust(&options, "https://own", anybody_may).unwrap();
            assert_eq!(trust.anonymous.may_ask("/"), want, "{anonymous:?} {anybody_may}");
        }
    }

    #[test]
    fn files_are_checked() {
        let with =
            |rest: &str| format!("apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\n{rest}\n");
        let own = "https://own";
        let (trust, said) = parse(&with("anonymous: {enabled: true, conditions: [{path: /healthz}]}"), own).unwrap();
        assert!(said && trust.anonymous.may_ask("/healthz") && !trust.anonymous.may_ask("/api"));
        let jwt =
            |issuer: &str, mappings: &str| with(&format!("jwt: [{{issuer: {issuer}, claimMappings: {mappings}}}]"));
        let name = "{username: {claim: sub, prefix: ''}}";
        for (text, word) in [
            (jwt("{url: 'https://own', audiences: [a]}", name), "disallowed issuers"),
            (jwt("{url: 'http://x', audiences: [a]}", name), "https"),
            (jwt("{url: 'https://x', audiences: []}", name), "audiences"),
            (jwt("{url: 'https://x', audiences: [a, b]}", name), "audienceMatchPolicy"),
            (jwt("{url: 'https://x', audiences: [a]}", "{username: {claim: sub}}"), "prefix"),
            (jwt("{url: 'https://x', audiences: [a]}", "{username: {expression: 'claims.'}}"), "compilation"),
            (jwt("{url: 'https://x', audiences: [a]}", "{}"), "username"),
            (with("oidc: []"), "oidc"),
            ("apiVersion: v1\nkind: AuthenticationConfiguration\n".to_owned(), "apiserver.config.k8s.io/v1"),
        ] {
            let Err(problem) = parse(&text, own) else { panic!("accepted: {text}") };
            assert!(problem.contains(word), "{problem}");
        }
    }
}

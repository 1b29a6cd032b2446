//! Tokens of other issuers (OpenID Connect): whom their claims name, and the issuer's keys.
//!
//! [`Jwt`] is what the configuration says of an issuer and judges claims, purely; [`Issuer`] fetches
//! its keys: at the first token, and again when a token names a key that is not known.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use parking_lot::{Mutex, RwLock};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::UserInfo;
use super::jwt::Token;
use super::keys::PublicKey;
use crate::cel::{self, Program};
use crate::registry::user_object;
use crate::remote::Remote;

/// Algorithms of issuers that a configuration file names; the flags choose for themselves.
const ALGORITHMS: &[&str] = &["RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "PS256", "PS384", "PS512"];
const TIMEOUT: Duration = Duration::from_secs(10);
/// Keys are fetched at most this often.
const PAUSE: Duration = Duration::from_secs(1);
/// Clocks may differ by this many seconds.
const LEEWAY: i64 = 10;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Entry {
    issuer: IssuerEntry,
    #[serde(default)]
    claim_validation_rules: Vec<ClaimRule>,
    claim_mappings: Mappings,
    #[serde(default)]
    user_validation_rules: Vec<UserRule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct IssuerEntry {
    url: String,
    #[serde(rename = "discoveryURL")]
    discovery_url: Option<String>,
    #[serde(default)]
    certificate_authority: String,
    audiences: Vec<String>,
    #[serde(default)]
    audience_match_policy: String,
    #[serde(default, rename = "egressSelectorType")]
    egress: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[derive(Default)]
struct ClaimRule {
    claim: String,
    required_value: String,
    expression: String,
    message: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct UserRule {
    expression: String,
    #[serde(default)]
    message: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Mappings {
    username: Mapping,
    #[serde(default)]
    groups: Mapping,
    #[serde(default)]
    uid: Mapping,
    #[serde(default)]
    extra: Vec<Extra>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Mapping {
    claim: String,
    prefix: Option<String>,
    expression: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Extra {
    key: String,
    value_expression: String,
}

/// Where a part of the user comes from.
enum Source {
    None,
    Claim { name: String, prefix: String },
    Expression(Program),
}

enum ClaimCheck {
    Equals(String, String),
    Holds(Program, String),
}

/// What the configuration says of one issuer.
pub struct Jwt {
    pub url: String,
    discovery_url: String,
    authority: Option<String>,
    audiences: Vec<String>,
    algorithms: Vec<String>,
    claims: Vec<ClaimCheck>,
    username: Source,
    groups: Source,
    uid: Source,
    extra: Vec<(String, Program)>,
    rules: Vec<(Program, String)>,
}

fn compiled(path: &str, text: &str) -> Result<Program, String> {
    cel::compile(text).map_err(|error| format!("{path}: Invalid value: {text:?}: {error}"))
}

fn source(path: &str, mapping: Mapping, prefixed: bool) -> Result<Source, String> {
    match (mapping.claim.is_empty(), mapping.expression.is_empty()) {
        (true, true) => Ok(Source::None),
        (false, false) => Err(format!("{path}: Invalid value: \"\": claim and expression can't both be set")),
        (true, false) if mapping.prefix.is_some() => {
            Err(format!("{path}.prefix: Invalid value: \"\": prefix can't be set when expression is set"))
        }
        (true, false) => compiled(&format!("{path}.expression"), &mapping.expression).map(Source::Expression),
        (false, true) => match mapping.prefix {
            None if prefixed => Err(format!(
                "{path}.prefix: Required value: prefix is required when claim is set. It can be set to an empty string to disable prefixing"
            )),
            prefix => Ok(Source::Claim { name: mapping.claim, prefix: prefix.unwrap_or_default() }),
        },
    }
}

impl Jwt {
    /// Checks and compiles an entry of `jwt`; errors begin with the path within it.
    pub fn compile(entry: &Value, algorithms: &[String]) -> Result<Self, String> {
        let entry: Entry = serde_json::from_value(entry.clone()).map_err(|error| format!(": {error}"))?;
        let issuer = entry.issuer;
        for (field, url) in [("url", Some(&issuer.url)), ("discoveryURL", issuer.discovery_url.as_ref())] {
            if url.is_some_and(|url| !url.starts_with("https://")) {
                return Err(format!(
                    ".issuer.{field}: Invalid value: {:?}: URL scheme must be https",
                    url.map_or("", String::as_str)
                ));
            }
        }
        if issuer.audiences.is_empty() {
            return Err(".issuer.audiences: Required value: at least one issuer.audiences is required".to_owned());
        }
        if issuer.audiences.len() > 1 && issuer.audience_match_policy != "MatchAny" {
            return Err(".issuer.audienceMatchPolicy: Invalid value: \"\": audienceMatchPolicy must be set to MatchAny for multiple audiences".to_owned());
        }
        if !matches!(issuer.egress.as_str(), "" | "controlplane" | "cluster") {
            return Err(format!(".issuer.egressSelectorType: Invalid value: {:?}", issuer.egress));
        }
        let checks = entry.claim_validation_rules.into_iter().enumerate().map(|(at, rule)| {
            let path = format!(".claimValidationRules[{at}]");
            match (rule.claim.is_empty(), rule.expression.is_empty()) {
                (false, true) => Ok(ClaimCheck::Equals(rule.claim, rule.required_value)),
                (true, false) => compiled(&format!("{path}.expression"), &rule.expression)
                    .map(|program| ClaimCheck::Holds(program, rule.message)),
                _ => Err(format!("{path}: Required value: exactly one of claim or expression is required")),
            }
        });
        let rules = entry.user_validation_rules.into_iter().enumerate().map(|(at, rule)| {
            compiled(&format!(".userValidationRules[{at}].expression"), &rule.expression)
                .map(|program| (program, rule.message))
        });
        let extra = entry.claim_mappings.extra.into_iter().enumerate().map(|(at, extra)| {
            let path = format!(".claimMappings.extra[{at}]");
            if extra.key.is_empty() || extra.key != extra.key.to_lowercase() || !extra.key.contains('/') {
                return Err(format!(
                    "{path}.key: Invalid value: {:?}: must be lowercase and prefixed with a domain",
                    extra.key
                ));
            }
            compiled(&format!("{path}.valueExpression"), &extra.value_expression).map(|program| (extra.key, program))
        });
        let username = source(".claimMappings.username", entry.claim_mappings.username, true)?;
        if matches!(username, Source::None) {
            return Err(".claimMappings.username: Required value: claim or expression is required".to_owned());
        }
        let default: Vec<String> = ALGORITHMS.iter().map(|name| (*name).to_owned()).collect();
        Ok(Self {
            discovery_url: issuer
                .discovery_url
                .unwrap_or_else(|| format!("{}/.well-known/openid-configuration", issuer.url.trim_end_matches('/'))),
            url: issuer.url,
            authority: (!issuer.certificate_authority.is_empty()).then_some(issuer.certificate_authority),
            audiences: issuer.audiences,
            algorithms: if algorithms.is_empty() { default } else { algorithms.to_vec() },
            claims: checks.collect::<Result<_, _>>()?,
            username,
            groups: source(".claimMappings.groups", entry.claim_mappings.groups, true)?,
            uid: source(".claimMappings.uid", entry.claim_mappings.uid, false)?,
            extra: extra.collect::<Result<_, _>>()?,
            rules: rules.collect::<Result<_, _>>()?,
        })
    }

    /// Whether the token is for us and now.
    fn in_force(&self, claims: &Value, now: Timestamp) -> Result<(), String> {
        let now = now.as_second();
        let time = |key: &str| claims[key].as_f64().map(|seconds| seconds as i64);
        match time("exp") {
            None => return Err("oidc: verify token: oidc: token has no expiry".to_owned()),
            Some(exp) if exp + LEEWAY < now => return Err("oidc: verify token: oidc: token is expired".to_owned()),
            Some(_) => {}
        }
        if time("nbf").is_some_and(|nbf| nbf > now + LEEWAY) {
            return Err("oidc: verify token: oidc: current time before the nbf (not before) time".to_owned());
        }
        let named = strings(&claims["aud"]).unwrap_or_default();
        if named.iter().any(|name| self.audiences.contains(name)) {
            return Ok(());
        }
        Err(format!("oidc: verify token: oidc: expected audience in {:?} got {named:?}", self.audiences))
    }

    /// The user whom verified claims name. Pure.
    pub fn user(&self, claims: &Value) -> Result<UserInfo, String> {
        let variables = [("claims", cel::from_json(claims))];
        let name = match &self.username {
            Source::Claim { name, prefix } => {
                if name == "email" && claims.get("email_verified").is_some_and(|verified| *verified != true) {
                    return Err("oidc: email not verified".to_owned());
                }
                let value = claims[name]
                    .as_str()
                    .ok_or_else(|| format!("oidc: parse username claims {name:?}: claim not present"))?;
                format!("{prefix}{value}")
            }
            Source::Expression(program) => program
                .text_of(&variables)
                .map_err(|error| format!("oidc: error evaluating username claim expression: {error}"))?,
            Source::None => String::new(),
        };
        if name.is_empty() {
            return Err("oidc: empty username is not allowed".to_owned());
        }
        for check in &self.claims {
            check.test(claims, &variables)?;
        }
        let mut user = UserInfo { name, ..UserInfo::default() };
        user.groups = match &self.groups {
            Source::None => Vec::new(),
            Source::Claim { name, prefix } if !claims[name].is_null() => {
                let groups = strings(&claims[name]).ok_or_else(|| {
                    format!("oidc: parse groups claim {name:?}: it must be a string or a list of strings")
                })?;
                groups.into_iter().map(|group| format!("{prefix}{group}")).collect()
            }
            Source::Claim { .. } => Vec::new(),
            Source::Expression(program) => texts(program, &variables)
                .map_err(|why| format!("oidc: error evaluating group claim expression: {why}"))?,
        };
        user.uid = match &self.uid {
            Source::None => String::new(),
            Source::Claim { name, .. } => claims[name]
                .as_str()
                .ok_or_else(|| format!("oidc: parse uid claim {name:?}: claim not present"))?
                .to_owned(),
            Source::Expression(program) => program
                .text_of(&variables)
                .map_err(|error| format!("oidc: error evaluating uid claim expression: {error}"))?,
        };
        for (key, program) in &self.extra {
            let values = texts(program, &variables)
                .map_err(|why| format!("oidc: error evaluating extra claim expression: {why}"))?;
            if !values.is_empty() {
                user.extra.insert(key.clone(), values);
            }
        }
        if let Some(id) = claims["jti"].as_str() {
            user.extra.insert("authentication.kubernetes.io/credential-id".to_owned(), vec![format!("JTI={id}")]);
        }
        let mut seen = user_object(&user);
        for (field, empty) in [("groups", json!([])), ("uid", json!("")), ("extra", json!({}))] {
            if seen[field].is_null() {
                seen[field] = empty;
            }
        }
        let variables = [("user", cel::from_json(&seen))];
        for (program, message) in &self.rules {
            hold(program, message, &variables)
                .map_err(|why| format!("oidc: error evaluating user info validation rule: {why}"))?;
        }
        Ok(user)
    }
}

impl ClaimCheck {
    fn test(&self, claims: &Value, variables: &[(&str, cel::Value)]) -> Result<(), String> {
        match self {
            ClaimCheck::Equals(name, wanted) => match claims[name].as_str() {
                None => Err(format!("oidc: required claim {name} not present in ID token")),
                Some(value) if value != wanted => {
                    Err(format!("oidc: required claim {name} value does not match. Got = {value}, want = {wanted}"))
                }
                Some(_) => Ok(()),
            },
            ClaimCheck::Holds(program, message) => hold(program, message, variables)
                .map_err(|why| format!("oidc: error evaluating claim validation expression: {why}")),
        }
    }
}

fn hold(program: &Program, message: &str, variables: &[(&str, cel::Value)]) -> Result<(), String> {
    match program.test(variables) {
        Ok(true) => Ok(()),
        Ok(false) if message.is_empty() => Err(format!("validation expression '{}' failed", program.text())),
        Ok(false) => Err(format!("validation expression '{}' failed: {message}", program.text())),
        Err(error) => Err(error.to_string()),
    }
}

fn strings(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(one) => Some(vec![one.clone()]),
        Value::Array(many) => many.iter().map(|one| one.as_str().map(str::to_owned)).collect(),
        _ => None,
    }
}

/// An expression that gives a string or a list of them; nothing and empty strings count as none.
fn texts(program: &Program, variables: &[(&str, cel::Value)]) -> Result<Vec<String>, String> {
    let value = program.evaluate(variables).map_err(|error| error.to_string())?;
    let value = cel::to_json(&value).unwrap_or(Value::Bool(false));
    if value.is_null() {
        return Ok(Vec::new());
    }
    let texts = strings(&value).ok_or("expression must return a string or a list of strings")?;
    Ok(texts.into_iter().filter(|text| !text.is_empty()).collect())
}

/// An issuer and its keys.
pub struct Issuer {
    pub jwt: Jwt,
    keys: RwLock<Arc<Vec<PublicKey>>>,
    /// When keys were last asked for, and an answer came or none; held while they are.
    fetching: tokio::sync::Mutex<Option<Instant>>,
    fetched: Mutex<Fetched>,
}

/// How fetching keys went, for `/metrics`.
#[derive(Debug, Default, Clone)]
pub struct Fetched {
    pub succeeded: Option<Timestamp>,
    pub failed: Option<Timestamp>,
    /// `sha256:` of the last document of keys, in hex.
    pub hash: String,
}

/// As metrics show what they do not tell.
pub fn hashed(data: &[u8]) -> String {
    let digest = Sha256::digest(data);
    digest.iter().fold("sha256:".to_owned(), |hash, byte| format!("{hash}{byte:02x}"))
}

impl Issuer {
    pub fn new(jwt: Jwt) -> Self {
        Self { jwt, keys: RwLock::default(), fetching: tokio::sync::Mutex::new(None), fetched: Mutex::default() }
    }

    pub fn fetched(&self) -> Fetched {
        self.fetched.lock().clone()
    }

    /// The user of a token of this issuer.
    pub async fn user_of(&self, token: &Token<'_>) -> Result<UserInfo, String> {
        if !self.jwt.algorithms.contains(&token.algorithm) {
            return Err(format!(
                "oidc: verify token: oidc: id token signed with unsupported algorithm, expected {:?} got {:?}",
                self.jwt.algorithms, token.algorithm
            ));
        }
        self.jwt.in_force(&token.claims, Timestamp::now())?;
        let held = self.keys.read().clone();
        if !token.is_signed_by(&held) {
            let fresh = self.refresh(&held).await?;
            if !token.is_signed_by(&fresh) {
                return Err(
                    "oidc: verify token: failed to verify signature: failed to verify id token signature".to_owned()
                );
            }
        }
        self.jwt.user(&token.claims)
    }

    /// Fetches the keys, unless somebody else just did.
    async fn refresh(&self, known: &Arc<Vec<PublicKey>>) -> Result<Arc<Vec<PublicKey>>, String> {
        let mut last = self.fetching.lock().await;
        let held = self.keys.read().clone();
        if !Arc::ptr_eq(&held, known) || last.is_some_and(|last| last.elapsed() < PAUSE) {
            return Ok(held);
        }
        let fetched = self.fetch().await;
        // Those who waited meanwhile do not ask a slow issuer again, one after the other.
        *last = Some(Instant::now());
        let fresh = Arc::new(fetched.map_err(|why| format!("oidc: fetching keys {why}"))?);
        *self.keys.write() = fresh.clone();
        Ok(fresh)
    }

    async fn fetch(&self) -> Result<Vec<PublicKey>, String> {
        let get = async |url: &str| -> Result<Value, String> {
            let remote = Remote::to_url(url, self.jwt.authority.as_deref())?;
            remote.get(TIMEOUT).await.map_err(|error| error.to_string())
        };
        let document = get(&self.jwt.discovery_url).await?;
        let issuer = document["issuer"].as_str().unwrap_or_default();
        if issuer != self.jwt.url {
            return Err(format!(
                "oidc: issuer did not match the issuer returned by provider, expected {:?} got {issuer:?}",
                self.jwt.url
            ));
        }
        let url = document["jwks_uri"].as_str().unwrap_or_default();
        let fetched = async {
            let remote = Remote::to_url(url, self.jwt.authority.as_deref())?;
            let body = remote.get_bytes(TIMEOUT).await.map_err(|error| error.to_string())?;
            Ok::<_, String>((remote.parse(&body).map_err(|error| error.to_string())?, hashed(&body)))
        };
        let fetched = fetched.await;
        let mut noted = self.fetched.lock();
        let (keys, hash) = fetched.inspect_err(|_| noted.failed = Some(Timestamp::now()))?;
        (noted.succeeded, noted.hash) = (Some(Timestamp::now()), hash);
        Ok(keys["keys"].as_array().into_iter().flatten().filter_map(PublicKey::from_jwk).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_slow_issuer_is_asked_once_for_all_who_wait() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = asked.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::Relaxed);
                // Says nothing for longer than the pause between two questions.
                tokio::spawn(async move {
                    tokio::time::sleep(PAUSE + Duration::from_millis(200)).await;
                    drop(stream);
                });
            }
        });
        let entry = json!({"issuer": {"url": url, "audiences": ["a"]},
            "claimMappings": {"username": {"claim": "sub", "prefix": ""}}});
        let issuer = Issuer::new(Jwt::compile(&entry, &[]).unwrap());
        let known = issuer.keys.read().clone();
        let (first, second, third) =
            tokio::join!(issuer.refresh(&known), issuer.refresh(&known), issuer.refresh(&known));
        assert!(first.is_err() && second.is_ok() && third.is_ok());
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn expressions_map_and_judge_claims() {
        let jwt = Jwt::compile(
            &json!({
                "issuer": {"url": "https://x", "audiences": ["a", "b"], "audienceMatchPolicy": "MatchAny"},
                "claimValidationRules": [{"expression": "claims.tenant == 't1'", "message": "wrong tenant"}],
                "claimMappings": {
                    "username": {"expression": "'x:' + claims.sub"}, "groups": {"expression": "claims.roles.split(',')"},
                    "uid": {"claim": "oid"}, "extra": [{"key": "example.com/tenant", "valueExpression": "claims.tenant"}]
                },
                "userValidationRules": [{"expression": "!user.username.startsWith('x:system:')", "message": "reserved"}]
            }),
            &[],
        )
        .unwrap();
        let claims = json!({"sub": "jane", "roles": "dev,ops", "oid": "7", "tenant": "t1"});
        let user = jwt.user(&claims).unwrap();
        assert_eq!((user.name.as_str(), user.uid.as_str()), ("x:jane", "7"));
        assert_eq!(user.groups, ["dev", "ops"]);
        assert_eq!(user.extra["example.com/tenant"], ["t1"]);
        let with = |key: &str, value: &str| {
            let mut claims = claims.clone();
            claims[key] = value.into();
            jwt.user(&claims).unwrap_err()
        };
        assert!(with("tenant", "t2").ends_with("failed: wrong tenant"));
        assert!(with("sub", "system:admin").ends_with("failed: reserved"));
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let at = |exp: i64, aud: &str| jwt.in_force(&json!({"exp": now.as_second() + exp, "aud": [aud]}), now);
        assert!(at(1, "b").is_ok());
        assert!(at(-60, "b").unwrap_err().contains("expired") && at(1, "c").unwrap_err().contains("expected audience"));
    }
}

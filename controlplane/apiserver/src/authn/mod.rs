//! Who is asking: the TLS client certificate, or the bearer token, or nobody (`system:anonymous`).
//!
//! Like upstream every method is tried; a bearer token that nobody knows is 401, no credentials at
//! all is the anonymous user, whom authorization decides about.

mod bootstrap;
pub mod certificate;
mod config;
pub mod impersonation;
pub mod jwt;
mod keys;
mod legacy;
mod oidc;
pub mod requestheader;
pub mod serviceaccount;
mod user;
mod webhook;

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;

use component::Supervisor;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};
use parking_lot::{Mutex, RwLock};
use serde_json::Value;
use sha2::{Digest, Sha256};

use self::config::Anonymous;
pub use self::config::{AuthenticationOptions, OidcOptions};
use self::jwt::{AccountKeys, Token};
use self::oidc::Issuer;
pub use self::user::UserInfo;
use self::webhook::TokenWebhook;
use crate::error::{ApiError, Result};
use crate::http::metrics::head;
use crate::reload::{self, AsyncReload};
use crate::remote::Remote;
use crate::server::{Api, Config};

pub const AUTHENTICATED: &str = "system:authenticated";
pub const UNAUTHENTICATED: &str = "system:unauthenticated";

/// Tokens whose signature is remembered.
const VERIFIED: usize = 4096;

/// Whom the configuration says to believe.
struct Trusted {
    issuers: Vec<Issuer>,
    anonymous: Anonymous,
}

type Held = Arc<RwLock<Arc<Trusted>>>;

impl Trusted {
    fn read(options: &AuthenticationOptions, own: &str, anybody_may: bool) -> Result<Arc<Self>> {
        let trust = config::trust(options, own, anybody_may)
            .map_err(|why| ApiError::internal(format!("configuring authentication: {why}")))?;
        let issuers = trust.issuers.into_iter().map(Issuer::new).collect();
        Ok(Arc::new(Self { issuers, anonymous: trust.anonymous }))
    }
}

/// Puts the configuration file in force again.
struct Reread {
    trust: Held,
    options: AuthenticationOptions,
    own: String,
    anybody_may: bool,
}

impl AsyncReload for Reread {
    async fn reload(&mut self) -> Result<()> {
        let fresh = Trusted::read(&self.options, &self.own, self.anybody_may)?;
        *self.trust.write() = fresh;
        Ok(())
    }
}

/// Finds out who sent a request.
pub struct Authenticator {
    tokens: Vec<(String, UserInfo)>,
    pub keys: AccountKeys,
    issuer: String,
    trust: Held,
    webhook: Option<TokenWebhook>,
    /// Claims of tokens whose signature was good, so that it is not computed for every request.
    verified: Mutex<HashMap<[u8; 32], Arc<Value>>>,
}

impl Authenticator {
    /// A configuration file is read again when it changes.
    pub async fn new(config: &Config, supervisor: &Supervisor) -> Result<Self> {
        let options = &config.options.authentication;
        let tokens = match &options.token_file {
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|error| {
                    ApiError::internal(format!("reading the token file {}: {error}", path.display()))
                })?;
                parse_token_file(&text)
                    .map_err(|why| ApiError::internal(format!("token file '{}' {why}", path.display())))?
            }
            None => Vec::new(),
        };
        let signing = options.signing_key.as_ref().unwrap_or(&config.service_account_key);
        let anybody_may = config.options.authorization.allows_everything();
        let trust: Held = Arc::new(RwLock::new(Trusted::read(options, &config.issuer, anybody_may)?));
        if anybody_may && options.anonymous != Some(false) {
            tracing::warn!(
                "AnonymousAuth is not allowed with the AlwaysAllow authorizer; requests without credentials are refused"
            );
        }
        if let Some(file) = &options.config_file {
            let own = config.issuer.clone();
            let reread = Reread { trust: trust.clone(), options: options.clone(), own, anybody_may };
            reload::follow("authentication configuration", file, supervisor, reread)?;
        }
        let webhook = match &options.webhook {
            Some((path, time)) => {
                Some(TokenWebhook::new(Remote::from_kubeconfig(path).await?, *time, config.issuer.clone()))
            }
            None => None,
        };
        Ok(Self {
            tokens,
            keys: AccountKeys::read(signing, &options.account_keys)?,
            issuer: config.issuer.clone(),
            trust,
            webhook,
            verified: Mutex::default(),
        })
    }

    /// When keys of other issuers were last fetched, and which they are.
    pub fn metrics(&self, out: &mut String) {
        let trust = self.trust();
        let Ok(server) = crate::bootstrap::identity::server_id() else { return };
        let fetched: Vec<(String, oidc::Fetched)> = trust
            .issuers
            .iter()
            .map(|issuer| {
                let labels = format!(
                    "jwt_issuer_hash=\"{}\",apiserver_id_hash=\"{}\"",
                    oidc::hashed(issuer.jwt.url.as_bytes()),
                    oidc::hashed(server.as_bytes())
                );
                (labels, issuer.fetched())
            })
            .filter(|(_, fetched)| fetched.succeeded.is_some() || fetched.failed.is_some())
            .collect();
        if fetched.is_empty() {
            return;
        }
        let name = "apiserver_authentication_jwt_authenticator_jwks_fetch_last_timestamp_seconds";
        let help = "Timestamp of the last successful or failed JWKS fetch split by result, api server identity and jwt issuer for the JWT authenticator.";
        head(out, name, "ALPHA", "gauge", help);
        for (labels, fetched) in &fetched {
            for (result, at) in [("failure", fetched.failed), ("success", fetched.succeeded)] {
                if let Some(at) = at {
                    let seconds = at.as_duration().as_secs_f64();
                    let _ = writeln!(out, "{name}{{result=\"{result}\",{labels}}} {seconds}");
                }
            }
        }
        let name = "apiserver_authentication_jwt_authenticator_jwks_fetch_last_key_set_info";
        let help = "Information about the last JWKS fetched by the JWT authenticator with hash as label, split by api server identity and jwt issuer.";
        head(out, name, "ALPHA", "gauge", help);
        for (labels, fetched) in fetched.iter().filter(|(_, fetched)| !fetched.hash.is_empty()) {
            let _ = writeln!(out, "{name}{{{labels},hash=\"{}\"}} 1", fetched.hash);
        }
    }

    fn trust(&self) -> Arc<Trusted> {
        self.trust.read().clone()
    }

    /// `certificate`: whom the connection stands for. `path`: what is asked for; anonymous requests
    /// may be good for some paths only.
    pub async fn identify(
        &self,
        api: &Api,
        headers: &HeaderMap,
        certificate: Option<Arc<UserInfo>>,
        path: &str,
    ) -> Result<Arc<UserInfo>> {
        if let Some(user) = certificate {
            return Ok(user);
        }
        match token_of(headers) {
            Some(token) => {
                // Boxed, as all that few requests need: every request would keep room for it otherwise.
                let found = Box::pin(self.by_token(api, token, std::slice::from_ref(&self.issuer))).await;
                found.map(|(user, _)| Arc::new(authenticated(user))).map_err(|why| {
                    tracing::debug!(why, "a bearer token is refused");
                    ApiError::unauthorized()
                })
            }
            None if self.trust().anonymous.may_ask(path) => {
                Ok(Arc::new(UserInfo::new("system:anonymous", &[UNAUTHENTICATED])))
            }
            None => Err(ApiError::unauthorized()),
        }
    }

    /// The user that a bearer token stands for, and whom it is for of the `audiences` asked for.
    /// Tokens that say nothing of an audience are for this server. The error is what a `TokenReview`
    /// says of a token that nobody vouches for.
    pub async fn by_token(
        &self,
        api: &Api,
        token: &str,
        audiences: &[String],
    ) -> Result<(UserInfo, Vec<String>), String> {
        const INVALID: &str = "invalid bearer token";
        match self.vouched(api, token, audiences).await {
            Ok(Some(found)) => Ok(found),
            Ok(None) => Err(INVALID.to_owned()),
            Err(why) => Err(format!("[{INVALID}, {why}]")),
        }
    }

    /// None: nobody knows such a token; the error is of the one who does.
    async fn vouched(
        &self,
        api: &Api,
        token: &str,
        audiences: &[String],
    ) -> Result<Option<(UserInfo, Vec<String>)>, String> {
        let for_us = audiences.contains(&self.issuer).then(|| vec![self.issuer.clone()]);
        if let Some((_, user)) = self.tokens.iter().find(|(held, _)| same(held, token)) {
            return Ok(for_us.map(|audiences| (user.clone(), audiences)));
        }
        if let Some(claims) = self.claims(token) {
            let fit = serviceaccount::audiences_of(&claims, &self.issuer, audiences)?;
            return Ok(Some((serviceaccount::user_of(api, &claims, token).await?, fit)));
        }
        let mut problem = None;
        if let Some(parsed) = Token::parse(token) {
            if self.is_own(parsed.issuer()) {
                return Err("go-jose/go-jose: error in cryptographic primitive".to_owned());
            }
            if let Some(issuer) = self.trust().issuers.iter().find(|issuer| issuer.jwt.url == parsed.issuer()) {
                match issuer.user_of(&parsed).await {
                    Ok(user) => return Ok(for_us.map(|audiences| (user, audiences))),
                    Err(why) => problem = Some(why),
                }
            }
        }
        if let Some(user) = bootstrap::user_of(api, token).await {
            return Ok(for_us.map(|audiences| (user, audiences)));
        }
        let found = match &self.webhook {
            Some(webhook) => webhook.user_of(token, audiences).await,
            None => None,
        };
        match (found, problem) {
            (None, Some(why)) => Err(why),
            (found, _) => Ok(found),
        }
    }

    fn is_own(&self, issuer: &str) -> bool {
        issuer == self.issuer || issuer == serviceaccount::LEGACY
    }

    /// The claims of a token that this server, or another with its keys, signed.
    fn claims(&self, token: &str) -> Option<Arc<Value>> {
        let digest = Sha256::digest(token).into();
        if let Some(claims) = self.verified.lock().get(&digest) {
            return Some(claims.clone());
        }
        let claims = self.keys.verify(token)?;
        if !self.is_own(claims["iss"].as_str().unwrap_or_default()) {
            return None;
        }
        let claims = Arc::new(claims);
        let mut verified = self.verified.lock();
        if verified.len() >= VERIFIED {
            verified.clear();
        }
        verified.insert(digest, claims.clone());
        Some(claims)
    }
}

/// Compares secrets in a time that does not tell where they differ.
pub fn same(a: &str, b: &str) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(a.as_bytes(), b.as_bytes()).is_ok()
}

/// A part of somebody's identity in a header: names need not be ASCII, and one that was passed over would
/// leave the request to whoever sent it.
fn header_text(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

/// The bearer token that a request carries.
pub fn token_of(headers: &HeaderMap) -> Option<&str> {
    headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(bearer_token)
}

fn bearer_token(header: &str) -> Option<&str> {
    let (scheme, token) = header.trim().split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim()).filter(|token| !token.is_empty())
}

/// The user with the group that everyone with a name is in.
pub fn authenticated(mut user: UserInfo) -> UserInfo {
    if !user.in_group(AUTHENTICATED) && !user.in_group(UNAUTHENTICATED) {
        user.groups.push(AUTHENTICATED.to_owned());
    }
    user
}

/// Lines of `token,user,uid,"group1,group2"`; of a token that stands there twice the last one counts.
fn parse_token_file(text: &str) -> std::result::Result<Vec<(String, UserInfo)>, String> {
    let mut tokens: Vec<(String, UserInfo)> = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let fields: Vec<&str> = line.splitn(4, ',').map(str::trim).collect();
        let [token, name, uid, groups @ ..] = fields.as_slice() else {
            return Err(format!("must have at least 3 columns (token, user name, user uid), found {}", fields.len()));
        };
        let groups = groups.first().copied().unwrap_or_default().trim_matches('"').split(',').map(str::trim);
        let groups = groups.filter(|group| !group.is_empty()).map(str::to_owned).collect();
        let user = UserInfo { name: (*name).to_owned(), uid: (*uid).to_owned(), groups, ..UserInfo::default() };
        tokens.retain(|(held, _)| held != token);
        if !token.is_empty() {
            tokens.push(((*token).to_owned(), user));
        }
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_files_are_read() {
        let tokens = parse_token_file("abc,other,0\nabc,jane,1,\"dev,ops\"\n# no\n\nxyz,joe,2\n").unwrap();
        assert_eq!(tokens.len(), 2);
        assert_eq!(tokens[0].1.groups, ["dev", "ops"]);
        assert_eq!(tokens[1].1.name, "joe");
        assert_eq!(
            parse_token_file("abc,jane\n").unwrap_err(),
            "must have at least 3 columns (token, user name, user uid), found 2"
        );
    }

    #[test]
    fn bearer_tokens_are_found() {
        assert_eq!(bearer_token("Bearer abc"), Some("abc"));
        assert_eq!(bearer_token("bearer  abc "), Some("abc"));
        assert_eq!(bearer_token("Basic abc"), None);
        assert_eq!(bearer_token("Bearer "), None);
    }
}

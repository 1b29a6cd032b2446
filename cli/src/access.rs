//! Flags of `skiff server` about access, named as those of `kube-apiserver`: who may do what, how
//! much, and what is written down.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use controlplane::access::{
    AdmissionOptions, AuditConfig, AuthenticationOptions, AuthorizationOptions, LogConfig, OidcOptions, Options,
    go_duration,
};

fn duration(text: &str) -> Result<Duration, String> {
    go_duration(text).ok_or_else(|| format!("{text:?} is no duration; write 30s, 5m or 1h30m"))
}

#[derive(Args)]
#[command(next_help_heading = "Access")]
pub struct AccessArguments {
    /// An audit.k8s.io/v1 Policy: which requests are recorded
    #[arg(long)]
    audit_policy_file: Option<PathBuf>,
    /// Where audit events are written, a line each; - is standard output
    #[arg(long)]
    audit_log_path: Option<PathBuf>,
    /// MiB after which a new audit log is begun (0: 100)
    #[arg(long, default_value_t = 0)]
    audit_log_maxsize: u64,
    /// Days that old audit logs are kept (0: for ever)
    #[arg(long, default_value_t = 0)]
    audit_log_maxage: u64,
    /// Old audit logs that are kept (0: all)
    #[arg(long, default_value_t = 0)]
    audit_log_maxbackup: usize,
    /// A kubeconfig of the server to which audit events are posted
    #[arg(long)]
    audit_webhook_config_file: Option<PathBuf>,
    /// Most audit events that are posted at once
    #[arg(long, default_value_t = 400)]
    audit_webhook_batch_max_size: usize,
    /// How long audit events are collected before they are posted
    #[arg(long, default_value = "30s", value_parser = duration)]
    audit_webhook_batch_max_wait: Duration,
    /// Reading requests that may be under way at once; both together are divided by priority levels
    #[arg(long, default_value_t = 400)]
    max_requests_inflight: usize,
    /// Writing requests that may be under way at once
    #[arg(long, default_value_t = 200)]
    max_mutating_requests_inflight: usize,
    /// How long a request may take, watches and streams aside
    #[arg(long, default_value = "1m", value_parser = duration)]
    request_timeout: Duration,
    /// Lines of token,user,uid,"group1,group2"
    #[arg(long)]
    token_auth_file: Option<PathBuf>,
    /// Whether requests without credentials are those of system:anonymous (default true)
    #[arg(long, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    anonymous_auth: Option<bool>,
    /// An AuthenticationConfiguration: issuers of tokens, and what anonymous requests may see
    #[arg(long, conflicts_with = "oidc_issuer_url")]
    authentication_config: Option<PathBuf>,
    /// A kubeconfig of the server that is asked about tokens (TokenReview)
    #[arg(long)]
    authentication_token_webhook_config_file: Option<PathBuf>,
    /// How long its answers are good
    #[arg(long, default_value = "2m", value_parser = duration)]
    authentication_token_webhook_cache_ttl: Duration,
    #[command(flatten)]
    oidc: OidcArguments,
    /// Who is asked about rights, in this order: Node, RBAC, Webhook, AlwaysAllow, AlwaysDeny
    #[arg(long, value_delimiter = ',', default_value = "Node,RBAC")]
    authorization_mode: Vec<String>,
    /// An AuthorizationConfiguration, instead of --authorization-mode
    #[arg(long, conflicts_with_all = ["authorization_mode", "authorization_webhook_config_file"])]
    authorization_config: Option<PathBuf>,
    /// A kubeconfig of the server that is asked in mode Webhook (SubjectAccessReview)
    #[arg(long)]
    authorization_webhook_config_file: Option<PathBuf>,
    /// How long it is remembered that somebody may
    #[arg(long, default_value = "5m", value_parser = duration)]
    authorization_webhook_cache_authorized_ttl: Duration,
    /// How long it is remembered that somebody may not
    #[arg(long, default_value = "30s", value_parser = duration)]
    authorization_webhook_cache_unauthorized_ttl: Duration,
    /// More keys whose ServiceAccount tokens are good: PEM, public or private; may be repeated
    #[arg(long)]
    service_account_key_file: Vec<PathBuf>,
    /// Signs ServiceAccount tokens: an RSA or EC private key, PEM
    #[arg(long)]
    service_account_signing_key_file: Option<PathBuf>,
    /// Admission plugins beside those that are on by default, e.g. AlwaysPullImages
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    enable_admission_plugins: Vec<String>,
    /// Admission plugins that are on by default and shall not be
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    disable_admission_plugins: Vec<String>,
    /// An AdmissionConfiguration (apiserver.config.k8s.io/v1): configurations of admission plugins
    #[arg(long, value_name = "FILE")]
    admission_control_config_file: Option<PathBuf>,
}

#[derive(Args)]
struct OidcArguments {
    /// The issuer whose OpenID tokens are good; https
    #[arg(long, requires = "oidc_client_id")]
    oidc_issuer_url: Option<String>,
    /// The audience that its tokens must be for
    #[arg(long, default_value = "", hide_default_value = true)]
    oidc_client_id: String,
    /// The claim that is the user's name
    #[arg(long, default_value = "sub")]
    oidc_username_claim: String,
    /// Put before user names; - is nothing (default: the issuer's URL and #, unless the claim is email)
    #[arg(long, default_value = "", hide_default_value = true)]
    oidc_username_prefix: String,
    /// The claim that lists the user's groups
    #[arg(long, default_value = "", hide_default_value = true)]
    oidc_groups_claim: String,
    /// Put before the names of groups
    #[arg(long, default_value = "", hide_default_value = true)]
    oidc_groups_prefix: String,
    /// claim=value that a token must have; may be repeated
    #[arg(long)]
    oidc_required_claim: Vec<String>,
    /// The CA of the issuer, PEM (default: those of this machine)
    #[arg(long)]
    oidc_ca_file: Option<PathBuf>,
    /// Algorithms with which its tokens may be signed
    #[arg(long, value_delimiter = ',', default_value = "RS256")]
    oidc_signing_algs: Vec<String>,
}

/// An empty list is written as one empty name.
fn named(names: &[String]) -> Vec<String> {
    names.iter().filter(|name| !name.is_empty()).cloned().collect()
}

impl AccessArguments {
    pub fn options(&self) -> Options {
        let log = self.audit_log_path.clone().map(|path| LogConfig {
            path,
            max_size: self.audit_log_maxsize,
            max_age: self.audit_log_maxage,
            max_backups: self.audit_log_maxbackup,
        });
        let webhook = self.authentication_token_webhook_config_file.clone();
        let reviews = self.authorization_webhook_config_file.clone();
        let times =
            (self.authorization_webhook_cache_authorized_ttl, self.authorization_webhook_cache_unauthorized_ttl);
        Options {
            audit: AuditConfig {
                policy_file: self.audit_policy_file.clone(),
                log,
                webhook_file: self.audit_webhook_config_file.clone(),
                webhook_batch: Some((self.audit_webhook_batch_max_size.max(1), self.audit_webhook_batch_max_wait)),
            },
            max_in_flight: (self.max_requests_inflight, self.max_mutating_requests_inflight),
            request_timeout: self.request_timeout,
            authentication: AuthenticationOptions {
                token_file: self.token_auth_file.clone(),
                anonymous: self.anonymous_auth,
                config_file: self.authentication_config.clone(),
                oidc: self.oidc.options(),
                webhook: webhook.map(|path| (path, self.authentication_token_webhook_cache_ttl)),
                account_keys: self.service_account_key_file.clone(),
                signing_key: self.service_account_signing_key_file.clone(),
            },
            authorization: AuthorizationOptions {
                modes: self.authorization_mode.clone(),
                webhook: reviews.map(|path| (path, times.0, times.1)),
                config_file: self.authorization_config.clone(),
            },
            admission: AdmissionOptions {
                enable: named(&self.enable_admission_plugins),
                disable: named(&self.disable_admission_plugins),
                config_file: self.admission_control_config_file.clone(),
            },
        }
    }
}

impl OidcArguments {
    fn options(&self) -> OidcOptions {
        OidcOptions {
            issuer_url: self.oidc_issuer_url.clone(),
            client_id: self.oidc_client_id.clone(),
            username_claim: self.oidc_username_claim.clone(),
            username_prefix: self.oidc_username_prefix.clone(),
            groups_claim: self.oidc_groups_claim.clone(),
            groups_prefix: self.oidc_groups_prefix.clone(),
            required_claims: self.oidc_required_claim.clone(),
            ca_file: self.oidc_ca_file.clone(),
            signing_algorithms: self.oidc_signing_algs.clone(),
        }
    }
}

//! `skiff token`: bootstrap tokens, kept as Secrets of type `bootstrap.kubernetes.io/token` in
//! `kube-system`, as kubeadm keeps them.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};
use controlplane::token::{BootstrapToken, with_ca};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, ResourceExt};

#[derive(Subcommand)]
pub enum TokenCommand {
    /// Make a token and print what to give `skiff agent --token`
    Create(CreateArguments),
    /// List tokens
    List(ConnectionArguments),
    /// Delete a token by its id or its whole text
    Delete(DeleteArguments),
}

#[derive(Args)]
pub struct ConnectionArguments {
    /// Administrator's kubeconfig
    #[arg(long, env = "KUBECONFIG", default_value = "/etc/skiff/admin.kubeconfig")]
    pub kubeconfig: PathBuf,
}

#[derive(Args)]
pub struct CreateArguments {
    #[command(flatten)]
    connection: ConnectionArguments,
    /// Hours until the token is refused; 0 for never
    #[arg(long, default_value_t = 24)]
    ttl_hours: u32,
    /// What it is for
    #[arg(long, default_value = "")]
    description: String,
}

#[derive(Args)]
pub struct DeleteArguments {
    #[command(flatten)]
    connection: ConnectionArguments,
    /// The id, or the whole token
    token: String,
}

pub fn run(command: &TokenCommand) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match command {
            TokenCommand::Create(arguments) => create(arguments).await,
            TokenCommand::List(arguments) => list(arguments).await,
            TokenCommand::Delete(arguments) => delete(arguments).await,
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn secrets(connection: &ConnectionArguments) -> anyhow::Result<Api<Secret>> {
    Ok(Api::namespaced(super::client::from_file(&connection.kubeconfig).await?, "kube-system"))
}

async fn create(arguments: &CreateArguments) -> anyhow::Result<()> {
    let client = super::client::from_file(&arguments.connection.kubeconfig).await?;
    let token = BootstrapToken::generate();
    let expires = (arguments.ttl_hours > 0)
        .then(|| Timestamp::now().saturating_add(SignedDuration::from_hours(i64::from(arguments.ttl_hours))))
        .transpose()?;
    let secret = controlplane::token::secret(&token, &arguments.description, expires);
    let api: Api<Secret> = Api::namespaced(client.clone(), "kube-system");
    api.create(&PostParams::default(), &secret).await.context("storing the token")?;
    let roots: Api<ConfigMap> = Api::namespaced(client, "kube-system");
    let roots =
        roots.get("kube-root-ca.crt").await.context("reading the cluster's CA from kube-system/kube-root-ca.crt")?;
    let ca = roots.data.as_ref().and_then(|data| data.get("ca.crt")).context("kube-root-ca.crt holds no ca.crt")?;
    println!("{}", with_ca(&token.to_string(), ca)?);
    Ok(())
}

async fn list(connection: &ConnectionArguments) -> anyhow::Result<()> {
    let tokens = ListParams::default().fields("type=bootstrap.kubernetes.io/token");
    println!("{:<8}  {:<22}  DESCRIPTION", "ID", "EXPIRES");
    for secret in secrets(connection).await?.list(&tokens).await? {
        let field = |name: &str| {
            let data = secret.data.as_ref().and_then(|data| data.get(name));
            data.map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned()).unwrap_or_default()
        };
        let expires = field("expiration");
        let expires = if expires.is_empty() { "never".to_owned() } else { expires };
        println!("{:<8}  {expires:<22}  {}", field("token-id"), field("description"));
    }
    Ok(())
}

async fn delete(arguments: &DeleteArguments) -> anyhow::Result<()> {
    let id = arguments.token.split('.').next().unwrap_or_default();
    let name = format!("bootstrap-token-{id}");
    let api = secrets(&arguments.connection).await?;
    let secret =
        api.get_opt(&name).await?.with_context(|| format!("there is no token {id:?}; see: skiff token list"))?;
    api.delete(&secret.name_any(), &DeleteParams::default()).await?;
    eprintln!("token {id} is deleted; nodes that joined with it stay");
    Ok(())
}

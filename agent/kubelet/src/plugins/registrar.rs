//! One registration socket, from the moment it appears until it is gone
//! (`pkg/kubelet/pluginmanager/operationexecutor`).

use std::path::Path;
use std::time::Duration;

use proto::pluginregistration::registration_client::RegistrationClient;
use proto::pluginregistration::{InfoRequest, PluginInfo, RegistrationStatus};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use super::{Handler, Handlers, Plugin, Resolve};
use crate::retry::Failures;

/// A call to a registrar may take this long.
const LIMIT: Duration = Duration::from_secs(10);
/// How soon a registration that failed is tried again, doubling...
const FIRST_RETRY: Duration = Duration::from_millis(500);
/// ... up to this.
const LONGEST_RETRY: Duration = Duration::from_secs(122);

/// Why a plugin is not registered. The words are Kubernetes'.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RegistrationError {
    #[error("RegisterPlugin error -- dial failed at socket {socket}, err: {message}")]
    Dial { socket: String, message: String },
    #[error("RegisterPlugin error -- failed to get plugin info using RPC GetInfo at socket {socket}, err: {message}")]
    Info { socket: String, message: String },
    #[error("RegisterPlugin error -- no handler registered for plugin type: {kind} at socket {socket}")]
    Type { kind: String, socket: String },
    #[error("RegisterPlugin error -- plugin validation failed with err: {0}")]
    Validation(String),
    #[error("RegisterPlugin error -- plugin registration failed with err: {0}")]
    Registration(String),
    #[error("RegisterPlugin error -- failed to send registration status at socket {socket}, err: {message}")]
    Notify { socket: String, message: String },
}

impl RegistrationError {
    /// Whether the plugin itself is told.
    fn is_for_plugin(&self) -> bool {
        matches!(self, Self::Type { .. } | Self::Validation(_) | Self::Registration(_))
    }
}

/// Registers the plugin, however often it takes, and deregisters it once `gone`.
pub async fn attend(socket: &Path, handlers: &Handlers, resolve: &Resolve, gone: &CancellationToken) {
    let mut failures = Failures::new(FIRST_RETRY, LONGEST_RETRY);
    let mut registered = None;
    while !gone.is_cancelled() {
        let Err(error) = register(socket, handlers, resolve, gone, &mut registered).await else { break };
        let (new, delay) = failures.take([error.to_string()]);
        for error in new {
            tracing::warn!(error, "a plugin is not registered; trying again");
        }
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = gone.cancelled() => {}
        }
    }
    gone.cancelled().await;
    if let Some((handler, plugin)) = registered {
        tracing::info!(plugin = plugin.name, socket = %socket.display(), "a plugin is gone");
        handler.deregister(&plugin).await;
    }
}

type Registered = Option<(std::sync::Arc<dyn Handler>, Plugin)>;

async fn register(
    socket: &Path,
    handlers: &Handlers,
    resolve: &Resolve,
    gone: &CancellationToken,
    registered: &mut Registered,
) -> Result<(), RegistrationError> {
    let named = || socket.display().to_string();
    let dial = |message: String| RegistrationError::Dial { socket: named(), message };
    let channel = within(proto::unix_channel(socket)).await.map_err(dial)?;
    let mut client = RegistrationClient::new(channel);
    let unread = |message: String| RegistrationError::Info { socket: named(), message };
    let info = within(client.get_info(InfoRequest {})).await.map_err(unread)?.into_inner();
    let outcome = admit(info, socket, handlers, resolve, gone, registered).await;
    if let Err(error) = &outcome
        && !error.is_for_plugin()
    {
        return outcome;
    }
    let told = notify(&mut client, outcome.as_ref().err()).await;
    outcome?;
    told.map_err(|message| RegistrationError::Notify { socket: named(), message })?;
    if let Some((_, plugin)) = registered {
        tracing::info!(plugin = plugin.name, endpoint = %plugin.socket.display(), "a plugin is registered");
    }
    Ok(())
}

async fn admit(
    info: PluginInfo,
    socket: &Path,
    handlers: &Handlers,
    resolve: &Resolve,
    gone: &CancellationToken,
    registered: &mut Registered,
) -> Result<(), RegistrationError> {
    let Some(handler) = handlers.get(info.r#type.as_str()) else {
        return Err(RegistrationError::Type { kind: info.r#type, socket: socket.display().to_string() });
    };
    // It was taken in before, and only could not be told.
    if registered.is_some() {
        return Ok(());
    }
    let endpoint = if info.endpoint.is_empty() { socket.to_owned() } else { info.endpoint.into() };
    let plugin = Plugin { name: info.name, socket: resolve(&endpoint), endpoint, versions: info.supported_versions };
    handler.validate(&plugin).map_err(RegistrationError::Validation)?;
    tokio::select! {
        // What is cut off has begun: only then is there something to take back.
        biased;
        taken = handler.register(&plugin) => taken.map_err(RegistrationError::Registration)?,
        () = gone.cancelled() => {
            handler.deregister(&plugin).await;
            return Err(RegistrationError::Registration("its socket is gone".to_owned()));
        }
    }
    *registered = Some((handler.clone(), plugin));
    Ok(())
}

async fn notify(client: &mut RegistrationClient<Channel>, error: Option<&RegistrationError>) -> Result<(), String> {
    let error_text = error.map(ToString::to_string).unwrap_or_default();
    let status = RegistrationStatus { plugin_registered: error.is_none(), error: error_text };
    within(client.notify_registration_status(status)).await.map(drop)
}

async fn within<T, E: std::fmt::Display>(call: impl Future<Output = Result<T, E>>) -> Result<T, String> {
    match tokio::time::timeout(LIMIT, call).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {} s", LIMIT.as_secs())),
    }
}

#[cfg(test)]
#[path = "registrar_tests.rs"]
mod tests;

//! Plugins that register with the node: CSI and DRA drivers.
//!
//! Layer: beside the pods. A driver's registrar puts a socket into `<root>/plugins_registry`;
//! [`watch`] hears of it by inotify and gives every socket a task of its own ([`registrar`]), which asks
//! who it is, hands it to the [`Handler`] of its type, tells it the outcome, and takes it back when
//! the socket goes. What the directory's changes mean is pure ([`sockets`]). Device plugins have
//! another way in: [`crate::devices`].
//!
//! As long as nobody registers there is one task that waits for one inotify watch.

mod registrar;
pub mod rpc;
mod sockets;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use component::{Files, Supervisor};
use tokio::sync::watch as channel;
use tokio_util::sync::CancellationToken;

use sockets::Listing;

/// A plugin as it describes itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plugin {
    pub name: String,
    /// Where it listens: as it says it, and as it is called on this host.
    pub endpoint: PathBuf,
    pub socket: PathBuf,
    pub versions: Vec<String>,
}

/// What takes plugins of one type in. Errors are told to the plugin, and the registration is tried again.
#[async_trait]
pub trait Handler: Send + Sync {
    fn validate(&self, plugin: &Plugin) -> Result<(), String>;

    /// One that fails has taken back what it did.
    async fn register(&self, plugin: &Plugin) -> Result<(), String>;

    /// The plugin's socket is gone. Called for what was registered, and for what was cut off while it was
    /// being registered.
    async fn deregister(&self, plugin: &Plugin);
}

/// The handlers by the type that plugins give: `CSIPlugin`, `DRAPlugin`.
pub type Handlers = HashMap<&'static str, Arc<dyn Handler>>;

/// The path on this host of what a plugin calls its endpoint.
pub type Resolve = Arc<dyn Fn(&Path) -> PathBuf + Send + Sync>;

/// How soon the directory is watched again after that failed.
const WATCH_AGAIN: Duration = Duration::from_secs(10);

/// Follows the directory for as long as the task lives.
pub async fn watch(directory: PathBuf, handlers: Arc<Handlers>, resolve: Resolve, supervisor: Supervisor) {
    let mut attended = Attended { handlers, resolve, supervisor, sockets: HashMap::new() };
    let mut known = Listing::new();
    loop {
        // Watched before it is read: what comes in between is seen twice, not missed.
        let made = std::fs::create_dir_all(&directory);
        match made.and_then(|()| Files::watch_all_in(&directory, false)) {
            Ok(files) => loop {
                let now = sockets::list(&directory);
                attended.follow(sockets::changes(&known, &now));
                known = now;
                if files.changed().await.is_err() || !directory.is_dir() {
                    break;
                }
            },
            Err(error) => {
                tracing::warn!(directory = %directory.display(), %error, "plugins cannot register: their directory cannot be watched; trying again");
                tokio::time::sleep(WATCH_AGAIN).await;
            }
        }
    }
}

/// The sockets that have a task.
struct Attended {
    handlers: Arc<Handlers>,
    resolve: Resolve,
    supervisor: Supervisor,
    sockets: HashMap<PathBuf, Attendance>,
}

struct Attendance {
    gone: CancellationToken,
    /// Closes when the task has ended.
    ended: channel::Receiver<()>,
}

impl Attended {
    fn follow(&mut self, changes: sockets::Changes) {
        for socket in &changes.gone {
            if let Some(attendance) = self.sockets.get(socket) {
                attendance.gone.cancel();
            }
        }
        for socket in changes.new {
            let before = self.sockets.remove(&socket).map(|attendance| attendance.ended);
            let gone = CancellationToken::new();
            let (open, ended) = channel::channel(());
            self.sockets.insert(socket.clone(), Attendance { gone: gone.clone(), ended });
            let name = socket.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let (handlers, resolve) = (self.handlers.clone(), self.resolve.clone());
            self.supervisor.spawn(name, async move {
                // One after the other: the same name is given back before it is taken again.
                if let Some(mut before) = before {
                    while before.changed().await.is_ok() {}
                }
                registrar::attend(&socket, &handlers, &resolve, &gone).await;
                drop(open);
            });
        }
        self.sockets.retain(|_, attendance| attendance.ended.has_changed().is_ok());
    }
}

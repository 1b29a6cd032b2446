//! Talking with a plugin: a thread of its own asks for its status once a minute, or when somebody
//! wants to know, has a fresh seed sealed when its key changes, and carries the questions of readers.
//! The two do not wait for each other: a plugin that is slow to say how it is still opens values, and
//! one with many questions before it can still be asked how it is.
//!
//! A thread, since values are opened where nothing can be awaited (events of a watch): who asks
//! waits for the thread's answer, once for each source that it has not seen yet.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc as blocking;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use proto::v2::key_management_service_client::KeyManagementServiceClient;
use proto::v2::{
    DecryptRequest, EncryptRequest, EncryptResponse, EncryptedDekSourceType, EncryptedObject, StatusRequest,
    StatusResponse,
};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant as Moment;
use tonic::transport::Channel;

use super::Settings;
use super::source::{self, Source};

const WELL: Duration = Duration::from_secs(60);
const UNWELL: Duration = Duration::from_secs(10);
/// How long a plugin that does not answer any more lets writes go on.
const WRITES: Duration = Duration::from_secs(180);
/// Questions that may wait; who asks one more is refused.
pub const QUESTIONS: usize = 256;
/// How long the answer about a plugin's health holds: when it is well, and when not.
const HEALTH: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(3));

const ENDED: &str = "the plugin's thread has ended";

/// What values are written with now.
#[derive(Debug)]
pub struct State {
    pub key_id: String,
    pub source: Arc<Source>,
    /// The source as the plugin sealed it.
    pub sealed: Vec<u8>,
    pub annotations: HashMap<String, Vec<u8>>,
    expires: Mutex<Instant>,
}

impl State {
    /// Whether it may still be written with.
    pub fn check(&self) -> Result<(), String> {
        if Instant::now() > *self.expires.lock() {
            return Err("the encrypted DEK source expired: the plugin does not answer".to_owned());
        }
        Ok(())
    }
}

type Current = Arc<RwLock<Result<Arc<State>, String>>>;
type Answer = Result<Vec<u8>, String>;

type Health = Result<(), String>;

/// A sealed source to be opened.
struct Question {
    request: DecryptRequest,
    answer: blocking::SyncSender<Answer>,
}

/// How the plugin was, and when it was asked; none before its first answer.
type Known = Option<(Moment, Health)>;

/// The ways to the thread.
#[derive(Debug, Clone)]
struct Running {
    questions: mpsc::Sender<Question>,
    /// Somebody wants to know how the plugin is. However many do, it is asked once.
    wanted: Arc<Notify>,
    known: watch::Receiver<Known>,
}

/// Why a plugin is not well.
#[derive(Debug, thiserror::Error)]
enum Unwell {
    #[error("failed to perform status section of the healthz check for KMS Provider {name}, error: {why}")]
    Silent { name: String, why: String },
    #[error("kmsv2 Provider {name} is not healthy, error: {why}")]
    Ill { name: String, why: String },
}

#[derive(Debug)]
pub struct Plugin {
    settings: Settings,
    current: Current,
    running: Mutex<Option<Running>>,
}

impl Plugin {
    pub fn new(settings: Settings) -> Self {
        let current = Arc::new(RwLock::new(Err("the plugin has not answered yet".to_owned())));
        Self { settings, current, running: Mutex::default() }
    }

    /// The thread ends when this is dropped.
    pub fn start(&self) -> std::io::Result<()> {
        let (questions, asked) = mpsc::channel(QUESTIONS);
        let (publish, known) = watch::channel(None);
        let (first, answered) = blocking::sync_channel(1);
        let wanted = Arc::new(Notify::new());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let name = format!("kms-{}", self.settings.name);
        let (settings, current, due) = (self.settings.clone(), self.current.clone(), wanted.clone());
        std::thread::Builder::new().name(name).spawn(move || {
            runtime.block_on(async {
                // Its connection lives on this thread.
                let client = Client::lazy(&settings);
                let name = settings.name;
                let prober = Prober { client: client.clone(), name, current, wanted: due, publish, first };
                tokio::select! {
                    () = carry(&client, asked) => {}
                    () = prober.run() => {}
                }
            });
        })?;
        *self.running.lock() = Some(Running { questions, wanted, known });
        // A plugin that is not there yet holds nothing up but writes.
        let _ = waiting(|| answered.recv_timeout(self.settings.timeout * 2));
        Ok(())
    }

    pub fn state(&self) -> Result<Arc<State>, String> {
        self.current.read().clone()
    }

    pub fn decrypt(&self, object: &EncryptedObject) -> Answer {
        let request = DecryptRequest {
            ciphertext: object.encrypted_dek_source.clone(),
            uid: uuid::Uuid::new_v4().to_string(),
            key_id: object.key_id.clone(),
            annotations: object.annotations.clone(),
        };
        let (answer, answered) = blocking::sync_channel(1);
        let asked = self.running()?.questions.try_send(Question { request, answer });
        asked.map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => "the plugin answers more slowly than it is asked".to_owned(),
            mpsc::error::TrySendError::Closed(_) => ENDED.to_owned(),
        })?;
        waiting(|| answered.recv_timeout(self.settings.timeout * 2)).map_err(|error| error.to_string())?
    }

    /// How the plugin is now, or was a moment ago.
    pub async fn health(&self) -> Health {
        let Running { wanted, mut known, .. } = self.running()?;
        // What is published from here on is news.
        if let Some(health) = still_holding(&known.borrow_and_update()) {
            return health;
        }
        wanted.notify_one();
        known.changed().await.map_err(|_| ENDED.to_owned())?;
        let news = known.borrow();
        news.as_ref().map_or_else(|| Err(ENDED.to_owned()), |(_, health)| health.clone())
    }

    fn running(&self) -> Result<Running, String> {
        self.running.lock().clone().ok_or_else(|| "the plugin was not started".to_owned())
    }
}

/// Lets other tasks of this thread go on elsewhere meanwhile, where there is an elsewhere.
fn waiting<T>(wait: impl FnOnce() -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    let several = Handle::try_current().is_ok_and(|handle| handle.runtime_flavor() == RuntimeFlavor::MultiThread);
    if several { tokio::task::block_in_place(wait) } else { wait() }
}

/// Carries questions to the plugin until nobody can ask any more.
async fn carry(client: &Client, mut questions: mpsc::Receiver<Question>) {
    while let Some(Question { request, answer }) = questions.recv().await {
        let client = client.clone();
        tokio::spawn(async move { answer.send(client.decrypt(request).await) });
    }
}

/// Asks how the plugin is, once at a time.
struct Prober {
    client: Client,
    name: String,
    current: Current,
    wanted: Arc<Notify>,
    publish: watch::Sender<Known>,
    first: blocking::SyncSender<()>,
}

impl Prober {
    async fn run(self) {
        let mut next = Moment::now();
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(next) => {}
                // Who asked while the last answer was under way has that.
                () = self.wanted.notified() => if still_holding(&self.publish.borrow()).is_some() {
                    continue;
                },
            }
            let health = refresh(&self.client, &self.name, &self.current).await.map_err(|why| why.to_string());
            let now = Moment::now();
            if let Err(why) = &health {
                tracing::warn!(provider = self.name, why, "a KMS plugin is not well");
                let mut current = self.current.write();
                if current.is_err() {
                    *current = Err(why.clone());
                }
            }
            next = now + if health.is_ok() { WELL } else { UNWELL };
            self.publish.send_replace(Some((now, health)));
            let _ = self.first.try_send(());
        }
    }
}

/// What is known, if it is not too old to be said again.
fn still_holding(known: &Known) -> Option<Health> {
    let (asked, health) = known.as_ref()?;
    let holds = if health.is_ok() { HEALTH.0 } else { HEALTH.1 };
    (asked.elapsed() < holds).then(|| health.clone())
}

/// Asks how the plugin is; a key that is not the one of the current source gets a fresh one.
async fn refresh(client: &Client, name: &str, current: &Current) -> Result<(), Unwell> {
    let asked = Instant::now();
    let status = client.status().await.map_err(|why| Unwell::Silent { name: name.to_owned(), why })?;
    keep_up(client, status, current, asked).await.map_err(|why| Unwell::Ill { name: name.to_owned(), why })
}

async fn keep_up(client: &Client, status: StatusResponse, current: &Current, asked: Instant) -> Result<(), String> {
    if status.healthz != "ok" {
        return Err(format!("got unexpected healthz status: {}", status.healthz));
    }
    if !matches!(status.version.as_str(), "v2" | "v2beta1") {
        return Err(format!("expected KMSv2 API version v2, got {}", status.version));
    }
    super::check_key_id(&status.key_id)?;
    let known = current.read().clone();
    if let Ok(state) = known
        && state.key_id == status.key_id
    {
        *state.expires.lock() = asked + WRITES;
        return Ok(());
    }
    let seed: [u8; source::SIZE] = source::random()?;
    let sealed = client.encrypt(seed.to_vec()).await.map_err(|why| format!("failed to encrypt DEK, error: {why}"))?;
    let EncryptResponse { ciphertext, key_id, annotations } = sealed;
    let kind = EncryptedDekSourceType::HkdfSha256XnonceAesGcmSeed;
    super::validate(&EncryptedObject {
        encrypted_data: vec![0],
        key_id: key_id.clone(),
        encrypted_dek_source: ciphertext.clone(),
        annotations: annotations.clone(),
        encrypted_dek_source_type: kind.into(),
    })?;
    let source = Arc::new(Source::new(kind, &seed)?);
    let state = State { key_id, source, sealed: ciphertext, annotations, expires: Mutex::new(asked + WRITES) };
    *current.write() = Ok(Arc::new(state));
    Ok(())
}

#[derive(Clone)]
struct Client {
    inner: KeyManagementServiceClient<Channel>,
    timeout: Duration,
}

impl Client {
    /// Connects when it is first asked.
    fn lazy(settings: &Settings) -> Self {
        let channel = proto::unix_channel_lazy(&settings.socket);
        Self { inner: KeyManagementServiceClient::new(channel), timeout: settings.timeout }
    }

    async fn call<T>(
        &self,
        call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T, String> {
        match tokio::time::timeout(self.timeout, call).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(status.to_string()),
            Err(_) => Err(format!("no answer within {:?}", self.timeout)),
        }
    }

    async fn status(&self) -> Result<StatusResponse, String> {
        self.call(self.inner.clone().status(StatusRequest {})).await
    }

    async fn encrypt(&self, plaintext: Vec<u8>) -> Result<EncryptResponse, String> {
        let request = EncryptRequest { plaintext, uid: uuid::Uuid::new_v4().to_string() };
        self.call(self.inner.clone().encrypt(request)).await
    }

    async fn decrypt(&self, request: DecryptRequest) -> Answer {
        self.call(self.inner.clone().decrypt(request)).await.map(|answer| answer.plaintext)
    }
}

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use proto::v2::key_management_service_server::{KeyManagementService, KeyManagementServiceServer};
use proto::v2::{DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, StatusRequest, StatusResponse};
use tonic::{Request, Response, Status};

use super::*;

/// A plugin that turns bytes around, and counts what it is asked.
#[derive(Default)]
struct Fake {
    key: Mutex<String>,
    /// What is wrong with it; nothing is `ok`.
    ill: Mutex<String>,
    asked: AtomicUsize,
    encrypted: AtomicUsize,
    decrypted: AtomicUsize,
    /// While somebody holds it, it does not say how it is.
    silence: tokio::sync::Mutex<()>,
}

struct Served(Arc<Fake>);

#[tonic::async_trait]
impl KeyManagementService for Served {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        self.0.asked.fetch_add(1, Ordering::SeqCst);
        drop(self.0.silence.lock().await);
        let key_id = self.0.key.lock().clone();
        let ill = self.0.ill.lock().clone();
        let healthz = if ill.is_empty() { "ok".to_owned() } else { ill };
        Ok(Response::new(StatusResponse { version: "v2".to_owned(), healthz, key_id }))
    }

    async fn encrypt(&self, request: Request<EncryptRequest>) -> Result<Response<EncryptResponse>, Status> {
        self.0.encrypted.fetch_add(1, Ordering::SeqCst);
        let ciphertext = request.into_inner().plaintext.into_iter().rev().collect();
        let annotations = [("version.example.com".to_owned(), b"1".to_vec())].into();
        Ok(Response::new(EncryptResponse { ciphertext, key_id: self.0.key.lock().clone(), annotations }))
    }

    async fn decrypt(&self, request: Request<DecryptRequest>) -> Result<Response<DecryptResponse>, Status> {
        let request = request.into_inner();
        if request.annotations.is_empty() {
            return Err(Status::invalid_argument("no annotations"));
        }
        self.0.decrypted.fetch_add(1, Ordering::SeqCst);
        Ok(Response::new(DecryptResponse { plaintext: request.ciphertext.into_iter().rev().collect() }))
    }
}

/// Serves the plugin on a socket, from a thread of its own.
fn serve(fake: Arc<Fake>, socket: &Path) {
    let listener = std::os::unix::net::UnixListener::bind(socket).unwrap();
    listener.set_nonblocking(true).unwrap();
    let (ready, is_ready) = mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::UnixListener::from_std(listener).unwrap();
            let connections = futures::stream::unfold(listener, |listener| async move {
                let accepted = listener.accept().await.map(|(stream, _)| stream);
                Some((accepted, listener))
            });
            ready.send(()).unwrap();
            let service = KeyManagementServiceServer::new(Served(fake));
            let _ = tonic::transport::Server::builder().add_service(service).serve_with_incoming(connections).await;
        });
    });
    is_ready.recv().unwrap();
}

fn started(socket: &Path) -> Kms {
    let timeout = Duration::from_secs(20);
    let kms = Kms::new(Settings { name: "k".to_owned(), socket: socket.to_owned(), timeout });
    kms.start().unwrap();
    kms
}

const KEY: &str = "/registry/secrets/a/b";

#[test]
fn values_are_sealed_with_a_seed_that_the_plugin_keeps() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("kms.sock");
    let fake = Arc::new(Fake::default());
    *fake.key.lock() = "one".to_owned();
    serve(fake.clone(), &socket);
    let kms = started(&socket);
    let plain = b"{\"kind\":\"Secret\"}";
    let sealed = kms.seal(KEY, plain).unwrap();
    assert!(sealed.starts_with(b"k8s:enc:kms:v2:k:") && !sealed.windows(6).any(|part| part == b"Secret"));
    assert_ne!(kms.seal(KEY, plain).unwrap(), sealed, "every value has a key of its own");
    assert_eq!(kms.open(KEY, &sealed).unwrap(), plain[..]);
    assert!(kms.open("/registry/secrets/a/c", &sealed).is_err(), "moved to another key");
    assert!(kms.is_current(&sealed) && !kms.is_current(b"{}"));
    let asked = || (fake.encrypted.load(Ordering::SeqCst), fake.decrypted.load(Ordering::SeqCst));
    assert_eq!(asked(), (1, 0), "the seed is its own: nothing to ask");

    // Another server, and a key that was rotated meanwhile.
    *fake.key.lock() = "two".to_owned();
    let other = started(&socket);
    for _ in 0..3 {
        assert_eq!(other.open(KEY, &sealed).unwrap(), plain[..]);
    }
    assert_eq!(asked(), (2, 1), "one question for all values of a seed");
    assert!(!other.is_current(&sealed), "it is to be written again");
    assert!(other.is_current(&other.seal(KEY, plain).unwrap()));

    let mut object = EncryptedObject::decode(&sealed[kms.prefix().len()..]).unwrap();
    assert_eq!((object.key_id.as_str(), object.annotations.len()), ("one", 1));
    object.annotations.clear();
    let spoiled = [kms.prefix().as_bytes(), &object.encode_to_vec()].concat();
    assert!(kms.open(KEY, &spoiled).unwrap_err().starts_with("failed to decrypt DEK, error: "));
    object.key_id.clear();
    let spoiled = [kms.prefix().as_bytes(), &object.encode_to_vec()].concat();
    assert_eq!(kms.open(KEY, &spoiled).unwrap_err(), "failed to validate key id: keyID is empty");
}

#[test]
fn without_its_plugin_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let kms = started(&dir.path().join("none.sock"));
    assert!(kms.seal(KEY, b"{}").is_err());
}

#[test]
fn what_other_servers_wrote_opens() {
    // A key that is the source itself, and a derived one: the forms that upstream reads.
    let plain = b"{}".to_vec();
    let seed = Source::new(EncryptedDekSourceType::HkdfSha256XnonceAesGcmSeed, &[7; 32]).unwrap();
    let sealed = seed.seal(KEY, &plain).unwrap();
    assert_eq!(sealed.len(), 32 + 12 + plain.len() + 16);
    assert_eq!(seed.open(KEY, &sealed).unwrap(), plain);
    for end in 0..sealed.len() {
        assert!(seed.open(KEY, &sealed[..end]).is_err());
    }
    let key = Source::new(EncryptedDekSourceType::AesGcmKey, &[7; 32]).unwrap();
    assert!(key.open(KEY, &sealed).is_err() && key.seal(KEY, &plain).is_err());
    assert!(Source::new(EncryptedDekSourceType::HkdfSha256XnonceAesGcmSeed, &[7; 31]).is_err());
    assert!(Source::new(EncryptedDekSourceType::AesGcmKey, &[7; 5]).is_err());
}

#[tokio::test]
async fn plugins_say_how_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("kms.sock");
    let fake = Arc::new(Fake::default());
    *fake.key.lock() = "one".to_owned();
    serve(fake.clone(), &socket);
    assert_eq!(started(&socket).health().await, Ok(()));
    *fake.ill.lock() = "out of paper".to_owned();
    assert_eq!(
        started(&socket).health().await,
        Err("kmsv2 Provider k is not healthy, error: got unexpected healthz status: out of paper".to_owned())
    );
    let silent = started(&dir.path().join("none.sock")).health().await.unwrap_err();
    assert!(
        silent.starts_with("failed to perform status section of the healthz check for KMS Provider k, error: "),
        "{silent}"
    );
}

#[tokio::test]
async fn a_configuration_whose_plugin_is_not_well_is_put_in_force_when_it_is() {
    use crate::encryption::{Reread, Rules};
    use crate::reload::AsyncReload;

    let dir = tempfile::tempdir().unwrap();
    let (socket, file) = (dir.path().join("kms.sock"), dir.path().join("encryption.yaml"));
    let fake = Arc::new(Fake::default());
    *fake.key.lock() = "one".to_owned();
    *fake.ill.lock() = "out of paper".to_owned();
    serve(fake.clone(), &socket);
    let text = format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [secrets]\n  providers: [{{kms: {{apiVersion: v2, name: k, timeout: 20s, endpoint: 'unix://{}'}}}}]\n",
        socket.display()
    );
    std::fs::write(&file, text).unwrap();
    let rules = Arc::new(Rules::default());
    let mut reread = Reread { rules: rules.clone(), file };
    let reloading = tokio::spawn(async move { reread.reload().await });
    // Asked again once it has said that it is not well: nothing was put in force by then.
    while fake.asked.load(Ordering::SeqCst) < 2 {
        assert!(rules.current.read().is_empty());
        tokio::task::yield_now().await;
    }
    fake.ill.lock().clear();
    reloading.await.unwrap().unwrap();
    assert_eq!(rules.current.read().len(), 1);
}

#[tokio::test]
async fn a_plugin_that_does_not_say_how_it_is_is_asked_once_and_still_opens_values() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("kms.sock");
    let fake = Arc::new(Fake::default());
    *fake.key.lock() = "one".to_owned();
    serve(fake.clone(), &socket);
    let sealed = started(&socket).seal(KEY, b"{}").unwrap();
    let before = fake.asked.load(Ordering::SeqCst);
    let silence = fake.silence.lock().await;
    let timeout = Duration::from_secs(20);
    let kms = Arc::new(Kms::new(Settings { name: "k".to_owned(), socket, timeout }));
    let starting = std::thread::spawn({
        let kms = kms.clone();
        move || kms.start()
    });
    let opened = async {
        // Its thread may not be there yet.
        while kms.open(KEY, &sealed).is_err() || fake.asked.load(Ordering::SeqCst) == before {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(timeout, opened).await.expect("opening does not wait for the status");
    let mut everybody = std::pin::pin!(futures::future::join_all((0..plugin::QUESTIONS * 2).map(|_| kms.health())));
    assert!(futures::poll!(&mut everybody).is_pending(), "nobody is refused");
    drop(silence);
    assert!(everybody.await.iter().all(Result::is_ok));
    assert_eq!(fake.asked.load(Ordering::SeqCst), before + 1, "one question for all of them");
    starting.join().unwrap().unwrap();
}

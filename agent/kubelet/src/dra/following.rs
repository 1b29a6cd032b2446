//! Listening to a driver's plugin that tells how its devices are, for as long as it is the driver's newest.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ResourceHealth;
use parking_lot::Mutex;
use proto::v1::NodeWatchResourcesRequest;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::{Code, Status};

use super::driver::{Driver, HealthClient};
use super::health::Health;
use super::ledger::Device;

/// How soon a plugin that stopped telling is asked again.
const AGAIN: Duration = Duration::from_secs(5);

/// What is known of devices, for whoever shows it.
#[derive(Default)]
pub struct Board {
    health: Mutex<Health>,
    /// Changes with every word: each has a time of its own.
    reports: watch::Sender<()>,
    changed: watch::Sender<()>,
}

impl Board {
    /// Changes when a device is no longer as it was.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    pub fn of(&self, driver: &str, device: &Device) -> ResourceHealth {
        self.health.lock().of(driver, device)
    }

    /// Another plugin of the driver is listened to, under the number that is returned.
    pub fn begin(&self, driver: &str) -> u64 {
        self.health.lock().begin(driver)
    }

    /// Nobody speaks for the driver any more, or not the plugin of this number.
    pub fn end(&self, driver: &str, generation: Option<u64>) {
        self.change(|health| health.end(driver, generation));
    }

    fn change(&self, change: impl FnOnce(&mut Health) -> bool) {
        let changed = change(&mut self.health.lock());
        if changed {
            self.changed.send_replace(());
        }
    }
}

/// Listens until cancelled, or until the plugin says that it has nothing to tell.
pub async fn follow(board: Arc<Board>, driver: Arc<Driver>, client: HealthClient, generation: u64) {
    tokio::select! {
        () = listen_again(&board, &driver.name, client, generation) => {}
        never = run_out(&board, &driver.name) => match never {},
    }
}

async fn listen_again(board: &Board, driver: &str, client: HealthClient, generation: u64) {
    loop {
        match listen(board, driver, client.clone(), generation).await {
            Ok(()) => tracing::debug!(driver, "a driver no longer tells how its devices are; asking again"),
            Err(status) if status.code() == Code::Unimplemented => return board.end(driver, Some(generation)),
            Err(status) => {
                tracing::debug!(
                    driver,
                    error = status.message(),
                    "a driver does not tell how its devices are; asking again"
                );
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn listen(board: &Board, driver: &str, mut client: HealthClient, generation: u64) -> Result<(), Status> {
    let mut answers = client.node_watch_resources(NodeWatchResourcesRequest {}).await?.into_inner();
    while let Some(answer) = answers.message().await? {
        board.change(|health| health.report(driver, generation, answer.devices, Instant::now()));
        board.reports.send_replace(());
    }
    Ok(())
}

/// Forgets each word when it is too old.
async fn run_out(board: &Board, driver: &str) -> Infallible {
    let mut reports = board.reports.subscribe();
    loop {
        let due = board.health.lock().next_expiry(driver);
        tokio::select! {
            () = until(due) => board.change(|health| health.expire(driver, Instant::now())),
            // It cannot fail: the sender is the board's.
            _ = reports.changed() => {}
        }
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use component::Supervisor;
    use futures::StreamExt;
    use futures::stream::BoxStream;
    use proto::v1::dra_resource_health_server::{DraResourceHealth, DraResourceHealthServer};
    use proto::v1::{DeviceHealth, DeviceIdentifier, HealthStatus, NodeWatchResourcesResponse};
    use tonic::{Request, Response};

    use super::super::driver::{HEALTH, SERVICES};
    use super::*;

    const DRIVER: &str = "d.example";

    fn said(health: HealthStatus) -> DeviceHealth {
        DeviceHealth {
            device: Some(DeviceIdentifier { pool_name: "p".to_owned(), device_name: "a".to_owned() }),
            health: health.into(),
            health_check_timeout_seconds: 60,
            ..Default::default()
        }
    }

    fn shown(board: &Board) -> String {
        let device = Device { pool_name: "p".to_owned(), device_name: "a".to_owned(), ..Default::default() };
        board.of(DRIVER, &device).health.unwrap_or_default()
    }

    /// Tells what it is told to.
    struct Teller(watch::Receiver<HealthStatus>);

    #[tonic::async_trait]
    impl DraResourceHealth for Teller {
        type NodeWatchResourcesStream = BoxStream<'static, Result<NodeWatchResourcesResponse, Status>>;

        async fn node_watch_resources(
            &self,
            _: Request<NodeWatchResourcesRequest>,
        ) -> Result<Response<Self::NodeWatchResourcesStream>, Status> {
            let mut told = self.0.clone();
            told.mark_changed();
            let answers = futures::stream::unfold(told, |mut told| async {
                told.changed().await.ok()?;
                let devices = vec![said(*told.borrow_and_update())];
                Some((Ok(NodeWatchResourcesResponse { devices }), told))
            });
            Ok(Response::new(answers.boxed()))
        }
    }

    #[tokio::test]
    async fn what_a_plugin_tells_is_shown_while_it_is_there() {
        let root = tempfile::tempdir().unwrap();
        let supervisor = Supervisor::new("test");
        let socket = root.path().join("d.sock");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let incoming = futures::stream::unfold(listener, |listener| async {
            Some((listener.accept().await.map(|(stream, _)| stream), listener))
        });
        let (tell, told) = watch::channel(HealthStatus::Healthy);
        let server = tonic::transport::Server::builder().add_service(DraResourceHealthServer::new(Teller(told)));
        supervisor.spawn_try("driver", server.serve_with_incoming(incoming));

        let board = Arc::<Board>::default();
        let mut changes = board.changes();
        let driver = Arc::new(Driver::new(DRIVER, &socket, &socket, SERVICES[0], Some(HEALTH[0])));
        let client = driver.health().unwrap();
        supervisor.spawn("health", follow(board.clone(), driver, client, board.begin(DRIVER)));
        changes.changed().await.unwrap();
        assert_eq!(shown(&board), "Healthy");
        tell.send_replace(HealthStatus::Unhealthy);
        changes.changed().await.unwrap();
        assert_eq!(shown(&board), "Unhealthy");
        board.end(DRIVER, None);
        changes.changed().await.unwrap();
        assert_eq!(shown(&board), "Unknown");
        supervisor.cancel();
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_noticed_in_time() {
        let board = Board::default();
        let generation = board.begin(DRIVER);
        let mut changes = board.changes();
        let report = async {
            board.change(|health| health.report(DRIVER, generation, vec![said(HealthStatus::Healthy)], Instant::now()));
            board.reports.send_replace(());
            changes.changed().await.unwrap();
            assert_eq!(shown(&board), "Healthy");
            changes.changed().await.unwrap();
            shown(&board)
        };
        let start = Instant::now();
        tokio::select! {
            shown = report => assert_eq!(shown, "Unknown"),
            never = run_out(&board, DRIVER) => match never {},
        }
        assert_eq!(start.elapsed().as_secs(), 60);
    }
}

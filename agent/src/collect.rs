//! Giving back what pods' networks left behind: addresses and links of sandboxes that are gone.
//!
//! After a crash or a reboot the address plugin still holds reservations that no sandbox will ever
//! release. They are found by comparing its files with the runtime's sandboxes, and given back
//! through the plugins' GC.
//!
//! A sandbox that is just being made has an address before the runtime lists it. So a reservation
//! counts as stale only when it was without a sandbox at two looks a while apart (or at the very
//! start, when nothing is being made), and GC is told that everything else is valid.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use network::{Attachment, Network};
use proto::runtime::v1 as cri;
use tonic::transport::Channel;

/// Sandbox ids that hold an address, with the interface it is on.
type Reservations = BTreeMap<String, String>;

/// What the first look, before the kubelet makes anything, found stale.
pub async fn first_look(state: &Path, runtime: &Channel) -> BTreeSet<String> {
    match sandboxes(runtime).await {
        Ok(sandboxes) => without_sandbox(&reservations(state), &sandboxes),
        Err(error) => {
            tracing::debug!(%error, "the runtime's sandboxes could not be listed; stale addresses are looked for later");
            BTreeSet::new()
        }
    }
}

/// Collects now what the first look found, then at every period what two looks agree on.
pub async fn run(network: Network, state: PathBuf, runtime: Channel, first: BTreeSet<String>, period: Duration) {
    network.ready().await;
    collect(&network, &state, &first).await;
    let mut suspects = BTreeSet::new();
    loop {
        tokio::time::sleep(period).await;
        let Ok(sandboxes) = sandboxes(&runtime).await else { continue };
        let now = without_sandbox(&reservations(&state), &sandboxes);
        let stale: BTreeSet<String> = now.intersection(&suspects).cloned().collect();
        collect(&network, &state, &stale).await;
        suspects = now;
    }
}

async fn collect(network: &Network, state: &Path, stale: &BTreeSet<String>) {
    if stale.is_empty() {
        return;
    }
    let valid = still_valid(reservations(state), stale);
    tracing::info!(stale = stale.len(), valid = valid.len(), "giving back the addresses of sandboxes that are gone");
    if let Err(error) = network.collect(valid).await {
        tracing::warn!(%error, "network plugins could not collect everything; it will be tried again");
    }
}

fn still_valid(reservations: Reservations, stale: &BTreeSet<String>) -> Vec<Attachment> {
    let kept = reservations.into_iter().filter(|(id, _)| !stale.contains(id));
    kept.map(|(container_id, ifname)| Attachment { container_id, ifname }).collect()
}

fn without_sandbox(reservations: &Reservations, sandboxes: &BTreeSet<String>) -> BTreeSet<String> {
    reservations.keys().filter(|id| !sandboxes.contains(*id)).cloned().collect()
}

/// Reads `<state>/<network>/<address>`, each of which names a sandbox and an interface.
fn reservations(state: &Path) -> Reservations {
    let list = |directory: &Path| std::fs::read_dir(directory).into_iter().flatten().flatten();
    let files = list(state).flat_map(|network| list(&network.path()).collect::<Vec<_>>());
    let addresses = files.filter(|file| file.file_name().to_string_lossy().parse::<std::net::IpAddr>().is_ok());
    addresses
        .filter_map(|file| {
            let text = std::fs::read_to_string(file.path()).ok()?;
            let mut lines = text.lines().map(str::trim);
            let id = lines.next().filter(|id| !id.is_empty())?.to_owned();
            Some((id, lines.next().filter(|name| !name.is_empty()).unwrap_or("eth0").to_owned()))
        })
        .collect()
}

async fn sandboxes(runtime: &Channel) -> Result<BTreeSet<String>, tonic::Status> {
    let mut client =
        cri::runtime_service_client::RuntimeServiceClient::new(runtime.clone()).max_decoding_message_size(16 << 20);
    let answer = client.list_pod_sandbox(cri::ListPodSandboxRequest { filter: None }).await?;
    Ok(answer.into_inner().items.into_iter().map(|sandbox| sandbox.id).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_no_sandbox_holds_is_stale() {
        let state = tempfile::tempdir().unwrap();
        let network = state.path().join("skiff");
        std::fs::create_dir(&network).unwrap();
        std::fs::write(network.join("10.42.0.2"), "a\r\neth0").unwrap();
        std::fs::write(network.join("10.42.0.3"), "b\r\nnet1").unwrap();
        std::fs::write(network.join("last_reserved_ip.0"), "10.42.0.3").unwrap();
        std::fs::write(network.join("lock"), "").unwrap();
        let held = reservations(state.path());
        assert_eq!(held, Reservations::from([("a".into(), "eth0".into()), ("b".into(), "net1".into())]));
        let stale = without_sandbox(&held, &BTreeSet::from(["b".to_owned()]));
        assert_eq!(stale, BTreeSet::from(["a".to_owned()]));
        let valid = still_valid(held, &stale);
        assert_eq!(valid, [Attachment { container_id: "b".into(), ifname: "net1".into() }]);
    }
}

//! Durable creates beside the engine (behind a bare server, and alone) and beside etcd alone, and on a disk
//! that takes longer to sync; contended updates.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::OptionFuture;
use http::Method;
use integration::etcd::Member;
use integration::figures::Figure;
use serde_json::json;
use store::{Etcd, EtcdOptions, Store, Txn, TxnOutcome};

use crate::child::Server;
use crate::client::{Ask, middle, ratio};
use crate::disk;

const ROUNDS: usize = 5;
const WINDOW: Duration = Duration::from_secs(2);
/// How many, and whether they share one connection, as all that one client-go program asks does.
const CLIENTS: [(usize, bool); 4] = [(1, false), (32, false), (256, false), (32, true)];
/// What a sync of the slower disk takes longer.
const DELAY: Duration = Duration::from_millis(2);

/// A ConfigMap of about 1 KiB.
pub fn config_map(name: &str) -> String {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"text": "x".repeat(720)}})
        .to_string()
}

pub async fn measure() -> anyhow::Result<Vec<Figure>> {
    let dir = tempfile::tempdir()?;
    let member = Member::cluster(dir.path(), 1);
    let etcd: Arc<dyn Store> = Arc::new(connect(&member[0].url).await?);
    let mut figures = on_a_disk(&dir.path().join("fast"), Duration::ZERO, Some(&etcd)).await?;
    figures.extend(on_a_disk(&dir.path().join("slow"), DELAY, None).await?);
    Ok(figures)
}

/// Beside etcd only where it has the same disk.
async fn on_a_disk(dir: &Path, delay: Duration, etcd: Option<&Arc<dyn Store>>) -> anyhow::Result<Vec<Figure>> {
    let server = Server::api_on(&dir.join("api"), delay)?;
    let keeper = Server::keeper(&server, &dir.join("keeper"), delay)?;
    let engine: Arc<dyn Store> = Arc::new(disk::open(&dir.join("engine"), delay)?);
    let disk = if delay.is_zero() { String::new() } else { format!(", a sync takes {delay:?} longer") };
    let mut figures = Vec::new();
    for (clients, shared) in CLIENTS {
        let (mut ours, mut bare, mut alone, mut theirs) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        // The first round only warms up.
        for round in 0..=ROUNDS {
            let ask = move |client, n| {
                let name = format!("c{clients}-{shared}-{round}-{client}-{n}");
                Ask::post("/api/v1/namespaces/default/configmaps", config_map(&name))
            };
            let load = server.target.load(clients, shared, WINDOW, ask).await?;
            let floor = keeper.target.load(clients, shared, WINDOW, ask).await?;
            let key = format!("{clients}-{shared}-{round}");
            let engine = fill(&engine, clients, &key).await?;
            let etcd = OptionFuture::from(etcd.map(|etcd| fill(etcd, clients, &key))).await.transpose()?;
            if round > 0 {
                ours.push(load.rate());
                bare.push(floor.rate());
                alone.push(engine);
                theirs.extend(etcd);
            }
        }
        let beside = |name: &str, floor: Vec<f64>, digits: usize| {
            format!("{name} {:.0}/s: ratio {:.digits$}", middle(floor.clone()), ratio(&ours, &floor))
        };
        let mut floors = vec![beside("engine behind bare hyper and rustls", bare, 2), beside("engine alone", alone, 2)];
        if etcd.is_some() {
            floors.push(beside("etcd alone", theirs, 1));
        }
        figures.push(Figure::new(
            format!("durable 1 KiB creates, {clients} clients{}{disk}", if shared { " on one connection" } else { "" }),
            format!("{:.0}/s", middle(ours.clone())),
            floors.join("; "),
        ));
    }
    Ok(figures)
}

async fn connect(url: &str) -> anyhow::Result<Etcd> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match Etcd::connect(&EtcdOptions::new([url.to_owned()])).await {
            Ok(etcd) => return Ok(etcd),
            Err(error) if Instant::now() > deadline => return Err(error.into()),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Creates of as many bytes, without an API server, under keys that begin with `part`; their rate.
async fn fill(store: &Arc<dyn Store>, clients: usize, part: &str) -> anyhow::Result<f64> {
    let began = Instant::now();
    let writers = (0..clients).map(|client| {
        let (store, part) = (store.clone(), part.to_owned());
        tokio::spawn(async move {
            let mut count = 0;
            while began.elapsed() < WINDOW {
                let key = format!("/registry/configmaps/default/c{part}-{client}-{count}");
                let outcome = store.txn(Txn::create(key, vec![b'x'; 1024])).await?;
                anyhow::ensure!(matches!(outcome, TxnOutcome::Done { .. }), "{outcome:?}");
                count += 1;
            }
            Ok(count)
        })
    });
    let mut all = 0;
    for count in futures::future::try_join_all(writers).await? {
        all += count?;
    }
    Ok(f64::from(all) / began.elapsed().as_secs_f64())
}

/// 32 clients patch one object as fast as they can.
pub async fn contended() -> anyhow::Result<Vec<Figure>> {
    const UPSTREAM: f64 = 400.0;
    let dir = tempfile::tempdir()?;
    let server = Server::api(dir.path())?;
    let path = "/api/v1/namespaces/default/configmaps";
    server.target.once(Ask::post(path, config_map("one"))).await?;
    let mut rates = Vec::new();
    for _ in 0..=ROUNDS {
        let ask = move |client: usize, n: usize| Ask {
            method: Method::PATCH,
            path: format!("{path}/one"),
            body: json!({"data": {format!("by-{client}"): n.to_string()}}).to_string().into(),
        };
        rates.push(server.target.load(32, false, WINDOW, ask).await?.rate());
    }
    let rate = middle(rates.split_off(1));
    Ok(vec![Figure::new(
        "contended updates of one object, 32 clients",
        format!("{rate:.0}/s"),
        format!("Kubernetes' API server with etcd about {UPSTREAM:.0}/s: ratio {:.1}", rate / UPSTREAM),
    )])
}

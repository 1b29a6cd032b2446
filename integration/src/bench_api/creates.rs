//! Durable creates beside the engine (behind a bare server, and alone) and beside etcd alone; contended
//! updates.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Method;
use integration::etcd::Member;
use integration::figures::Figure;
use serde_json::json;
use store::{Embedded, Etcd, EtcdOptions, Store, Txn, TxnOutcome};

use crate::child::Server;
use crate::client::{Ask, middle, ratio};

const ROUNDS: usize = 5;
const WINDOW: Duration = Duration::from_secs(2);
const CLIENTS: [usize; 3] = [1, 32, 256];

/// A ConfigMap of about 1 KiB.
pub fn config_map(name: &str) -> String {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"text": "x".repeat(720)}})
        .to_string()
}

pub async fn measure() -> anyhow::Result<Vec<Figure>> {
    let dir = tempfile::tempdir()?;
    let server = Server::api(&dir.path().join("api"))?;
    let keeper = Server::keeper(&server, &dir.path().join("keeper"))?;
    let engine: Arc<dyn Store> = Arc::new(Embedded::open(&dir.path().join("engine"))?);
    let member = Member::cluster(dir.path(), 1);
    let etcd: Arc<dyn Store> = Arc::new(connect(&member[0].url).await?);
    let mut figures = Vec::new();
    for clients in CLIENTS {
        let (mut ours, mut bare, mut alone, mut theirs) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        // The first round only warms up.
        for round in 0..=ROUNDS {
            let ask = move |client, n| {
                let name = format!("c{clients}-{round}-{client}-{n}");
                Ask::post("/api/v1/namespaces/default/configmaps", config_map(&name))
            };
            let load = server.target.load(clients, WINDOW, ask).await?;
            let floor = keeper.target.load(clients, WINDOW, ask).await?;
            let (engine, etcd) = (fill(&engine, clients, round).await?, fill(&etcd, clients, round).await?);
            if round > 0 {
                ours.push(load.rate());
                bare.push(floor.rate());
                alone.push(engine);
                theirs.push(etcd);
            }
        }
        let beside = |name: &str, floor: Vec<f64>, digits: usize| {
            format!("{name} {:.0}/s: ratio {:.digits$}", middle(floor.clone()), ratio(&ours, &floor))
        };
        figures.push(Figure::new(
            format!("durable 1 KiB creates, {clients} clients"),
            format!("{:.0}/s", middle(ours.clone())),
            [
                beside("engine behind bare hyper and rustls", bare, 2),
                beside("engine alone", alone, 2),
                beside("etcd alone", theirs, 1),
            ]
            .join("; "),
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

/// Creates of as many bytes, without an API server; their rate.
async fn fill(store: &Arc<dyn Store>, clients: usize, round: usize) -> anyhow::Result<f64> {
    let began = Instant::now();
    let writers = (0..clients).map(|client| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut count = 0;
            while began.elapsed() < WINDOW {
                let key = format!("/registry/configmaps/default/c{clients}-{round}-{client}-{count}");
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
        rates.push(server.target.load(32, WINDOW, ask).await?.rate());
    }
    let rate = middle(rates.split_off(1));
    Ok(vec![Figure::new(
        "contended updates of one object, 32 clients",
        format!("{rate:.0}/s"),
        format!("Kubernetes' API server with etcd about {UPSTREAM:.0}/s: ratio {:.1}", rate / UPSTREAM),
    )])
}

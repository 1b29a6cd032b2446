//! A thousand watchers of one namespace: how soon all have an update, and what one costs.

use std::time::{Duration, Instant};

use anyhow::Context;
use http::Method;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use integration::figures::{Figure, median, resident_mib};
use serde_json::json;
use tokio::sync::mpsc;

use crate::child::Server;
use crate::client::Ask;
use crate::creates::config_map;

const WATCHERS: usize = 1000;
const PER_CONNECTION: usize = 100;
const UPDATES: usize = 30;
const PATH: &str = "/api/v1/namespaces/default/configmaps";

pub async fn measure() -> anyhow::Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for shared in [true, false] {
        let dir = tempfile::tempdir()?;
        let server = Server::api(dir.path())?;
        server.target.once(Ask::post(PATH, config_map("seen"))).await?;
        let before = resident_mib(server.pid());
        let watches = if shared { on_shared_connections(&server).await? } else { on_own_connections(&server).await? };
        let cost = (resident_mib(server.pid()) - before) * 1024.0 / WATCHERS as f64;
        let mut times = updates(&server, watches).await?;
        let slowest = times.iter().max().copied().unwrap_or_default();
        let how = if shared { "100 on a connection" } else { "each on its own TLS connection" };
        figures.push(Figure::new(
            format!("1,000 watchers, {how}: all have an update after its answer"),
            format!("{:.1} ms", median(&mut times).as_secs_f64() * 1000.0),
            format!("slowest of {UPDATES}: {:.1} ms; Kubernetes about 30 to 60 ms", slowest.as_secs_f64() * 1000.0),
        ));
        let floor = if shared {
            String::new()
        } else {
            format!("an idle connection to bare hyper and rustls {:.1} KiB", idle_connection(&server).await?)
        };
        figures.push(Figure::new(format!("memory of an idle watch, {how}"), format!("{cost:.1} KiB"), floor));
    }
    Ok(figures)
}

async fn watch_path(server: &Server) -> anyhow::Result<String> {
    let list = server.target.once(Ask::get(format!("{PATH}?limit=1"))).await?;
    let list: serde_json::Value = serde_json::from_slice(&list)?;
    let version = list["metadata"]["resourceVersion"].as_str().context("a list without a version")?;
    Ok(format!("{PATH}?watch=1&resourceVersion={version}&timeoutSeconds=600"))
}

async fn on_shared_connections(server: &Server) -> anyhow::Result<Vec<Incoming>> {
    let path = watch_path(server).await?;
    let mut watches = Vec::new();
    for _ in 0..WATCHERS / PER_CONNECTION {
        for mut connection in server.target.share(PER_CONNECTION).await? {
            watches.push(connection.stream(Ask::get(path.as_str())).await?);
        }
    }
    Ok(watches)
}

async fn on_own_connections(server: &Server) -> anyhow::Result<Vec<Incoming>> {
    let path = watch_path(server).await?;
    let mut watches = Vec::new();
    for _ in 0..WATCHERS {
        watches.push(server.target.connect().await?.stream(Ask::get(path.as_str())).await?);
    }
    Ok(watches)
}

/// What a connection costs that has had one answer, in KiB: what of a watch is not ours.
async fn idle_connection(server: &Server) -> anyhow::Result<f64> {
    let bare = Server::floor(server, b"{}")?;
    bare.target.once(Ask::get("/")).await?;
    let before = resident_mib(bare.pid());
    let mut held = Vec::new();
    for _ in 0..WATCHERS {
        let mut connection = bare.target.connect().await?;
        connection.send(Ask::get("/")).await?;
        held.push(connection);
    }
    Ok((resident_mib(bare.pid()) - before) * 1024.0 / WATCHERS as f64)
}

/// From the answer to each of a few updates until every watch has its event.
async fn updates(server: &Server, watches: Vec<Incoming>) -> anyhow::Result<Vec<Duration>> {
    let (seen, mut events) = mpsc::unbounded_channel();
    for mut watch in watches {
        let seen = seen.clone();
        tokio::spawn(async move {
            while let Some(Ok(frame)) = watch.frame().await {
                let lines = frame.data_ref().map_or(0, |data| data.iter().filter(|byte| **byte == b'\n').count());
                for _ in 0..lines {
                    if seen.send(Instant::now()).is_err() {
                        return;
                    }
                }
            }
        });
    }
    let mut writer = server.target.connect().await?;
    let mut times = Vec::new();
    for n in 0..UPDATES {
        let body = json!({"data": {"n": n.to_string()}}).to_string().into();
        writer.send(Ask { method: Method::PATCH, path: format!("{PATH}/seen"), body }).await?;
        let answered = Instant::now();
        let mut last = answered;
        for count in 0..WATCHERS {
            let next = tokio::time::timeout(Duration::from_secs(30), events.recv()).await;
            last = last.max(next.with_context(|| format!("{count} watchers have update {n}"))?.context("no watcher")?);
        }
        times.push(last - answered);
    }
    Ok(times)
}

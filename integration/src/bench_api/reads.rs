//! GET and LIST beside a bare server of the same bytes, and what lists cost in memory.

use std::time::Duration;

use integration::figures::Figure;

use crate::child::Server;
use crate::client::{Ask, middle, ratio};
use crate::creates::config_map;
use crate::memory::{peak_mib, reset_peak};

const ROUNDS: usize = 5;
const WINDOW: Duration = Duration::from_secs(2);
const OBJECTS: usize = 10_000;
const PATH: &str = "/api/v1/namespaces/default/configmaps";

pub async fn measure() -> anyhow::Result<Vec<Figure>> {
    let dir = tempfile::tempdir()?;
    let server = Server::api(dir.path())?;
    fill(&server).await?;
    let one = format!("{PATH}/o-1-1");
    let get = beside_floor(&server, &one, 32, false).await?;
    let list = beside_floor(&server, PATH, 4, true).await?;
    Ok(vec![
        Figure::new(
            "GET of a 1 KiB object, 32 clients",
            format!("{:.0}/s", get.0),
            format!("bare hyper and rustls {:.0}/s: ratio {:.2}", get.1, get.2),
        ),
        Figure::new(
            format!("LIST of {OBJECTS} objects, 4 clients"),
            format!("{:.0} MB/s", list.0),
            format!("bare hyper and rustls {:.0} MB/s: ratio {:.2}", list.1, list.2),
        ),
        growth(&server).await?,
    ])
}

async fn fill(server: &Server) -> anyhow::Result<()> {
    let writers = (0..100).map(|client| async move {
        let mut connection = server.target.connect().await?;
        for n in 0..OBJECTS / 100 {
            connection.send(Ask::post(PATH, config_map(&format!("o-{client}-{n}")))).await?;
        }
        anyhow::Ok(())
    });
    futures::future::try_join_all(writers).await.map(drop)
}

/// Ours, the floor's and the ratio: requests or megabytes per second.
async fn beside_floor(server: &Server, path: &str, clients: usize, megabytes: bool) -> anyhow::Result<(f64, f64, f64)> {
    let answer = server.target.once(Ask::get(path)).await?;
    let bare = Server::floor(server, &answer)?;
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        for (target, rates) in [(&server.target, &mut ours), (&bare.target, &mut floor)] {
            let path = path.to_owned();
            let load = target.load(clients, false, WINDOW, move |_, _| Ask::get(path.as_str())).await?;
            if round > 0 {
                rates.push(if megabytes { load.megabytes() } else { load.rate() });
            }
        }
    }
    let ratio = ratio(&ours, &floor);
    Ok((middle(ours), middle(floor), ratio))
}

/// Growth of resident memory while 32 clients list all objects at once.
async fn growth(server: &Server) -> anyhow::Result<Figure> {
    let before = reset_peak(server.pid())?;
    let load = server.target.load(32, false, WINDOW * 2, |_, _| Ask::get(PATH)).await?;
    let grown = peak_mib(server.pid()) - before;
    Ok(Figure::new(
        format!("growth of memory under 32 concurrent LISTs of {OBJECTS} objects"),
        format!("{grown:.1} MiB"),
        format!(
            "{} lists at {:.0} MB/s; one answer is {:.1} MiB",
            load.answers,
            load.megabytes(),
            load.bytes as f64 / load.answers as f64 / f64::from(1 << 20)
        ),
    ))
}

//! The embedded engine by itself: opening, size, and how long a write can take while history goes.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;
use integration::figures::Figure;
use store::{Embedded, Store, Txn, TxnOutcome};

const OBJECTS: usize = 100_000;
const LIVE: usize = 50_000;
const UPDATES: usize = 1_000_000;
const WRITERS: usize = 100;
const VALUE: usize = 1024;

pub async fn measure() -> anyhow::Result<Vec<Figure>> {
    Ok(vec![opening().await?, updates().await?])
}

async fn opening() -> anyhow::Result<Figure> {
    let dir = tempfile::tempdir()?;
    let store = Embedded::open(dir.path())?;
    let writes = (0..OBJECTS).map(|n| store.txn(Txn::create(format!("/registry/k/{n:06}"), vec![b'x'; VALUE])));
    let mut writes = futures::stream::iter(writes).buffer_unordered(1000);
    while let Some(outcome) = writes.next().await {
        outcome?;
    }
    drop(writes);
    drop(store);
    let began = Instant::now();
    let store = Embedded::open(dir.path())?;
    let took = began.elapsed();
    drop(store);
    Ok(Figure::new(
        format!("opening the store with {OBJECTS} objects of 1 KiB"),
        format!("{:.0} ms", took.as_secs_f64() * 1000.0),
        "aim 100 ms",
    ))
}

/// A million updates of ten thousand keys: rate, slowest write, size of the files.
async fn updates() -> anyhow::Result<Figure> {
    let dir = tempfile::tempdir()?;
    let place = dir.path().join("store");
    let store = Arc::new(Embedded::open(&place)?);
    let measuring = Arc::new(AtomicBool::new(true));
    let (beside, on) = (dir.path().join("beside"), measuring.clone());
    let syncs = std::thread::spawn(move || lone_syncs(&beside, &on));
    let began = Instant::now();
    let writers = (0..WRITERS).map(|writer| tokio::spawn(update(store.clone(), writer)));
    let mut times = Vec::new();
    for writer in futures::future::try_join_all(writers).await? {
        times.extend(writer?);
    }
    let seconds = began.elapsed().as_secs_f64();
    measuring.store(false, Ordering::Relaxed);
    let syncs = syncs.join().map_err(|_| anyhow::anyhow!("the lone syncs panicked"))??;
    let at = |times: &[Duration], part: f64| times[((times.len() - 1) as f64 * part) as usize].as_secs_f64() * 1000.0;
    let told = |mut times: Vec<Duration>| {
        times.sort_unstable();
        format!("{:.1} ms, p99.9 {:.1}, slowest {:.1}", at(&times, 0.5), at(&times, 0.999), at(&times, 1.0))
    };
    let size = size_of_files(&place)? as f64;
    let live = (LIVE * (VALUE + 60)) as f64;
    Ok(Figure::new(
        format!("{UPDATES} updates of {LIVE} objects of 1 KiB, {WRITERS} writers"),
        format!("{:.0}/s; files {:.1} x what lives", UPDATES as f64 / seconds, size / live),
        format!("a write takes {}; one 4 KiB write and sync beside it {}", told(times), told(syncs)),
    ))
}

fn size_of_files(dir: &Path) -> std::io::Result<u64> {
    std::fs::read_dir(dir)?.map(|entry| Ok(entry?.metadata()?.len())).sum()
}

/// What the disk makes of small writes meanwhile.
fn lone_syncs(path: &Path, on: &AtomicBool) -> anyhow::Result<Vec<Duration>> {
    let (mut file, mut times) = (File::create(path)?, Vec::new());
    while on.load(Ordering::Relaxed) || times.is_empty() {
        let began = Instant::now();
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&[1; 4096])?;
        file.sync_data()?;
        times.push(began.elapsed());
        // A light load of its own.
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(times)
}

async fn update(store: Arc<Embedded>, writer: usize) -> anyhow::Result<Vec<Duration>> {
    let keys = LIVE / WRITERS;
    let mut revisions = vec![0; keys];
    let mut times = Vec::with_capacity(UPDATES / WRITERS);
    for n in 0..UPDATES / WRITERS {
        let own = n % keys;
        let txn = Txn::update(format!("/registry/k/{writer}/{own}"), revisions[own], vec![n as u8; VALUE]);
        let began = Instant::now();
        match store.txn(txn).await? {
            TxnOutcome::Done { revision } => revisions[own] = revision,
            conflict => anyhow::bail!("nobody else writes this key: {conflict:?}"),
        }
        times.push(began.elapsed());
    }
    Ok(times)
}

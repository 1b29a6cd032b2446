//! What the embedded engine does, beside what the disk allows.
//!
//! `cargo run --release -p store --example engine [DIR]`
//!
//! Durable 1 KiB creates at 1, 32 and 256 writers, in turn with appends of the same bytes and one
//! sync each; opening 100,000 objects; a million updates: bytes on disk for what lives, and the
//! longest write.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use store::{Embedded, Store, Txn, TxnOutcome};

const ROUNDS: usize = 5;
const RUN: Duration = Duration::from_secs(1);
const VALUE: usize = 1024;
const OBJECTS: usize = 100_000;
const LIVE: usize = 50_000;
const UPDATES: usize = 1_000_000;
const WRITERS: usize = 100;

fn main() {
    let parent = std::env::args().nth(1).unwrap_or_else(|| ".".to_owned());
    let dir = tempfile::tempdir_in(parent).expect("a directory for the benchmark");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        opening(&dir.path().join("opening")).await;
        creates(dir.path()).await;
        updates(&dir.path().join("updates")).await;
    });
}

async fn creates(dir: &Path) {
    let store = Arc::new(Embedded::open(&dir.join("creates")).expect("a store"));
    for clients in [1, 32, 256] {
        let (mut rates, mut floors, mut times) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            // As many bytes as all clients write at once, and one sync: what no engine can beat.
            floors.push(appends_per_second(&dir.join("floor"), clients * (VALUE + 100)) * clients as f64);
            let took = create(&store, clients, round).await;
            rates.push(took.len() as f64 / RUN.as_secs_f64());
            times.extend(took);
        }
        times.sort_unstable();
        let at = |part: usize| times[(times.len() - 1) * part / 1000].as_secs_f64() * 1000.0;
        let (rate, floor) = (median(&mut rates), median(&mut floors));
        println!(
            "{clients:3} writers: {rate:6.0} creates/s, {:.2} of the same bytes appended and synced ({floor:.0}/s); \
             median {:.2} ms, p99 {:.2}, longest {:.2}",
            rate / floor,
            at(500),
            at(990),
            at(1000),
        );
    }
}

fn median(figures: &mut [f64]) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn appends_per_second(path: &Path, bytes: usize) -> f64 {
    let file = File::create(path).expect("a file");
    let (content, begin, mut count) = (vec![1; bytes], Instant::now(), 0u64);
    while begin.elapsed() < RUN / 2 {
        file.write_all_at(&content, count * bytes as u64).and_then(|()| file.sync_data()).expect("a write");
        count += 1;
    }
    count as f64 / begin.elapsed().as_secs_f64()
}

async fn create(store: &Arc<Embedded>, clients: usize, round: usize) -> Vec<Duration> {
    let until = Instant::now() + RUN;
    let writers = (0..clients).map(|client| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut times = Vec::new();
            while Instant::now() < until {
                let key = format!("/registry/bench/{clients}/{round}/{client}/{}", times.len());
                let begin = Instant::now();
                let outcome = store.txn(Txn::create(key, vec![1u8; VALUE])).await.expect("a write");
                assert!(matches!(outcome, TxnOutcome::Done { .. }));
                times.push(begin.elapsed());
            }
            times
        })
    });
    let times = futures::future::join_all(writers).await;
    times.into_iter().flat_map(|times| times.expect("a writer")).collect()
}

async fn opening(dir: &Path) {
    let store = Embedded::open(dir).expect("a store");
    let writes =
        (0..OBJECTS).map(|n| store.txn(Txn::create(format!("/registry/pods/namespace/web-{n:06}"), vec![b'x'; VALUE])));
    let mut writes = futures::stream::iter(writes).buffer_unordered(1000);
    while let Some(outcome) = writes.next().await {
        outcome.expect("a write");
    }
    drop(writes);
    drop(store);
    for _ in 0..3 {
        let before = resident();
        let begin = Instant::now();
        let store = Embedded::open(dir).expect("a store");
        let took = begin.elapsed().as_secs_f64() * 1000.0;
        println!(
            "opening {OBJECTS} objects of {VALUE} bytes: {took:.1} ms, resident memory {before:.0} -> {:.0} MiB",
            resident()
        );
        let began = Instant::now();
        let page = store.range(store::Range::prefix("/")).await.expect("a list");
        println!("  reading them all: {:.1} ms", began.elapsed().as_secs_f64() * 1000.0);
        assert_eq!(page.kvs.len(), OBJECTS);
        drop(page);
    }
}

fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("the status of this process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line of resident memory");
    line.trim().trim_end_matches(" kB").trim().parse::<f64>().expect("a number") / 1024.0
}

async fn updates(dir: &Path) {
    for order in ["in turn", "at random"] {
        let dir = dir.join(order);
        let store = Arc::new(Embedded::open(&dir).expect("a store"));
        let begin = Instant::now();
        let writers = (0..WRITERS).map(|writer| tokio::spawn(update(store.clone(), writer, order == "at random")));
        let writers = writers.collect::<Vec<_>>();
        let (mut largest, mut slowest) = (0, Duration::ZERO);
        let mut running = futures::future::join_all(writers);
        let took = loop {
            match tokio::time::timeout(Duration::from_millis(200), &mut running).await {
                Ok(times) => break times.into_iter().map(|time| time.expect("a writer")),
                Err(_) => largest = largest.max(bytes_in(&dir)),
            }
        };
        slowest = took.fold(slowest, Duration::max);
        let live = (LIVE * (VALUE + 60)) as f64;
        println!(
            "{UPDATES} updates of {LIVE} objects {order}, {WRITERS} writers: {:.0}/s, longest write {:.1} ms; \
             {:.2} x what lives on disk, {:.2} x at most",
            UPDATES as f64 / begin.elapsed().as_secs_f64(),
            slowest.as_secs_f64() * 1000.0,
            bytes_in(&dir) as f64 / live,
            largest as f64 / live,
        );
    }
}

fn bytes_in(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).expect("the store's directory");
    // A file may go while they are counted.
    entries.filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len())).sum()
}

async fn update(store: Arc<Embedded>, writer: usize, random: bool) -> Duration {
    let keys = LIVE / WRITERS;
    let (mut revisions, mut slowest) = (vec![0; keys], Duration::ZERO);
    for n in 0..UPDATES / WRITERS {
        let own = if random { rand::random_range(0..keys) } else { n % keys };
        let txn = Txn::update(format!("/registry/k/{writer}/{own}"), revisions[own], vec![n as u8; VALUE]);
        let begin = Instant::now();
        match store.txn(txn).await.expect("a write") {
            TxnOutcome::Done { revision } => revisions[own] = revision,
            conflict => panic!("nobody else writes this key: {conflict:?}"),
        }
        slowest = slowest.max(begin.elapsed());
    }
    slowest
}

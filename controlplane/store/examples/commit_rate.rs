//! Durable 1 KiB creates per second at 1, 32 and 256 clients, beside what the disk allows.
//!
//! `cargo run --release -p store --example commit_rate [DIR]`

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use store::{Embedded, Store, Txn, TxnOutcome};

const RUN: Duration = Duration::from_secs(2);

fn main() {
    let parent = std::env::args().nth(1).unwrap_or_else(|| ".".to_owned());
    let dir = tempfile::tempdir_in(parent).expect("a directory for the benchmark");
    println!("fdatasync of 4 KiB appended: {:.0}/s", syncs_per_second(dir.path()));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let store = Arc::new(Embedded::open(dir.path()).expect("a store"));
    for clients in [1, 32, 256] {
        let mut times = runtime.block_on(create(&store, clients));
        times.sort_unstable();
        let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1000.0;
        println!(
            "{clients:3} clients: {:6.0} creates/s, median {:.2} ms, p99 {:.2} ms, slowest {:.2} ms",
            times.len() as f64 / RUN.as_secs_f64(),
            at(50),
            at(99),
            at(100),
        );
    }
}

fn syncs_per_second(dir: &Path) -> f64 {
    let mut file = std::fs::File::create(dir.join("floor")).expect("a file");
    let begin = Instant::now();
    let mut count = 0;
    while begin.elapsed() < RUN {
        file.write_all(&[1; 4096]).and_then(|()| file.sync_data()).expect("a write");
        count += 1;
    }
    f64::from(count) / RUN.as_secs_f64()
}

async fn create(store: &Arc<Embedded>, clients: usize) -> Vec<Duration> {
    let until = Instant::now() + RUN;
    let writers = (0..clients).map(|client| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut times = Vec::new();
            while Instant::now() < until {
                let key = format!("/registry/bench/{clients}/{client}/{}", times.len());
                let begin = Instant::now();
                let outcome = store.txn(Txn::create(key, vec![1u8; 1024])).await.expect("a write");
                assert!(matches!(outcome, TxnOutcome::Done { .. }));
                times.push(begin.elapsed());
            }
            times
        })
    });
    let times = futures::future::join_all(writers).await;
    times.into_iter().flat_map(|times| times.expect("a writer")).collect()
}

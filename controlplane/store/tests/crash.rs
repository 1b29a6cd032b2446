//! `kill -9` of a writing process, at random moments, again and again on the same file.
//!
//! This program is parent and child: the child (told by its environment) writes and prints every
//! answer; the parent kills it, opens the file, and compares it with what was answered.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use futures::StreamExt;
use rand::Rng;
use store::{Embedded, Range, Store, Txn, TxnOutcome};

const CHILD: &str = "SKIFF_CRASH_CHILD";
const WRITERS: usize = 8;

fn main() {
    if let Ok(dir) = std::env::var(CHILD) {
        write_forever(Path::new(&dir));
    }
    let rounds = std::env::var("SKIFF_STORE_STEPS").ok().and_then(|steps| steps.parse().ok()).unwrap_or(20);
    let dir = tempfile::tempdir().unwrap();
    let mut answered = BTreeMap::new();
    let mut slowest = Duration::ZERO;
    for round in 0..rounds {
        write_and_kill(dir.path(), &mut answered);
        let begin = Instant::now();
        let store = Embedded::open(dir.path()).unwrap_or_else(|error| panic!("round {round}: {error}"));
        slowest = slowest.max(begin.elapsed());
        runtime().block_on(compare(&store, &mut answered, round));
    }
    let writes: u64 = answered.values().sum();
    println!("kill -9, {rounds} times: {writes} answered writes, none lost; slowest opening {slowest:?}");
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// The child: each writer counts its key up and prints every number that was answered.
fn write_forever(dir: &Path) -> ! {
    let store = std::sync::Arc::new(Embedded::open(dir).unwrap());
    runtime().block_on(async move {
        let writers = (0..WRITERS).map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                let key = format!("/key/{writer}");
                let current = store.get(&key).await.unwrap().kv;
                let mut revision = current.as_ref().map_or(0, |kv| kv.mod_revision);
                let mut number = current.map_or(0, |kv| number_of(&kv.value));
                loop {
                    number += 1;
                    let mut value = number.to_string().into_bytes();
                    value.resize(20 + (number as usize * 37) % 3000, b' ');
                    match store.txn(Txn::update(key.as_str(), revision, value)).await.unwrap() {
                        TxnOutcome::Done { revision: now } => revision = now,
                        conflict => panic!("{conflict:?}"),
                    }
                    // One call, so that a line is written as a whole.
                    let line = format!("{writer} {number}\n");
                    std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
                }
            })
        });
        futures::future::join_all(writers).await;
    });
    unreachable!("writers go on until they are killed")
}

fn write_and_kill(dir: &Path, answered: &mut BTreeMap<usize, u64>) {
    let mut child =
        Command::new(std::env::current_exe().unwrap()).env(CHILD, dir).stdout(Stdio::piped()).spawn().unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    let reader = std::thread::spawn(move || output.lines().map_while(Result::ok).collect::<Vec<_>>());
    std::thread::sleep(Duration::from_millis(rand::rng().random_range(20..250)));
    child.kill().unwrap();
    child.wait().unwrap();
    for line in reader.join().unwrap() {
        let (writer, number) = line.split_once(' ').unwrap();
        if let (Ok(writer), Ok(number)) = (writer.parse(), number.parse()) {
            answered.insert(writer, number);
        }
    }
}

/// Compares, and notes what is there: it must be there after the next round too.
async fn compare(store: &Embedded, answered: &mut BTreeMap<usize, u64>, round: usize) {
    let page = store.range(Range::prefix("/key/")).await.unwrap();
    for (writer, number) in answered.iter_mut() {
        let key = format!("/key/{writer}");
        let kv = page.kvs.iter().find(|kv| *kv.key == key).unwrap_or_else(|| panic!("round {round}: {key} is lost"));
        let found = number_of(&kv.value);
        // The last write may have been durable without its answer having been printed.
        assert!((*number..=*number + 1).contains(&found), "round {round}: {key} answered {number}, found {found}");
        *number = found;
    }
    let newest = page.kvs.iter().map(|kv| kv.mod_revision).max().unwrap_or(1);
    assert_eq!(page.revision, newest, "round {round}: a revision without its write");
    let after = newest.saturating_sub(50).max(1);
    let mut watch = store.watch("/", after).await.unwrap();
    let mut expected = after + 1;
    while expected <= newest {
        for event in watch.next().await.unwrap().unwrap().events {
            assert_eq!(event.revision, expected, "round {round}: history has a hole");
            expected += 1;
        }
    }
}

fn number_of(value: &[u8]) -> u64 {
    std::str::from_utf8(value).unwrap().trim_end().parse().unwrap()
}

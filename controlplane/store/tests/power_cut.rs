//! Power cuts and kills at random moments, thousands of times, against the model.
//!
//! Writers work on a simulated disk until it fails: while they write, while segments are made,
//! sealed and dropped, while the store opens. What is found then must be a state that every answer
//! fits into: nothing answered is lost, nothing is half written, no revision has two contents,
//! history has no hole.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::sync::Arc;

use bytes::Bytes;
use common::disk::SimDisk;
use common::model::Model;
use common::{events_until, steps};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use store::{Embedded, Options, Range, Store, StoreError, Txn, TxnOutcome, Write};

const WRITERS: usize = 4;
/// After so many failures a new store: its first steps are a matter of their own.
const GENERATION: usize = 40;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_answered_is_lost_in_a_power_cut() {
    let seed = rand::rng().random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let (mut opened, mut writes, mut dropped) = (0, 0, 0);
    let rounds = steps(2400);
    let mut bench = Bench::new(&mut random);
    for round in 0..rounds {
        if round % GENERATION == 0 {
            bench = Bench::new(&mut random);
        }
        match Embedded::open_disk(bench.disk.clone(), &bench.options) {
            Ok(store) => {
                opened += 1;
                let before = bench.model.log.len();
                bench.check(&store, &mut random, round).await;
                bench.write_until_it_fails(store, random.random()).await;
                writes += bench.model.log.len().saturating_sub(before);
            }
            Err(error) => assert!(!bench.disk.is_on() && is_cut(&error), "round {round}: {error}"),
        }
        dropped += usize::from(bench.has_dropped_segments());
        bench.fail(&mut random);
    }
    assert!(opened > rounds / 3, "opened {opened} times only");
    assert!(dropped > rounds / 10, "segments were dropped in {dropped} rounds only");
    println!("{rounds} failures, {opened} openings, {writes} answered writes, none lost");
}

fn is_cut(error: &StoreError) -> bool {
    matches!(error, StoreError::Io { .. }) && error.to_string().contains("the power is cut")
}

/// One store's life.
struct Bench {
    disk: Arc<SimDisk>,
    options: Options,
    /// What was answered, and what was found without an answer.
    model: Model,
}

impl Bench {
    fn new(random: &mut StdRng) -> Self {
        let options = Options {
            segment_bytes: random.random_range(2..24) * 1024,
            history_revisions: random.random_range(20..60),
            history_bytes: random.random_range(8..200) * 1024,
            ..Options::default()
        };
        let disk = Arc::new(SimDisk::new(operations(random)));
        Self { disk, options, model: Model::default() }
    }

    fn fail(&mut self, random: &mut StdRng) {
        let operations = operations(random);
        let left = match random.random_range(0..4) {
            0 => self.disk.after_kill(operations),
            _ => self.disk.after_power_cut(random, operations),
        };
        self.disk = Arc::new(left);
    }

    fn has_dropped_segments(&self) -> bool {
        let names = store::Disk::names(&self.disk.after_kill(1)).unwrap();
        names.iter().any(|name| name.ends_with(".log")) && !names.iter().any(|name| name == "00000001.log")
    }

    /// Compares what is found with what was answered, and takes what had no answer into the model.
    async fn check(&mut self, store: &Embedded, random: &mut StdRng, round: usize) {
        match self.compare(store, random, round).await {
            Ok(()) => {}
            // It failed again while reading.
            Err(error) => assert!(error == StoreError::Closed || is_cut(&error), "round {round}: {error}"),
        }
    }

    async fn compare(&mut self, store: &Embedded, random: &mut StdRng, round: usize) -> Result<(), StoreError> {
        let revision = store.revision().await?;
        let compacted = match store.watch("/", 1).await {
            Ok(_) => 1,
            Err(StoreError::Compacted { compacted, .. }) => compacted,
            Err(error) => return Err(error),
        };
        let known = self.model.revision();
        assert!(known <= revision, "round {round}: {known} was answered or seen, the store is at {revision}");
        assert!(compacted <= known, "round {round}: what came without an answer is compacted");
        let mut watch = store.watch("/", compacted).await?;
        watch.progress().request();
        let events = if compacted < revision { read_events(&mut watch, revision).await? } else { Vec::new() };
        for event in events.iter().filter(|event| event.revision > known) {
            assert_eq!(event.revision, self.model.revision() + 1, "round {round}: history has a hole");
            self.model.log.push((event.key.to_string(), event.value.clone()));
        }
        assert!(events == self.model.events("/", compacted), "round {round}: wrong history");
        for at in [0, random.random_range(compacted..=revision)] {
            let range = Range::prefix("/").at(at);
            let want = self.model.range(&range);
            assert!(store.range(range).await? == want, "round {round}: wrong state at {at}");
        }
        Ok(())
    }

    /// Writers at work until the disk fails; sometimes the store is closed before.
    async fn write_until_it_fails(&mut self, store: Embedded, seed: u64) {
        let store = Arc::new(store);
        let limit = if seed.is_multiple_of(5) { seed / 5 % 30 } else { u64::MAX };
        let writers = (0..WRITERS).map(|writer| {
            let random = StdRng::seed_from_u64(seed.wrapping_add(writer as u64));
            tokio::spawn(write(store.clone(), writer, random, limit))
        });
        let mut answered = Vec::new();
        for writer in writers.collect::<Vec<_>>() {
            let (writes, error) = writer.await.unwrap();
            assert!(error.as_ref().is_none_or(is_cut), "{error:?}");
            answered.extend(writes);
        }
        answered.sort();
        for (revision, key, value) in answered {
            assert_eq!(revision, self.model.revision() + 1, "a revision was given twice, or left out");
            self.model.log.push((key, value));
        }
    }
}

fn operations(random: &mut StdRng) -> u64 {
    match random.random_range(0..4) {
        0 => random.random_range(1..8),
        _ => random.random_range(1..500),
    }
}

async fn read_events(watch: &mut store::Watch, revision: u64) -> Result<Vec<store::Event>, StoreError> {
    use futures::StreamExt;
    let mut events = Vec::new();
    while let Some(batch) = watch.next().await {
        let batch = batch?;
        events.extend(batch.events);
        if batch.revision >= revision {
            break;
        }
    }
    Ok(events)
}

/// Changes its own keys until something fails. Returns what was answered, and the failure.
async fn write(
    store: Arc<Embedded>,
    writer: usize,
    mut random: StdRng,
    limit: u64,
) -> (Vec<(u64, String, Option<Bytes>)>, Option<StoreError>) {
    let mut answered = Vec::new();
    for _ in 0..limit {
        let key = format!("/key/{writer}/{}", random.random_range(0..5));
        let expected = match store.get(&key).await {
            Ok(got) => got.kv.map_or(0, |kv| kv.mod_revision),
            Err(error) => return (answered, Some(error)),
        };
        if random.random_range(0..40) == 0
            && let Ok(now) = store.revision().await
        {
            // What has no answer yet must not be compacted: the check reads it from history.
            match store.compact(now.saturating_sub(random.random_range(8..20))).await {
                Ok(()) | Err(StoreError::Compacted { .. }) => {}
                Err(error) => return (answered, Some(error)),
            }
        }
        let txn = if expected != 0 && random.random_range(0..4) == 0 {
            Txn::delete(key.as_str(), expected)
        } else {
            let length = [10, 300, 1500, 9000][random.random_range(0..4)];
            Txn::update(key.as_str(), expected, vec![random.random(); random.random_range(0..length)])
        };
        let value = match &txn.write {
            Write::Put { value, .. } => Some(value.clone()),
            Write::Delete => None,
        };
        match store.txn(txn).await {
            Ok(TxnOutcome::Done { revision }) => answered.push((revision, key, value)),
            Ok(conflict) => panic!("nobody else writes {key}: {conflict:?}"),
            Err(error) => return (answered, Some(error)),
        }
    }
    (answered, None)
}

/// The same disk without a failure: closing and opening loses nothing, whatever the sizes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_without_a_failure() {
    let mut random = StdRng::seed_from_u64(rand::rng().random());
    let mut bench = Bench::new(&mut random);
    bench.disk = Arc::new(SimDisk::new(u64::MAX));
    for round in 0..20 {
        let store = Embedded::open_disk(bench.disk.clone(), &bench.options).unwrap();
        bench.check(&store, &mut random, round).await;
        bench.write_until_it_fails(store, random.random_range(1..100) * 5).await;
    }
    let store = Embedded::open_disk(bench.disk.clone(), &bench.options).unwrap();
    let mut watch = store.watch("/", bench.model.revision()).await.unwrap();
    let next = common::done(store.txn(Txn::create("/after", "1")).await);
    assert_eq!(next, bench.model.revision() + 1);
    assert_eq!(events_until(&mut watch, next).await.len(), 1);
}

/// A full disk, say: whoever looks after the server must see it, and who opens the store anew finds all.
#[tokio::test]
async fn a_store_that_takes_no_more_writes_says_so_until_it_is_opened_anew() {
    let (disk, options) = (Arc::new(SimDisk::new(u64::MAX)), Options::default());
    let store = Arc::new(Embedded::open_disk(disk.clone(), &options).unwrap());
    common::done(store.txn(Txn::create("/a", "1")).await);
    assert_eq!(store.healthy().await, Ok(()));
    let waiting = store.clone();
    let waiting = tokio::spawn(async move { waiting.failed().await });
    disk.fail_next_sync();
    let error = store.txn(Txn::create("/b", "2")).await.unwrap_err();
    let text = "syncing (simulated)/00000001.log: the disk refuses; check the disk's free space and health, then start the server again";
    assert_eq!(error.to_string(), text);
    assert_eq!(store.txn(Txn::create("/b", "2")).await, Err(error.clone()));
    assert_eq!(store.healthy().await, Err(error.clone()));
    assert_eq!((waiting.await.unwrap(), store.failed().await), (error.clone(), error), "before and after it");
    assert!(store.get("/a").await.unwrap().kv.is_some(), "reads go on");
    drop(store);

    let store = Embedded::open_disk(disk.clone(), &options).unwrap();
    assert_eq!(store.healthy().await, Ok(()));
    common::done(store.txn(Txn::create("/c", "3")).await);
    assert!(store.get("/a").await.unwrap().kv.is_some());
    store.close();
    assert_eq!(store.healthy().await, Err(StoreError::Closed));
}

/// A kernel whose sync failed shows what the disk does not have, and a later sync does not write it: what
/// comes behind it would, after the next power cut, lie behind a hole.
#[tokio::test]
async fn what_a_failed_sync_left_to_be_seen_is_written_again() {
    let (disk, options) = (Arc::new(SimDisk::new(u64::MAX)), Options::default());
    let store = Embedded::open_disk(disk.clone(), &options).unwrap();
    common::done(store.txn(Txn::create("/a", "1")).await);
    disk.fail_next_sync();
    assert!(matches!(store.txn(Txn::create("/b", "2")).await, Err(StoreError::Io { .. })));
    drop(store);

    let store = Embedded::open_disk(disk.clone(), &options).unwrap();
    common::done(store.txn(Txn::create("/c", "3")).await);
    let want = store.range(Range::prefix("/")).await.unwrap().kvs;
    let left = disk.after_power_cut(&mut StdRng::seed_from_u64(rand::rng().random()), u64::MAX);
    drop(store);
    let store = Embedded::open_disk(Arc::new(left), &options).unwrap();
    assert_eq!(store.range(Range::prefix("/")).await.unwrap().kvs, want);
}

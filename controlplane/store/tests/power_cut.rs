//! Power cuts: the storage forgets an arbitrary part of what was not synced.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use common::steps;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use store::{Embedded, Options, Range, Store, Txn, TxnOutcome};

/// A disk writes sectors whole, or not at all.
const SECTOR: usize = 512;

/// A disk with a write cache, whose power fails after a number of operations.
#[derive(Debug, Clone)]
struct Disk {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    content: Mutex<Content>,
    /// Operations until the power fails.
    left: AtomicU64,
}

#[derive(Debug, Default, Clone)]
struct Content {
    /// What is on the platters.
    durable: Vec<u8>,
    /// What programs see.
    cached: Vec<u8>,
    /// Sectors written since the last sync.
    dirty: Vec<usize>,
}

impl Disk {
    fn new(content: Vec<u8>, operations: u64) -> Self {
        let content = Content { durable: content.clone(), cached: content, dirty: Vec::new() };
        Self { inner: Arc::new(Inner { content: Mutex::new(content), left: AtomicU64::new(operations) }) }
    }

    fn operate(&self) -> io::Result<()> {
        let left = self.inner.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        left.map(drop).map_err(|_| io::Error::other("the power is cut"))
    }

    /// What is there when the power is back: each unsynced sector made it or did not.
    fn after_power_cut(&self, random: &mut StdRng) -> Vec<u8> {
        let content = self.inner.content.lock().unwrap();
        let mut left = content.durable.clone();
        let chance = random.random_range(0.0..=1.0);
        for sector in &content.dirty {
            if random.random_bool(chance) {
                let (from, to) = (sector * SECTOR, ((sector + 1) * SECTOR).min(content.cached.len()));
                if from >= to {
                    continue;
                }
                left.resize(left.len().max(to), 0);
                left[from..to].copy_from_slice(&content.cached[from..to]);
            }
        }
        // A file that grew may have its new size without its new content.
        if random.random() {
            left.resize(left.len().max(content.cached.len()), 0);
        }
        left
    }
}

impl redb::StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.inner.content.lock().unwrap().cached.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let content = self.inner.content.lock().unwrap();
        let from = offset as usize;
        let found = content.cached.get(from..from + out.len());
        out.copy_from_slice(found.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.operate()?;
        let mut content = self.inner.content.lock().unwrap();
        content.cached.resize(len as usize, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.operate()?;
        let mut content = self.inner.content.lock().unwrap();
        content.durable = content.cached.clone();
        content.dirty.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut content = self.inner.content.lock().unwrap();
        let (from, to) = (offset as usize, offset as usize + data.len());
        let sectors = from / SECTOR..=(to - 1) / SECTOR;
        content.dirty.extend(sectors);
        content.cached[from..to].copy_from_slice(data);
        // The cut may come in the middle of a write: what of it is kept is for the cache to lose.
        self.operate()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_answered_is_lost_in_a_power_cut() {
    let seed = rand::rng().random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut image = Vec::new();
    let mut answered: BTreeMap<String, u64> = BTreeMap::new();
    let options = Options { history_revisions: 40, cache_bytes: 256 * 1024, ..Options::default() };
    let (mut cuts, mut writes) = (0, 0);
    for round in 0..steps(300) {
        if round % 50 == 0 {
            // A young file now and then: its first commits are a matter of their own.
            (image, answered) = (Vec::new(), BTreeMap::new());
        }
        let disk = Disk::new(image.clone(), random.random_range(1..600));
        match Embedded::open_backend(disk.clone(), &options) {
            Ok(store) => {
                compare(&store, &answered, round).await;
                let store = Arc::new(store);
                for (key, number) in write_until_cut(&store, &answered).await {
                    writes += number - answered.get(&key).copied().unwrap_or(0);
                    answered.insert(key, number);
                }
            }
            Err(error) => assert!(error.to_string().contains("power is cut"), "round {round}: {error}"),
        }
        cuts += 1;
        image = disk.after_power_cut(&mut random);
    }
    let store = Embedded::open_backend(Disk::new(image, u64::MAX), &options).unwrap();
    compare(&store, &answered, steps(300)).await;
    println!("{cuts} power cuts, {writes} answered writes, none lost");
}

/// Four writers count their keys up until the disk fails; what was answered.
async fn write_until_cut(store: &Arc<Embedded>, answered: &BTreeMap<String, u64>) -> Vec<(String, u64)> {
    let writers = (0..4).map(|writer| {
        let (store, key) = (store.clone(), format!("/key/{writer}"));
        let known = answered.get(&key).copied().unwrap_or(0);
        tokio::spawn(async move {
            let current = store.get(&key).await.ok().and_then(|got| got.kv);
            let mut revision = current.as_ref().map_or(0, |kv| kv.mod_revision);
            let mut number = current.map_or(known, |kv| number_of(&kv.value));
            let mut confirmed = known;
            loop {
                let mut value = (number + 1).to_string().into_bytes();
                value.resize(20 + (number as usize * 131) % 6000, b' ');
                match store.txn(Txn::update(key.as_str(), revision, value)).await {
                    Ok(TxnOutcome::Done { revision: now }) => revision = now,
                    Ok(conflict) => panic!("{conflict:?}"),
                    Err(_) => return (key, confirmed),
                }
                number += 1;
                confirmed = number;
            }
        })
    });
    futures::future::join_all(writers).await.into_iter().map(Result::unwrap).collect()
}

async fn compare(store: &Embedded, answered: &BTreeMap<String, u64>, round: usize) {
    let Ok(page) = store.range(Range::prefix("/key/")).await else {
        // The power was cut again while reading.
        return;
    };
    for (key, number) in answered {
        if *number == 0 {
            continue;
        }
        let kv = page.kvs.iter().find(|kv| *kv.key == **key);
        let found = kv.map_or(0, |kv| number_of(&kv.value));
        // Writes without an answer may have been kept, one per writer and cut.
        assert!(found >= *number, "round {round}: {key} was answered {number}, found {found}");
    }
}

fn number_of(value: &[u8]) -> u64 {
    std::str::from_utf8(value).unwrap().trim_end().parse().unwrap()
}

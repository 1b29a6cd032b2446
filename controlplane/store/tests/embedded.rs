//! What only the embedded engine promises: restart, snapshots, damage, bounds.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{done, events_until, steps};
use futures::StreamExt;
use rand::Rng;
use store::{Embedded, KeyValue, Options, Range, Store, StoreError, Txn, read_snapshot};

#[tokio::test]
async fn what_was_answered_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(dir.path()).unwrap();
    let first = done(store.txn(Txn::create("/a/x", "1")).await);
    assert_eq!(first, 2);
    let second = done(store.txn(Txn::update("/a/x", first, "2")).await);
    done(store.txn(Txn::create("/a/y", "1")).await);
    done(store.txn(Txn::delete("/a/y", 4)).await);
    drop(store);

    let store = Embedded::open(dir.path()).unwrap();
    assert_eq!(store.revision().await.unwrap(), 5);
    let page = store.range(Range::prefix("/a/")).await.unwrap();
    assert_eq!(page.kvs.len(), 1);
    assert_eq!((page.kvs[0].mod_revision, page.kvs[0].value.as_ref()), (second, b"2".as_ref()));
    let page = store.range(Range::prefix("/a/").at(4)).await.unwrap();
    assert_eq!(page.kvs.len(), 2, "history survives");
    let mut watch = store.watch("/a/", 3).await.unwrap();
    let batch = watch.next().await.unwrap().unwrap();
    assert_eq!(batch.events.len(), 2, "{batch:?}");
    assert_eq!(batch.events[1].previous.as_ref().unwrap().mod_revision, 4);
}

#[tokio::test]
async fn a_second_process_is_told_that_the_store_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let _store = Embedded::open(dir.path()).unwrap();
    assert!(matches!(Embedded::open(dir.path()), Err(StoreError::Locked { .. })));
}

#[tokio::test]
async fn expired_keys_are_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(dir.path()).unwrap();
    let mut watch = store.watch("/events/", 1).await.unwrap();
    done(store.txn(Txn::create("/events/a", "1").with_ttl(Duration::from_secs(1))).await);
    let put = watch.next().await.unwrap().unwrap();
    assert!(put.events[0].value.is_some());
    let deleted = tokio::time::timeout(Duration::from_secs(5), watch.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(deleted.events[0].value, None);
}

#[tokio::test]
async fn history_that_is_compacted_is_gone_and_the_rest_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { history_revisions: 100, ..Options::default() };
    let store = Embedded::open_with(dir.path(), &options).unwrap();
    let mut last = 0;
    for n in 0..600u64 {
        last = done(store.txn(Txn::update("/a", last, n.to_string())).await);
        if n % 10 == 0 {
            let revision = done(store.txn(Txn::create(format!("/gone/{n}"), "1")).await);
            last = done(store.txn(Txn::update("/a", last, n.to_string())).await);
            done(store.txn(Txn::delete(format!("/gone/{n}"), revision)).await);
        }
    }
    let now = store.revision().await.unwrap();
    assert!(matches!(store.range(Range::prefix("/").at(now - 200)).await, Err(StoreError::Compacted { .. })));
    assert!(matches!(store.watch("/", now - 200).await, Err(StoreError::Compacted { .. })));
    let mut watch = store.watch("/", now - 90).await.unwrap();
    assert_eq!(events_until(&mut watch, now).await.len(), 90);
    drop(store);
    let store = Embedded::open_with(dir.path(), &options).unwrap();
    let mut watch = store.watch("/", now - 90).await.unwrap();
    assert_eq!(events_until(&mut watch, now).await.len(), 90, "deletions among them, after reopening");
    assert_eq!(store.range(Range::prefix("/")).await.unwrap().kvs.len(), 1);
}

/// Values may be of megabytes: five hundred of them at once would be more than a small machine has.
#[tokio::test]
async fn a_past_of_large_values_is_read_in_small_pieces() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(dir.path()).unwrap();
    let large = vec![b'x'; 1024 * 1024];
    let mut last = 0;
    for _ in 0..6 {
        last = done(store.txn(Txn::update("/a", last, large.clone())).await);
    }
    let mut watch = store.watch("/", 1).await.unwrap();
    let mut seen = 0;
    while seen < 6 {
        let batch = watch.next().await.unwrap().unwrap();
        assert_eq!(batch.events.len(), 1, "each is as much as is read at once");
        seen += batch.events.len();
    }
    assert_eq!(store.revision().await.unwrap(), last);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_file_stays_in_proportion_to_what_lives() {
    const KEYS: u64 = 1000;
    const VALUE: usize = 1024;
    let dir = tempfile::tempdir().unwrap();
    let options = Options { history_revisions: 500, ..Options::default() };
    let store = Arc::new(Embedded::open_with(dir.path(), &options).unwrap());
    let updates = steps(30_000) as u64;
    let writers = (0..50).map(|writer| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut slowest = Duration::ZERO;
            let keys = KEYS / 50;
            let mut revisions = vec![0; keys as usize];
            for n in 0..updates / 50 {
                let own = (n % keys) as usize;
                let txn = Txn::update(format!("/k/{writer}/{own}"), revisions[own], vec![n as u8; VALUE]);
                let begin = Instant::now();
                revisions[own] = done(store.txn(txn).await);
                slowest = slowest.max(begin.elapsed());
            }
            slowest
        })
    });
    let begin = Instant::now();
    let slowest = futures::future::join_all(writers).await.into_iter().map(Result::unwrap).max().unwrap();
    let took = begin.elapsed();
    let live = KEYS * (VALUE as u64 + 60);
    let size = size_of_files(dir.path());
    println!("{updates} updates in {took:?}, slowest {slowest:?}: files of {size} for {live} live bytes");
    // Twice what lives and its history (half the live keys); a small store's garbage, and its
    // segments that are written and prepared.
    assert!(size < 2 * (live + live / 2) + 3 * 1024 * 1024, "{size} bytes for {live} live ones");
}

/// One large object, written again and again, would else fill the disk with its past in minutes.
#[tokio::test]
async fn the_past_of_a_large_value_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { history_bytes: 2 << 20, ..Options::default() };
    let store = Embedded::open_with(dir.path(), &options).unwrap();
    let mut last = 0;
    for n in 0..60u8 {
        last = done(store.txn(Txn::update("/a", last, vec![n; 256 << 10])).await);
    }
    assert!(matches!(store.watch("/", last - 12).await, Err(StoreError::Compacted { .. })));
    let mut watch = store.watch("/", last - 6).await.unwrap();
    assert_eq!(events_until(&mut watch, last).await.len(), 6);
    drop((watch, store));
    let size = size_of_files(dir.path());
    assert!(size < 10 << 20, "{size} bytes of 15 MiB that were written");
}

fn size_of_files(dir: &Path) -> u64 {
    std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
}

async fn filled(dir: &Path, keys: u64) -> (Embedded, Vec<KeyValue>) {
    let store = Embedded::open(dir).unwrap();
    let writes = (0..keys).map(|n| store.txn(Txn::create(format!("/registry/k/{n:06}"), vec![n as u8; 300])));
    let writes = futures::stream::iter(writes).buffer_unordered(1000);
    writes
        .for_each(|outcome| {
            done(outcome);
            std::future::ready(())
        })
        .await;
    let kvs = store.range(Range::prefix("/")).await.unwrap().kvs;
    (store, kvs)
}

#[tokio::test]
async fn a_large_store_opens_quickly() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = filled(dir.path(), 100_000).await;
    drop(store);
    let begin = Instant::now();
    let store = Embedded::open(dir.path()).unwrap();
    let took = begin.elapsed();
    println!("opening 100,000 keys took {took:?}");
    assert_eq!(store.range(Range::prefix("/").limit(1)).await.unwrap().count, 100_000);
    // An optimized build takes a fraction of this.
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_taken_while_writing_restores_one_moment() {
    let dir = tempfile::tempdir().unwrap();
    let (store, before) = filled(&dir.path().join("a"), 2000).await;
    done(store.txn(Txn::create("/events/e", "1").with_ttl(Duration::from_secs(3600))).await);
    let store = Arc::new(store);
    let writer = tokio::spawn({
        let store = store.clone();
        async move {
            for n in 0..500 {
                done(store.txn(Txn::create(format!("/registry/more/{n}"), "1")).await);
            }
        }
    });
    let file = dir.path().join("snapshot");
    let info = store.save_snapshot(&file).await.unwrap();
    writer.await.unwrap();
    let want = store.range(Range::prefix("/").at(info.revision)).await.unwrap().kvs;
    assert_eq!(info.keys, want.len() as u64);
    assert!(want.len() > before.len());

    let mut read = Vec::new();
    assert_eq!(read_snapshot(&file, |kv| read.push(kv)).unwrap(), info);
    assert_eq!(read, want);

    let restored = dir.path().join("b");
    assert_eq!(Embedded::restore(&file, &restored).unwrap(), info);
    let again = Embedded::restore(&file, &restored).unwrap_err();
    assert!(again.to_string().contains("existing store"), "{again}");
    let copy = Embedded::open(&restored).unwrap();
    let page = copy.range(Range::prefix("/")).await.unwrap();
    assert_eq!(page.kvs, want);
    // What clients saw after the snapshot was taken must not come again with other content.
    assert!(page.revision > store.revision().await.unwrap());
    assert!(matches!(copy.watch("/", info.revision + 1).await, Err(StoreError::Compacted { .. })));
    let next = done(copy.txn(Txn::create("/after", "1")).await);
    assert_eq!(next, page.revision + 1);
    drop(copy);
    assert_eq!(Embedded::open(&restored).unwrap().revision().await.unwrap(), next);
}

#[tokio::test]
async fn a_snapshot_for_sending_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let (store, want) = filled(&dir.path().join("a"), 50).await;
    let mut sent = Store::snapshot(&store).await.unwrap();
    let copy = dir.path().join("copy");
    std::io::copy(&mut sent, &mut std::fs::File::create(&copy).unwrap()).unwrap();
    let mut read = Vec::new();
    read_snapshot(&copy, |kv| read.push(kv)).unwrap();
    assert_eq!(read, want);
    let left = std::fs::read_dir(dir.path().join("a")).unwrap().map(|entry| entry.unwrap().file_name());
    let mut left: Vec<_> = left.collect();
    left.sort();
    assert_eq!(left, ["00000001.log", "lock", "manifest"], "the store's own files");
}

#[tokio::test]
async fn snapshots_that_are_sent_at_the_same_time_are_whole() {
    let dir = tempfile::tempdir().unwrap();
    let (store, want) = filled(&dir.path().join("a"), 2000).await;
    let sent = futures::future::join_all((0..16).map(|_| Store::snapshot(&store))).await;
    for sent in sent {
        let copy = dir.path().join("copy");
        std::io::copy(&mut sent.unwrap(), &mut std::fs::File::create(&copy).unwrap()).unwrap();
        let mut read = Vec::new();
        read_snapshot(&copy, |kv| read.push(kv)).unwrap();
        assert_eq!(read, want);
    }
}

#[tokio::test]
async fn a_damaged_snapshot_is_refused_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = filled(&dir.path().join("a"), 50).await;
    let file = dir.path().join("snapshot");
    store.save_snapshot(&file).await.unwrap();
    let good = std::fs::read(&file).unwrap();
    let mut random = rand::rng();
    for _ in 0..200 {
        let mut bad = good.clone();
        match random.random_range(0..3) {
            0 => bad.truncate(random.random_range(0..good.len())),
            _ => bad[random.random_range(0..good.len())] ^= 1 << random.random_range(0..8),
        }
        std::fs::write(&file, &bad).unwrap();
        match read_snapshot(&file, |_| {}) {
            Err(StoreError::Damaged { path, .. }) => assert_eq!(path, file),
            other => panic!("{other:?}"),
        }
    }
}

/// Flips one bit anywhere in any file of a closed store. Whatever the store then answers is right,
/// or it names that file as damaged: never a wrong or a missing key.
#[tokio::test]
async fn damage_is_noticed_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let want = cleaned(dir.path()).await;
    let mut random = rand::rng();
    let (mut noticed, mut harmless) = (0, 0);
    for _ in 0..steps(300) {
        let files = files(dir.path());
        let (file, good) = &files[random.random_range(0..files.len())];
        let mut bad = good.clone();
        let at = random.random_range(0..good.len());
        bad[at] ^= 1 << random.random_range(0..8);
        std::fs::write(file, &bad).unwrap();
        match read_all(dir.path()).await {
            Ok(kvs) => {
                assert!(kvs == want, "silently wrong after a flip in byte {at} of {file:?}");
                harmless += 1;
            }
            Err(StoreError::Damaged { path, .. }) => {
                assert_eq!(path, *file, "byte {at}");
                noticed += 1;
            }
            Err(other) => panic!("byte {at} of {file:?}: {other}"),
        }
        // Opening and closing changes files too.
        put_back(dir.path(), &files);
    }
    println!("{noticed} noticed, {harmless} in parts of the files that nothing needs");
    assert!(noticed > 0);
}

#[tokio::test]
async fn a_file_that_is_missing_or_cut_short_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let want = cleaned(dir.path()).await;
    let files = files(dir.path());
    assert!(files.len() > 3, "{} files", files.len());
    for (file, content) in &files {
        std::fs::remove_file(file).unwrap();
        match read_all(dir.path()).await {
            Err(StoreError::Damaged { path, detail }) => {
                assert_eq!(path, *file);
                assert!(detail.contains("missing"), "{detail}");
            }
            other => panic!("{file:?} removed: {:?}", other.map(|kvs| kvs.len())),
        }
        put_back(dir.path(), &files);
        for part in 0..10 {
            std::fs::write(file, &content[..content.len() * part / 10]).unwrap();
            match read_all(dir.path()).await {
                Err(StoreError::Damaged { path, .. }) => assert_eq!(path, *file),
                Ok(kvs) => assert!(kvs == want, "silently wrong with {part}/10 of {file:?}"),
                other => panic!("{file:?} cut: {other:?}"),
            }
            put_back(dir.path(), &files);
        }
    }
}

/// Files of another store, or of this one's past, are not taken for its own.
#[tokio::test]
async fn files_from_elsewhere_are_refused() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    cleaned(dir.path()).await;
    cleaned(other.path()).await;
    let own = files(dir.path());
    for (file, _) in &own {
        let foreign = other.path().join(file.file_name().unwrap());
        let Ok(content) = std::fs::read(foreign) else { continue };
        std::fs::write(file, content).unwrap();
        assert!(matches!(read_all(dir.path()).await, Err(StoreError::Damaged { .. })), "{file:?}");
        put_back(dir.path(), &own);
    }
}

/// A crash may leave part of a group behind the last one that was synced: nobody was told of it.
#[tokio::test]
async fn a_torn_end_is_cut() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = filled(dir.path(), 50).await;
    done(store.txn(Txn::create("/registry/last", "in a group of its own")).await);
    let want = store.range(Range::prefix("/")).await.unwrap().kvs;
    let killed = dir.path().join("killed");
    // As `kill -9` would leave it: not sealed.
    let unsealed: Vec<_> =
        files(dir.path()).into_iter().map(|(file, content)| (moved(&file, &killed), content)).collect();
    drop(store);
    std::fs::create_dir(&killed).unwrap();
    put_back(&killed, &unsealed);
    let log = killed.join("00000001.log");
    let good = std::fs::read(&log).unwrap();
    let end = good.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    let mut torn = good.clone();
    torn[end + 64..end + 64 + 300].fill(0xa5);
    std::fs::write(&log, &torn).unwrap();
    assert!(read_all(&killed).await.unwrap() == want);

    // The same in front of a group that is whole is damage, at a place that is told.
    put_back(&killed, &unsealed);
    let mut bad = good.clone();
    bad[200] ^= 1;
    std::fs::write(&log, &bad).unwrap();
    match read_all(&killed).await {
        Err(StoreError::Damaged { path, detail }) => {
            assert_eq!(path, log);
            assert!(detail.contains("byte 48"), "{detail}");
        }
        other => panic!("{:?}", other.map(|kvs| kvs.len())),
    }
}

#[tokio::test]
async fn the_file_of_an_earlier_version_is_refused_with_a_way_on() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("store.redb"), "redb").unwrap();
    let error = Embedded::open(dir.path()).unwrap_err();
    assert!(matches!(&error, StoreError::OtherFormat { path } if path.ends_with("store.redb")), "{error}");
    assert!(error.to_string().contains("skiff snapshot restore"), "{error}");
}

/// A closed store of several segments, the first of them dropped already. Returns what it holds.
async fn cleaned(dir: &Path) -> Vec<KeyValue> {
    let options = Options { segment_bytes: 256 * 1024, history_revisions: 50, ..Options::default() };
    let store = Embedded::open_with(dir, &options).unwrap();
    let mut revisions = [0; 400];
    for n in 0..3000usize {
        let own = (n * 7) % revisions.len();
        let txn = Txn::update(format!("/registry/k/{own:06}"), revisions[own], vec![n as u8; 1000]);
        revisions[own] = done(store.txn(txn).await);
    }
    done(store.txn(Txn::delete("/registry/k/000003", revisions[3])).await);
    let kvs = store.range(Range::prefix("/")).await.unwrap().kvs;
    drop(store);
    assert!(!dir.join("00000001.log").exists(), "nothing was cleaned");
    kvs
}

async fn read_all(dir: &Path) -> Result<Vec<KeyValue>, StoreError> {
    Ok(Embedded::open(dir)?.range(Range::prefix("/")).await?.kvs)
}

/// The files that have a content.
fn files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let paths = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let files = paths.filter(|path| path.is_file()).map(|path| (path.clone(), std::fs::read(path).unwrap()));
    files.filter(|(_, content)| !content.is_empty()).collect()
}

fn moved(file: &Path, to: &Path) -> PathBuf {
    to.join(file.file_name().unwrap())
}

fn put_back(dir: &Path, files: &[(PathBuf, Vec<u8>)]) {
    std::fs::remove_dir_all(dir).unwrap();
    std::fs::create_dir(dir).unwrap();
    files.iter().for_each(|(file, content)| std::fs::write(file, content).unwrap());
}

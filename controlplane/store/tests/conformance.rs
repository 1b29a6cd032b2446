//! What every store must do: one suite, run against the embedded engine and against etcd.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::sync::Arc;

use common::model::Model;
use common::{Bench, Engine, done, events_until, next, steps};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use store::{Got, Range, Store, StoreError, Txn, TxnOutcome};

for_both_engines!(
    writes_are_conditional,
    ranges,
    pages_of_one_revision,
    watches_deliver_what_happened,
    watches_start_in_the_past,
    progress_is_told_when_asked,
    compacted_and_future_revisions_are_refused,
    concurrent_increments_are_all_counted,
    every_watcher_sees_every_event_once_in_order,
    a_slow_watcher_ends_alone,
    large_and_empty_values,
    random_operations_match_the_model,
);

async fn writes_are_conditional(engine: Engine) {
    let bench = Bench::new(engine).await;
    let store = &bench.store;
    assert_eq!(store.healthy().await, Ok(()));
    assert_eq!(store.get("/a").await.unwrap(), Got { kv: None, revision: 1 });

    let created = done(store.txn(Txn::create("/a", "1")).await);
    assert_eq!(created, 2, "the first write is revision 2, as in etcd");
    let kv = store.get("/a").await.unwrap().kv.unwrap();
    assert_eq!((kv.key.as_ref(), kv.value.as_ref(), kv.mod_revision), ("/a", b"1".as_ref(), 2));

    let conflict = store.txn(Txn::create("/a", "2")).await.unwrap();
    assert_eq!(conflict, TxnOutcome::Conflict { current: Some(kv.clone()), revision: 2 });
    let conflict = store.txn(Txn::update("/a", 1, "2")).await.unwrap();
    assert_eq!(conflict, TxnOutcome::Conflict { current: Some(kv), revision: 2 });
    let conflict = store.txn(Txn::update("/b", 2, "2")).await.unwrap();
    assert_eq!(conflict, TxnOutcome::Conflict { current: None, revision: 2 });

    let updated = done(store.txn(Txn::update("/a", created, "2")).await);
    assert_eq!(updated, 3);
    assert!(matches!(store.txn(Txn::delete("/a", created)).await.unwrap(), TxnOutcome::Conflict { .. }));
    assert_eq!(done(store.txn(Txn::delete("/a", updated)).await), 4);
    assert_eq!(store.get("/a").await.unwrap(), Got { kv: None, revision: 4 });
    assert_eq!(done(store.txn(Txn::delete("/a", 0)).await), 4, "nothing to delete is no write");
    assert_eq!(done(store.txn(Txn::create("/a", "3")).await), 5, "a deleted key can be created again");
    assert_eq!(store.revision().await.unwrap(), 5);
}

async fn ranges(engine: Engine) {
    let bench = Bench::new(engine).await;
    let store = &bench.store;
    for key in ["/a/1", "/a/2", "/a/3", "/a0", "/b/1", "/a/10"] {
        done(store.txn(Txn::create(key, key)).await);
    }
    let keys = |page: &store::Page| page.kvs.iter().map(|kv| kv.key.to_string()).collect::<Vec<_>>();

    let page = store.range(Range::prefix("/a/")).await.unwrap();
    assert_eq!(keys(&page), ["/a/1", "/a/10", "/a/2", "/a/3"]);
    assert_eq!((page.count, page.revision, page.more()), (4, 7, false));
    assert!(page.kvs.iter().all(|kv| kv.value == kv.key.as_bytes()));

    let page = store.range(Range::prefix("/a/").limit(2)).await.unwrap();
    assert_eq!((keys(&page), page.count, page.more()), (vec!["/a/1".into(), "/a/10".into()], 4, true));
    let page = store.range(Range::prefix("/a/").starting_at("/a/10\0").limit(5)).await.unwrap();
    assert_eq!((keys(&page), page.count), (vec!["/a/2".into(), "/a/3".into()], 2));
    let page = store.range(Range::prefix("/").keys_only()).await.unwrap();
    assert_eq!(page.kvs.len(), 6);
    assert!(page.kvs.iter().all(|kv| kv.value.is_empty() && kv.mod_revision > 1));
    let page = store.range(Range::prefix("/c/")).await.unwrap();
    assert_eq!((page.kvs.len(), page.count), (0, 0));
    let page = store.range(Range::prefix("/a/").at(3)).await.unwrap();
    assert_eq!((keys(&page), page.revision), (vec!["/a/1".into(), "/a/2".into()], 3));
}

async fn pages_of_one_revision(engine: Engine) {
    let bench = Bench::new(engine).await;
    let store = &bench.store;
    let mut model = Model::default();
    for n in 0..30 {
        let txn = Txn::create(format!("/p/{n:02}"), "old");
        model.txn(&txn);
        done(store.txn(txn).await);
    }
    let first = store.range(Range::prefix("/p/").limit(7)).await.unwrap();
    let (at, mut kvs) = (first.revision, first.kvs);
    for n in 0..30 {
        // Meanwhile every key changes, goes, or comes.
        let key = format!("/p/{n:02}");
        let txn = if n % 3 == 0 { Txn::delete(key, n + 2) } else { Txn::update(key, n + 2, "new") };
        done(store.txn(txn).await);
        done(store.txn(Txn::create(format!("/p/{n:02}x"), "new")).await);
    }
    while kvs.len() < 30 {
        let start = format!("{}\0", kvs.last().unwrap().key);
        let page = store.range(Range::prefix("/p/").starting_at(start).limit(7).at(at)).await.unwrap();
        assert_eq!((page.revision, page.count), (at, 30 - kvs.len() as u64));
        kvs.extend(page.kvs);
    }
    assert_eq!(kvs, model.range(&Range::prefix("/p/")).kvs);
}

async fn watches_deliver_what_happened(engine: Engine) {
    let bench = Bench::new(engine).await;
    let store = &bench.store;
    let mut model = Model::default();
    let mut watch = store.watch("/w/", store.revision().await.unwrap()).await.unwrap();
    for txn in [
        Txn::create("/w/a", "1"),
        Txn::create("/x/a", "1"),
        Txn::update("/w/a", 2, "2"),
        Txn::delete("/w/a", 4),
        Txn::create("/w/a", "3"),
    ] {
        model.txn(&txn);
        done(store.txn(txn).await);
    }
    assert_eq!(events_until(&mut watch, 6).await, model.events("/w/", 1));
}

async fn watches_start_in_the_past(engine: Engine) {
    let bench = Bench::new(engine).await;
    let store = &bench.store;
    let mut model = Model::default();
    let mut write = async |n: u64| {
        let key = format!("/{}/{}", ["a", "b"][(n % 2) as usize], n % 5);
        let expected = model.get(&key).map_or(0, |kv| kv.mod_revision);
        let txn = if n % 7 == 6 { Txn::delete(key, expected) } else { Txn::update(key, expected, n.to_string()) };
        model.txn(&txn);
        done(store.txn(txn).await);
        model.clone()
    };
    let mut model = Model::default();
    for n in 0..1200 {
        model = write(n).await;
    }
    let now = model.revision();
    let mut watches = Vec::new();
    for after in [1, 2, 3, 600, now - 1, now] {
        watches.push((after, store.watch("/a/", after).await.unwrap()));
    }
    for n in 1200..1210 {
        model = write(n).await;
    }
    for (after, watch) in &mut watches {
        watch.progress().request();
        let events = events_until(watch, model.revision()).await;
        assert_eq!(events, model.events("/a/", *after), "after {after}");
    }
}

async fn progress_is_told_when_asked(engine: Engine) {
    let bench = Bench::new(engine).await;
    let store = &bench.store;
    let mut watch = store.watch("/quiet/", 1).await.unwrap();
    for round in 0..5u64 {
        let revision = done(store.txn(Txn::create(format!("/loud/{round}"), "1")).await);
        watch.progress().request();
        let batch = next(&mut watch).await.unwrap();
        assert!(batch.events.is_empty());
        assert!(batch.revision >= revision, "{} after a write at {revision}", batch.revision);
    }
}

async fn compacted_and_future_revisions_are_refused(engine: Engine) {
    let bench = Bench::new(engine).await;
    let store = &bench.store;
    for n in 0..10 {
        done(store.txn(Txn::update("/a", if n == 0 { 0 } else { n + 1 }, n.to_string())).await);
    }
    done(store.txn(Txn::create("/b", "1")).await);
    store.compact(8).await.unwrap();
    assert!(matches!(store.compact(8).await, Err(StoreError::Compacted { .. })));
    assert!(matches!(store.compact(99).await, Err(StoreError::FutureRevision { .. })));
    assert!(matches!(store.range(Range::prefix("/").at(7)).await, Err(StoreError::Compacted { requested: 7, .. })));
    assert!(matches!(store.range(Range::prefix("/").at(99)).await, Err(StoreError::FutureRevision { .. })));
    assert!(matches!(store.watch("/", 7).await, Err(StoreError::Compacted { .. })));
    let page = store.range(Range::prefix("/").at(8)).await.unwrap();
    assert_eq!(page.kvs[0].value.as_ref(), b"6", "the compacted revision itself stays readable");
    let mut watch = store.watch("/", 8).await.unwrap();
    let events = events_until(&mut watch, 12).await;
    assert_eq!(events.iter().map(|event| event.revision).collect::<Vec<_>>(), [9, 10, 11, 12]);
    assert_eq!(events[0].previous.as_ref().unwrap().value.as_ref(), b"6");
}

async fn concurrent_increments_are_all_counted(engine: Engine) {
    const WRITERS: u64 = 8;
    const EACH: u64 = 25;
    let bench = Bench::new(engine).await;
    let writers = (0..WRITERS).map(|_| {
        let store = bench.store.clone();
        tokio::spawn(async move {
            for _ in 0..EACH {
                increment(store.as_ref()).await;
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    let kv = bench.store.get("/counter").await.unwrap().kv.unwrap();
    assert_eq!(std::str::from_utf8(&kv.value).unwrap(), (WRITERS * EACH).to_string());
    assert_eq!(kv.mod_revision, 1 + WRITERS * EACH, "conflicts make no revisions");
}

/// Reads, adds one, writes; from what a conflict says when somebody else was faster.
async fn increment(store: &dyn Store) {
    let mut current = store.get("/counter").await.unwrap().kv;
    loop {
        let value: u64 = current.as_ref().map_or(0, |kv| std::str::from_utf8(&kv.value).unwrap().parse().unwrap());
        let expected = current.as_ref().map_or(0, |kv| kv.mod_revision);
        match store.txn(Txn::update("/counter", expected, (value + 1).to_string())).await.unwrap() {
            TxnOutcome::Done { .. } => return,
            TxnOutcome::Conflict { current: now, .. } => current = now,
        }
    }
}

async fn every_watcher_sees_every_event_once_in_order(engine: Engine) {
    const WRITERS: usize = 6;
    const EACH: usize = 80;
    let bench = Bench::new(engine).await;
    let store = bench.store.clone();
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut revision = 0;
                for n in 0..EACH {
                    let (key, value) = (format!("/k/{writer}"), n.to_string());
                    revision = done(store.txn(Txn::update(key, revision, value)).await);
                }
            })
        })
        .collect();
    // Watches that begin while it is written, from where the store then is.
    let mut watchers = Vec::new();
    for n in 0..12 {
        let after = if n == 0 { 1 } else { store.revision().await.unwrap() };
        let mut watch = store.watch("/k/", after).await.unwrap();
        let last = 1 + (WRITERS * EACH) as u64;
        watchers.push((after, tokio::spawn(async move { events_until(&mut watch, last).await })));
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    for writer in writers {
        writer.await.unwrap();
    }
    let last = store.revision().await.unwrap();
    assert_eq!(last, 1 + (WRITERS * EACH) as u64);
    for (after, watcher) in watchers {
        let events = if after == last { Vec::new() } else { watcher.await.unwrap() };
        let revisions: Vec<u64> = events.iter().map(|event| event.revision).collect();
        assert_eq!(revisions, (after + 1..=last).collect::<Vec<_>>());
    }
}

async fn a_slow_watcher_ends_alone(engine: Engine) {
    let bench = Bench::with_watch_limit(engine, 100).await;
    let store = &bench.store;
    let mut slow = store.watch("/s/", 1).await.unwrap();
    let mut other = store.watch("/t/", 1).await.unwrap();
    for n in 0..150 {
        done(store.txn(Txn::create(format!("/s/{n}"), "1")).await);
    }
    let revision = done(store.txn(Txn::create("/t/1", "1")).await);
    assert_eq!(events_until(&mut other, revision).await.len(), 1);
    let error = next(&mut slow).await.unwrap_err();
    assert!(matches!(error, StoreError::WatchTooSlow { .. }), "{error}");
    let mut again = store.watch("/s/", 1).await.unwrap();
    again.progress().request();
    assert_eq!(events_until(&mut again, revision).await.len(), 150, "it can begin again");
}

async fn large_and_empty_values(engine: Engine) {
    let bench = Bench::new(engine).await;
    let store = &bench.store;
    let large = vec![7u8; 1_400_000];
    done(store.txn(Txn::create("/large", large.clone())).await);
    done(store.txn(Txn::create("/empty", "")).await);
    assert_eq!(store.get("/large").await.unwrap().kv.unwrap().value, large);
    assert_eq!(store.get("/empty").await.unwrap().kv.unwrap().value.len(), 0);
    let mut watch = store.watch("/", 1).await.unwrap();
    let events = events_until(&mut watch, 3).await;
    assert_eq!(events[1].value.as_ref().map(|value| value.len()), Some(0), "an empty value is no deletion");
    let refused = store.txn(Txn::create("/huge", vec![0u8; 9_000_000])).await;
    assert!(matches!(refused, Err(StoreError::TooLarge { .. })), "{refused:?}");
}

async fn random_operations_match_the_model(engine: Engine) {
    let seed = rand::rng().random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let bench = Bench::new(engine).await;
    let store: &Arc<dyn Store> = &bench.store;
    let (mut model, mut compacted) = (Model::default(), 1);
    for step in 0..steps(1500) {
        match random.random_range(0..20) {
            0..12 => {
                let txn = random_txn(&mut random, &model);
                assert_eq!(store.txn(txn.clone()).await.unwrap(), model.txn(&txn), "step {step}: {txn:?}");
            }
            12..14 => {
                let key = random_key(&mut random);
                let want = Got { kv: model.get(&key), revision: model.revision() };
                assert_eq!(store.get(&key).await.unwrap(), want, "step {step}");
            }
            14..19 => {
                let range = random_range(&mut random, &model, compacted);
                assert_eq!(store.range(range.clone()).await.unwrap(), model.range(&range), "step {step}: {range:?}");
            }
            _ if step % 10 == 0 && compacted < model.revision() => {
                compacted = random.random_range(compacted + 1..=model.revision());
                store.compact(compacted).await.unwrap();
            }
            _ => {}
        }
    }
    for _ in 0..10 {
        let (after, prefix) =
            (random.random_range(compacted..=model.revision()), ["/", "/a/", "/b"][random.random_range(0..3)]);
        let mut watch = store.watch(prefix, after).await.unwrap();
        watch.progress().request();
        assert_eq!(events_until(&mut watch, model.revision()).await, model.events(prefix, after));
    }
}

fn random_key(random: &mut StdRng) -> String {
    let group = ["a/", "b/", "b", "c/d/"][random.random_range(0..4)];
    format!("/{group}{}", random.random_range(0..12))
}

/// Often the right expectation, sometimes a wrong one.
fn random_txn(random: &mut StdRng, model: &Model) -> Txn {
    let key = random_key(random);
    let expected = match random.random_range(0..6) {
        0 => random.random_range(0..=model.revision()),
        _ => model.get(&key).map_or(0, |kv| kv.mod_revision),
    };
    match random.random_range(0..4) {
        0 => Txn::delete(key, expected),
        _ => {
            let length = random.random_range(0..200);
            Txn::update(key, expected, vec![random.random(); length])
        }
    }
}

fn random_range(random: &mut StdRng, model: &Model, compacted: u64) -> Range {
    let mut range = Range::prefix(["/", "/a/", "/b", "/none/", ""][random.random_range(0..5)]);
    if random.random() {
        range = range.starting_at(random_key(random));
    }
    if random.random() {
        range = range.limit(random.random_range(1..10));
    }
    if random.random() && compacted > 1 {
        range = range.at(random.random_range(compacted..=model.revision()));
    }
    if random.random_range(0..4) == 0 { range.keys_only() } else { range }
}

//! What only etcd's clients have to bear: of three members one is killed, and writes and watches go on;
//! one connection is shared by all.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{EtcdProcess, connect, done, events_until, next, steps};
use futures::StreamExt;
use store::{Etcd, EtcdOptions, KeyValue, Store, StoreError, Txn, TxnOutcome};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_loss_of_any_member_is_survived() {
    let dir = tempfile::tempdir().unwrap();
    let mut members = EtcdProcess::cluster(&dir, 3);
    let options =
        EtcdOptions { compact_every: None, ..EtcdOptions::new(members.iter().map(|member| member.url.clone())) };
    let store = Arc::new(connect(&options, &dir).await);
    let mut watch = store.watch("/k/", 1).await.unwrap();
    let writes = steps(200) as u64;
    let writer = tokio::spawn(count_up(store.clone(), writes));
    tokio::time::sleep(Duration::from_millis(300)).await;
    let refused = Store::snapshot(store.as_ref()).await.unwrap_err().to_string();
    assert!(refused.contains("etcdctl --endpoints=http://127.0.0.1:"), "{refused}");
    // The one everything went through so far.
    members[0].kill();

    let confirmed = tokio::time::timeout(Duration::from_secs(60), writer).await.unwrap().unwrap();
    let revision = store.get("/k/1").await.unwrap().kv.unwrap().mod_revision;
    let events = tokio::time::timeout(Duration::from_secs(30), events_until(&mut watch, revision)).await.unwrap();
    let revisions: Vec<u64> = events.iter().map(|event| event.revision).collect();
    assert!(revisions.windows(2).all(|pair| pair[0] < pair[1]), "once each, in order: {revisions:?}");
    assert!(confirmed.iter().all(|revision| revisions.contains(revision)), "every answered write was seen");
    assert_eq!(events.last().unwrap().value.as_ref().unwrap(), &writes.to_string());
}

/// What lies unread in them counts on the connection that all calls go through.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_that_nobody_reads_hold_up_no_call() {
    const WRITES: usize = 2500;
    const WATCHES: usize = 8;
    let dir = tempfile::tempdir().unwrap();
    let etcd = EtcdProcess::start(&dir);
    let store = connect(&EtcdOptions { compact_every: None, ..EtcdOptions::new([etcd.url.clone()]) }, &dir).await;
    let writes = (0..WRITES).map(|n| store.txn(Txn::create(format!("/k/{n}"), vec![0u8; 8192])));
    let writes: Vec<_> = futures::stream::iter(writes).buffer_unordered(50).collect().await;
    for outcome in writes {
        done(outcome);
    }
    // etcd sends a thousand revisions at once: of each watch there is more to come.
    let mut watches = Vec::new();
    for _ in 0..WATCHES {
        let mut watch = store.watch("/k/", 1).await.unwrap();
        assert!(next(&mut watch).await.unwrap().events.len() < WRITES);
        watches.push(watch);
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let write = store.txn(Txn::create("/other", "1"));
    let answer = tokio::time::timeout(Duration::from_secs(5), write).await;
    done(answer.expect("the connection goes on"));
}

/// Counts a key up, reading it again when a write has no answer. The revisions that were answered.
async fn count_up(store: Arc<Etcd>, to: u64) -> Vec<u64> {
    let deadline = Instant::now() + Duration::from_secs(50);
    let (mut number, mut revision, mut confirmed) = (0, 0, Vec::new());
    while number < to {
        assert!(Instant::now() < deadline, "stuck at {number}");
        match store.txn(Txn::update("/k/1", revision, (number + 1).to_string())).await {
            Ok(TxnOutcome::Done { revision: now }) => {
                (number, revision) = (number + 1, now);
                confirmed.push(now);
            }
            // A write without an answer may have been made, also after the key was read again.
            Ok(TxnOutcome::Conflict { current, .. }) => (number, revision) = standing(current),
            Err(StoreError::Unavailable { .. }) => {
                let Ok(got) = store.get("/k/1").await else { continue };
                (number, revision) = standing(got.kv);
            }
            Err(error) => panic!("{error}"),
        }
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    confirmed
}

fn standing(kv: Option<KeyValue>) -> (u64, u64) {
    kv.map_or((0, 0), |kv| (std::str::from_utf8(&kv.value).unwrap().parse().unwrap(), kv.mod_revision))
}

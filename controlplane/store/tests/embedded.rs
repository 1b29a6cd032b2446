//! What only the embedded engine promises: restart, snapshots, damage, bounds.

use std::time::Duration;

use futures::StreamExt;
use store::{Embedded, Range, Store, StoreError, Txn, TxnOutcome};

fn done(outcome: TxnOutcome) -> u64 {
    match outcome {
        TxnOutcome::Done { revision } => revision,
        TxnOutcome::Conflict { .. } => panic!("conflict: {outcome:?}"),
    }
}

#[tokio::test]
async fn what_was_answered_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(dir.path()).unwrap();
    let first = done(store.txn(Txn::create("/a/x", "1")).await.unwrap());
    assert_eq!(first, 2);
    let second = done(store.txn(Txn::update("/a/x", first, "2")).await.unwrap());
    done(store.txn(Txn::create("/a/y", "1")).await.unwrap());
    done(store.txn(Txn::delete("/a/y", 4)).await.unwrap());
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
async fn a_second_process_is_told_who_holds_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let _store = Embedded::open(dir.path()).unwrap();
    assert!(matches!(Embedded::open(dir.path()), Err(StoreError::Locked { .. })));
}

#[tokio::test]
async fn expired_keys_are_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(dir.path()).unwrap();
    let mut watch = store.watch("/events/", 1).await.unwrap();
    done(store.txn(Txn::create("/events/a", "1").with_ttl(Duration::from_secs(1))).await.unwrap());
    let put = watch.next().await.unwrap().unwrap();
    assert!(put.events[0].value.is_some());
    let deleted = tokio::time::timeout(Duration::from_secs(5), watch.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(deleted.events[0].value, None);
}

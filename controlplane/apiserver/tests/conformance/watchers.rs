//! Watches as clients see them: label selectors, restarts from a version, one order for all.

use std::time::Duration;

use apiserver::testing::Cluster;
use futures::{AsyncBufReadExt, StreamExt, TryStreamExt};
use http_body_util::BodyExt;
use serde_json::{Value, json};

use super::{MAPS, MERGE, delete, get, map, patch, post};

type Lines = futures::stream::BoxStream<'static, Value>;

async fn watch(client: &kube::Client, query: &str) -> Lines {
    let request = http::Request::get(format!("{MAPS}?watch=1&{query}")).body(Vec::new()).unwrap();
    let lines = client.request_stream(request).await.unwrap().lines();
    lines.map_ok(|line| serde_json::from_str(&line).unwrap()).map(Result::unwrap).boxed()
}

/// Type, name and data of the next event.
async fn next(events: &mut Lines) -> (String, String, Value) {
    let event = tokio::time::timeout(Duration::from_secs(10), events.next()).await.expect("an event").unwrap();
    let object = &event["object"];
    (
        event["type"].as_str().unwrap().to_owned(),
        object["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
        object["data"]["mutation"].clone(),
    )
}

async fn quiet(events: &mut Lines) {
    let event = tokio::time::timeout(Duration::from_millis(200), events.next()).await;
    assert!(event.is_err(), "{event:?}");
}

fn labelled(name: &str, label: &str) -> Value {
    let mut object = map(name, json!({}));
    object["metadata"]["labels"] = json!({"watch": label});
    object
}

fn event(kind: &str, name: &str, mutation: Value) -> (String, String, Value) {
    (kind.to_owned(), name.to_owned(), mutation)
}

#[tokio::test]
async fn add_update_and_delete_reach_who_selected_them() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let mut a = watch(&client, "labelSelector=watch%3Da").await;
    let mut b = watch(&client, "labelSelector=watch%3Db").await;
    let mut both = watch(&client, "labelSelector=watch+in+(a,b)").await;
    post(&client, MAPS, &labelled("a", "a")).await.expect(201);
    for events in [&mut a, &mut both] {
        assert_eq!(next(events).await, event("ADDED", "a", Value::Null));
    }
    for mutation in ["1", "2"] {
        patch(&client, &format!("{MAPS}/a"), MERGE, &json!({"data": {"mutation": mutation}})).await.expect(200);
        for events in [&mut a, &mut both] {
            assert_eq!(next(events).await, event("MODIFIED", "a", json!(mutation)));
        }
    }
    delete(&client, &format!("{MAPS}/a")).await.expect(200);
    for events in [&mut a, &mut both] {
        assert_eq!(next(events).await, event("DELETED", "a", json!("2")));
    }
    quiet(&mut b).await;
    post(&client, MAPS, &labelled("b", "b")).await.expect(201);
    assert_eq!(next(&mut b).await.0, "ADDED");
    assert_eq!(next(&mut both).await, event("ADDED", "b", Value::Null));
    quiet(&mut a).await;
}

#[tokio::test]
async fn an_object_that_leaves_the_selection_is_deleted_and_comes_back_added() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let mut events = watch(&client, "labelSelector=watch%3Da").await;
    post(&client, MAPS, &labelled("x", "a")).await.expect(201);
    assert_eq!(next(&mut events).await, event("ADDED", "x", Value::Null));
    patch(&client, &format!("{MAPS}/x"), MERGE, &json!({"data": {"mutation": "1"}})).await.expect(200);
    assert_eq!(next(&mut events).await, event("MODIFIED", "x", json!("1")));
    patch(&client, &format!("{MAPS}/x"), MERGE, &json!({"metadata": {"labels": {"watch": "b"}}})).await.expect(200);
    assert_eq!(next(&mut events).await, event("DELETED", "x", json!("1")));
    patch(&client, &format!("{MAPS}/x"), MERGE, &json!({"data": {"mutation": "2"}})).await.expect(200);
    quiet(&mut events).await;
    patch(&client, &format!("{MAPS}/x"), MERGE, &json!({"metadata": {"labels": {"watch": "a"}}})).await.expect(200);
    assert_eq!(next(&mut events).await, event("ADDED", "x", json!("2")));
    patch(&client, &format!("{MAPS}/x"), MERGE, &json!({"data": {"mutation": "3"}})).await.expect(200);
    assert_eq!(next(&mut events).await, event("MODIFIED", "x", json!("3")));
    delete(&client, &format!("{MAPS}/x")).await.expect(200);
    assert_eq!(next(&mut events).await, event("DELETED", "x", json!("3")));
}

#[tokio::test]
async fn a_watch_starts_at_the_version_that_a_write_answered() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    post(&client, MAPS, &map("x", json!({}))).await.expect(201);
    let first = patch(&client, &format!("{MAPS}/x"), MERGE, &json!({"data": {"mutation": "1"}})).await.expect(200);
    patch(&client, &format!("{MAPS}/x"), MERGE, &json!({"data": {"mutation": "2"}})).await.expect(200);
    delete(&client, &format!("{MAPS}/x")).await.expect(200);
    let version = first["metadata"]["resourceVersion"].as_str().unwrap();
    let mut events = watch(&client, &format!("resourceVersion={version}")).await;
    assert_eq!(next(&mut events).await, event("MODIFIED", "x", json!("2")));
    assert_eq!(next(&mut events).await, event("DELETED", "x", json!("2")));
    quiet(&mut events).await;
}

#[tokio::test]
async fn watches_from_every_version_see_one_order() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let mut all = watch(&client, "resourceVersion=0").await;
    let writer = client.clone();
    let writes = tokio::spawn(async move {
        for index in 0..60 {
            let name = format!("m-{}", index % 7);
            match index % 3 {
                0 => drop(post(&writer, MAPS, &map(&name, json!({"mutation": index.to_string()}))).await),
                1 => drop(
                    patch(&writer, &format!("{MAPS}/{name}"), MERGE, &json!({"data": {"mutation": index.to_string()}}))
                        .await,
                ),
                _ => drop(delete(&writer, &format!("{MAPS}/{name}")).await),
            }
        }
        post(&writer, MAPS, &map("the-end", json!({}))).await.expect(201);
    });
    let mut versions = Vec::new();
    loop {
        let event = tokio::time::timeout(Duration::from_secs(30), all.next()).await.unwrap().unwrap();
        versions.push(event["object"]["metadata"]["resourceVersion"].as_str().unwrap().to_owned());
        if event["object"]["metadata"]["name"] == "the-end" {
            break;
        }
    }
    writes.await.unwrap();
    assert!(versions.len() > 20, "{}", versions.len());
    for start in [0, versions.len() / 3, versions.len() - 2] {
        let mut events = watch(&client, &format!("resourceVersion={}", versions[start])).await;
        for version in &versions[start + 1..] {
            let event = tokio::time::timeout(Duration::from_secs(10), events.next()).await.unwrap().unwrap();
            assert_eq!(event["object"]["metadata"]["resourceVersion"], **version);
        }
    }
}

#[tokio::test]
async fn a_watch_of_an_old_or_future_version_ends_with_an_error_event() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let made = post(&client, MAPS, &map("x", json!({}))).await.expect(201);
    for value in ["1", "2"] {
        patch(&client, &format!("{MAPS}/x"), MERGE, &json!({"data": {"mutation": value}})).await.expect(200);
    }
    let last = get(&client, MAPS).await.expect(200)["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    // A streaming list ends its initial events with a marked bookmark.
    let mut events =
        watch(&client, "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true").await;
    assert_eq!(next(&mut events).await, event("ADDED", "x", json!("2")));
    let mark = events.next().await.unwrap();
    assert_eq!((&mark["type"], &mark["object"]["kind"]), (&json!("BOOKMARK"), &json!("ConfigMap")));
    assert_eq!(mark["object"]["metadata"]["annotations"], json!({"k8s.io/initial-events-end": "true"}));
    assert_eq!(mark["object"]["metadata"]["resourceVersion"], *last);
    let mut ended = watch(&client, &format!("timeoutSeconds=1&resourceVersion={last}")).await;
    assert!(tokio::time::timeout(Duration::from_secs(10), ended.next()).await.expect("it ends in time").is_none());
    let paths = [
        "/api/v1/watch/namespaces/default/configmaps",
        "/api/v1/watch/namespaces/default/configmaps/x",
        "/api/v1/watch/configmaps",
    ];
    for path in paths {
        let answer = get(&client, &format!("{path}?timeoutSeconds=1&resourceVersion=0")).await;
        assert!(answer.bytes.starts_with(b"{\"type\":\"ADDED\""), "{path}");
    }
    let _ = made;
}

/// What waits for a client that reads slowly is held once for all of them, and not copied for each.
#[tokio::test]
async fn many_changes_come_in_small_pieces() {
    const UPDATES: usize = 20;
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let made = post(&client, MAPS, &map("x", json!({}))).await.expect(201);
    let version = made["metadata"]["resourceVersion"].as_str().unwrap();
    let blob = "x".repeat(100 << 10);
    for index in 0..UPDATES {
        let change = json!({"data": {"blob": format!("{index}{blob}")}});
        patch(&client, &format!("{MAPS}/x"), MERGE, &change).await.expect(200);
    }
    let path = format!("{MAPS}?watch=1&fieldSelector=metadata.name%3Dx&resourceVersion={version}");
    let request = http::Request::get(path).body(kube::client::Body::empty()).unwrap();
    let mut body = client.send(request).await.unwrap().into_body();
    let mut seen = 0;
    while seen < UPDATES {
        let frame = tokio::time::timeout(Duration::from_secs(10), body.frame()).await.expect("a piece");
        let piece = frame.unwrap().unwrap().into_data().unwrap();
        assert!(piece.len() < 200 << 10, "{} bytes at once", piece.len());
        seen += piece.iter().filter(|byte| **byte == b'\n').count();
    }
}

/// What was not read for so long that the server's memory no longer holds it comes from the store.
#[tokio::test]
async fn a_watcher_that_was_left_far_behind_misses_nothing() {
    const UPDATES: usize = 120;
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let mut events = watch(&client, "fieldSelector=metadata.name%3Dx").await;
    post(&client, MAPS, &map("x", json!({}))).await.expect(201);
    let blob = "x".repeat(300 << 10);
    for index in 0..UPDATES {
        let change = json!({"data": {"mutation": index.to_string(), "blob": format!("{index}{blob}")}});
        patch(&client, &format!("{MAPS}/x"), MERGE, &change).await.expect(200);
    }
    assert_eq!(next(&mut events).await, event("ADDED", "x", Value::Null));
    for index in 0..UPDATES {
        assert_eq!(next(&mut events).await, event("MODIFIED", "x", json!(index.to_string())));
    }
    quiet(&mut events).await;
}

/// The same where writes go on meanwhile, objects go and come, and a second client goes on from a version
/// that the server's memory has left behind.
#[tokio::test]
async fn a_watcher_catches_up_while_writes_go_on() {
    const UPDATES: usize = 240;
    const BEFORE: usize = 130;
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let path = format!("{MAPS}/x");
    let mut slow = watch(&client, "fieldSelector=metadata.name%3Dx").await;
    let made = post(&client, MAPS, &map("x", json!({}))).await.expect(201);
    let first = made["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let blob = "x".repeat(300 << 10);
    let mut expected = Vec::new();
    let write = async |index: usize, expected: &mut Vec<_>| {
        let change = json!({"data": {"mutation": index.to_string(), "blob": format!("{index}{blob}")}});
        patch(&client, &path, MERGE, &change).await.expect(200);
        expected.push(event("MODIFIED", "x", json!(index.to_string())));
        if index % 10 == 9 {
            delete(&client, &path).await.expect(200);
            expected.push(event("DELETED", "x", json!(index.to_string())));
            post(&client, MAPS, &map("x", json!({}))).await.expect(201);
            expected.push(event("ADDED", "x", Value::Null));
        }
    };
    for index in 0..BEFORE {
        write(index, &mut expected).await;
    }
    let mut late = watch(&client, &format!("fieldSelector=metadata.name%3Dx&resourceVersion={first}")).await;
    assert_eq!(next(&mut slow).await, event("ADDED", "x", Value::Null));
    let (mut from_slow, mut from_late) = (Vec::new(), Vec::new());
    for index in BEFORE..UPDATES {
        write(index, &mut expected).await;
        from_slow.push(next(&mut slow).await);
        from_late.push(next(&mut late).await);
    }
    while from_slow.len() < expected.len() {
        from_slow.push(next(&mut slow).await);
        from_late.push(next(&mut late).await);
    }
    assert_eq!(from_slow, expected);
    assert_eq!(from_late, expected);
    quiet(&mut slow).await;
    quiet(&mut late).await;
}

/// Ages in the rows of a watch are those of the moment: what is made while it lasts is no "<invalid>" old.
#[tokio::test]
async fn the_rows_of_a_watch_do_not_stand_still() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let request = http::Request::get(format!("{MAPS}?watch=1&fieldSelector=metadata.name%3Dx"))
        .header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
        .body(Vec::new())
        .unwrap();
    let mut lines = client.request_stream(request).await.unwrap().lines();
    let second = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let begun = second();
    // Creation times are whole seconds: only in the next one is an object younger than the watch.
    while second() == begun {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    post(&client, MAPS, &map("x", json!({}))).await.expect(201);
    let line = tokio::time::timeout(Duration::from_secs(10), lines.next()).await.expect("an event").unwrap().unwrap();
    let event: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(event["object"]["rows"][0]["cells"], json!(["x", 0, "0s"]), "{event}");
}

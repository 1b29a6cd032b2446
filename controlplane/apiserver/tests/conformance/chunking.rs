//! Lists in chunks: one revision from the first to the last, and what an old token is worth.

use std::collections::HashSet;

use apiserver::testing::Cluster;
use serde_json::{Value, json};

use super::{FOOS, MAPS, define, definition, get, map, post};

fn names(list: &Value) -> Vec<String> {
    list["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_list_in_chunks_is_one_list() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    for index in 0..40 {
        post(&client, MAPS, &map(&format!("m-{index:02}"), json!({}))).await.expect(201);
    }
    for limit in [1_usize, 7, 39, 40, 41] {
        let (mut seen, mut token, mut version) = (Vec::new(), String::new(), None);
        loop {
            let list = get(&client, &format!("{MAPS}?limit={limit}&continue={token}")).await.expect(200);
            let metadata = &list["metadata"];
            let wanted = version.get_or_insert_with(|| metadata["resourceVersion"].clone());
            assert_eq!(*wanted, metadata["resourceVersion"]);
            seen.extend(names(&list));
            // What is made in between does not belong to it.
            post(&client, MAPS, &map(&format!("late-{limit}-{}", seen.len()), json!({}))).await.expect(201);
            token = metadata["continue"].as_str().unwrap_or_default().to_owned();
            let rest = metadata["remainingItemCount"].as_u64().unwrap_or_default() as usize;
            if token.is_empty() {
                assert_eq!(rest, 0);
                break;
            }
            assert!(rest > 0 && list["items"].as_array().unwrap().len() == limit);
        }
        assert_eq!(seen.iter().collect::<HashSet<_>>().len(), seen.len(), "each once");
        assert_eq!(seen.iter().filter(|name| name.starts_with("m-")).count(), 40);
        assert!(!seen.iter().any(|name| name.starts_with(&format!("late-{limit}-"))));
    }
    let selected = get(&client, &format!("{MAPS}?limit=1&fieldSelector=metadata.name!%3Dx")).await.expect(200);
    assert!(selected["metadata"]["continue"].is_string() && selected["metadata"]["remainingItemCount"].is_null());
}

#[tokio::test]
async fn a_whole_list_of_custom_resources_says_that_nothing_is_left() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    define(&client, &definition(json!({"type": "object"}))).await;
    let list = get(&client, FOOS).await.expect(200);
    assert_eq!(list["metadata"]["continue"], "", "{list}");
    let maps = get(&client, MAPS).await.expect(200);
    assert!(maps["metadata"].get("continue").is_none(), "{maps}");
}

/// What does not match is not told apart before it is looked at: there is a token as long as there
/// is anything more, and the last page may be empty. From the cache and from the store alike.
#[tokio::test]
async fn what_is_left_may_not_match() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    for (name, kind) in [("m-0", "a"), ("m-1", "b"), ("m-2", "b"), ("m-3", "c")] {
        let mut labelled = map(name, json!({}));
        labelled["metadata"]["labels"] = json!({"kind": kind});
        post(&client, MAPS, &labelled).await.expect(201);
    }
    let revision = get(&client, MAPS).await.expect(200)["metadata"]["resourceVersion"].clone();
    let exact = format!("&resourceVersionMatch=Exact&resourceVersion={}", revision.as_str().unwrap());
    for at in ["", exact.as_str()] {
        for (kind, first, goes_on) in
            [("a", &["m-0"][..], true), ("b", &["m-1"], true), ("c", &["m-3"], false), ("d", &[], false)]
        {
            let path = format!("{MAPS}?limit=1&labelSelector=kind%3D{kind}");
            let page = get(&client, &format!("{path}{at}")).await.expect(200);
            assert_eq!(names(&page), first, "{kind}");
            let token = page["metadata"]["continue"].as_str().unwrap_or_default();
            assert_eq!(!token.is_empty(), goes_on, "{kind} {page}");
            assert!(page["metadata"]["remainingItemCount"].is_null());
            if kind == "a" {
                let rest = get(&client, &format!("{path}&continue={token}")).await.expect(200);
                assert!(names(&rest).is_empty() && rest["metadata"]["continue"].is_null(), "{rest}");
            }
        }
    }
}

#[tokio::test]
async fn an_expired_token_is_gone_and_offers_an_inconsistent_rest() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    for index in 0..10 {
        post(&client, MAPS, &map(&format!("m-{index}"), json!({}))).await.expect(201);
    }
    let first = get(&client, &format!("{MAPS}?limit=3")).await.expect(200);
    assert_eq!(names(&first), ["m-0", "m-1", "m-2"]);
    post(&client, MAPS, &map("m-99", json!({}))).await.expect(201);
    cluster.compact().await;
    let token = first["metadata"]["continue"].as_str().unwrap();
    let gone = get(&client, &format!("{MAPS}?limit=3&continue={token}")).await;
    gone.refused(410, "Expired", "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.");
    let rest = gone.value["metadata"]["continue"].as_str().expect("a token to go on with");
    let list = get(&client, &format!("{MAPS}?limit=3&continue={rest}")).await.expect(200);
    assert_eq!(names(&list), ["m-3", "m-4", "m-5"]);
    let next = list["metadata"]["continue"].as_str().unwrap();
    let list = get(&client, &format!("{MAPS}?continue={next}")).await.expect(200);
    assert_eq!(names(&list), ["m-6", "m-7", "m-8", "m-9", "m-99"], "what came later shows up");
    let exact = first["metadata"]["resourceVersion"].as_str().unwrap();
    let old = get(&client, &format!("{MAPS}?resourceVersion={exact}&resourceVersionMatch=Exact")).await;
    old.refused(410, "Expired", "The resourceVersion for the provided list is too old.");
    let ahead = get(&client, &format!("{MAPS}?resourceVersion=99999999")).await;
    assert_eq!((ahead.code, &ahead.value["reason"]), (504, &json!("Timeout")));
    assert_eq!(ahead.value["details"]["causes"][0]["reason"], "ResourceVersionTooLarge");
}

//! What clients without a library see: pages that are no `Status`, errors in their own media type, time
//! limits, health checks and the server's pages about itself.

use apiserver::testing::Cluster;
use serde_json::{Value, json};

use super::{Answer, FOOS, JSON, MAPS, define, definition, get, map, post, request};

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const NO_RESOURCE: &str = "the server could not find the requested resource";

fn text(answer: &Answer) -> &str {
    std::str::from_utf8(&answer.bytes).unwrap()
}

#[tokio::test]
async fn what_nobody_serves_is_a_page_and_what_an_api_lacks_a_status() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    define(&client, &definition(json!({"type": "object"}))).await;
    for path in [
        "/nothing",
        "/apis/none",
        "/apis/none/v1",
        "/apis/none/v1/things",
        "/apis//v1/pods",
        "/healthz/none",
        "/openapi/v3/apis/none/v1",
        "/logs/",
        "/apis/example.com/v1/bars",
        "/apis/example.com/v2/foos",
    ] {
        let answer = get(&client, path).await;
        assert_eq!((answer.code, text(&answer)), (404, "404 page not found\n"), "{path}");
        assert_eq!(answer.header("content-type"), "text/plain; charset=utf-8", "{path}");
        assert_eq!(answer.header("x-content-type-options"), "nosniff", "{path}");
    }
    for path in ["/api/v2", "/api/v1/nothing", "/apis/apps/v9/deployments", "/apis/apps/v1/nothing/x/y"] {
        get(&client, path).await.refused(404, "NotFound", NO_RESOURCE);
    }
    get(&client, &format!("{FOOS}/f/nothing")).await.refused(404, "NotFound", "foos.example.com \"f\" not found");
    let wrong = request(&client, "POST", &format!("{FOOS}/f/status"), &[("content-type", JSON)], b"{}").await;
    let why = "create is not supported on resources of kind \"foos.example.com\"";
    wrong.refused(405, "MethodNotAllowed", why);
}

#[tokio::test]
async fn errors_come_in_the_representation_that_was_asked_for() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let path = format!("{MAPS}/absent");
    let ask = async |headers: &[(&str, &str)]| request(&client, "GET", &path, headers, b"").await;
    let message = "configmaps \"absent\" not found";
    let answer = ask(&[("accept", "application/vnd.kubernetes.protobuf,application/json")]).await;
    assert_eq!((answer.code, answer.header("content-type")), (404, PROTOBUF));
    assert_eq!(apiserver::protobuf::decode(&answer.bytes).unwrap()["message"], message);
    let answer = ask(&[("accept", "application/yaml")]).await;
    assert_eq!(answer.header("content-type"), "application/yaml");
    assert!(text(&answer).contains("reason: NotFound"), "{}", text(&answer));
    let answer = ask(&[("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")]).await;
    answer.refused(404, "NotFound", message);
    assert_eq!(answer.header("content-type"), JSON);
    let answer = ask(&[("user-agent", "curl/8")]).await;
    assert!(text(&answer).contains("\n  \"reason\": \"NotFound\""), "{}", text(&answer));
    let answer = ask(&[("accept", "text/html")]).await;
    assert_eq!((answer.code, answer.header("content-type")), (406, JSON));
    assert!(text(&answer).contains("\n  \"reason\": \"NotAcceptable\""), "{}", text(&answer));
}

#[tokio::test]
async fn json_ends_with_a_newline_unless_it_is_indented() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let made = post(&client, MAPS, &map("a", json!({}))).await;
    assert!(text(&made).ends_with("}\n"), "{}", text(&made));
    let partial = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io";
    for (path, accept) in [
        (format!("{MAPS}/a"), JSON),
        (format!("{MAPS}/a"), partial),
        (MAPS.to_owned(), JSON),
        (MAPS.to_owned(), "application/json;as=Table;v=v1;g=meta.k8s.io"),
        (format!("{MAPS}/absent"), JSON),
        ("/apis".to_owned(), JSON),
    ] {
        for (agent, indented) in [("", false), ("curl/8", true)] {
            let answer = request(&client, "GET", &path, &[("accept", accept), ("user-agent", agent)], b"").await;
            assert_eq!(!text(&answer).ends_with('\n'), indented, "{path} {accept} {}", text(&answer));
        }
    }
}

#[tokio::test]
async fn requests_may_set_themselves_a_time_limit() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    for timeout in ["", "10s", "0", "-5s", "1000h"] {
        get(&client, &format!("{MAPS}?timeout={timeout}")).await.expect(200);
    }
    get(&client, &format!("{MAPS}?timeout=soon")).await.refused(
        400,
        "BadRequest",
        "invalid timeout specified in the request URL - time: invalid duration \"soon\"",
    );
    // What runs long has none.
    get(&client, &format!("{MAPS}?watch=1&timeoutSeconds=1&timeout=soon")).await.expect(200);
    // The cache waits three seconds for a version that is yet to come.
    let late = get(&client, &format!("{MAPS}?resourceVersion=99999999&timeout=50ms")).await;
    late.refused(504, "Timeout", "Timeout: request did not complete within the allotted timeout");
}

#[tokio::test]
async fn health_is_reported_check_by_check() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    for path in ["/healthz", "/livez", "/readyz", "/livez/ping", "/readyz/shutdown", "/healthz/etcd"] {
        let answer = get(&client, path).await;
        assert_eq!((answer.code, text(&answer)), (200, "ok"), "{path}");
        assert_eq!(answer.header("content-type"), "text/plain; charset=utf-8");
    }
    let ready = get(&client, "/readyz?verbose&exclude=etcd&exclude=none&exclude=also").await;
    let report = text(&ready);
    assert!(report.starts_with("[+]ping ok\n[+]log ok\n[+]etcd excluded: ok\n[+]etcd-readiness ok\n"), "{report}");
    let end = "[+]shutdown ok\nwarn: some health checks cannot be excluded: no matches for \"also\",\"none\"\nreadyz check passed\n";
    assert!(report.ends_with(end), "{report}");
    // Whether traffic should come here says nothing about being alive.
    let alive = get(&client, "/livez?verbose").await;
    let report = text(&alive);
    assert!(!report.contains("shutdown") && !report.contains("etcd-readiness"), "{report}");
    assert!(report.contains("[+]poststarthook/rbac/bootstrap-roles ok\n"), "{report}");
    assert_eq!(get(&client, "/livez/shutdown").await.code, 404);
    let levels = get(&client, "/metrics/slis").await;
    for line in [
        "kubernetes_healthcheck{name=\"ping\",type=\"livez\"} 1\n",
        "kubernetes_healthchecks_total{name=\"ping\",status=\"success\",type=\"livez\"} 2\n",
    ] {
        assert!(text(&levels).contains(line), "{}", text(&levels));
    }
}

#[tokio::test]
async fn the_server_tells_of_itself() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let root = get(&client, "/").await;
    assert!(text(&root).starts_with("{\n  \"paths\": [\n    \"/.well-known/openid-configuration\",\n    \"/api\","));
    let root = root.expect(200);
    let paths: Vec<&str> = root["paths"].as_array().unwrap().iter().map(|path| path.as_str().unwrap()).collect();
    assert!(paths.is_sorted());
    for path in ["/apis/apps", "/apis/apps/v1", "/livez/etcd", "/readyz/shutdown", "/statusz", "/openapi/v3"] {
        assert!(paths.contains(&path), "{path}");
    }
    let version = get(&client, "/version").await;
    assert!(text(&version).contains("\n  \"major\": \"1\",\n"), "{}", text(&version));
    for (path, first, line) in [
        ("/statusz", "\napiserver statusz\nWarning: ", "\nBinary version: 1.37\n"),
        ("/flagz", "\napiserver flagz\nWarning: ", "\nsecure-port=6443\n"),
    ] {
        let answer = get(&client, path).await;
        let page = text(&answer);
        assert!(answer.code == 200 && page.starts_with(first) && page.contains(line), "{page}");
    }
    let object = |kind: &str, version: &str| format!("application/json;as={kind};g=config.k8s.io;v={version}");
    let ask = async |path: &str, accept: &str| request(&client, "GET", path, &[("accept", accept)], b"").await;
    let status = ask("/statusz", &object("Statusz", "v1beta1")).await;
    assert!(status.warnings().is_empty());
    let status = status.expect(200);
    assert_eq!(
        (&status["apiVersion"], &status["metadata"], &status["emulationVersion"]),
        (&json!("config.k8s.io/v1beta1"), &json!({"name": "apiserver"}), &json!("1.37"))
    );
    assert!(status["paths"].as_array().unwrap().contains(&json!("/livez")), "{status}");
    let flags = ask("/flagz", &object("Flagz", "v1alpha1")).await;
    let old = "299 - \"This version of the flagz endpoint is deprecated. Please use a newer version.\"";
    assert_eq!(flags.warnings(), [old]);
    assert_eq!(flags.expect(200)["flags"]["max-requests-inflight"], "400");
    ask("/flagz", JSON).await.refused(
        406,
        "NotAcceptable",
        "only the following media types are accepted: application/json, application/yaml, text/plain",
    );
}

#[tokio::test]
async fn documents_under_their_hash_may_be_kept() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let index = get(&client, "/openapi/v3").await.expect(200);
    let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap();
    let document = get(&client, url).await;
    assert_eq!((document.code, document.header("cache-control")), (200, "public, immutable"));
    assert!(document.header("expires").ends_with(" GMT"), "{}", document.header("expires"));
    let tag = document.header("etag").to_owned();
    let same = request(&client, "GET", url, &[("if-none-match", &tag)], b"").await;
    assert_eq!((same.code, same.bytes.len()), (304, 0));
    let moved = get(&client, "/openapi/v3/apis/apps/v1?hash=OLD").await;
    assert_eq!((moved.code, moved.header("location")), (301, url));
}

#[tokio::test]
async fn versions_of_lists_are_read_as_upstream_reads_them() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    for name in ["a", "b", "c"] {
        post(&client, MAPS, &map(name, json!({}))).await.expect(201);
    }
    let why = |text: &str, why: &str| {
        format!("resourceVersion: Invalid value: \"{text}\": strconv.ParseUint: parsing \"{text}\": {why}")
    };
    for (text, fault) in
        [("x", "invalid syntax"), ("-1", "invalid syntax"), ("99999999999999999999", "value out of range")]
    {
        let list = get(&client, &format!("{MAPS}?resourceVersion={text}")).await;
        list.refused(400, "BadRequest", &format!("invalid resource version: {}", why(text, fault)));
        for path in [format!("{MAPS}/a?resourceVersion={text}"), format!("{MAPS}?watch=1&resourceVersion={text}")] {
            get(&client, &path).await.refused(400, "BadRequest", &why(text, fault));
        }
    }
    let late = get(&client, &format!("{MAPS}?resourceVersion=99999999&resourceVersionMatch=Exact")).await;
    assert_eq!((late.code, late.header("retry-after")), (504, "1"));
    assert_eq!(late.value["details"]["causes"][0]["reason"], "ResourceVersionTooLarge");
    // Whatever is held is given at once.
    let names = async |query: &str| -> (Vec<Value>, Value) {
        let mut list = get(&client, &format!("{MAPS}?{query}")).await.expect(200);
        let names = list["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].clone()).collect();
        (names, list["metadata"].take())
    };
    let (all, metadata) = names("resourceVersion=0&limit=1").await;
    assert_eq!((all, &metadata["continue"]), (vec![json!("a"), json!("b"), json!("c")], &Value::Null));
    let (some, metadata) = names("limit=1").await;
    assert_eq!((some, &metadata["remainingItemCount"]), (vec![json!("a")], &json!(2)));
    let token = metadata["continue"].as_str().unwrap();
    get(&client, &format!("{MAPS}?continue={token}&resourceVersion=7")).await.refused(
        400,
        "BadRequest",
        "specifying resource version is not allowed when using continue",
    );
    assert_eq!(names(&format!("limit=1&continue={token}")).await.0, [json!("b")]);
    assert_eq!(names(&format!("resourceVersion=0&limit=1&continue={token}")).await.0, [json!("b"), json!("c")]);
}

/// The events of a watch that ends by itself.
async fn events(client: &kube::Client, path: &str) -> Vec<Value> {
    let answer = get(client, path).await;
    assert_eq!(answer.code, 200, "{}", text(&answer));
    text(&answer).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn watches_mark_the_end_of_what_there_was_for_those_who_take_bookmarks() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    post(&client, MAPS, &map("a", json!({}))).await.expect(201);
    let marked = |events: &[Value]| -> Vec<String> {
        let shown = |event: &Value| match event["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"] {
            Value::Null => event["type"].as_str().unwrap().to_owned(),
            _ => "END".to_owned(),
        };
        events.iter().map(shown).collect()
    };
    let bookmarks = "allowWatchBookmarks=true";
    let initial = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan";
    for (query, wanted) in [
        ("".to_owned(), vec!["ADDED"]),
        (initial.to_owned(), vec!["ADDED"]),
        (bookmarks.to_owned(), vec!["ADDED", "END", "BOOKMARK"]),
        (format!("{bookmarks}&resourceVersion=0"), vec!["ADDED", "END", "BOOKMARK"]),
        (format!("{bookmarks}&{initial}"), vec!["ADDED", "END", "BOOKMARK"]),
        (
            format!("{bookmarks}&resourceVersion=0&sendInitialEvents=false&resourceVersionMatch=NotOlderThan"),
            vec!["BOOKMARK"],
        ),
    ] {
        let seen =
            events(&client, &format!("{MAPS}?watch=1&timeoutSeconds=1&fieldSelector=metadata.name=a&{query}")).await;
        assert_eq!(marked(&seen), wanted, "{query}");
    }
    // A version that is yet to come is waited for, and then told by an event.
    let late = events(&client, &format!("{MAPS}?watch=1&{bookmarks}&{initial}&resourceVersion=99999999")).await;
    let status = &late[0]["object"];
    assert_eq!((late.len(), &late[0]["type"], &status["code"]), (1, &json!("ERROR"), &json!(504)));
    assert!(
        status["message"].as_str().unwrap().starts_with("Timeout: Too large resource version: 99999999, current: ")
    );
    assert_eq!(
        status["details"],
        json!({"causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}], "retryAfterSeconds": 1})
    );
}

#[tokio::test]
async fn the_old_path_of_watching_names_one_object_or_all() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    for name in ["a", "b"] {
        post(&client, MAPS, &map(name, json!({}))).await.expect(201);
    }
    let path = "/api/v1/watch/namespaces/default/configmaps";
    let names = async |path: &str| -> Vec<Value> {
        let events = events(&client, &format!("{path}?timeoutSeconds=1")).await;
        events.iter().map(|event| event["object"]["metadata"]["name"].clone()).collect()
    };
    assert_eq!(names(path).await, [json!("a"), json!("b")]);
    assert_eq!(names(&format!("{path}/b")).await, [json!("b")]);
    get(&client, &format!("{path}/b?fieldSelector=metadata.name%3Da")).await.refused(
        400,
        "BadRequest",
        "fieldSelector metadata.name doesn't match requested name",
    );
}

use proto::v1beta1::{DeviceSpec, Mount};
use serde_json::json;

use super::*;

const GPU: &str = "example.com/gpu";

fn device(id: &str, health: &str) -> Device {
    Device { id: id.to_owned(), health: health.to_owned(), topology: None }
}

fn ids(names: &[&str]) -> Ids {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// Two devices that work, one that does not.
fn ledger() -> (Ledger, Arc<Plugin>) {
    let mut ledger = Ledger::default();
    let plugin = Arc::new(Plugin::detached());
    ledger.register(GPU, plugin.clone());
    ledger.update(GPU, &plugin, &[device("a", "Healthy"), device("b", "Healthy"), device("c", "Unhealthy")]);
    (ledger, plugin)
}

fn wish(uid: &str, container: &str, count: usize, after: &[&str]) -> Wish {
    Wish {
        uid: uid.to_owned(),
        container: container.to_owned(),
        resource: GPU.to_owned(),
        count,
        after: after.iter().map(|name| (*name).to_owned()).collect(),
    }
}

fn take(ledger: &mut Ledger, wish: &Wish) -> Result<Ids, String> {
    let Some(choice) = ledger.choose(wish)? else { return Ok(Ids::new()) };
    let chosen = choice.settle(&[]);
    ledger.give(wish, chosen.clone(), Given::default());
    Ok(chosen)
}

fn count(ledger: &Ledger) -> (u64, u64) {
    let counts = ledger.counts();
    (counts[0].all, counts[0].healthy)
}

#[tokio::test]
async fn devices_are_given_once_and_come_back() {
    let (mut ledger, _) = ledger();
    assert_eq!(take(&mut ledger, &wish("p", "c", 1, &[])), Ok(ids(&["a"])));
    assert_eq!(take(&mut ledger, &wish("p", "c", 1, &[])), Ok(ids(&[])), "it has them");
    let unavailable = "requested number of devices unavailable for example.com/gpu. Requested: 2, Available: 1";
    assert_eq!(take(&mut ledger, &wish("q", "c", 2, &[])), Err(unavailable.to_owned()));
    let changed = "pod \"p\" container \"c\" changed request for resource \"example.com/gpu\" from 1 to 2";
    assert_eq!(take(&mut ledger, &wish("p", "c", 2, &[])), Err(changed.to_owned()));
    ledger.release(|uid| uid == "p");
    assert_eq!(take(&mut ledger, &wish("q", "c", 2, &[])), Ok(ids(&["a", "b"])));
    let unknown = Wish { resource: "example.com/none".to_owned(), ..wish("q", "c", 1, &[]) };
    assert_eq!(ledger.choose(&unknown), Err("cannot allocate unregistered device example.com/none".to_owned()));
}

#[tokio::test]
async fn what_init_containers_had_is_had_again() {
    let (mut ledger, _) = ledger();
    assert_eq!(take(&mut ledger, &wish("p", "init", 1, &[])), Ok(ids(&["a"])));
    assert_eq!(take(&mut ledger, &wish("p", "one", 1, &["init"])), Ok(ids(&["a"])));
    assert_eq!(take(&mut ledger, &wish("p", "two", 1, &["init"])), Ok(ids(&["b"])), "the first has it by now");
    assert!(take(&mut ledger, &wish("p", "three", 1, &["init"])).is_err());
}

#[tokio::test]
async fn a_plugin_that_is_gone_leaves_devices_that_do_not_work() {
    let (mut ledger, plugin) = ledger();
    take(&mut ledger, &wish("p", "c", 1, &[])).unwrap();
    assert_eq!(count(&ledger), (3, 2));
    let first_loss = ledger.lose(GPU, &plugin).unwrap();
    assert_eq!(count(&ledger), (3, 0));
    let none = "no healthy devices present; cannot allocate unhealthy devices example.com/gpu";
    assert_eq!(ledger.choose(&wish("q", "c", 1, &[])), Err(none.to_owned()));

    let second = Arc::new(Plugin::detached());
    ledger.register(GPU, second.clone());
    ledger.update(GPU, &second, &[device("b", "Healthy")]);
    ledger.update(GPU, &plugin, &[]);
    assert_eq!(ledger.lose(GPU, &plugin), None, "the first was replaced: its word does not count");
    assert_eq!(count(&ledger), (1, 1));
    let loss = ledger.lose(GPU, &second).unwrap();
    ledger.remove(GPU, first_loss);
    assert_eq!(count(&ledger), (1, 0), "it came back after that loss, and went anew");
    ledger.remove(GPU, loss);
    assert_eq!(count(&ledger), (0, 0));
    ledger.register(GPU, second.clone());
    ledger.remove(GPU, loss);
    ledger.update(GPU, &second, &[device("b", "Healthy")]);
    assert_eq!(count(&ledger), (1, 1), "it came back in time");
}

#[tokio::test]
async fn a_pod_that_was_admitted_keeps_its_devices_whatever_becomes_of_them() {
    let (mut ledger, plugin) = ledger();
    let key = |uid: &str| (uid.to_owned(), "c".to_owned(), GPU.to_owned());
    let own = wish("own", "c", 1, &[]);
    assert_eq!(take(&mut ledger, &own), Ok(ids(&["a"])));
    ledger.restore(key("before"), ids(&["b"]), Given::default());
    ledger.restore(key("sick"), ids(&["c"]), Given::default());
    assert_eq!(ledger.choose(&wish("before", "c", 1, &[])), Ok(None));
    let sick = "previously allocated devices are no longer healthy; cannot allocate unhealthy devices example.com/gpu";
    assert_eq!(ledger.choose(&wish("sick", "c", 1, &[])), Err(sick.to_owned()));
    ledger.confirm("before");
    ledger.update(GPU, &plugin, &[device("a", "Unhealthy"), device("b", "Unhealthy"), device("d", "Healthy")]);
    assert_eq!(ledger.choose(&own), Ok(None), "its sandbox is only made anew");
    assert_eq!(ledger.choose(&wish("before", "c", 1, &[])), Ok(None));
    ledger.lose(GPU, &plugin);
    assert_eq!(ledger.choose(&own), Ok(None));
    ledger.take_back(&own);
    assert!(ledger.choose(&own).is_err());
}

#[test]
fn the_plugins_preference_counts_where_it_can() {
    let choice = Choice { size: 3, included: ids(&["x"]), available: ids(&["a", "b", "c"]) };
    let preferred = ["c".to_owned(), "nonsense".to_owned()];
    assert_eq!(choice.settle(&preferred), ids(&["a", "c", "x"]));
    assert!(!choice.is_settled() && Choice { size: 1, ..choice }.is_settled());
}

#[tokio::test]
async fn containers_wish_what_plugins_have() {
    let (mut ledger, _) = ledger();
    let limits = |name: &str, count: &str| json!({"name": name, "resources": {"limits": {"cpu": "1", GPU: count, "example.com/other": "1"}}});
    let pod: Pod = serde_json::from_value(json!({"metadata": {"uid": "p"}, "spec": {
        "initContainers": [limits("init", "1"), {"name": "side", "restartPolicy": "Always", "resources": {"limits": {GPU: "1"}}}],
        "containers": [limits("main", "2"), limits("idle", "0")]}}))
    .unwrap();
    let found = wishes(&pod, &ledger);
    assert_eq!(found, [wish("p", "init", 1, &[]), wish("p", "side", 1, &["init"]), wish("p", "main", 2, &["init"])]);
    assert!(wishes(&pod, &Ledger::default()).is_empty());
    ledger.expect("example.com/other");
    assert_eq!(wishes(&pod, &ledger).len(), 6);
}

#[test]
fn what_plugins_give_is_put_together() {
    let given = |value: &str| Given {
        envs: [("A".to_owned(), value.to_owned())].into(),
        mounts: vec![Mount { container_path: "/m".to_owned(), host_path: value.to_owned(), read_only: true }],
        devices: vec![DeviceSpec { container_path: "/dev/x".to_owned(), ..Default::default() }],
        ..Default::default()
    };
    let mut all = Given::default();
    add(&mut all, given("1"));
    add(&mut all, given("2"));
    assert_eq!((all.envs["A"].as_str(), all.mounts.len(), all.devices.len()), ("1", 1, 1));
}

#[tokio::test]
async fn the_health_of_what_a_pod_has_is_told() {
    let (mut ledger, plugin) = ledger();
    take(&mut ledger, &wish("p", "c", 2, &[])).unwrap();
    let health = |ledger: &Ledger| -> Vec<(String, String)> {
        let devices = ledger.health("p").remove("c").unwrap().remove(0);
        assert_eq!(devices.name, GPU);
        devices.resources.into_iter().flatten().map(|one| (one.resource_id, one.health.unwrap_or_default())).collect()
    };
    let pairs = |a: &str, b: &str| [("a", a), ("b", b)].map(|(id, health)| (id.to_owned(), health.to_owned()));
    assert_eq!(health(&ledger), pairs("Healthy", "Healthy"));
    ledger.update(GPU, &plugin, &[device("b", "Unhealthy")]);
    assert_eq!(health(&ledger), pairs("Unknown", "Unhealthy"));
    assert!(ledger.health("other").is_empty());
}

//! Tables of allocations; facts are those of upstream's tests (`allocatortesting`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use expressions::device::Cache;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::resource::v1::{AllocationResult, DeviceClass, DeviceTaintRule, ResourceClaim, ResourceSlice};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{Failure, Inventory, Stock, Taken, Task, allocate, results};

fn from<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

/// A cluster with a node `n1` (label `zone: a`) and classes `any` and `fast`.
#[derive(Default)]
struct Bench {
    slices: Vec<Arc<ResourceSlice>>,
    rules: Vec<Arc<DeviceTaintRule>>,
    taken: Taken,
    deadline: Option<Instant>,
}

impl Bench {
    fn new(slices: &[Value]) -> Self {
        Self { slices: slices.iter().cloned().map(|slice| Arc::new(from(slice))).collect(), ..Self::default() }
    }

    /// Some claim has these devices.
    fn with_taken(mut self, devices: Value) -> Self {
        self.taken.add_allocation(&from(json!({"devices": {"results": devices}})));
        self
    }

    fn with_rule(mut self, spec: Value) -> Self {
        self.rules.push(Arc::new(from(json!({"metadata": {}, "spec": spec}))));
        self
    }

    fn allocate(&self, claims: &[Value]) -> Result<Option<Vec<AllocationResult>>, Failure> {
        let fast = "device.attributes['d.io'].?fast.orValue(false)";
        let classes: BTreeMap<&str, Arc<DeviceClass>> = [
            ("any", json!({"metadata": {"name": "any"}, "spec": {}})),
            (
                "fast",
                json!({"metadata": {"name": "fast"}, "spec": {"selectors": [{"cel": {"expression": fast}}],
                "config": [{"opaque": {"driver": "d.io", "parameters": {"mode": "turbo"}}}]}}),
            ),
        ]
        .map(|(name, class)| (name, Arc::new(from(class))))
        .into();
        let node: Node = from(json!({"metadata": {"name": "n1", "labels": {"zone": "a"}}}));
        let inventory = Inventory::new(Arc::new(Stock::new(self.slices.clone(), &self.rules)), &self.taken);
        let task = Task {
            inventory: &inventory,
            classes: &|name| classes.get(name).cloned(),
            selectors: &Cache::default(),
            node: &node,
            deadline: self.deadline,
        };
        let claims: Vec<Arc<ResourceClaim>> = claims.iter().cloned().map(|claim| Arc::new(from(claim))).collect();
        allocate(&task, &claims)
    }

    /// `request=pool/device` of each result, claim by claim; or what went wrong.
    fn given(&self, claims: &[Value]) -> String {
        let text = |allocation: &AllocationResult| {
            let each = results(allocation).iter();
            let each = each.map(|result| format!("{}={}/{}", result.request, result.pool, result.device));
            each.collect::<Vec<_>>().join(" ")
        };
        match self.allocate(claims) {
            Ok(Some(all)) => all.iter().map(text).collect::<Vec<_>>().join("; "),
            Ok(None) => "none".to_owned(),
            Err(Failure::Broken(why) | Failure::Node(why)) => why,
            Err(Failure::Timeout) => "timeout".to_owned(),
        }
    }
}

/// A slice of `d.io` on `n1`: the only one of its pool, changed by merging `spec`.
fn slice(pool: &str, spec: Value) -> Value {
    let mut slice = json!({"metadata": {"name": pool}, "spec": {"driver": "d.io", "nodeName": "n1",
        "pool": {"name": pool, "generation": 1, "resourceSliceCount": 1}}});
    for (key, value) in spec.as_object().unwrap() {
        match value {
            Value::Object(fields) if slice["spec"][key].is_object() => {
                fields.iter().for_each(|(name, field)| slice["spec"][key][name] = field.clone());
            }
            _ => slice["spec"][key] = value.clone(),
        }
    }
    if slice["metadata"]["name"] != slice["spec"]["name"] && !spec["name"].is_null() {
        slice["metadata"]["name"] = spec["name"].clone();
    }
    slice
}

fn devices(names: &[&str]) -> Value {
    names.iter().map(|name| json!({"name": name})).collect()
}

fn claim(devices: Value) -> Value {
    json!({"metadata": {"name": "c", "namespace": "ns", "uid": "u"}, "spec": {"devices": devices}})
}

fn request(name: &str, extra: Value) -> Value {
    let mut exactly = json!({"deviceClassName": "any"});
    extra.as_object().unwrap().iter().for_each(|(key, value)| exactly[key] = value.clone());
    json!({"name": name, "exactly": exactly})
}

fn asking(requests: Value) -> Value {
    claim(json!({ "requests": requests }))
}

fn one() -> Value {
    asking(json!([request("r", json!({}))]))
}

#[test]
fn pools_and_their_nodes() {
    let ab = || devices(&["a", "b"]);
    let zone = |zone: &str| json!({"nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "In", "values": [zone]}]}]});
    for (what, slices, want) in [
        ("local", vec![slice("p", json!({"devices": ab()}))], "r=p/a"),
        ("of another node", vec![slice("p", json!({"devices": ab(), "nodeName": "n2"}))], "none"),
        ("everywhere", vec![slice("p", json!({"devices": ab(), "nodeName": null, "allNodes": true}))], "r=p/a"),
        ("selected", vec![slice("p", json!({"devices": ab(), "nodeName": null, "nodeSelector": zone("a")}))], "r=p/a"),
        (
            "not selected",
            vec![slice("p", json!({"devices": ab(), "nodeName": null, "nodeSelector": zone("b")}))],
            "none",
        ),
        (
            "each device says",
            vec![slice(
                "p",
                json!({"nodeName": null, "perDeviceNodeSelection": true, "devices": [
                {"name": "a", "nodeName": "n2"}, {"name": "b", "nodeSelector": zone("a")}]}),
            )],
            "r=p/b",
        ),
        ("incomplete", vec![slice("p", json!({"devices": ab(), "pool": {"resourceSliceCount": 2}}))], "none"),
        (
            "an older generation",
            vec![
                slice("p", json!({"devices": devices(&["old"]), "name": "p-1"})),
                slice("p", json!({"devices": devices(&["new"]), "name": "p-2", "pool": {"generation": 2}})),
            ],
            "r=p/new",
        ),
        (
            "twins",
            vec![slice("p", json!({"devices": devices(&["a", "a"])}))],
            "invalid resource pools were encountered",
        ),
        (
            "another pool is sound",
            vec![slice("p", json!({"devices": devices(&["a", "a"])})), slice("q", json!({"devices": ab()}))],
            "r=q/a",
        ),
        (
            "those to be made ready come last",
            vec![
                slice(
                    "p",
                    json!({"devices": [{"name": "a", "bindingConditions": ["x"], "bindingFailureConditions": ["y"]}]}),
                ),
                slice("q", json!({"devices": ab()})),
            ],
            "r=q/a",
        ),
    ] {
        assert_eq!(Bench::new(&slices).given(&[one()]), want, "{what}");
    }
}

#[test]
fn requests_are_met() {
    let pool = || {
        slice(
            "p",
            json!({"devices": [
                {"name": "a", "attributes": {"size": {"int": 1}, "row": {"string": "x"}}},
                {"name": "b", "attributes": {"size": {"int": 2}, "fast": {"bool": true}, "row": {"string": "y"}}},
                {"name": "c", "attributes": {"size": {"int": 3}, "row": {"string": "x"}}},
            ]}),
        )
    };
    let cel = |expression: &str| json!([{"cel": {"expression": expression}}]);
    let big = json!({"selectors": cel("device.attributes['d.io'].size >= 2")});
    for (what, claims, want) in [
        ("by class", vec![asking(json!([request("r", json!({"deviceClassName": "fast"}))]))], "r=p/b"),
        ("by selector", vec![asking(json!([request("r", big.clone())]))], "r=p/b"),
        (
            "one step back",
            vec![asking(json!([
                request("x", json!({})),
                request("y", json!({"selectors": cel("device.attributes['d.io'].size == 1")}))
            ]))],
            "x=p/b y=p/a",
        ),
        (
            "claims too",
            vec![
                one(),
                asking(json!([request("y", json!({"selectors": cel("device.attributes['d.io'].size == 1")}))])),
            ],
            "r=p/b; y=p/a",
        ),
        ("a count", vec![asking(json!([request("r", json!({"count": 2}))]))], "r=p/a r=p/b"),
        ("too many", vec![asking(json!([request("r", json!({"count": 4}))]))], "none"),
        (
            "all",
            vec![asking(json!([request("r", json!({"allocationMode": "All", "selectors": big["selectors"]}))]))],
            "r=p/b r=p/c",
        ),
        (
            "all of none",
            vec![asking(json!([request("r", json!({"allocationMode": "All", "selectors": cel("false")}))]))],
            "none",
        ),
        (
            "more than a claim holds",
            vec![asking(json!([request("r", json!({"count": 33}))]))],
            "claim ns/c: number of requested devices 33 exceeds the claim limit of 32",
        ),
        (
            "unknown class",
            vec![asking(json!([request("r", json!({"deviceClassName": "none"}))]))],
            "claim ns/c, request r: could not retrieve device class none: deviceclass.resource.k8s.io \"none\" not found",
        ),
        (
            "a failing selector",
            vec![asking(json!([request("r", json!({"selectors": cel("device.attributes['d.io'].none == 1")}))]))],
            "claim ns/c: selector #0 on device d.io/p/a: CEL runtime error: no such key: none. consider using CEL optional \
             chaining (.? followed by orValue()) or guarding the check with has() for optional fields",
        ),
        (
            "alternatives",
            vec![asking(json!([{"name": "r", "firstAvailable": [
                {"name": "many", "deviceClassName": "any", "count": 4}, {"name": "quick", "deviceClassName": "fast"}]}]))],
            "r/quick=p/b",
        ),
        (
            "the same value",
            vec![claim(
                json!({"requests": [request("r", json!({"count": 2}))], "constraints": [{"matchAttribute": "d.io/row"}]}),
            )],
            "r=p/a r=p/c",
        ),
        (
            "no two the same",
            vec![claim(
                json!({"requests": [request("r", json!({"count": 2}))], "constraints": [{"requests": ["r"], "distinctAttribute": "d.io/row"}]}),
            )],
            "r=p/a r=p/b",
        ),
        (
            "an attribute that only one has",
            vec![claim(
                json!({"requests": [request("r", json!({"count": 2}))], "constraints": [{"matchAttribute": "d.io/fast"}]}),
            )],
            "none",
        ),
        (
            "all, but a constraint is in the way",
            vec![claim(
                json!({"requests": [request("r", json!({"allocationMode": "All"}))], "constraints": [{"matchAttribute": "d.io/row"}]}),
            )],
            "claim ns/c, request r: cannot add device d.io/p/b because a claim constraint would not be satisfied",
        ),
    ] {
        assert_eq!(Bench::new(&[pool()]).given(&claims), want, "{what}");
    }
}

#[test]
fn devices_are_given_once() {
    let pool = || slice("p", json!({"devices": devices(&["a", "b"])}));
    let a = json!([{"driver": "d.io", "pool": "p", "device": "a", "request": "r"}]);
    let bench = || Bench::new(&[pool()]).with_taken(a.clone());
    assert_eq!(bench().given(&[one()]), "r=p/b");
    assert_eq!(bench().given(&[one(), one()]), "none");
    let admin = asking(json!([request("r", json!({"adminAccess": true, "allocationMode": "All"}))]));
    assert_eq!(bench().given(std::slice::from_ref(&admin)), "r=p/a r=p/b", "administrators get at what others have");
    let all = asking(json!([request("r", json!({"allocationMode": "All"}))]));
    assert_eq!(bench().given(&[all]), "none");
    let mut seen = json!([{"driver": "d.io", "pool": "p", "device": "a", "request": "r", "adminAccess": true}]);
    assert_eq!(Bench::new(&[pool()]).with_taken(seen.take()).given(&[one(), one()]), "r=p/a; r=p/b");
}

#[test]
fn taints_keep_devices_back() {
    let tainted =
        |effect: &str| slice("p", json!({"devices": [{"name": "a", "taints": [{"key": "k", "effect": effect}]}]}));
    let tolerant = asking(json!([request("r", json!({"tolerations": [{"key": "k", "operator": "Exists"}]}))]));
    for (effect, claim, want) in [
        ("NoSchedule", one(), "none"),
        ("NoExecute", one(), "none"),
        ("None", one(), "r=p/a"),
        ("NoSchedule", tolerant.clone(), "r=p/a"),
    ] {
        assert_eq!(Bench::new(&[tainted(effect)]).given(&[claim]), want, "{effect}");
    }
    let by_rule = |selector: Value| {
        Bench::new(&[slice("p", json!({"devices": devices(&["a", "b"])}))])
            .with_rule(json!({"deviceSelector": selector, "taint": {"key": "k", "effect": "NoSchedule"}}))
    };
    assert_eq!(by_rule(json!({"device": "a"})).given(&[one()]), "r=p/b");
    assert_eq!(by_rule(json!({"driver": "d.io"})).given(&[one()]), "none");
    assert_eq!(by_rule(json!({"driver": "d.io"})).given(&[tolerant]), "r=p/a");
}

#[test]
fn parts_of_a_device_share_its_counters() {
    let set = |memory: &str| json!([{"name": "set", "counters": {"memory": {"value": memory}}}]);
    let part = |name: &str, memory: &str| json!({"name": name, "consumesCounters": [{"counterSet": "set", "counters": {"memory": {"value": memory}}}]});
    let pool = |memory: &str, parts: Value| {
        [
            slice("p", json!({"name": "p-1", "pool": {"resourceSliceCount": 2}, "sharedCounters": set(memory)})),
            slice("p", json!({"name": "p-2", "pool": {"resourceSliceCount": 2}, "devices": parts})),
        ]
    };
    let parts = json!([part("whole", "8Gi"), part("half-1", "4Gi"), part("half-2", "4Gi")]);
    let two = asking(json!([request("r", json!({"count": 2}))]));
    assert_eq!(Bench::new(&pool("8Gi", parts.clone())).given(&[one()]), "r=p/whole");
    assert_eq!(Bench::new(&pool("8Gi", parts.clone())).given(&[two]), "r=p/half-1 r=p/half-2");
    let half = json!([{"driver": "d.io", "pool": "p", "device": "half-1", "request": "r"}]);
    assert_eq!(Bench::new(&pool("8Gi", parts.clone())).with_taken(half.clone()).given(&[one()]), "r=p/half-2");
    assert_eq!(
        Bench::new(&pool("2Gi", parts)).with_taken(half).given(&[one()]),
        "none",
        "more was given than there is"
    );
    let stray = pool(
        "8Gi",
        json!([{"name": "x", "consumesCounters": [{"counterSet": "other", "counters": {"memory": {"value": "1"}}}]}]),
    );
    assert_eq!(Bench::new(&stray).given(&[one()]), "invalid resource pools were encountered");
}

#[test]
fn capacity_is_shared_out() {
    let pool = |policy: Value| {
        slice(
            "p",
            json!({"devices": [{"name": "a", "allowMultipleAllocations": true,
            "capacity": {"memory": {"value": "10Gi", "requestPolicy": policy}}}]}),
        )
    };
    let asks = |memory: &str| asking(json!([request("r", json!({"capacity": {"requests": {"memory": memory}}}))]));
    let range = json!({"default": "1Gi", "validRange": {"min": "1Gi", "step": "1Gi", "max": "8Gi"}});
    let values = json!({"default": "1Gi", "validValues": ["1Gi", "4Gi"]});
    let consumed = |bench: &Bench, claim: Value| {
        let results = bench.allocate(&[claim]).unwrap()?;
        let result = &super::results(&results[0])[0];
        assert!(result.share_id.as_ref().is_some_and(|id| id.len() == 36));
        Some(result.consumed_capacity.as_ref().unwrap()["memory"].0.clone())
    };
    for (policy, claim, want) in [
        (Value::Null, asks("3Gi"), Some("3Gi")),
        (Value::Null, one(), Some("10Gi")),
        (range.clone(), one(), Some("1Gi")),
        (range.clone(), asks("2500Mi"), Some("3Gi")),
        (range.clone(), asks("1Mi"), Some("1Gi")),
        (range.clone(), asks("9Gi"), None),
        (values.clone(), asks("2Gi"), Some("4Gi")),
        (values, asks("5Gi"), None),
        (Value::Null, asks("11Gi"), None),
    ] {
        let bench = Bench::new(&[pool(policy.clone())]);
        assert_eq!(consumed(&bench, claim.clone()).as_deref(), want, "{policy} {claim}");
    }
    let part = json!([{"driver": "d.io", "pool": "p", "device": "a", "request": "r",
        "shareID": "00000000-0000-4000-8000-000000000000", "consumedCapacity": {"memory": "6Gi"}}]);
    let used = || Bench::new(&[pool(Value::Null)]).with_taken(part.clone());
    assert_eq!(used().given(&[asks("4Gi")]), "r=p/a");
    assert_eq!(used().given(&[asks("5Gi")]), "none");
    assert_eq!(used().given(&[asks("2Gi"), asks("2Gi")]), "r=p/a; r=p/a");
    assert_eq!(used().given(&[asks("2Gi"), asks("3Gi")]), "none");
    let unknown = asking(json!([request("r", json!({"capacity": {"requests": {"cores": "1"}}}))]));
    assert_eq!(used().given(&[unknown]), "none");
}

#[test]
fn results_carry_configuration_and_nodes() {
    let fast = json!({"name": "a", "attributes": {"fast": {"bool": true}}});
    let bench = Bench::new(&[slice("p", json!({"devices": [fast]}))]);
    let own =
        |requests: Value| json!({"requests": requests, "opaque": {"driver": "d.io", "parameters": {"own": true}}});
    let asked = claim(json!({"requests": [request("r", json!({"deviceClassName": "fast"}))],
        "config": [own(json!(["r"])), own(json!(["other"])), own(json!([]))]}));
    let given = bench.allocate(&[asked]).unwrap().unwrap().remove(0);
    let given = serde_json::to_value(given).unwrap();
    assert_eq!(
        given,
        json!({
            "devices": {
                "results": [{"request": "r", "driver": "d.io", "pool": "p", "device": "a"}],
                "config": [
                    {"source": "FromClass", "opaque": {"driver": "d.io", "parameters": {"mode": "turbo"}}},
                    {"source": "FromClaim", "opaque": {"driver": "d.io", "parameters": {"own": true}}},
                    {"source": "FromClaim", "requests": [], "opaque": {"driver": "d.io", "parameters": {"own": true}}},
                ],
            },
            "nodeSelector": {"nodeSelectorTerms": [{"matchFields": [
                {"key": "metadata.name", "operator": "In", "values": ["n1"]}]}]},
        })
    );
    let everywhere = Bench::new(&[slice("p", json!({"devices": devices(&["a"]), "nodeName": null, "allNodes": true}))]);
    assert_eq!(everywhere.allocate(&[one()]).unwrap().unwrap()[0].node_selector, None);
}

#[test]
fn a_search_ends_at_its_deadline() {
    let bench =
        Bench { deadline: Some(Instant::now()), ..Bench::new(&[slice("p", json!({"devices": devices(&["x"])}))]) };
    for wanted in [request("r", json!({})), request("r", json!({"allocationMode": "All"}))] {
        assert_eq!(bench.given(&[claim(json!({"requests": [wanted]}))]), "timeout");
    }
}

#[test]
fn counts_of_devices_stay_at_their_limit() {
    let bench = Bench::new(&[slice("p", json!({"devices": devices(&["x"])}))]);
    let each = ["a", "b", "c"].map(|name| request(name, json!({"count": i64::MAX})));
    let given = bench.given(&[claim(json!({"requests": each}))]);
    assert!(given.contains("exceeds the claim limit of 32"), "{given}");
}

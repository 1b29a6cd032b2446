//! Resources that are claimed, and prepared by drivers.

use integration::Lab;
use integration::plugins::Dra;
use serde_json::{Value, json};

use crate::{delete, devices_are, event, gone, kill_agent, pod, root, said};

/// A claim that was allocated to the pods of this test by hand, as a scheduler would.
fn allocate(lab: &Lab, claim: &str, driver: &str, pods: &[&str]) {
    let user = |pod: &&str| {
        let uid = lab.get(&["pod", pod])["metadata"]["uid"].clone();
        serde_json::json!({"resource": "pods", "name": pod, "uid": uid})
    };
    let users: Vec<Value> = pods.iter().map(user).collect();
    let result = serde_json::json!({"request": "one", "driver": driver, "pool": "pool", "device": "device-0"});
    let status =
        serde_json::json!({"status": {"allocation": {"devices": {"results": [result]}}, "reservedFor": users}});
    let patch = status.to_string();
    lab.kubectl(&["patch", "resourceclaim", claim, "--subresource=status", "--type=merge", "-p", &patch]);
}

fn with_resource(name: &str, claim: &str) -> String {
    pod(
        name,
        "sleep 3600",
        ", resources: {claims: [{name: r}]}",
        &format!("  resourceClaims: [{{name: r, resourceClaimName: {claim}}}]"),
    )
}

#[test]
fn claimed_resources() {
    let lab = Lab::up("dra", &[]);
    let root = root(&lab);
    for (driver, version) in [("new.example.com", "v1"), ("older.example.com", "v1beta1")] {
        let name = version.to_owned();
        let (first, second) = (format!("first-{name}"), format!("second-{name}"));
        lab.apply(&format!(
            "apiVersion: resource.k8s.io/v1\nkind: DeviceClass\nmetadata: {{name: {driver}}}\nspec: {{}}\n---\napiVersion: resource.k8s.io/v1\nkind: ResourceClaim\nmetadata: {{name: {name}}}\nspec: {{devices: {{requests: [{{name: one, exactly: {{deviceClassName: {driver}}}}}]}}}}\n---\n"
        ));
        lab.apply(&(with_resource(&first, &name) + &with_resource(&second, &name)));
        event(
            &lab,
            &first,
            "FailedPrepareDynamicResources",
            "Failed to prepare dynamic resources: prepare dynamic resources: ",
        );
        allocate(&lab, &name, driver, &[&first, &second]);
        let words = format!(
            "Failed to prepare dynamic resources: prepare dynamic resources: DRA driver {driver} is not registered"
        );
        event(&lab, &first, "FailedPrepareDynamicResources", &words);

        let plugin = Dra::start(driver, &root, version);
        plugin.fail(true);
        said(&lab, &plugin.record, "registered true");
        let words = format!(
            "prepare dynamic resources: NodePrepareResources failed for ResourceClaim {name}: the device is on fire"
        );
        event(&lab, &first, "FailedPrepareDynamicResources", &words);
        plugin.fail(false);
        lab.wait(&format!("pod/{first}"), "condition=Ready", 60);
        lab.wait(&format!("pod/{second}"), "condition=Ready", 60);
        let state = std::fs::read_to_string(root.join("dra_manager_state")).unwrap();
        assert!(state.contains(&format!("test.example.com/device={name}")), "{state}");

        if version == "v1" {
            let device = |told: Value| json!([{"name": "claim:r", "resources": [told]}]);
            let id = "test.example.com/device=v1";
            devices_are(&lab, &first, &device(json!({"resourceID": id, "health": "Healthy"})));
            plugin.say(false);
            let hot = json!({"resourceID": id, "health": "Unhealthy", "message": "the device is too hot"});
            devices_are(&lab, &first, &device(hot.clone()));
            devices_are(&lab, &second, &device(hot));
        }

        // The last pod that goes has the claim taken back, also after a restart.
        delete(&lab, &first);
        gone(&lab, &format!("pod/{first}"));
        assert_eq!(plugin.record.count("unprepare"), 0, "the other pod has it");
        kill_agent(&lab);
        lab.node("start", "node-1").expect_ok();
        lab.wait("node/node-1", "condition=Ready", 60);
        delete(&lab, &second);
        gone(&lab, &format!("pod/{second}"));
        assert_eq!(plugin.record.count("unprepare"), 1, "{:#?}", plugin.record.all());
        drop(plugin);
    }
}

//! Real client programs, unmodified, against a running skiff. Each story is a script under
//! `integration/clients`, in the client's own language; `make setup` installs the clients.

use integration::{Lab, kubectls};

/// Everything that people do with kubectl, by each version that they have.
#[test]
fn every_kubectl_tells_its_story() {
    let lab = Lab::up("kubectls", &["--nodes", "2"]);
    for (index, kubectl) in kubectls().iter().enumerate() {
        let (namespace, path) = (format!("story-{index}"), kubectl.display().to_string());
        lab.tell("kubectl/story.sh", &[("KUBECTL", &path), ("NAMESPACE", &namespace)]);
    }
}

/// Typed and dynamic objects, watches, streams, a CustomResourceDefinition, leader election.
#[test]
fn the_python_client_tells_its_story() {
    Lab::up("python", &[]).tell("python/client.py", &[]);
}

/// An operator with a resource of its own: create, update, field, timer and delete handlers.
#[test]
fn a_kopf_operator_works() {
    Lab::up_without_images("kopf", &[]).tell("python/kopf_operator.py", &[]);
}

/// A chart with hooks, tests and a CRD is installed, upgraded, rolled back and deleted.
#[test]
fn helm_installs_upgrades_and_rolls_back() {
    Lab::up("helm", &[]).tell("helm/story.py", &[]);
}

/// CRUD, patches, informers, exec, attach, logs and port-forward from JavaScript.
#[test]
fn the_javascript_client_tells_its_story() {
    Lab::up("javascript", &[]).tell("javascript/client.mjs", &[]);
}

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

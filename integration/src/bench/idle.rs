//! What an idle cluster with one nginx pod costs: memory and processor time of server and agent.

use std::time::Duration;

use integration::figures::{Figure, processor_seconds, proportional_mib, resident_mib};
use integration::{Lab, NGINX};

const WINDOW: Duration = Duration::from_secs(60);
const SAMPLES: u32 = 12;

/// Starts the pod, whose end is the lab's.
pub fn start_pod(lab: &Lab) {
    lab.kubectl(&["run", "idle", &format!("--image={NGINX}"), "--image-pull-policy=IfNotPresent"]);
    lab.wait("pod/idle", "condition=Ready", 60);
}

/// `when` says what the lab has behind it.
pub async fn measure(lab: &Lab, when: &str) -> Vec<Figure> {
    // The first minute still sees the end of what was before.
    tokio::time::sleep(WINDOW / 4).await;
    let pids: Vec<i64> = ["server", "node-1"].iter().filter_map(|member| lab.member(member)["pid"].as_i64()).collect();
    let before: f64 = pids.iter().map(|pid| processor_seconds(*pid)).sum();
    let mut samples: Vec<(f64, f64, f64)> = Vec::new();
    for _ in 0..SAMPLES {
        tokio::time::sleep(WINDOW / SAMPLES).await;
        let proportional = pids.iter().map(|pid| proportional_mib(*pid)).sum();
        samples.push((resident_mib(pids[0]), resident_mib(pids[1]), proportional));
    }
    let used = pids.iter().map(|pid| processor_seconds(*pid)).sum::<f64>() - before;
    samples.sort_by(|one, other| (one.0 + one.1).total_cmp(&(other.0 + other.1)));
    let (server, agent, proportional) = samples[samples.len() / 2];
    vec![
        Figure::new(
            format!("idle resident memory with one nginx pod, server and agent, {when}"),
            format!("{:.1} MiB", server + agent),
            format!(
                "median of {SAMPLES}; server {server:.1}, agent {agent:.1}; {proportional:.1} with the program's pages, which both share, counted once"
            ),
        ),
        Figure::new(
            format!("idle processor time over 60 s, both, {when}"),
            format!("{:.2} % of a core", used / WINDOW.as_secs_f64() * 100.0),
            "",
        ),
    ]
}

//! What an idle cluster with one nginx pod costs: memory and processor time of server and agent.

use std::time::Duration;

use integration::figures::{Figure, processor_seconds, resident_mib};
use integration::{Lab, NGINX};

const WINDOW: Duration = Duration::from_secs(60);

pub async fn measure(lab: &Lab) -> anyhow::Result<Vec<Figure>> {
    lab.kubectl(&["run", "idle", &format!("--image={NGINX}"), "--image-pull-policy=IfNotPresent"]);
    lab.wait("pod/idle", "condition=Ready", 60);
    // The first minute still sees the end of the start.
    tokio::time::sleep(WINDOW / 4).await;
    let pids: Vec<i64> = ["server", "node-1"].iter().filter_map(|member| lab.member(member)["pid"].as_i64()).collect();
    let before: f64 = pids.iter().map(|pid| processor_seconds(*pid)).sum();
    tokio::time::sleep(WINDOW).await;
    let used = pids.iter().map(|pid| processor_seconds(*pid)).sum::<f64>() - before;
    let memory: Vec<f64> = pids.iter().map(|pid| resident_mib(*pid)).collect();
    Ok(vec![
        Figure::new(
            "idle resident memory, server and agent",
            format!("{:.1} MiB", memory.iter().sum::<f64>()),
            format!("server {:.1}, agent {:.1}", memory[0], memory[1]),
        ),
        Figure::new(
            "idle processor time over 60 s, both",
            format!("{:.2} % of a core", used / WINDOW.as_secs_f64() * 100.0),
            "",
        ),
    ])
}

//! What an idle cluster with one nginx pod costs: memory and processor time of server and agent.

use std::time::Duration;

use integration::{Lab, NGINX};

use crate::Figure;

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

fn resident_mib(pid: i64) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}

/// User and system time so far. The kernel counts in hundredths of a second.
fn processor_seconds(pid: i64) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let Some((_, rest)) = stat.rsplit_once(')') else { return 0.0 };
    let fields: Vec<f64> = rest.split_whitespace().skip(11).take(2).filter_map(|text| text.parse().ok()).collect();
    fields.iter().sum::<f64>() / 100.0
}

//! From the exec of `skiff lab up` to a Ready node, and to the first page of nginx through a Service.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use integration::figures::{Figure, median, milliseconds};
use integration::{Lab, NGINX, command, kubectl};

const ROUNDS: usize = 5;

pub async fn measure(archives: &[PathBuf; 2]) -> anyhow::Result<Vec<Figure>> {
    let (mut ready, mut first_page, mut containerd) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        containerd.push(containerd_alone()?);
        let began = Instant::now();
        let nginx = archives[0].display().to_string();
        let lab = Lab::up_without_images(&format!("up{round}"), &["--image", &nginx]);
        ready.push(began.elapsed());
        let yaml = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: web, labels: {{app: web}}}}\nspec: {{containers: [{{name: nginx, image: {NGINX}, imagePullPolicy: IfNotPresent}}]}}\n---\napiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {{clusterIP: 10.43.0.99, selector: {{app: web}}, ports: [{{port: 80}}]}}\n"
        );
        lab.kubectl_with(&kubectl(), &["apply", "--validate=false", "-f", "-"], &yaml).expect_ok();
        let deadline = Instant::now() + Duration::from_secs(60);
        while !lab.exec("node-1", &["curl", "-sf", "--max-time", "1", "-o", "/dev/null", "http://10.43.0.99/"]).ok {
            anyhow::ensure!(Instant::now() < deadline, "no page within 60 s");
        }
        first_page.push(began.elapsed());
    }
    let kubectl = kubectl_alone();
    Ok(vec![
        Figure::new(
            "lab up, one node: exec to Ready",
            milliseconds(median(&mut ready)),
            format!("containerd's own start {}", milliseconds(median(&mut containerd))),
        ),
        Figure::new(
            "… to the first page of nginx through a Service",
            milliseconds(median(&mut first_page)),
            format!("of it kubectl's own start {}", milliseconds(kubectl)),
        ),
    ])
}

fn kubectl_alone() -> Duration {
    let began = Instant::now();
    command(kubectl(), &["version", "--client"], &[], "").expect_ok();
    began.elapsed()
}

/// The distribution's containerd with an empty directory, from exec to an open socket.
fn containerd_alone() -> anyhow::Result<Duration> {
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name).display().to_string();
    let began = Instant::now();
    let mut child = Command::new("containerd")
        .args(["--root", &at("root"), "--state", &at("state"), "--address", &at("sock")])
        .args(["--config", "/dev/null"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let socket = at("sock");
    let deadline = began + Duration::from_secs(20);
    while std::os::unix::net::UnixStream::connect(Path::new(&socket)).is_err() {
        anyhow::ensure!(Instant::now() < deadline, "containerd opened no socket within 20 s");
        std::thread::sleep(Duration::from_millis(2));
    }
    let took = began.elapsed();
    child.kill()?;
    child.wait()?;
    Ok(took)
}

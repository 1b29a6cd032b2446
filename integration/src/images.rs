//! The test images, built once per run from what the distribution has.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::run::{build_directory, command, skiff};

/// nginx with its default page.
pub const NGINX: &str = "skiff.test/nginx:latest";
/// busybox, with every applet.
pub const BUSYBOX: &str = "skiff.test/busybox:latest";

/// A gRPC server that says of its services what files say: `src/grpc_health.rs`.
pub const HEALTH: &str = "skiff.test/grpc-health:latest";

/// The archives of all test images.
pub(crate) fn archives() -> &'static [PathBuf] {
    static BUILT: OnceLock<Vec<PathBuf>> = OnceLock::new();
    BUILT.get_or_init(|| {
        let dir = std::env::temp_dir().join(format!("skiff-test-images-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap_or_else(|error| panic!("creating {}: {error}", dir.display()));
        vec![build("nginx", NGINX, &dir), build("busybox", BUSYBOX, &dir)]
    })
}

/// The archive of [`HEALTH`], for the tests that need it.
pub fn health_archive(dir: &Path) -> PathBuf {
    build(&build_directory().join("grpc-health").display().to_string(), HEALTH, dir)
}

fn build(what: &str, name: &str, dir: &Path) -> PathBuf {
    let file = name.rsplit(['/', ':']).nth(1).unwrap_or(name);
    let path = dir.join(format!("{file}.tar"));
    let text = path.display().to_string();
    command(skiff(), &["images", "build", what, "--name", name, "--output", &text], &[], "").expect_ok();
    path
}

//! The test images, built once per run from what the distribution has.

use std::path::PathBuf;
use std::sync::OnceLock;

use crate::run::{command, skiff};

/// nginx with its default page.
pub const NGINX: &str = "skiff.test/nginx:latest";
/// busybox, with every applet.
pub const BUSYBOX: &str = "skiff.test/busybox:latest";

/// The archives of all test images.
pub(crate) fn archives() -> &'static [PathBuf] {
    static BUILT: OnceLock<Vec<PathBuf>> = OnceLock::new();
    BUILT.get_or_init(|| {
        let dir = std::env::temp_dir().join(format!("skiff-test-images-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap_or_else(|error| panic!("creating {}: {error}", dir.display()));
        [("nginx", NGINX), ("busybox", BUSYBOX)]
            .iter()
            .map(|(preset, name)| {
                let path = dir.join(format!("{preset}.tar"));
                let text = path.display().to_string();
                command(skiff(), &["images", "build", preset, "--name", name, "--output", &text], &[], "").expect_ok();
                path
            })
            .collect()
    })
}

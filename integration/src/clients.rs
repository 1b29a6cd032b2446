//! The client programs that `integration/bin/setup-clients` put into the build's directory, and the
//! scripts under `integration/clients` that use them.

use std::path::PathBuf;

use crate::images::{BUSYBOX, NGINX};
use crate::lab::Lab;
use crate::run::{build_directory, command, kubectl_of_version};

/// A program or directory below `target/clients`.
fn installed(path: &str) -> PathBuf {
    let found = build_directory().join("../clients").join(path);
    assert!(found.exists(), "{} is missing; `make setup` installs the tests' clients", found.display());
    found
}

/// The kubectl versions that people have: those of this machine, and always 1.37 from PyPI.
pub fn kubectls() -> Vec<PathBuf> {
    let others = ["1.27", "1.29", "1.31", "1.33"].iter().filter_map(|version| kubectl_of_version(version));
    others.chain([installed("venv/bin/kubectl")]).collect()
}

/// A script below `integration/clients`.
fn script(path: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("clients").join(path);
    assert!(path.is_file(), "there is no script {}", path.display());
    path.display().to_string()
}

impl Lab {
    /// Tells the story `path`, a script below `integration/clients`, to this lab; it must succeed.
    #[track_caller]
    pub fn tell(&self, path: &str, environment: &[(&str, &str)]) {
        let (program, modules) = match path.rsplit('.').next() {
            Some("py") => (installed("venv/bin/python"), PathBuf::new()),
            Some("mjs") => (PathBuf::from("node"), installed("node_modules")),
            _ => (PathBuf::from("bash"), PathBuf::new()),
        };
        let home = tempfile::tempdir().unwrap_or_else(|error| panic!("creating a home directory: {error}"));
        let (home, modules) = (home.path().display().to_string(), modules.display().to_string());
        let own = [("KUBECONFIG", self.kubeconfig.as_str()), ("HOME", &home), ("CLIENT_MODULES", &modules)];
        let all = [&own[..], &[("NGINX", NGINX), ("BUSYBOX", BUSYBOX)], environment].concat();
        let told = command(program, &[&script(path)], &all, "").expect_ok();
        eprint!("{told}");
    }
}

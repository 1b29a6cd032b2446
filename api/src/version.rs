//! Which Kubernetes this is and what says so: the one place where its version stands.
//!
//! The API server tells it at `/version`, both halves in `kubernetes_build_info`, nodes in their status,
//! clients in how they name themselves ([`agents`]).

use serde::Serialize;

/// [`MINOR`] where a literal is needed: all texts are made of it.
macro_rules! minor {
    () => {
        37
    };
}

/// [`KUBERNETES`] where a literal is needed.
macro_rules! kubernetes {
    () => {
        concat!("v1.", minor!(), ".0")
    };
}

/// The one of `1.<minor>`.
pub const MINOR: u32 = minor!();
/// `major.minor`.
pub const SHORT: &str = concat!("1.", minor!());
/// The release whose behaviour this is, without what tells builds apart.
pub const KUBERNETES: &str = kubernetes!();
/// skiff's own.
pub const SKIFF: &str = env!("CARGO_PKG_VERSION");
/// With what tells builds apart: `gitVersion` of the API server, `kubeletVersion` of nodes.
pub const GIT: &str = concat!(kubernetes!(), "+skiff-", env!("CARGO_PKG_VERSION"));
/// Where a Go program tells the version of its language.
pub const GO: &str = "none";

/// Help of the metric `kubernetes_build_info`.
pub const BUILD_INFO_HELP: &str = "A metric with a constant '1' value labeled by major, minor, git version, git commit, git tree state, build date, Go version, and compiler from which Kubernetes was built, and platform on which it is running.";

/// How the parts of a cluster name themselves to servers; what stands before the slash is who writes, in
/// `managedFields`.
pub mod agents {
    pub const API_SERVER: &str = concat!("kube-apiserver/", kubernetes!());
    pub const CONTROLLERS: &str = concat!("kube-controller-manager/", kubernetes!());
    pub const SCHEDULER: &str = concat!("kube-scheduler/", kubernetes!());
    pub const KUBELET: &str = concat!("kubelet/", kubernetes!());
    pub const PROBE: &str = concat!("kube-probe/1.", minor!());
}

/// What `/version` answers: fields in the order of upstream's (`k8s.io/apimachinery/pkg/version.Info`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Info {
    pub major: &'static str,
    pub minor: &'static str,
    pub emulation_major: &'static str,
    pub emulation_minor: &'static str,
    pub min_compatibility_major: &'static str,
    pub min_compatibility_minor: String,
    pub git_version: &'static str,
    pub git_commit: &'static str,
    pub git_tree_state: &'static str,
    pub build_date: &'static str,
    pub go_version: &'static str,
    pub compiler: &'static str,
    /// As Go names it: `linux/amd64`.
    pub platform: String,
}

impl Info {
    pub fn new() -> Self {
        Self {
            major: "1",
            minor: concat!(minor!()),
            emulation_major: "1",
            emulation_minor: concat!(minor!()),
            min_compatibility_major: "1",
            min_compatibility_minor: (MINOR - 1).to_string(),
            git_version: GIT,
            git_commit: "",
            git_tree_state: "clean",
            build_date: "1970-01-01T00:00:00Z",
            go_version: GO,
            compiler: "rustc",
            platform: format!("{}/{}", std::env::consts::OS, architecture()),
        }
    }

    /// Labels of the metric `kubernetes_build_info`, in the order of their names.
    pub fn labels(&self) -> [(&'static str, &str); 9] {
        [
            ("build_date", self.build_date),
            ("compiler", self.compiler),
            ("git_commit", self.git_commit),
            ("git_tree_state", self.git_tree_state),
            ("git_version", self.git_version),
            ("go_version", self.go_version),
            ("major", self.major),
            ("minor", self.minor),
            ("platform", self.platform.as_str()),
        ]
    }
}

impl Default for Info {
    fn default() -> Self {
        Self::new()
    }
}

/// This machine's, as Go names it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_texts_say_the_same_version() {
        assert_eq!(SHORT, format!("1.{MINOR}"));
        assert_eq!(KUBERNETES, format!("v{SHORT}.0"));
        assert_eq!(GIT, format!("{KUBERNETES}+skiff-{SKIFF}"));
        assert_eq!(agents::KUBELET, format!("kubelet/{KUBERNETES}"));
        assert_eq!(agents::PROBE, format!("kube-probe/{SHORT}"));
    }

    #[test]
    fn the_answer_reads_as_upstreams() {
        let info = Info { platform: "linux/amd64".to_owned(), ..Info::new() };
        let expected = format!(
            r#"{{"major":"1","minor":"37","emulationMajor":"1","emulationMinor":"37","minCompatibilityMajor":"1","minCompatibilityMinor":"36","gitVersion":"{GIT}","gitCommit":"","gitTreeState":"clean","buildDate":"1970-01-01T00:00:00Z","goVersion":"none","compiler":"rustc","platform":"linux/amd64"}}"#
        );
        assert_eq!(serde_json::to_string(&info).unwrap(), expected);
        assert_eq!(info.labels()[4], ("git_version", GIT));
    }
}

//! containerd's configuration as text: a pure function of [`Settings`].
//!
//! Two layouts exist: `version = 2` for containerd 1.x and `version = 3` for 2.x. Both are written
//! here by hand, key by key, because only a dozen keys differ from containerd's defaults.

use std::fmt::Write;
use std::path::PathBuf;

/// Which layout the installed containerd wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// containerd 1.6 and 1.7
    V2,
    /// containerd 2.x
    V3 {
        /// From 2.1 on there may be several directories of network plugins, and one is deprecated.
        bin_dirs: bool,
    },
}

/// Who makes cgroups for containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CgroupDriver {
    /// Directories written directly under the cgroup file systems.
    #[default]
    Cgroupfs,
    /// Scopes and slices asked of systemd.
    Systemd,
}

/// Everything the configuration depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub layout: Layout,
    pub root: PathBuf,
    pub state: PathBuf,
    pub socket: PathBuf,
    pub sandbox_image: String,
    pub snapshotter: String,
    pub cni_bin_dir: PathBuf,
    pub cni_conf_dir: PathBuf,
    /// Directory of `<registry host>/hosts.toml` files.
    pub registry_dir: PathBuf,
    pub cgroup_driver: CgroupDriver,
    /// Set when the process may not lower `oom_score_adj` (no CAP_SYS_RESOURCE): without it every
    /// sandbox fails with `can't get final child's PID from pipe: EOF`.
    pub restrict_oom_score: bool,
}

/// What a node never uses and what costs time at start.
const DISABLED: [&str; 10] = [
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.snapshotter.v1.blockfile",
    "io.containerd.snapshotter.v1.erofs",
    "io.containerd.tracing.processor.v1.otlp",
    "io.containerd.internal.v1.tracing",
    "io.containerd.internal.v1.opt",
    "io.containerd.internal.v1.restart",
];

/// The configuration file's text.
pub fn render(settings: &Settings) -> String {
    let mut text = String::from("# Written by skiff at every start; changes here are lost.\n");
    head(settings, &mut text);
    match settings.layout {
        Layout::V2 => plugins_v2(settings, &mut text),
        Layout::V3 { bin_dirs } => plugins_v3(settings, bin_dirs, &mut text),
    }
    text
}

fn head(settings: &Settings, text: &mut String) {
    let version = match settings.layout {
        Layout::V2 => 2,
        Layout::V3 { .. } => 3,
    };
    let disabled: Vec<String> = DISABLED.iter().map(|name| format!("  {}", quote(name))).collect();
    line(text, format_args!("version = {version}"));
    line(text, format_args!("root = {}", path(&settings.root)));
    line(text, format_args!("state = {}", path(&settings.state)));
    line(text, format_args!("oom_score = {}", if settings.restrict_oom_score { 0 } else { -999 }));
    line(text, format_args!("disabled_plugins = [\n{},\n]", disabled.join(",\n")));
    line(text, format_args!("\n[grpc]\naddress = {}", path(&settings.socket)));
    line(text, format_args!("\n[debug]\nlevel = \"info\""));
}

fn plugins_v2(settings: &Settings, text: &mut String) {
    const CRI: &str = "plugins.\"io.containerd.grpc.v1.cri\"";
    line(text, format_args!("\n[{CRI}]"));
    line(text, format_args!("sandbox_image = {}", quote(&settings.sandbox_image)));
    streaming(text);
    runtime_keys(settings, text);
    // Devices of drivers; from 1.7 on, where it is not yet the default.
    line(text, format_args!("enable_cdi = true"));
    line(text, format_args!("\n[{CRI}.cni]"));
    cni(settings, false, text);
    line(text, format_args!("\n[{CRI}.containerd]"));
    line(text, format_args!("snapshotter = {}", quote(&settings.snapshotter)));
    line(text, format_args!("default_runtime_name = \"runc\""));
    runc(settings, CRI, text);
    line(text, format_args!("\n[{CRI}.registry]\nconfig_path = {}", path(&settings.registry_dir)));
}

fn plugins_v3(settings: &Settings, bin_dirs: bool, text: &mut String) {
    const IMAGES: &str = "plugins.\"io.containerd.cri.v1.images\"";
    const RUNTIME: &str = "plugins.\"io.containerd.cri.v1.runtime\"";
    line(text, format_args!("\n[{IMAGES}]\nsnapshotter = {}", quote(&settings.snapshotter)));
    line(text, format_args!("\n[{IMAGES}.pinned_images]\nsandbox = {}", quote(&settings.sandbox_image)));
    line(text, format_args!("\n[{IMAGES}.registry]\nconfig_path = {}", path(&settings.registry_dir)));
    line(text, format_args!("\n[{RUNTIME}]"));
    runtime_keys(settings, text);
    line(text, format_args!("\n[{RUNTIME}.cni]"));
    cni(settings, bin_dirs, text);
    line(text, format_args!("\n[{RUNTIME}.containerd]\ndefault_runtime_name = \"runc\""));
    runc(settings, RUNTIME, text);
    line(text, format_args!("\n[plugins.\"io.containerd.grpc.v1.cri\"]"));
    streaming(text);
}

/// exec, attach and port-forward streams are fetched by the kubelet's server, from this machine.
fn streaming(text: &mut String) {
    line(text, format_args!("stream_server_address = \"127.0.0.1\"\nstream_server_port = \"0\""));
}

fn runtime_keys(settings: &Settings, text: &mut String) {
    line(text, format_args!("restrict_oom_score_adj = {}", settings.restrict_oom_score));
    // Pods may bind low ports and ping without privileges, as with other Kubernetes distributions.
    line(text, format_args!("enable_unprivileged_ports = true\nenable_unprivileged_icmp = true"));
    // Otherwise pods' network namespaces would be mounted in /run/netns, among everyone's.
    line(text, format_args!("netns_mounts_under_state_dir = true"));
}

fn cni(settings: &Settings, bin_dirs: bool, text: &mut String) {
    let plugins = path(&settings.cni_bin_dir);
    if bin_dirs {
        line(text, format_args!("bin_dirs = [{plugins}]"));
    } else {
        line(text, format_args!("bin_dir = {plugins}"));
    }
    line(text, format_args!("conf_dir = {}", path(&settings.cni_conf_dir)));
    line(text, format_args!("max_conf_num = 1"));
}

fn runc(settings: &Settings, plugin: &str, text: &mut String) {
    line(text, format_args!("\n[{plugin}.containerd.runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\""));
    line(text, format_args!("\n[{plugin}.containerd.runtimes.runc.options]"));
    line(text, format_args!("SystemdCgroup = {}", settings.cgroup_driver == CgroupDriver::Systemd));
    line(text, format_args!("Root = {}", path(&settings.state.join("runc"))));
}

fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{arguments}");
}

fn path(path: &std::path::Path) -> String {
    quote(&path.to_string_lossy())
}

/// A TOML basic string.
fn quote(text: &str) -> String {
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(layout: Layout) -> Settings {
        Settings {
            layout,
            root: "/var/lib/skiff/agent/containerd".into(),
            state: "/run/skiff/containerd".into(),
            socket: "/run/skiff/containerd.sock".into(),
            sandbox_image: "localhost/skiff/pause:1".into(),
            snapshotter: "overlayfs".into(),
            cni_bin_dir: "/var/lib/skiff/agent/cni/bin".into(),
            cni_conf_dir: "/etc/skiff/cni".into(),
            registry_dir: "/etc/skiff/registries".into(),
            cgroup_driver: CgroupDriver::Cgroupfs,
            restrict_oom_score: true,
        }
    }

    #[test]
    fn each_layout_names_its_plugins() {
        let v2 = render(&settings(Layout::V2));
        assert!(v2.contains("version = 2\n"));
        assert!(
            v2.contains("[plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"/var/lib/skiff/agent/cni/bin\"\n")
        );
        assert!(v2.contains("restrict_oom_score_adj = true\n"));
        assert!(v2.contains("SystemdCgroup = false\n"));
        let v3 = render(&settings(Layout::V3 { bin_dirs: true }));
        assert!(v3.contains("version = 3\n"));
        assert!(v3.contains(
            "[plugins.\"io.containerd.cri.v1.images\".pinned_images]\nsandbox = \"localhost/skiff/pause:1\"\n"
        ));
        assert!(!v3.contains("sandbox_image"));
        assert!(v3.contains(".cni]\nbin_dirs = [\"/var/lib/skiff/agent/cni/bin\"]\n"));
        let first_of_v3 = render(&settings(Layout::V3 { bin_dirs: false }));
        assert!(first_of_v3.contains(".cni]\nbin_dir = \"/var/lib/skiff/agent/cni/bin\"\n"));
    }

    #[test]
    fn no_key_is_written_twice_in_one_table() {
        for layout in [Layout::V2, Layout::V3 { bin_dirs: true }] {
            let mut table = String::new();
            let mut seen = std::collections::HashSet::new();
            for line in render(&settings(layout)).lines() {
                if line.starts_with('[') {
                    table = line.to_owned();
                    assert!(seen.insert((table.clone(), String::new())), "{table} twice");
                } else if let Some((key, _)) = line.split_once(" = ") {
                    assert!(seen.insert((table.clone(), key.to_owned())), "{table} {key} twice");
                }
            }
        }
    }

    #[test]
    fn strings_are_quoted() {
        assert_eq!(quote("a\"b\\c\n"), "\"a\\\"b\\\\c\\u000a\"");
    }
}

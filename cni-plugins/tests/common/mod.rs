//! A host in a network namespace of the test's own thread, sandboxes in others, and plugins called
//! as a runtime calls them.

use std::io::Write;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use netlink::{Namespace, Rtnl};
use serde_json::Value;

/// Whose plugins are under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suite {
    Ours,
    /// The distribution's: proves that the tests ask for what the specification says.
    Reference,
}

pub const BOTH: [Suite; 2] = [Suite::Ours, Suite::Reference];

pub struct Host {
    pub plugins: PathBuf,
    pub data: tempfile::TempDir,
    pub suite: Suite,
}

/// Runs `test` on a host of its own for each suite.
pub fn on_hosts(suites: &[Suite], test: impl Fn(&Host) + Send + Sync) {
    for suite in suites {
        let outcome = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
                    .expect("making a network namespace needs root: run the tests as root");
                let mut rtnl = Rtnl::open().unwrap();
                let lo = rtnl.link("lo").unwrap();
                rtnl.set_up(lo.index).unwrap();
                test(&Host::new(*suite));
            });
            thread.join()
        });
        if let Err(panic) = outcome {
            eprintln!("failed with the plugins of {suite:?}");
            std::panic::resume_unwind(panic);
        }
    }
}

impl Host {
    fn new(suite: Suite) -> Self {
        let data = tempfile::tempdir().unwrap();
        let plugins = match suite {
            Suite::Reference => PathBuf::from("/usr/lib/cni"),
            Suite::Ours => {
                let directory = data.path().join("bin");
                std::fs::create_dir(&directory).unwrap();
                for name in cni_plugins::PLUGINS {
                    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_skiff-cni"), directory.join(name)).unwrap();
                }
                directory
            }
        };
        assert!(plugins.join("bridge").exists(), "no {plugins:?}: apt-get install containernetworking-plugins");
        Self { plugins, data, suite }
    }

    pub fn data_dir(&self) -> &Path {
        self.data.path()
    }
}

pub struct Sandbox {
    pub namespace: Namespace,
    pub id: String,
}

impl Sandbox {
    pub fn new(id: &str) -> Self {
        let namespace = std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            Namespace::current().unwrap()
        });
        Self { namespace: namespace.join().unwrap(), id: id.to_owned() }
    }

    /// A path by which another process finds the namespace.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.namespace.as_fd().as_raw_fd())
    }
}

/// One call; the error is the plugin's own JSON.
pub struct Call<'a> {
    pub host: &'a Host,
    pub plugin: &'a str,
    pub command: &'a str,
    pub sandbox: Option<&'a Sandbox>,
    pub args: &'a str,
    pub config: Value,
}

impl Call<'_> {
    pub fn run(&self) -> Result<Value, Value> {
        let mut command = Command::new(self.host.plugins.join(self.plugin));
        command.env("CNI_COMMAND", self.command).env("CNI_PATH", &self.host.plugins).env("CNI_ARGS", self.args);
        if let Some(sandbox) = self.sandbox {
            command.env("CNI_CONTAINERID", &sandbox.id).env("CNI_NETNS", sandbox.path()).env("CNI_IFNAME", "eth0");
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let _ = child.stdin.take().unwrap().write_all(self.config.to_string().as_bytes());
        let output = child.wait_with_output().unwrap();
        let answer = || {
            serde_json::from_slice(&output.stdout).unwrap_or_else(|_| {
                assert!(output.stdout.is_empty(), "not JSON: {}", String::from_utf8_lossy(&output.stdout));
                Value::Null
            })
        };
        if output.status.success() { Ok(answer()) } else { Err(answer()) }
    }
}

pub fn call(host: &Host, plugin: &str, command: &str, sandbox: &Sandbox, config: &Value) -> Result<Value, Value> {
    Call { host, plugin, command, sandbox: Some(sandbox), args: "", config: config.clone() }.run()
}

/// The configuration with what a plugin earlier in the list answered.
pub fn with_previous(config: &Value, previous: &Value) -> Value {
    let mut config = config.clone();
    config["prevResult"] = previous.clone();
    config
}

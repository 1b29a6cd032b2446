//! A lab that a test owns.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::images::archives;
use crate::leftovers;
use crate::run::{self, Output, Running, command, skiff};

/// A running lab; down, and checked for leftovers, when dropped.
pub struct Lab {
    pub name: String,
    pub kubeconfig: String,
    bridge: String,
}

impl Lab {
    /// Brings up a lab with the test images on every node. The name is made unique per process, so
    /// that runs side by side do not meet.
    #[track_caller]
    pub fn up(story: &str, arguments: &[&str]) -> Self {
        Self::up_with_images(story, arguments, &[])
    }

    /// As [`Lab::up`], in a mount namespace of its own whose mounts are shared: what containers mount
    /// there stays there, whatever the host's own mounts are.
    #[track_caller]
    pub fn up_with_shared_mounts(story: &str, arguments: &[&str]) -> Self {
        Self::up_with_images(story, arguments, &["unshare", "--mount", "--propagation", "shared"])
    }

    #[track_caller]
    fn up_with_images(story: &str, arguments: &[&str], wrapper: &[&str]) -> Self {
        let images: Vec<String> = archives().iter().map(|archive| archive.display().to_string()).collect();
        let mut all = arguments.to_vec();
        for image in &images {
            all.extend(["--image", image]);
        }
        Self::up_by(story, &all, wrapper)
    }

    #[track_caller]
    pub fn up_without_images(story: &str, arguments: &[&str]) -> Self {
        Self::up_by(story, arguments, &[])
    }

    /// `wrapper` is a command that runs the command that follows it.
    #[track_caller]
    fn up_by(story: &str, arguments: &[&str], wrapper: &[&str]) -> Self {
        let name = format!("{story}-{}", std::process::id() % 100_000);
        let program = skiff().display().to_string();
        let mut all = [wrapper, &[program.as_str(), "lab", "up", &name], arguments].concat();
        let first = all.remove(0);
        let mut lab = Self {
            kubeconfig: format!("/var/lib/skiff/lab/{name}/admin.kubeconfig"),
            bridge: String::new(),
            name: name.clone(),
        };
        command(first, &all, &[], "").expect_ok();
        let links = lab.describe();
        let address = links["members"][0]["address"].as_str().unwrap_or_default().to_owned();
        let octets: Vec<u8> = address.split('.').filter_map(|part| part.parse().ok()).collect();
        lab.bridge = format!("skl{:02x}{:02x}", octets[1], octets[2]);
        lab
    }

    /// What `skiff lab list -o json` says of this lab.
    #[track_caller]
    pub fn describe(&self) -> Value {
        let text = command(skiff(), &["lab", "list", "-o", "json"], &[], "").expect_ok();
        let labs: Vec<Value> = serde_json::from_str(&text).unwrap_or_else(|error| panic!("lab list: {error}: {text}"));
        labs.into_iter()
            .find(|lab| lab["name"] == *self.name)
            .unwrap_or_else(|| panic!("lab {} is not listed: {text}", self.name))
    }

    /// One member's entry of [`Lab::describe`].
    #[track_caller]
    pub fn member(&self, member: &str) -> Value {
        let lab = self.describe();
        let members = lab["members"].as_array().cloned().unwrap_or_default();
        members.into_iter().find(|entry| entry["name"] == member).unwrap_or_else(|| panic!("no member {member}: {lab}"))
    }

    pub fn nodes(&self) -> Vec<String> {
        let lab = self.describe();
        let members = lab["members"].as_array().cloned().unwrap_or_default();
        members
            .iter()
            .filter_map(|member| member["name"].as_str())
            .filter(|name| *name != "server")
            .map(str::to_owned)
            .collect()
    }

    #[track_caller]
    pub fn address(&self, member: &str) -> String {
        self.member(member)["address"].as_str().unwrap_or_default().to_owned()
    }

    /// Runs a command with a member's network.
    pub fn exec(&self, member: &str, arguments: &[&str]) -> Output {
        let node = format!("{}/{member}", self.name);
        let mut all = vec!["lab", "exec", &node, "--"];
        all.extend(arguments);
        command(skiff(), &all, &[], "")
    }

    /// Runs a command with a member's mounts.
    pub fn exec_with_mounts(&self, member: &str, arguments: &[&str]) -> Output {
        let pid = self.member(member)["pid"].to_string();
        command("nsenter", &[&["--mount", "--target", &pid, "--"], arguments].concat(), &[], "")
    }

    /// A member's log so far.
    pub fn log(&self, member: &str) -> String {
        std::fs::read_to_string(format!("/var/lib/skiff/lab/{}/{member}.log", self.name)).unwrap_or_default()
    }

    /// `skiff lab node <what> <member>`.
    pub fn node(&self, what: &str, member: &str) -> Output {
        command(skiff(), &["lab", "node", what, &format!("{}/{member}", self.name)], &[], "")
    }

    /// kubectl that goes on while the test does; ended when dropped.
    pub fn spawn_kubectl(&self, arguments: &[&str]) -> Running {
        Running::start(&run::kubectl(), arguments, &run::kubectl_environment(&self.kubeconfig))
    }

    /// kubectl that must succeed; returns what it printed.
    #[track_caller]
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        self.try_kubectl(arguments).expect_ok()
    }

    pub fn try_kubectl(&self, arguments: &[&str]) -> Output {
        self.kubectl_with(&run::kubectl(), arguments, "")
    }

    pub fn kubectl_with(&self, kubectl: &PathBuf, arguments: &[&str], input: &str) -> Output {
        command(kubectl, arguments, &run::kubectl_environment(&self.kubeconfig), input)
    }

    /// `kubectl apply -f -` of YAML.
    #[track_caller]
    pub fn apply(&self, yaml: &str) -> String {
        self.try_apply(yaml).expect_ok()
    }

    pub fn try_apply(&self, yaml: &str) -> Output {
        self.kubectl_with(&run::kubectl(), &["apply", "-f", "-"], yaml)
    }

    /// An object as JSON.
    #[track_caller]
    pub fn get(&self, arguments: &[&str]) -> Value {
        let mut all = vec!["get"];
        all.extend(arguments);
        all.extend(["-o", "json"]);
        let text = self.kubectl(&all);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("kubectl {all:?} printed no JSON: {error}: {text}"))
    }

    /// Asks until `condition` gives something, at most `limit`; panics with `what` and the last answer.
    #[track_caller]
    pub fn eventually<T>(&self, what: &str, limit: Duration, mut condition: impl FnMut() -> Result<T, String>) -> T {
        let deadline = Instant::now() + limit;
        loop {
            match condition() {
                Ok(found) => return found,
                Err(last) if Instant::now() >= deadline => panic!("{what}: not within {limit:?}; last: {last}"),
                // The pace of asking, not a wait for an outcome.
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// `kubectl wait`.
    #[track_caller]
    pub fn wait(&self, object: &str, condition: &str, seconds: u32) {
        self.kubectl(&["wait", object, &format!("--for={condition}"), &format!("--timeout={seconds}s")]);
    }

    fn print_logs(&self) {
        for member in std::iter::once("server".to_owned()).chain(self.nodes()) {
            let log = self.log(&member);
            let lines: Vec<&str> = log.lines().filter(|line| !line.contains(" timeline ")).collect();
            let tail = &lines[lines.len().saturating_sub(60)..];
            eprintln!("---- the end of the log of {member}\n{}", tail.join("\n"));
        }
        eprintln!("---- pods\n{}", self.try_kubectl(&["get", "pods", "-A", "-o", "wide"]).stdout);
        eprintln!("---- events\n{}", self.try_kubectl(&["get", "events", "-A"]).stdout);
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        if failed {
            self.print_logs();
        }
        let down = command(skiff(), &["lab", "down", &self.name], &[], "");
        let left = leftovers::of_lab(&self.name, if self.bridge.is_empty() { "skl-none" } else { &self.bridge });
        if !failed {
            assert!(down.ok, "lab down failed: {}", down.stderr);
            assert!(left.is_empty(), "lab down left behind:\n{}", left.join("\n"));
        } else if !down.ok || !left.is_empty() {
            eprintln!("lab down: {}\nleft behind:\n{}", down.stderr, left.join("\n"));
        }
    }
}

//! Commands with their outcome.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What a command printed and how it ended.
#[derive(Debug)]
pub struct Output {
    pub line: String,
    pub ok: bool,
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    /// Panics unless the command succeeded; returns what it printed.
    #[track_caller]
    pub fn expect_ok(self) -> String {
        assert!(self.ok, "{} failed ({:?})\nstdout: {}\nstderr: {}", self.line, self.code, self.stdout, self.stderr);
        self.stdout
    }

    /// Panics if the command succeeded, or did not say `words`; returns its standard error.
    #[track_caller]
    pub fn expect_failure(self, words: &str) -> String {
        assert!(!self.ok, "{} succeeded, but should not\nstdout: {}", self.line, self.stdout);
        assert!(self.stderr.contains(words), "{} should say {words:?}, but said: {}", self.line, self.stderr);
        self.stderr
    }
}

/// Runs a command to its end, with `input` on its standard input.
pub fn command(program: impl AsRef<Path>, arguments: &[&str], environment: &[(&str, &str)], input: &str) -> Output {
    let program = program.as_ref();
    let line = format!("{} {}", program.display(), arguments.join(" "));
    let mut child = Command::new(program)
        .args(arguments)
        .envs(environment.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot run {line}: {error}; `make setup` installs what the tests need"));
    if let Some(mut stdin) = child.stdin.take() {
        // A command that does not read its input closes it: no failure.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().unwrap_or_else(|error| panic!("waiting for {line}: {error}"));
    Output {
        line,
        ok: output.status.success(),
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// The directory of the build that this test belongs to, e.g. `target/debug`.
pub(crate) fn build_directory() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_else(|error| panic!("finding the test's own executable: {error}"));
    let dir = own.parent().unwrap_or(Path::new("."));
    if dir.ends_with("deps") { dir.parent().unwrap_or(dir).to_owned() } else { dir.to_owned() }
}

/// The `skiff` of the same build.
pub fn skiff() -> PathBuf {
    let path = build_directory().join("skiff");
    assert!(path.is_file(), "{} is missing; build it with: cargo build --workspace", path.display());
    path
}

/// The user's kubectl, or the one that `make setup` put under `target/tools`.
pub fn kubectl() -> PathBuf {
    let installed = std::env::var("PATH").unwrap_or_default();
    let tools = build_directory().join("../tools/bin");
    let found = installed
        .split(':')
        .map(PathBuf::from)
        .chain([tools])
        .map(|dir| dir.join("kubectl"))
        .find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("there is no kubectl; `make setup` installs one"))
}

/// kubectl's environment. What it keeps at home (caches) lies beside the kubeconfig, and goes with that.
pub fn kubectl_environment(kubeconfig: &str) -> [(&str, &str); 2] {
    let home = Path::new(kubeconfig).parent().and_then(Path::to_str).unwrap_or_default();
    [("KUBECONFIG", kubeconfig), ("HOME", home)]
}

/// Other kubectl versions beside the default one, where this machine has them (`kubectl.1.27`).
pub fn kubectl_of_version(version: &str) -> Option<PathBuf> {
    let dir = kubectl().canonicalize().ok()?;
    let beside = dir.parent()?.join(format!("kubectl.{version}"));
    [beside, PathBuf::from(format!("/usr/lib/google-cloud-sdk/bin/kubectl.{version}"))]
        .into_iter()
        .find(|path| path.is_file())
}

/// A command in the background, its output read line by line.
pub struct Running {
    line: String,
    child: std::process::Child,
    lines: std::sync::mpsc::Receiver<String>,
}

impl Running {
    pub fn start(program: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        use std::io::BufRead;
        let line = format!("{} {}", program.display(), arguments.join(" "));
        let mut child = Command::new(program)
            .args(arguments)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run {line}: {error}"));
        let (sender, lines) = std::sync::mpsc::channel();
        if let Some(output) = child.stdout.take() {
            std::thread::spawn(move || {
                for line in std::io::BufReader::new(output).lines().map_while(Result::ok) {
                    if sender.send(line).is_err() {
                        return;
                    }
                }
            });
        }
        Self { line, child, lines }
    }

    /// Everything it printed that was not asked for yet.
    pub fn lines_so_far(&mut self) -> Vec<String> {
        self.lines.try_iter().collect()
    }

    /// The next line that contains `words`, at most 30 s from now.
    #[track_caller]
    pub fn line_with(&mut self, words: &str) -> String {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        let mut seen = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) if line.contains(words) => return line,
                Ok(line) => seen.push(line),
                Err(_) => panic!("{} printed no line with {words:?}, only: {seen:?}", self.line),
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

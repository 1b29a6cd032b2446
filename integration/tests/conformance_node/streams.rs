//! Terminals and forwarded ports, with a kubectl that speaks SPDY and one that speaks WebSocket.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use integration::{BUSYBOX, Lab, NGINX, Running, command, kubectl_environment};

use crate::SOON;

#[test]
fn streams() {
    let lab = Lab::up("cstream", &[]);
    lab.apply(&include_str!("streams.yaml").replace("BUSYBOX", BUSYBOX).replace("NGINX", NGINX));
    lab.wait("pod/shell", "condition=Ready", 60);
    lab.wait("pod/serves", "condition=Ready", 60);
    let mut versions = 0;
    for kubectl in ["1.27", "1.33"].iter().filter_map(|version| integration::kubectl_of_version(version)) {
        terminals(&lab, &kubectl);
        ports(&lab, &kubectl);
        versions += 1;
    }
    // Where there are no others, the one that is installed.
    if versions == 0 {
        terminals(&lab, &integration::kubectl());
        ports(&lab, &integration::kubectl());
    }
}

/// A command with a terminal of its own, made by `script`.
struct Terminal {
    child: Child,
    input: ChildStdin,
    shown: Arc<Mutex<Vec<u8>>>,
    /// The terminal's name, as a file.
    name: PathBuf,
    _directory: tempfile::TempDir,
}

impl Terminal {
    fn start(lab: &Lab, kubectl: &Path, arguments: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let name = directory.path().join("tty");
        let line = format!("tty > {}; stty rows 30 cols 100; exec {} {arguments}", name.display(), kubectl.display());
        let mut child = Command::new("script")
            .args(["-q", "-e", "-c", &line, "/dev/null"])
            .env("KUBECONFIG", &lab.kubeconfig)
            .env("SHELL", "/bin/sh")
            .env("TERM", "dumb")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("running script, of bsdutils: {error}"));
        let shown = Arc::new(Mutex::new(Vec::new()));
        let (mut output, known) = (child.stdout.take().unwrap(), shown.clone());
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = output.read(&mut buffer) {
                known.lock().unwrap().extend_from_slice(&buffer[..read]);
            }
        });
        Self { input: child.stdin.take().unwrap(), child, shown, name, _directory: directory }
    }

    fn types(&mut self, text: &str) {
        self.input.write_all(text.as_bytes()).unwrap();
        self.input.flush().unwrap();
    }

    fn shown(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().unwrap()).into_owned()
    }

    fn resize(&self, rows: u32, columns: u32) {
        let tty = std::fs::read_to_string(&self.name).unwrap();
        let (rows, columns) = (rows.to_string(), columns.to_string());
        command("stty", &["-F", tty.trim(), "rows", &rows, "cols", &columns], &[], "").expect_ok();
    }

    /// Types the command until its answer is seen: sizes come when they come.
    #[track_caller]
    fn answers(&mut self, lab: &Lab, typed: &str, answer: &str) {
        lab.eventually(&format!("{typed:?} is answered with {answer:?}"), SOON, || {
            self.types(typed);
            std::thread::sleep(Duration::from_millis(200));
            let shown = self.shown();
            if shown.contains(answer) { Ok(()) } else { Err(shown) }
        });
    }

    #[track_caller]
    fn ends(&mut self, lab: &Lab) -> Option<i32> {
        lab.eventually("kubectl ends", SOON, || match self.child.try_wait().unwrap() {
            Some(status) => Ok(status.code()),
            None => Err(self.shown()),
        })
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn terminals(lab: &Lab, kubectl: &Path) {
    let mut exec = Terminal::start(lab, kubectl, "exec -it shell -- sh");
    exec.answers(lab, "stty size\n", "30 100\r\n");
    exec.resize(44, 133);
    exec.answers(lab, "stty size\n", "44 133\r\n");
    exec.types("sleep 1000\n");
    // Ctrl-C reaches the command, and not kubectl.
    exec.answers(lab, "\u{3}echo after-$((1+1))\n", "after-2\r\n");
    exec.types("exit 7\n");
    assert_eq!(exec.ends(lab), Some(7), "{}", exec.shown());

    let mut attach = Terminal::start(lab, kubectl, "attach -it shell");
    attach.answers(lab, "stty size\n", "30 100\r\n");
    attach.resize(50, 150);
    attach.answers(lab, "stty size\n", "50 150\r\n");
    let restarts = ["get", "pod", "shell", "-o", "jsonpath={.status.containerStatuses[0].restartCount}"];
    let before: u32 = lab.kubectl(&restarts).parse().unwrap();
    // It is the container's own shell.
    attach.types("exit\n");
    attach.ends(lab);
    lab.eventually("the shell is there again", SOON, || {
        let now = lab.kubectl(&restarts);
        if now.parse() == Ok(before + 1) { Ok(()) } else { Err(now) }
    });
}

/// `kubectl port-forward` to a pod, with its local ports in the order of the remote ones.
struct Forward {
    kubectl: Running,
    ports: Vec<u16>,
}

impl Forward {
    fn start(lab: &Lab, kubectl: &Path, remote: &[&str]) -> Self {
        let line = format!("exec {} port-forward pod/serves {} 2>&1", kubectl.display(), remote.join(" "));
        let environment = kubectl_environment(&lab.kubeconfig);
        let mut kubectl = Running::start(Path::new("sh"), &["-c", &line], &environment);
        let ports = remote
            .iter()
            .map(|_| {
                let line = kubectl.line_with("Forwarding from 127.0.0.1:");
                let rest = line.split("127.0.0.1:").nth(1).unwrap_or_default();
                rest.split(' ').next().unwrap_or_default().parse().unwrap()
            })
            .collect();
        Self { kubectl, ports }
    }

    fn connect(&self, index: usize) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.ports[index])).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream
    }
}

/// Asks for a page, perhaps as one who has no more to ask, and reads to the end.
fn fetch(mut stream: TcpStream, path: &str, half_closed: bool) -> Vec<u8> {
    stream.write_all(format!("GET {path} HTTP/1.0\r\nhost: web\r\n\r\n").as_bytes()).unwrap();
    if half_closed {
        stream.shutdown(Shutdown::Write).unwrap();
    }
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    answer
}

fn ports(lab: &Lab, kubectl: &Path) {
    let forward = Forward::start(lab, kubectl, &[":80", ":7000"]);

    // Many at once, all open before the first one asks.
    let sum = lab.kubectl(&["exec", "serves", "-c", "web", "--", "sha256sum", "/usr/share/nginx/html/big"]);
    let sum = sum.split(' ').next().unwrap_or_default();
    let open: Vec<TcpStream> = (0..6).map(|_| forward.connect(0)).collect();
    let fetched: Vec<_> =
        open.into_iter().map(|stream| std::thread::spawn(move || fetch(stream, "/big", false))).collect();
    for answer in fetched {
        let answer = answer.join().unwrap();
        let body = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").map_or(0, |at| at + 4);
        assert_eq!(answer.len() - body, 8_000_000, "{}", String::from_utf8_lossy(&answer[..body]));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &answer[body..]).unwrap();
        let own = command("sha256sum", &[&file.path().display().to_string()], &[], "").expect_ok();
        assert!(own.starts_with(sum), "{own} {sum}");
    }

    // A client that says that it has no more to say is still answered, if soon enough for the runtime.
    lab.eventually("the page, to a client that only listens", SOON, || {
        let answer = String::from_utf8_lossy(&fetch(forward.connect(0), "/", true)).into_owned();
        if answer.contains("Welcome to nginx") { Ok(()) } else { Err(answer) }
    });
    // A server that talks first and hangs up; a client that never says anything.
    let mut greeted = String::new();
    forward.connect(1).read_to_string(&mut greeted).unwrap();
    assert_eq!(greeted, "hello\n");
    drop(forward.connect(0));
    drop(forward);

    // A port that nobody listens on.
    let mut forward = Forward::start(lab, kubectl, &[":9"]);
    let mut nothing = Vec::new();
    let read = forward.connect(0).read_to_end(&mut nothing);
    assert!(matches!(read, Ok(0) | Err(_)), "{nothing:?}");
    let said = forward.kubectl.line_with("an error occurred forwarding");
    assert!(said.contains("-> 9: ") && said.contains("connection refused"), "{said}");
}

//! What is on a block device before it is mounted: a file system is made where there is nothing, and
//! checked where there is one (`k8s.io/mount-utils`, `SafeFormatAndMount`).
//!
//! Layer: beside [`super::mounts`], which mounts; used by [`super::claims`] for local volumes. CSI drivers
//! do this for their own devices.

use std::process::Output;

use tokio::process::Command;

/// Of volumes that name no kind.
const DEFAULT: &str = "ext4";
/// blkid(8): nothing that it knows is on the device.
const NOTHING_FOUND: i32 = 2;
/// fsck(8): the lowest exit code that says that errors were left.
const ERRORS_LEFT: i32 = 4;

#[derive(Debug, PartialEq, Eq)]
enum Content {
    Nothing,
    /// A file system, or something else that is not ours to overwrite.
    Something,
}

/// Makes `device` ready to be mounted as `kind`.
pub async fn prepare(device: &str, kind: &str, read_only: bool) -> Result<(), String> {
    let found = run("blkid", &["-p", "-s", "TYPE", "-s", "PTTYPE", "-o", "export", device]).await?;
    match (content(device, &found)?, read_only) {
        (Content::Nothing, true) => Err(format!("cannot mount unformatted disk {device} as it is in read-only mode")),
        (Content::Nothing, false) => format(device, kind).await,
        (Content::Something, true) => Ok(()),
        (Content::Something, false) => check(device).await,
    }
}

fn content(device: &str, found: &Output) -> Result<Content, String> {
    let text = String::from_utf8_lossy(&found.stdout);
    match found.status.code() {
        Some(0) if text.lines().any(|line| line.starts_with("TYPE=") || line.starts_with("PTTYPE=")) => {
            Ok(Content::Something)
        }
        Some(0 | NOTHING_FOUND) => Ok(Content::Nothing),
        _ => Err(format!("looking at what is on {device}: blkid: {}: {}", found.status, said(found))),
    }
}

async fn format(device: &str, kind: &str) -> Result<(), String> {
    let kind = if kind.is_empty() { DEFAULT } else { kind };
    let arguments: &[&str] = match kind {
        "ext3" | "ext4" => &["-F", "-m0"],
        "xfs" => &["-f"],
        _ => &[],
    };
    tracing::info!(device, kind, "formatting a disk that has nothing on it");
    let made = run(&format!("mkfs.{kind}"), &[arguments, &[device]].concat()).await?;
    if made.status.success() {
        return Ok(());
    }
    Err(format!("format of disk {device:?} failed: type:({kind:?}) errcode:({}) output:({})", made.status, said(&made)))
}

/// Errors that fsck could not correct keep the volume from being mounted; no fsck is no reason to.
async fn check(device: &str) -> Result<(), String> {
    let Ok(checked) = run("fsck", &["-a", device]).await else { return Ok(()) };
    match checked.status.code() {
        Some(ERRORS_LEFT) => {
            Err(format!("'fsck' found errors on device {device} but could not correct them: {}", said(&checked)))
        }
        _ => Ok(()),
    }
}

async fn run(program: &str, arguments: &[&str]) -> Result<Output, String> {
    let failed = |error| format!("running {program} {}: {error}", arguments.join(" "));
    Command::new(program).args(arguments).kill_on_drop(true).output().await.map_err(failed)
}

fn said(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&text).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn on(path: &str) -> String {
        let found =
            run("blkid", &["-p", "-s", "TYPE", "-s", "UUID", "-s", "PTTYPE", "-o", "export", path]).await.unwrap();
        String::from_utf8_lossy(&found.stdout).into_owned()
    }

    #[tokio::test]
    async fn a_file_system_is_made_once_and_never_over_something() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, start: &[u8]| {
            let path = directory.path().join(name);
            std::fs::write(&path, start).unwrap();
            std::fs::File::options().write(true).open(&path).unwrap().set_len(16 << 20).unwrap();
            path.display().to_string()
        };
        let empty = file("empty", b"");
        let refused = prepare(&empty, "ext4", true).await.unwrap_err();
        assert!(refused.starts_with("cannot mount unformatted disk"), "{refused}");
        prepare(&empty, "ext4", false).await.unwrap();
        let made = on(&empty).await;
        assert!(made.contains("TYPE=ext4"), "{made}");
        prepare(&empty, "ext4", false).await.unwrap();
        assert_eq!(on(&empty).await, made, "what is there stays");

        let swap = file("swap", b"");
        assert!(run("mkswap", &[&swap]).await.unwrap().status.success());
        prepare(&swap, "ext4", true).await.unwrap();
        assert!(on(&swap).await.contains("TYPE=swap"));

        let unknown = prepare(&file("other", b""), "nosuchfs", false).await.unwrap_err();
        assert!(unknown.contains("mkfs.nosuchfs"), "{unknown}");
    }
}

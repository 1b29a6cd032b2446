//! The sandbox image: one static executable, `pause/pause.rs`, embedded in the agent.

use super::{Image, ImageConfig, ImageError, Rootfs};

/// What containerd's configuration names as the sandbox image.
pub const NAME: &str = "localhost/skiff/pause:1";

static EXECUTABLE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/pause"));

/// The image, with the same digest on every machine of one architecture and build.
pub fn image() -> Result<Image, ImageError> {
    let rootfs = Rootfs::new().file("/pause", 0o755, EXECUTABLE);
    let config = ImageConfig {
        // as Kubernetes' own sandbox image
        user: "65535:65535".to_owned(),
        entrypoint: vec!["/pause".to_owned()],
        working_dir: "/".to_owned(),
        env: vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()],
        ..Default::default()
    };
    Image::build(NAME, &rootfs, &config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_small_and_always_the_same() {
        assert!(EXECUTABLE.starts_with(b"\x7fELF"));
        assert!(EXECUTABLE.len() < 8 << 10, "{} bytes", EXECUTABLE.len());
        assert_eq!(image().unwrap().target, image().unwrap().target);
    }

    #[test]
    fn it_reaps_and_ends_on_sigterm() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pause");
        std::fs::write(&path, EXECUTABLE).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut child = std::process::Command::new(&path).spawn().unwrap();
        let pid = nix::unistd::Pid::from_raw(child.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCHLD).unwrap();
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        // SIGTERM's own action if it came before the signals were blocked, else an orderly end
        let status = child.wait().unwrap();
        assert!(status.code() == Some(0) || status.code().is_none(), "{status}");
    }
}

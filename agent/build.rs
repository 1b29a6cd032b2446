//! Compiles the sandbox's `pause` executable (see `pause/pause.rs`) with the same compiler, for the
//! same target, so that nothing else has to be installed.

use std::error::Error;
use std::process::Command;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=pause/pause.rs");
    let output = format!("{}/pause", std::env::var("OUT_DIR")?);
    let mut compiler = Command::new(std::env::var("RUSTC")?);
    compiler
        .args(["pause/pause.rs", "--edition", "2024", "--crate-name", "pause", "--crate-type", "bin"])
        .args(["--target", &std::env::var("TARGET")?, "-o", &output])
        .args(["-C", "panic=abort", "-C", "opt-level=s", "-C", "strip=symbols", "-C", "relocation-model=static"])
        // a static executable without start files or libc
        .args(["-C", "target-feature=+crt-static", "-C", "link-arg=-nostartfiles", "-C", "link-arg=-nostdlib"])
        .args(["-C", "link-arg=-static", "-C", "link-arg=-Wl,--build-id=none", "-C", "link-arg=-Wl,-z,noseparate-code"])
        .args(["-C", "link-arg=-Wl,-z,max-page-size=4096", "-C", "link-arg=-Wl,--no-eh-frame-hdr"]);
    if let Some(linker) = std::env::var_os("RUSTC_LINKER") {
        let mut flag = std::ffi::OsString::from("linker=");
        flag.push(linker);
        compiler.arg("-C").arg(flag);
    }
    let status = compiler.status()?;
    if !status.success() {
        return Err(format!("compiling pause/pause.rs ended with {status}; its messages are above").into());
    }
    Ok(())
}

//! Compiles every `.proto` file under `proto/` in pure Rust (protox), so that nobody has to install
//! protoc. A package `a.b.v1` becomes the module `proto::a::b::v1`. What is under `kubernetes/` becomes
//! descriptors only: hundreds of types would be compiled that nobody has a value of.

use std::error::Error;
use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    println!("cargo:rerun-if-changed=kubernetes");
    let mut files = Vec::new();
    collect(Path::new("proto"), &mut files)?;
    files.sort();
    let descriptors = protox::compile(&files, ["proto"])?;
    tonic_prost_build::configure()
        .include_file("modules.rs")
        .emit_rerun_if_changed(false)
        .disable_comments(["."])
        // Keys and values are shared with the store's callers, not copied.
        .bytes(".etcdserverpb")
        .bytes(".mvccpb")
        .compile_fds(descriptors)?;
    let mut kubernetes = protox::Compiler::new(["kubernetes"])?;
    kubernetes.open_file("core/v1/pod.proto")?;
    let out = std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR for build scripts")?;
    std::fs::write(Path::new(&out).join("pod.descriptors"), kubernetes.encode_file_descriptor_set())?;
    Ok(())
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) -> Result<(), Box<dyn Error>> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "proto") {
            files.push(path);
        }
    }
    Ok(())
}

//! Build step: facts about the built-in kinds (`schema/kubernetes.txt`) and their descriptions (the
//! schemas of the types crate) become compact files which `src/schema/table.rs` embeds: `schema.bin` and
//! `strings.txt`, read in place, and `descriptions.bin`, deflated, only unpacked to answer OpenAPI.

#[path = "build/blob.rs"]
mod blob;
#[path = "build/describe.rs"]
mod describe;
#[path = "build/facts.rs"]
mod facts;

use std::error::Error;
use std::path::PathBuf;

const FACTS: &str = "schema/kubernetes.txt";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=build");
    println!("cargo:rerun-if-changed={FACTS}");
    let types = facts::parse(&std::fs::read_to_string(FACTS)?)?;
    let descriptions = describe::collect();
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let encoded = blob::encode(&types, &descriptions)?;
    std::fs::write(out.join("schema.bin"), encoded.table)?;
    std::fs::write(out.join("strings.txt"), encoded.strings)?;
    std::fs::write(out.join("descriptions.bin"), encoded.descriptions)?;
    Ok(())
}

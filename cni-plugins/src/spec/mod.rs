//! The CNI specification's own parts: how a plugin is called and how it answers.

mod call;
mod error;
mod result;

pub use call::{Call, Command, owner};
pub use error::{Error, Result};
pub use result::{Dns, Interface, Ip, NetworkResult, Route};

use serde_json::{Value, json};

/// Versions in which a plugin can be asked and answers, oldest first.
pub const SUPPORTED: &[&str] = &["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
pub const NEWEST: &str = "1.1.0";

/// The answer to VERSION, in the version of the request.
pub fn versions(input: &[u8]) -> String {
    json!({ "cniVersion": config_version(input), "supportedVersions": SUPPORTED }).to_string()
}

/// The version a configuration names; for error messages, so never an error itself.
pub fn config_version(input: &[u8]) -> String {
    serde_json::from_slice::<Value>(input)
        .ok()
        .and_then(|config| config.get("cniVersion")?.as_str().map(str::to_owned))
        .unwrap_or_else(|| NEWEST.to_owned())
}

/// Orders versions by number.
pub fn at_least(version: &str, wanted: (u32, u32, u32)) -> bool {
    let mut numbers = version.split('.').map(|part| part.parse().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    (next(), next(), next()) >= wanted
}

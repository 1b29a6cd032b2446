//! How a plugin is called: CNI_* variables and a configuration on standard input.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::PathBuf;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Error, NetworkResult, Result, SUPPORTED};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    Add,
    Delete,
    Check,
    Collect,
    Status,
    Version,
}

impl Command {
    pub fn from_environment() -> Result<Self> {
        match std::env::var("CNI_COMMAND").as_deref() {
            Ok("ADD") => Ok(Self::Add),
            Ok("DEL") => Ok(Self::Delete),
            Ok("CHECK") => Ok(Self::Check),
            Ok("GC") => Ok(Self::Collect),
            Ok("STATUS") => Ok(Self::Status),
            Ok("VERSION") => Ok(Self::Version),
            Ok("") | Err(_) => Err(Error::environment("required env variables [CNI_COMMAND] missing")),
            Ok(other) => Err(Error::environment(format!(
                "unknown CNI_COMMAND: {other}; the specification has ADD, DEL, CHECK, GC, STATUS and VERSION"
            ))),
        }
    }

    /// The variables it cannot do without.
    fn required(self) -> &'static [&'static str] {
        match self {
            Self::Add | Self::Check => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"],
            Self::Delete => &["CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"],
            Self::Collect | Self::Status => &["CNI_PATH"],
            Self::Version => &[],
        }
    }
}

/// A container and interface that still exist, in a GC configuration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Attachment {
    #[serde(rename = "containerID")]
    pub container_id: String,
    pub ifname: String,
}

/// One call of a plugin.
#[derive(Debug, Clone)]
pub struct Call {
    pub container_id: String,
    /// Empty when a DEL comes after the namespace has gone.
    pub netns: String,
    pub ifname: String,
    pub path: Vec<PathBuf>,
    /// CNI_ARGS as pairs.
    pub args: HashMap<String, String>,
    pub config: Value,
    pub version: String,
    /// The network's name.
    pub network: String,
}

impl Call {
    pub fn new(command: Command, input: &[u8]) -> Result<Self> {
        let variable = |name: &str| std::env::var_os(name).unwrap_or_default();
        Self::from_parts(command, input, variable)
    }

    fn from_parts(command: Command, input: &[u8], variable: impl Fn(&str) -> OsString) -> Result<Self> {
        let text = |name: &str| variable(name).to_string_lossy().into_owned();
        let missing: Vec<_> = command.required().iter().copied().filter(|name| variable(name).is_empty()).collect();
        if !missing.is_empty() {
            return Err(Error::environment(format!("required env variables [{}] missing", missing.join(","))));
        }
        let config: Value = serde_json::from_slice(input)
            .map_err(|error| Error::decode(format!("error unmarshall network config: {error}")))?;
        let field = |name: &str| config.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let version = match field("cniVersion") {
            empty if empty.is_empty() => "0.1.0".to_owned(),
            version => version,
        };
        if !SUPPORTED.contains(&version.as_str()) {
            return Err(Error::version(&version));
        }
        let call = Self {
            container_id: text("CNI_CONTAINERID"),
            netns: text("CNI_NETNS"),
            ifname: text("CNI_IFNAME"),
            path: std::env::split_paths(&variable("CNI_PATH")).collect(),
            args: arguments(&text("CNI_ARGS"))?,
            network: field("name"),
            version,
            config,
        };
        call.validate(command)?;
        Ok(call)
    }

    fn validate(&self, command: Command) -> Result<()> {
        if command.required().contains(&"CNI_CONTAINERID") && !is_identifier(&self.container_id) {
            return Err(Error::environment(format!("invalid characters in containerID: {:?}", self.container_id)));
        }
        if command.required().contains(&"CNI_IFNAME") {
            validate_interface_name(&self.ifname)?;
        }
        if self.network.is_empty() {
            return Err(Error::config("missing network name:, it must be set as \"name\" in the configuration"));
        }
        if !is_identifier(&self.network) {
            return Err(Error::config(format!("invalid characters found in network name: {:?}", self.network)));
        }
        Ok(())
    }

    /// The configuration as a plugin's own structure.
    pub fn config<C: DeserializeOwned>(&self) -> Result<C> {
        C::deserialize(&self.config).map_err(|error| Error::decode(format!("failed to load netconf: {error}")))
    }

    /// What the plugins before this one in the list produced.
    pub fn previous(&self) -> Result<Option<NetworkResult>> {
        match self.config.get("prevResult") {
            None | Some(Value::Null) => Ok(None),
            Some(value) => NetworkResult::deserialize(value)
                .map(Some)
                .map_err(|error| Error::decode(format!("could not parse prevResult: {error}"))),
        }
    }

    pub fn required_previous(&self) -> Result<NetworkResult> {
        self.previous()?.ok_or_else(|| Error::config("must be called as a chained plugin: prevResult is missing"))
    }

    /// A value of `runtimeConfig`, as a runtime fills it in for a plugin's `capabilities`.
    pub fn runtime<C: DeserializeOwned>(&self, capability: &str) -> Result<Option<C>> {
        match self.config.get("runtimeConfig").and_then(|runtime| runtime.get(capability)) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => C::deserialize(camel_case(value))
                .map(Some)
                .map_err(|error| Error::decode(format!("runtimeConfig.{capability} cannot be read: {error}"))),
        }
    }

    /// The attachments that a GC is to keep.
    pub fn valid_attachments(&self) -> Result<Vec<Attachment>> {
        match self.config.get("cni.dev/valid-attachments") {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(value) => Vec::deserialize(value)
                .map_err(|error| Error::decode(format!("cni.dev/valid-attachments cannot be read: {error}"))),
        }
    }

    /// Finds by owner what this call makes in shared tables: network, container, interface.
    pub fn owner(&self) -> String {
        owner(&self.network, &self.container_id, &self.ifname)
    }
}

/// See [`Call::owner`].
pub fn owner(network: &str, container_id: &str, ifname: &str) -> String {
    // A rule's comment holds 127 bytes: container ids have 64 in containerd, the rest are names.
    format!("{network}/{container_id}/{ifname}").chars().take(127).collect()
}

fn is_identifier(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.chars().all(|each| each.is_ascii_alphanumeric() || matches!(each, '_' | '.' | '-'))
}

fn validate_interface_name(name: &str) -> Result<()> {
    let problem = if name.is_empty() {
        "interface name is empty"
    } else if name.len() > 15 {
        "interface name is too long; the kernel allows 15 characters"
    } else if name == "." || name == ".." {
        "interface name is . or .."
    } else if name.contains(|each: char| each == '/' || each == ':' || each.is_whitespace()) {
        "interface name contains / or : or whitespace characters"
    } else {
        return Ok(());
    };
    Err(Error::environment(format!("{problem}: {name:?}")))
}

fn arguments(text: &str) -> Result<HashMap<String, String>> {
    text.split(';')
        .filter(|pair| !pair.is_empty())
        .map(|pair| match pair.split_once('=') {
            Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
            None => Err(Error::environment(format!("ARGS: invalid pair {pair:?}; write KEY=VALUE pairs joined by ;"))),
        })
        .collect()
}

/// The keys in lower camel case. Go reads keys in any case, and containerd writes `HostPort` where
/// the conventions say `hostPort`.
fn camel_case(value: &Value) -> Value {
    let key = |name: &String| {
        let mut letters = name.chars();
        letters.next().map(|first| first.to_ascii_lowercase()).into_iter().chain(letters).collect::<String>()
    };
    match value {
        Value::Object(map) => map.iter().map(|(name, value)| (key(name), camel_case(value))).collect(),
        Value::Array(items) => items.iter().map(camel_case).collect(),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(command: Command, input: &str, overrides: &[(&str, &str)]) -> Result<Call> {
        Call::from_parts(command, input.as_bytes(), |name| {
            let given = overrides.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
            let value = given.unwrap_or(match name {
                "CNI_CONTAINERID" => "c1",
                "CNI_NETNS" => "/run/netns/x",
                "CNI_IFNAME" => "eth0",
                "CNI_PATH" => "/opt/cni/bin:/usr/lib/cni",
                _ => "",
            });
            value.into()
        })
    }

    const GOOD: &str = r#"{"cniVersion":"1.0.0","name":"net","type":"bridge"}"#;

    #[test]
    fn runtime_configuration_is_read_as_containerd_writes_it() {
        let input =
            r#"{"cniVersion":"1.0.0","name":"net","runtimeConfig":{"portMappings":[{"HostPort":80,"HostIP":""}]}}"#;
        let read = call(Command::Add, input, &[]).unwrap().runtime::<Value>("portMappings").unwrap();
        assert_eq!(read, Some(serde_json::json!([{"hostPort": 80, "hostIP": ""}])));
    }

    #[test]
    fn bad_calls_get_the_specifications_codes() {
        type Case<'a> = (Command, &'a str, &'a [(&'a str, &'a str)], u32);
        let cases: &[Case<'_>] = &[
            (Command::Add, GOOD, &[("CNI_NETNS", "")], 4),
            (Command::Add, GOOD, &[("CNI_CONTAINERID", "")], 4),
            (Command::Add, GOOD, &[("CNI_CONTAINERID", "../x")], 4),
            (Command::Add, GOOD, &[("CNI_IFNAME", "a-name-too-long-for-linux")], 4),
            (Command::Add, GOOD, &[("CNI_IFNAME", "a/b")], 4),
            (Command::Add, GOOD, &[("CNI_ARGS", "novalue")], 4),
            (Command::Add, "{", &[], 6),
            (Command::Add, r#"{"cniVersion":"9.9.9","name":"net"}"#, &[], 1),
            (Command::Add, r#"{"name":"net"}"#, &[], 1),
            (Command::Add, r#"{"cniVersion":"1.0.0"}"#, &[], 7),
            (Command::Add, r#"{"cniVersion":"1.0.0","name":"../etc"}"#, &[], 7),
        ];
        for (command, input, overrides, code) in cases {
            assert_eq!(call(*command, input, overrides).unwrap_err().code, *code, "{input} {overrides:?}");
        }
        assert!(call(Command::Delete, GOOD, &[("CNI_NETNS", "")]).is_ok(), "DEL works without a namespace");
        assert!(call(Command::Status, GOOD, &[("CNI_CONTAINERID", ""), ("CNI_IFNAME", "")]).is_ok());
        let args = call(Command::Add, GOOD, &[("CNI_ARGS", "IgnoreUnknown=1;IP=10.1.2.3")]).unwrap().args;
        assert_eq!(args["IP"], "10.1.2.3");
    }
}

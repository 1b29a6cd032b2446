//! `skiff store get`: what the store holds, key by key, in the words of `etcdctl get`.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use clap::{Args, Subcommand, ValueEnum};
use serde::Deserialize;
use serde_json::json;

use crate::token::ConnectionArguments;

#[derive(Subcommand)]
pub enum StoreCommand {
    /// Print keys and values, as `etcdctl get` does
    Get(GetArguments),
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Simple,
    Json,
}

#[derive(Args)]
pub struct GetArguments {
    #[command(flatten)]
    connection: ConnectionArguments,
    /// A key, as /registry/pods/default/web
    key: String,
    /// Every key that begins so
    #[arg(long)]
    prefix: bool,
    /// Print no values
    #[arg(long)]
    keys_only: bool,
    /// Print no keys
    #[arg(long, conflicts_with = "keys_only")]
    print_value_only: bool,
    /// At most so many keys; 0 for all
    #[arg(long, default_value_t = 0)]
    limit: usize,
    /// How to print: text, or JSON as etcdctl's
    #[arg(short = 'w', long, default_value = "simple")]
    write_out: Output,
}

/// One answer of the server.
#[derive(Deserialize)]
struct Page {
    revision: u64,
    count: u64,
    kvs: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    key: String,
    mod_revision: u64,
    /// Base64.
    #[serde(default)]
    value: String,
}

pub fn run(command: &StoreCommand) -> anyhow::Result<ExitCode> {
    let StoreCommand::Get(arguments) = command;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(get(arguments))?;
    Ok(ExitCode::SUCCESS)
}

async fn get(arguments: &GetArguments) -> anyhow::Result<()> {
    let client = super::client::from_file(&arguments.connection.kubeconfig).await?;
    let mut out = std::io::stdout().lock();
    let (mut all, mut count, mut revision, mut start) = (Vec::new(), None, 0, None::<String>);
    let mut printed = 0;
    loop {
        let left = if arguments.limit == 0 { 0 } else { arguments.limit - printed };
        let page = page(&client, &path(arguments, start.as_deref(), revision, left)).await?;
        revision = page.revision;
        // A later page counts only what is left.
        let count = *count.get_or_insert(page.count);
        printed += page.kvs.len();
        start = page.kvs.last().map(|entry| format!("{}\0", entry.key));
        let more = arguments.prefix
            && start.is_some()
            && (printed as u64) < count
            && (arguments.limit == 0 || printed < arguments.limit);
        match arguments.write_out {
            Output::Simple => page.kvs.iter().try_for_each(|entry| print(&mut out, arguments, entry))?,
            Output::Json => all.extend(page.kvs),
        }
        if !more {
            break;
        }
    }
    if arguments.write_out == Output::Json {
        let kvs: Vec<_> = all.iter().map(as_json).collect();
        let answer = json!({"header": {"revision": revision}, "kvs": kvs, "count": count.unwrap_or(0)});
        writeln!(out, "{answer}")?;
    }
    Ok(())
}

fn path(arguments: &GetArguments, start: Option<&str>, revision: u64, limit: usize) -> String {
    let key = encoded(&arguments.key);
    let keys_only = if arguments.keys_only { "&keysOnly=true" } else { "" };
    if !arguments.prefix {
        return format!("/skiff/v1/store/keys?key={key}{keys_only}");
    }
    let start = start.map(|start| format!("&start={}", encoded(start))).unwrap_or_default();
    format!("/skiff/v1/store/keys?prefix={key}&revision={revision}&limit={limit}{start}{keys_only}")
}

/// For a query: everything but letters, digits and what is plain in keys.
fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-_.:".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

async fn page(client: &kube::Client, path: &str) -> anyhow::Result<Page> {
    let request = http::Request::get(path).body(Vec::new())?;
    client.request(request).await.context("asking the server for its keys")
}

fn print(out: &mut impl Write, arguments: &GetArguments, entry: &Entry) -> anyhow::Result<()> {
    if !arguments.print_value_only {
        writeln!(out, "{}", entry.key)?;
    }
    out.write_all(&BASE64_STANDARD.decode(&entry.value)?)?;
    Ok(writeln!(out)?)
}

/// As etcd's own JSON has it.
fn as_json(entry: &Entry) -> serde_json::Value {
    let mut shown = json!({"key": BASE64_STANDARD.encode(&entry.key), "mod_revision": entry.mod_revision});
    if !entry.value.is_empty() {
        shown["value"] = entry.value.as_str().into();
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_carry_any_key() {
        assert_eq!(encoded("/registry/a b&c\0"), "/registry/a%20b%26c%00");
    }
}

//! Which IDs the node has for pods (`getKubeletMappings`): those that `/etc/subuid` and `/etc/subgid` keep for
//! the user `kubelet`, where there is one; else all above the first 65536.

use std::process::Command;

use nix::unistd::User;

use super::ranges::PER_POD;

/// The user whose IDs they are. The names of both are Kubernetes', and written out in the errors.
const USER: &str = "kubelet";
/// From the package uidmap.
const PROGRAM: &str = "getsubids";

#[derive(Debug, thiserror::Error)]
pub enum SubidError {
    #[error("looking for the user kubelet: {0}")]
    User(nix::Error),
    #[error("running getsubids: {0}")]
    Run(std::io::Error),
    /// There is such a user, so that IDs are meant to be kept for it: what others have must not be taken.
    #[error("getsubids gives no IDs for the user kubelet ({why}); give it some in /etc/sub{kind}, or remove the user")]
    None { kind: &'static str, why: String },
    #[error("the user kubelet has other IDs in /etc/subuid than in /etc/subgid: both must be the same")]
    Different,
    #[error("getsubids says {0:?}: the user kubelet must have one range of IDs in /etc/subuid and /etc/subgid")]
    Content(String),
}

/// The first ID and how many there are.
pub fn of_node() -> Result<(u32, u64), SubidError> {
    // getsubids may ask the network, which says nothing too when it cannot be reached: the user decides.
    if User::from_name(USER).map_err(SubidError::User)?.is_none() {
        return Ok(default());
    }
    let (Some(users), Some(groups)) = (ask("uid", &[USER])?, ask("gid", &["-g", USER])?) else {
        tracing::warn!(
            "there is a user kubelet, but getsubids (package uidmap) is not installed: pods with users of their own get any IDs above 65535"
        );
        return Ok(default());
    };
    if users != groups {
        return Err(SubidError::Different);
    }
    parse(&users).ok_or(SubidError::Content(users))
}

fn default() -> (u32, u64) {
    (PER_POD, (1 << 32) - u64::from(PER_POD))
}

/// None if there is no such program.
fn ask(kind: &'static str, arguments: &[&str]) -> Result<Option<String>, SubidError> {
    match Command::new(PROGRAM).args(arguments).output() {
        Ok(output) if output.status.success() => Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned())),
        Ok(output) => Err(SubidError::None { kind, why: String::from_utf8_lossy(&output.stderr).trim().to_owned() }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(SubidError::Run(error)),
    }
}

/// From the one line `0: kubelet 65536 2147483648`.
fn parse(text: &str) -> Option<(u32, u64)> {
    let text = text.trim_matches('\n');
    let words: Vec<&str> = text.split_whitespace().collect();
    match words.as_slice() {
        [_, _, first, count] if !text.contains('\n') => Some((first.parse().ok()?, count.parse::<u32>().ok()?.into())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_is_understood() {
        for (text, expected) in [
            ("0: kubelet 65536 2147483648\n", Some((65536, 2_147_483_648))),
            ("0: kubelet 65536 65536\n1: kubelet 231072 65536\n", None),
            ("0: kubelet 65536\n", None),
            ("0: kubelet -1 2147483648\n", None),
            ("0: kubelet 65536 4294967296\n", None),
            ("", None),
        ] {
            assert_eq!(parse(text), expected, "{text:?}");
        }
    }
}

//! When a pod has to prove that it may use an image that is on the node
//! (`imagePullCredentialsVerificationPolicy`, `image_pull_policies.go`). Pure.

use std::collections::BTreeSet;

use crate::images::names;

const NEVER: &str = "NeverVerify";
const PRELOADED: &str = "NeverVerifyPreloadedImages";
const ALLOWLISTED: &str = "NeverVerifyAllowlistedImages";
const ALWAYS: &str = "AlwaysVerify";

/// The policies' names, as Kubernetes' configuration has them.
pub const NAMES: [&str; 4] = [NEVER, PRELOADED, ALLOWLISTED, ALWAYS];

/// Why there is no such policy.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PolicyError {
    #[error(
        "invalid configuration: option {0:?} specified for imagePullCredentialsVerificationPolicy. Valid options are \"NeverVerify\", \"NeverVerifyPreloadedImages\", \"NeverVerifyAllowlistedImages\" or \"AlwaysVerify\""
    )]
    Unknown(String),
    /// Kubernetes' own spelling.
    #[error(
        "invalid configuration: can't set `preloadedImagesVerificationAllowlist` if `imagePullCredentialsVertificationPolicy` is not \"NeverVerifyAllowlistedImages\""
    )]
    NeedlessAllowlist,
    #[error("invalid configuration: invalid image pattern in `preloadedImagesVerificationAllowlist`: {0}")]
    Pattern(String),
}

/// Whose images every pod may use without proof.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Policy {
    /// All of them.
    NeverVerify,
    /// Those that no pod's pull brought to the node.
    #[default]
    NeverVerifyPreloadedImages,
    NeverVerifyAllowlistedImages(Allowlist),
    /// None.
    AlwaysVerify,
}

impl Policy {
    /// From Kubernetes' two options; an empty name stands for the default.
    pub fn new(name: &str, allowlist: &[String]) -> Result<Self, PolicyError> {
        if name == ALLOWLISTED {
            return Ok(Self::NeverVerifyAllowlistedImages(Allowlist::new(allowlist)?));
        }
        let policy = match name {
            "" | PRELOADED => Self::NeverVerifyPreloadedImages,
            NEVER => Self::NeverVerify,
            ALWAYS => Self::AlwaysVerify,
            other => return Err(PolicyError::Unknown(other.to_owned())),
        };
        if allowlist.is_empty() { Ok(policy) } else { Err(PolicyError::NeedlessAllowlist) }
    }

    pub fn name(&self) -> &'static str {
        match self {
            Self::NeverVerify => NEVER,
            Self::NeverVerifyPreloadedImages => PRELOADED,
            Self::NeverVerifyAllowlistedImages(_) => ALLOWLISTED,
            Self::AlwaysVerify => ALWAYS,
        }
    }

    /// The patterns that it was given.
    pub fn allowlist(&self) -> Option<&[String]> {
        match self {
            Self::NeverVerifyAllowlistedImages(allowlist) => Some(&allowlist.patterns),
            _ => None,
        }
    }

    /// Whether a pod needs proof for the image with this name in full, without tag and digest.
    pub fn verifies(&self, repository: &str, pulled_by_a_pod: bool) -> bool {
        match self {
            Self::NeverVerify => false,
            Self::NeverVerifyPreloadedImages => pulled_by_a_pod,
            Self::NeverVerifyAllowlistedImages(allowlist) => !allowlist.names(repository),
            Self::AlwaysVerify => true,
        }
    }
}

/// Images by name in full, or by its beginning: `registry.io/team/*`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Allowlist {
    patterns: Vec<String>,
    whole: BTreeSet<String>,
    beginnings: Vec<String>,
}

impl Allowlist {
    pub fn new(patterns: &[String]) -> Result<Self, PolicyError> {
        let mut list = Self { patterns: patterns.to_vec(), ..Self::default() };
        for pattern in patterns {
            match check(pattern).map_err(PolicyError::Pattern)? {
                Some(beginning) => list.beginnings.push(beginning.to_owned()),
                None => {
                    list.whole.insert(pattern.clone());
                }
            }
        }
        Ok(list)
    }

    fn names(&self, repository: &str) -> bool {
        self.whole.contains(repository) || self.beginnings.iter().any(|beginning| repository.starts_with(beginning))
    }
}

/// What names must begin with, if the pattern is for more than one. The error is Kubernetes'.
fn check(pattern: &str) -> Result<Option<&str>, String> {
    if pattern.trim() != pattern {
        return Err(format!("leading/trailing spaces are not allowed: {pattern}"));
    }
    let beginning = pattern.strip_suffix('*').filter(|beginning| beginning.ends_with('/'));
    let name = beginning.unwrap_or(pattern);
    if name.is_empty() {
        return Err(format!("the supplied pattern is too short: {pattern}"));
    }
    if name.contains('*') {
        return Err(format!("not a valid wildcard pattern, only patterns ending with '/*' are allowed: {pattern}"));
    }
    if beginning == Some("/") {
        return Err("at least registry hostname is required".to_owned());
    }
    if beginning.is_some() {
        return Ok(beginning);
    }
    names::with_default_tag(name).map_err(|reason| format!("failed to parse as an image name: {reason}"))?;
    if names::repository(name) != name {
        return Err(format!("neither tag nor digest is accepted in an image reference: {pattern}"));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_found_by_name() {
        let list = |patterns: &[&str]| patterns.iter().map(|&pattern| pattern.to_owned()).collect::<Vec<String>>();
        for name in NAMES {
            assert_eq!(Policy::new(name, &[]).unwrap().name(), name);
        }
        assert_eq!(Policy::new("", &[]), Ok(Policy::default()));
        let patterns = list(&["r.io/a"]);
        assert_eq!(Policy::new(ALLOWLISTED, &patterns).unwrap().allowlist(), Some(&patterns[..]));
        for (name, patterns, words) in [
            (
                "Sometimes",
                &[""; 0][..],
                "option \"Sometimes\" specified for imagePullCredentialsVerificationPolicy. Valid options are \"NeverVerify\", \"NeverVerifyPreloadedImages\", \"NeverVerifyAllowlistedImages\" or \"AlwaysVerify\"",
            ),
            ("AlwaysVerify", &["r.io/a"], "is not \"NeverVerifyAllowlistedImages\""),
            (ALLOWLISTED, &[" r.io/a"], "leading/trailing spaces are not allowed:  r.io/a"),
            (ALLOWLISTED, &[""], "the supplied pattern is too short: "),
            (ALLOWLISTED, &["r.io/a*"], "only patterns ending with '/*' are allowed: r.io/a*"),
            (ALLOWLISTED, &["r.io/*/b/*"], "only patterns ending with '/*' are allowed"),
            (ALLOWLISTED, &["/*"], "at least registry hostname is required"),
            (ALLOWLISTED, &["r.io/a:1"], "neither tag nor digest is accepted in an image reference: r.io/a:1"),
            (ALLOWLISTED, &["alpine"], "neither tag nor digest is accepted"),
            (ALLOWLISTED, &["r.io/A"], "failed to parse as an image name: invalid reference format"),
        ] {
            let error = Policy::new(name, &list(patterns)).unwrap_err().to_string();
            assert!(error.starts_with("invalid configuration: ") && error.contains(words), "{error}");
        }
    }

    #[test]
    fn proof_is_asked_for_by_policy() {
        let patterns = ["r.io/team/*", "docker.io/library/nginx"].map(str::to_owned);
        let listed = Policy::new(ALLOWLISTED, &patterns).unwrap();
        for (policy, repository, pulled, expected) in [
            (&Policy::NeverVerify, "r.io/a", true, false),
            (&Policy::NeverVerifyPreloadedImages, "r.io/a", false, false),
            (&Policy::NeverVerifyPreloadedImages, "r.io/a", true, true),
            (&Policy::AlwaysVerify, "r.io/a", false, true),
            (&listed, "r.io/team/a", true, false),
            (&listed, "r.io/teams", false, true),
            (&listed, "docker.io/library/nginx", true, false),
            (&listed, "docker.io/library/nginx2", true, true),
        ] {
            assert_eq!(policy.verifies(repository, pulled), expected, "{policy:?} {repository}");
        }
    }
}

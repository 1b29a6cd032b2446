//! The Kubernetes version whose behaviour this is.

/// [`KUBERNETES`] where a literal is needed.
macro_rules! kubernetes {
    () => {
        "v1.37.0"
    };
}
pub(crate) use kubernetes;

/// The one of `1.<minor>`.
pub const MINOR: u32 = 37;
/// Without what tells builds apart.
pub const KUBERNETES: &str = kubernetes!();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_say_the_same() {
        assert_eq!(KUBERNETES, format!("v1.{MINOR}.0"));
    }
}

//! Pure: taints against tolerations, and the taints that controllers keep.

use k8s_openapi::api::core::v1::{Taint, Toleration};

pub const NOT_READY: &str = "node.kubernetes.io/not-ready";
pub const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
pub const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
pub const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
pub const MEMORY_PRESSURE: &str = "node.kubernetes.io/memory-pressure";
pub const DISK_PRESSURE: &str = "node.kubernetes.io/disk-pressure";
pub const PID_PRESSURE: &str = "node.kubernetes.io/pid-pressure";
pub const NETWORK_UNAVAILABLE: &str = "node.kubernetes.io/network-unavailable";

pub const NO_SCHEDULE: &str = "NoSchedule";
pub const NO_EXECUTE: &str = "NoExecute";

/// Whether this toleration covers the taint.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let key = toleration.key.as_deref().unwrap_or_default();
    let effect = toleration.effect.as_deref().unwrap_or_default();
    if !(effect.is_empty() || effect == taint.effect) || !(key.is_empty() || key == taint.key) {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or_default() {
        "Exists" => true,
        "" | "Equal" => {
            !key.is_empty()
                && toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default()
        }
        operator => compares(operator, toleration.value.as_deref(), taint.value.as_deref()),
    }
}

/// `Gt` and `Lt` compare whole numbers: the taint's value against the toleration's.
fn compares(operator: &str, toleration: Option<&str>, taint: Option<&str>) -> bool {
    let number = |text: Option<&str>| text.and_then(|text| text.parse::<i64>().ok());
    let (Some(wanted), Some(value)) = (number(toleration), number(taint)) else { return false };
    match operator {
        "Gt" => value > wanted,
        "Lt" => value < wanted,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tolerations_cover_taints_as_kubernetes_says() {
        let taint = Taint { key: "k".into(), value: Some("v".into()), effect: NO_EXECUTE.into(), time_added: None };
        let toleration = |key: &str, operator: &str, value: &str, effect: &str| Toleration {
            key: Some(key.into()),
            operator: Some(operator.into()),
            value: Some(value.into()),
            effect: Some(effect.into()),
            ..Default::default()
        };
        for (given, expected) in [
            (toleration("k", "Equal", "v", ""), true),
            (toleration("k", "", "v", NO_EXECUTE), true),
            (toleration("k", "Equal", "other", ""), false),
            (toleration("k", "Exists", "", NO_SCHEDULE), false),
            (toleration("", "Exists", "", ""), true),
            (toleration("", "", "", ""), false),
        ] {
            assert_eq!(tolerates(&given, &taint), expected, "{given:?}");
        }
        let number = Taint { value: Some("5".into()), ..taint };
        assert!(tolerates(&toleration("k", "Gt", "4", ""), &number));
        assert!(!tolerates(&toleration("k", "Lt", "5", ""), &number));
    }
}

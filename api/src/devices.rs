//! Claims and taints of devices (`resource.k8s.io`), as scheduling and the controllers read them.

use k8s_openapi::api::resource::v1::{DeviceTaint, DeviceTaintRule, DeviceToleration};

/// Of an allocated claim: it is not gone before its devices are taken back.
pub const FINALIZER: &str = "resource.kubernetes.io/delete-protection";

/// Whether a toleration covers a taint. No effect and no key cover all of them; the caller looks at
/// what the effect is.
pub fn tolerates(toleration: &DeviceToleration, taint: &DeviceTaint) -> bool {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let (effect, key) = (text(&toleration.effect), text(&toleration.key));
    if (!effect.is_empty() && effect != taint.effect) || (!key.is_empty() && key != taint.key) {
        return false;
    }
    match toleration.operator.as_deref() {
        None | Some("" | "Equal") => text(&toleration.value) == text(&taint.value),
        Some("Exists") => true,
        _ => false,
    }
}

/// Whether a rule taints a device. One without a selector taints none.
pub fn is_tainted_by(rule: &DeviceTaintRule, driver: &str, pool: &str, device: &str) -> bool {
    let Some(selector) = &rule.spec.device_selector else { return false };
    let fits = |wanted: &Option<String>, is: &str| wanted.as_deref().is_none_or(|wanted| wanted == is);
    fits(&selector.driver, driver) && fits(&selector.pool, pool) && fits(&selector.device, device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn from<K: serde::de::DeserializeOwned>(value: Value) -> K {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn tolerations_cover_taints() {
        let taint: DeviceTaint = from(json!({"key": "k", "value": "v", "effect": "NoExecute"}));
        for (toleration, covers) in [
            (json!({"operator": "Exists"}), true),
            (json!({"key": "k", "value": "v"}), true),
            (json!({"key": "k", "value": "w", "operator": "Equal"}), false),
            (json!({"key": "other", "operator": "Exists"}), false),
            (json!({"operator": "Exists", "effect": "NoSchedule"}), false),
            (json!({"key": "k", "operator": "Like"}), false),
        ] {
            assert_eq!(tolerates(&from(toleration.clone()), &taint), covers, "{toleration}");
        }
    }

    #[test]
    fn rules_taint_what_they_select() {
        for (selector, taints) in [
            (Value::Null, false),
            (json!({}), true),
            (json!({"driver": "d", "pool": "p", "device": "x"}), true),
            (json!({"driver": "d", "pool": "q"}), false),
        ] {
            let rule =
                json!({"metadata": {}, "spec": {"deviceSelector": selector, "taint": {"key": "k", "effect": "None"}}});
            assert_eq!(is_tainted_by(&from(rule), "d", "p", "x"), taints, "{selector}");
        }
    }
}

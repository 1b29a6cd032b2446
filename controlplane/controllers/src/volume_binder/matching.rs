//! Pure: the volume for a claim, and both as they are when bound.

use std::borrow::Cow;
use std::sync::Arc;

use api::quantity::Quantity;
use api::selector::Selector;
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim};
use kube::ResourceExt;

use super::{BIND_COMPLETED, BOUND_BY_CONTROLLER, claim_ref, is_for};
use crate::meta;

/// The mode of volumes and claims that name none.
const FILESYSTEM: &str = "Filesystem";

fn capacity(volume: &PersistentVolume) -> Quantity {
    let capacity = volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref()?.get("storage"));
    capacity.map_or(Quantity::ZERO, Quantity::from)
}

fn request(claim: &PersistentVolumeClaim) -> Quantity {
    let requests = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref()?.requests.as_ref());
    requests.and_then(|requests| requests.get("storage")).map_or(Quantity::ZERO, Quantity::from)
}

/// The smallest volume that suits; one reserved for the claim before all others, whatever its class and
/// labels. While a claim `waits` for its pod only a reserved one will do: the scheduler has the choice of
/// the others.
pub fn find(
    claim: &PersistentVolumeClaim,
    class: &str,
    volumes: &[Arc<PersistentVolume>],
    waits: bool,
) -> Option<Arc<PersistentVolume>> {
    let selector = selector_of(claim);
    let suits = |volume: &&Arc<PersistentVolume>| {
        suits(volume, claim, class) && selector.matches(meta::labels(&volume.metadata))
    };
    if let Some(reserved) = volumes.iter().find(|volume| is_for(volume, claim) && unfit(volume, claim).is_none()) {
        return Some(reserved.clone());
    }
    if waits {
        return None;
    }
    let free = volumes.iter().filter(suits).filter(|volume| claim_ref(volume).is_none());
    free.min_by(|a, b| capacity(a).cmp(&capacity(b)).then_with(|| a.name_any().cmp(&b.name_any()))).cloned()
}

/// What the claim says of the labels of its volume; a selector that cannot be read selects none.
fn selector_of(claim: &PersistentVolumeClaim) -> Selector {
    match claim.spec.as_ref().and_then(|spec| spec.selector.as_ref()) {
        None => Selector::everything(),
        selector => Selector::from_label_selector(selector).unwrap_or_else(|_| Selector::nothing()),
    }
}

fn suits(volume: &PersistentVolume, claim: &PersistentVolumeClaim, class: &str) -> bool {
    let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
    !matches!(phase, Some("Released" | "Failed")) && refusal(volume, claim, class).is_none()
}

/// Why the claim cannot have the volume.
pub fn refusal(volume: &PersistentVolume, claim: &PersistentVolumeClaim, class: &str) -> Option<Cow<'static, str>> {
    let own_class = volume.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref()).unwrap_or_default();
    unfit(volume, claim).or_else(|| (own_class != class).then_some("storageClassName does not match".into()))
}

/// The same whatever the class.
fn unfit(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<Cow<'static, str>> {
    if meta::is_deleting(&volume.metadata) {
        return Some(format!("the volume is marked for deletion \"{}\"", volume.name_any()).into());
    }
    let (Some(offer), Some(wish)) = (volume.spec.as_ref(), claim.spec.as_ref()) else {
        return Some("one of them asks for nothing".into());
    };
    let offers = |mode: &String| offer.access_modes.iter().flatten().any(|offered| offered == mode);
    let other_class = offer.volume_attributes_class_name != wish.volume_attributes_class_name;
    let reasons = [
        (capacity(volume) < request(claim), "requested PV is too small"),
        (other_class, "volumeAttributesClassName does not match"),
        (mode(offer.volume_mode.as_ref()) != mode(wish.volume_mode.as_ref()), "incompatible volumeMode"),
        (!wish.access_modes.iter().flatten().all(offers), "incompatible accessMode"),
    ];
    reasons.into_iter().find(|(holds, _)| *holds).map(|(_, why)| why.into())
}

fn mode(given: Option<&String>) -> &str {
    given.map_or(FILESYSTEM, String::as_str)
}

/// The volume with its reference to the claim, or none when it has it.
pub fn bound_volume(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<PersistentVolume> {
    let mut changed = volume.clone();
    let reserved = claim_ref(volume).is_some();
    let reference = changed.spec.get_or_insert_default().claim_ref.get_or_insert_default();
    if reference.uid == claim.metadata.uid && reference.uid.is_some() {
        return None;
    }
    *reference = ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("PersistentVolumeClaim".to_owned()),
        namespace: claim.namespace(),
        name: claim.metadata.name.clone(),
        uid: claim.metadata.uid.clone(),
        resource_version: claim.metadata.resource_version.clone(),
        field_path: None,
    };
    if !reserved {
        let annotations = changed.metadata.annotations.get_or_insert_default();
        annotations.insert(BOUND_BY_CONTROLLER.to_owned(), "yes".to_owned());
    }
    Some(changed)
}

/// The claim with its volume's name, or none when it has it.
pub fn bound_claim(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Option<PersistentVolumeClaim> {
    let mut changed = claim.clone();
    let annotations = changed.metadata.annotations.get_or_insert_default();
    let spec = changed.spec.get_or_insert_default();
    if spec.volume_name.as_deref().is_none_or(str::is_empty) {
        spec.volume_name = volume.metadata.name.clone();
        annotations.insert(BOUND_BY_CONTROLLER.to_owned(), "yes".to_owned());
    }
    annotations.entry(BIND_COMPLETED.to_owned()).or_insert_with(|| "yes".to_owned());
    (changed != *claim).then_some(changed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn volume(name: &str, size: &str, class: &str, reserved: Option<&str>) -> Arc<PersistentVolume> {
        let reference = reserved.map(|claim| json!({"namespace": "default", "name": claim}));
        let value = json!({
            "metadata": {"name": name},
            "spec": {
                "capacity": {"storage": size}, "storageClassName": class, "claimRef": reference,
                "accessModes": ["ReadWriteOnce", "ReadOnlyMany"],
            },
        });
        Arc::new(serde_json::from_value(value).expect("a volume"))
    }

    fn claim(size: &str, modes: &[&str]) -> PersistentVolumeClaim {
        let value = json!({
            "metadata": {"name": "data", "namespace": "default", "uid": "uid-data"},
            "spec": {"accessModes": modes, "resources": {"requests": {"storage": size}}},
        });
        serde_json::from_value(value).expect("a claim")
    }

    #[test]
    fn the_smallest_suitable_volume_is_taken() {
        let volumes =
            [volume("big", "10Gi", "", None), volume("fit", "2Gi", "", None), volume("fast", "1Gi", "ssd", None)];
        let found = |claim: &PersistentVolumeClaim, class| find(claim, class, &volumes, false).map(|v| v.name_any());
        assert_eq!(found(&claim("1Gi", &["ReadWriteOnce"]), "").as_deref(), Some("fit"));
        assert_eq!(found(&claim("3Gi", &["ReadWriteOnce"]), "").as_deref(), Some("big"));
        assert_eq!(found(&claim("1Gi", &["ReadWriteOnce"]), "ssd").as_deref(), Some("fast"));
        assert_eq!(found(&claim("1Gi", &["ReadWriteMany"]), ""), None);
        assert_eq!(found(&claim("11Gi", &["ReadWriteOnce"]), ""), None);
    }

    #[test]
    fn a_reserved_volume_goes_to_its_claim_only() {
        let volumes = [volume("small", "1Gi", "", Some("other")), volume("mine", "9Gi", "", Some("data"))];
        let wish = claim("1Gi", &["ReadWriteOnce"]);
        assert_eq!(find(&wish, "", &volumes, true).map(|volume| volume.name_any()).as_deref(), Some("mine"));
        assert!(find(&wish, "", &[volume("free", "1Gi", "", None)], true).is_none(), "the scheduler chooses");
    }

    #[test]
    fn a_volume_reserved_for_a_claim_is_its_whatever_the_class() {
        let wish = claim("1Gi", &["ReadWriteOnce"]);
        let volumes = [volume("mine", "2Gi", "slow", Some("data"))];
        assert!(find(&wish, "standard", &volumes, false).is_some());
        assert!(find(&claim("3Gi", &["ReadWriteOnce"]), "standard", &volumes, false).is_none(), "but not its size");
    }

    #[test]
    fn a_claim_that_asks_for_a_volume_is_told_why_it_cannot_have_it() {
        let offered = volume("v", "2Gi", "fast", None);
        let why = |size: &str, modes: &[&str], class: &str| refusal(&offered, &claim(size, modes), class);
        for (size, mode, class, expected) in [
            ("2Gi", "ReadWriteOnce", "fast", None),
            ("3Gi", "ReadWriteOnce", "fast", Some("requested PV is too small")),
            ("1Gi", "ReadWriteMany", "fast", Some("incompatible accessMode")),
            ("1Gi", "ReadWriteOnce", "slow", Some("storageClassName does not match")),
        ] {
            assert_eq!(why(size, &[mode], class).as_deref(), expected);
        }
        let mut raw = claim("1Gi", &["ReadWriteOnce"]);
        raw.spec.get_or_insert_default().volume_mode = Some("Block".into());
        assert_eq!(refusal(&offered, &raw, "fast").as_deref(), Some("incompatible volumeMode"));
    }

    #[test]
    fn both_sides_point_at_each_other_once() {
        let wish = claim("1Gi", &["ReadWriteOnce"]);
        let bound = bound_volume(&volume("v", "1Gi", "", None), &wish).expect("it was free");
        assert_eq!(meta::annotation(&bound.metadata, BOUND_BY_CONTROLLER), Some("yes"));
        assert_eq!(bound_volume(&bound, &wish), None);
        let taken = bound_claim(&wish, &bound).expect("it had none");
        assert_eq!(taken.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()), Some("v"));
        assert_eq!(bound_claim(&taken, &bound), None);
    }
}

//! The pod template's hash, as it appears in names and labels.
//!
//! FNV-1a over the template's JSON, then written with Kubernetes' safe alphabet
//! (`k8s.io/apimachinery/pkg/util/rand.SafeEncodeString`): no vowels, so no words, and nothing that
//! looks like another character.

use serde::Serialize;

const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// Each character of the decimal text stands for one of the alphabet.
pub fn safe_encode(text: &str) -> String {
    text.bytes().map(|byte| char::from(ALPHABET[usize::from(byte) % ALPHABET.len()])).collect()
}

fn fnv1a(bytes: &[u8], seed: u32) -> u32 {
    bytes.iter().fold(seed, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// The hash of `value`; `collisions` (how often a hash met a stranger's name) changes it.
pub fn of(value: &impl Serialize, collisions: Option<i32>) -> String {
    // Serialising the API's own types cannot fail: they have string keys only.
    let bytes = serde_json::to_vec(value).unwrap_or_default();
    let mut hash = fnv1a(&bytes, 0x811c_9dc5);
    if let Some(count) = collisions {
        let mut extra = [0_u8; 8];
        extra[..4].copy_from_slice(&count.to_le_bytes());
        hash = fnv1a(&extra, hash);
    }
    safe_encode(&hash.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alphabet_is_kubernetes_own() {
        assert_eq!(safe_encode("0123456789"), "456789bcdf");
    }

    #[test]
    fn a_collision_changes_the_hash_and_the_same_value_does_not() {
        let value = serde_json::json!({"a": 1});
        assert_eq!(of(&value, None), of(&value, None));
        assert_ne!(of(&value, None), of(&value, Some(0)));
        assert_ne!(of(&value, Some(0)), of(&value, Some(1)));
    }
}

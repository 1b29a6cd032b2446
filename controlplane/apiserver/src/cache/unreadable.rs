//! What is stored and cannot be read: no key opens it, or what it holds is no object.
//!
//! Lists say which objects these are, in upstream's words (`k8s.io/apiserver/pkg/storage/etcd3`,
//! `corrupt_obj_deleter.go`); a delete that asks for it removes one as it lies there.

use http::StatusCode;
use serde_json::json;
use store::Unreadable;

use crate::error::{ApiError, qualified};
use crate::resource::Descriptor;

/// Reason of a list, or watch, that meets one.
pub const STORE_READ_ERROR: &str = "StoreReadError";
/// Lists name no more than so many.
const MOST: usize = 100;

/// The same in the words of one that no key opens.
pub fn untransformable(one: Unreadable) -> Unreadable {
    let why = format!("data from the storage is not transformable revision=0: {}", one.why);
    Unreadable { why, ..one }
}

pub fn undecodable(key: &str, revision: u64, why: impl std::fmt::Display) -> Unreadable {
    Unreadable { key: key.to_owned(), revision, why: format!("object not decodable revision={revision}: {why}") }
}

fn words(one: &Unreadable) -> String {
    let Unreadable { key, why, .. } = one;
    format!("StorageError: corrupt object, Code: 7, Key: {key}, ResourceVersion: 0, AdditionalErrorMsg: {why}")
}

/// What is answered by who wants this one.
pub fn single(one: &Unreadable) -> ApiError {
    ApiError::internal(words(one))
}

/// What is answered by who wants all of a resource.
pub fn listed(descriptor: &Descriptor, all: &[Unreadable]) -> ApiError {
    let resource = qualified(descriptor.hub_group(), &descriptor.plural);
    let first = all.first().map(words).unwrap_or_default();
    let named = all.len().min(MOST);
    let more = if named > 1 { format!(" (and {} more)", named - 1) } else { String::new() };
    let message = format!("failed to read one or more {resource} from the storage: {first}{more}");
    let mut details = json!({"name": "list", "kind": descriptor.plural});
    if !descriptor.hub_group().is_empty() {
        details["group"] = descriptor.hub_group().into();
    }
    let error = ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, STORE_READ_ERROR, message).with_details(details);
    let named = all.iter().take(MOST);
    let error = named.fold(error, |error, one| error.with_cause("UnexpectedServerResponse", &words(one), &one.key));
    if all.len() < MOST {
        return error;
    }
    // As upstream says it as soon as there are so many.
    error.with_cause("FieldValueTooMany", "too many errors, the list is truncated", "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_name_what_cannot_be_read() {
        let descriptor = Descriptor::new("apps", "v1", "Deployment", "deployments");
        let one = |number: usize| undecodable(&format!("/registry/deployments/n/{number}"), 7, "no JSON");
        let status = listed(&descriptor, &[one(0), one(1)]).to_status();
        let first = "StorageError: corrupt object, Code: 7, Key: /registry/deployments/n/0, ResourceVersion: 0, AdditionalErrorMsg: object not decodable revision=7: no JSON";
        assert_eq!(
            status["message"],
            format!("failed to read one or more deployments.apps from the storage: {first} (and 1 more)")
        );
        assert_eq!((&status["code"], &status["reason"]), (&json!(500), &json!("StoreReadError")));
        let details = &status["details"];
        assert_eq!(details["causes"].as_array().map(Vec::len), Some(2));
        assert_eq!(
            details["causes"][0],
            json!({"reason": "UnexpectedServerResponse", "message": first, "field": "/registry/deployments/n/0"})
        );
        assert_eq!(
            (&details["name"], &details["kind"], &details["group"]),
            (&json!("list"), &json!("deployments"), &json!("apps"))
        );

        let many: Vec<_> = (0..300).map(one).collect();
        let status = listed(&descriptor, &many).to_status();
        let causes = status["details"]["causes"].as_array().unwrap();
        assert_eq!(causes.len(), 101);
        assert_eq!(causes[100]["message"], "too many errors, the list is truncated");
        assert!(status["message"].as_str().unwrap().ends_with("(and 99 more)"));
    }
}

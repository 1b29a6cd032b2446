//! The status of a definition: which of its names are its own, and what its conditions say
//! (`naming_controller.go` and `apiapproval_controller.go` of apiextensions-apiserver). Pure.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::{CLEANUP, condition, is_established};
use crate::kinds::apiextensions;
use crate::proxy::dial;
use crate::registry::metadata;

const NON_STRUCTURAL: &str = "NonStructuralSchema";
const APPROVED: &str = "api-approved.kubernetes.io";
const APPROVAL_RULES: &str = "see https://github.com/kubernetes/enhancements/pull/1111";

/// Type, status, reason, message.
pub type Condition = (&'static str, &'static str, &'static str, String);

/// Names that other definitions of the group have.
#[derive(Default)]
pub struct Taken<'a> {
    resources: HashSet<&'a str>,
    kinds: HashSet<&'a str>,
}

impl<'a> Taken<'a> {
    /// From what each of them holds as `acceptedNames`.
    pub fn of(others: impl Iterator<Item = &'a Value>) -> Self {
        let mut taken = Self::default();
        for names in others {
            taken.resources.extend(["plural", "singular"].iter().filter_map(|key| names[*key].as_str()));
            taken.resources.extend(names["shortNames"].as_array().into_iter().flatten().filter_map(Value::as_str));
            taken.kinds.extend(["kind", "listKind"].iter().filter_map(|key| names[*key].as_str()));
        }
        taken.resources.remove("");
        taken.kinds.remove("");
        taken
    }
}

/// Whether a name that was held before is free now.
pub fn lets_go(before: &Value, now: &Value) -> bool {
    let (before, now) = (Taken::of(std::iter::once(before)), Taken::of(std::iter::once(now)));
    !before.resources.is_subset(&now.resources) || !before.kinds.is_subset(&now.kinds)
}

/// The new status of a definition; none if it says so already. Its schemas are looked at if they are
/// `new`.
pub fn settled(definition: &Value, taken: &Taken<'_>, new: bool) -> Option<Value> {
    let (names, accepted) = names(definition, taken);
    let mut conditions = Vec::from_iter(established(definition, accepted.1 == "True"));
    conditions.insert(0, accepted);
    conditions.extend(approval(definition));
    conditions.extend(terminating(definition));
    let status = &definition["status"];
    let violations = new.then(|| violations(definition)).flatten();
    let outdated = new && violations.is_none() && condition(status, NON_STRUCTURAL).is_some();
    conditions.extend(violations);
    if status["acceptedNames"] == names && !outdated && conditions.iter().all(|condition| says(status, condition)) {
        return None;
    }
    let mut status = if status.is_object() { status.clone() } else { json!({}) };
    status["acceptedNames"] = names;
    if let Some(held) = status["conditions"].as_array_mut().filter(|_| outdated) {
        held.retain(|condition| condition["type"] != NON_STRUCTURAL);
    }
    conditions.into_iter().for_each(|condition| set_condition(&mut status, condition));
    Some(status)
}

/// Whether a status says so already, whenever that was.
pub fn says(status: &Value, (kind, holds, reason, message): &Condition) -> bool {
    condition(status, kind)
        .is_some_and(|held| held["status"] == *holds && held["reason"] == *reason && held["message"] == *message)
}

/// Puts a condition into a status; its time changes with what it says, not with why.
pub fn set_condition(status: &mut Value, (kind, holds, reason, message): Condition) {
    let now = api::scalar::time(jiff::Timestamp::now());
    let mut new =
        json!({"type": kind, "status": holds, "reason": reason, "message": message, "lastTransitionTime": now});
    if !status["conditions"].is_array() {
        status["conditions"] = json!([]);
    }
    let Some(held) = status["conditions"].as_array_mut() else { return };
    match held.iter_mut().find(|old| old["type"] == kind) {
        Some(old) => {
            if old["status"] == holds && !old["lastTransitionTime"].is_null() {
                new["lastTransitionTime"] = old["lastTransitionTime"].take();
            }
            *old = new;
        }
        None => held.push(new),
    }
}

/// No definition that is written here has such a schema: it lay in the store.
fn violations(definition: &Value) -> Option<Condition> {
    let found = apiextensions::violations(definition);
    (!found.is_empty()).then(|| (NON_STRUCTURAL, "True", "Violations", api::field::join(&found)))
}

/// Established once is established for good.
fn established(definition: &Value, all_accepted: bool) -> Option<Condition> {
    if is_established(&definition["status"]) {
        return None;
    }
    let bundle = definition["spec"]["conversion"]["webhook"]["clientConfig"]["caBundle"].as_str().unwrap_or_default();
    let (holds, reason, message) = match all_accepted {
        false => ("False", "NotAccepted", "not all names are accepted"),
        true if !bundle.is_empty() && dial::roots(bundle).is_err() => {
            ("False", "InvalidCABundle", "The conversion webhook CABundle is invalid")
        }
        true => ("True", "InitialNamesAccepted", "the initial names have been accepted"),
    };
    Some(("Established", holds, reason, message.to_owned()))
}

/// What deleting it begins with.
fn terminating(definition: &Value) -> Option<Condition> {
    if !metadata::is_deleting(definition) || !metadata::finalizers(definition).contains(&CLEANUP) {
        return None;
    }
    let reason = condition(&definition["status"], "Terminating").and_then(|held| held["reason"].as_str());
    let begins = matches!(reason, None | Some("InstanceDeletionPending"));
    let message = "CustomResource deletion is in progress";
    begins.then(|| ("Terminating", "True", "InstanceDeletionInProgress", message.to_owned()))
}

/// The names that become the definition's, as many as can, and what is said of the last that cannot.
fn names(definition: &Value, Taken { resources, kinds }: &Taken<'_>) -> (Value, Condition) {
    let (wanted, held) = (&definition["spec"]["names"], &definition["status"]["acceptedNames"]);
    let mut new = if held.is_object() { held.clone() } else { json!({"plural": "", "kind": ""}) };
    let mut conflict: Option<(&str, String)> = None;
    let in_use = |name: &str| format!("{name:?} is already in use");
    for (key, used, reason) in [
        ("plural", resources, "PluralConflict"),
        ("singular", resources, "SingularConflict"),
        ("shortNames", resources, "ShortNamesConflict"),
        ("kind", kinds, "KindConflict"),
        ("listKind", kinds, "ListKindConflict"),
    ] {
        let fresh = |name: &&str| held[key] != **name && used.contains(*name);
        let problem = match &wanted[key] {
            Value::Array(short) => {
                let mine = held[key].as_array().map(Vec::as_slice).unwrap_or_default();
                let names = short.iter().filter(|name| !mine.contains(name)).filter_map(Value::as_str);
                let mut problems: Vec<String> = names.filter(fresh).map(in_use).collect();
                match problems.len() {
                    0 | 1 => problems.pop(),
                    _ => Some(format!("[{}]", problems.join(", "))),
                }
            }
            name => name.as_str().filter(fresh).map(in_use),
        };
        match problem {
            Some(message) => conflict = Some((reason, message)),
            None if wanted[key].is_null() => drop(new.as_object_mut().and_then(|names| names.remove(key))),
            None => new[key] = wanted[key].clone(),
        }
    }
    match &wanted["categories"] {
        Value::Null => drop(new.as_object_mut().and_then(|names| names.remove("categories"))),
        categories => new["categories"] = categories.clone(),
    }
    let condition = match conflict {
        Some((reason, message)) => ("NamesAccepted", "False", reason, message),
        None => ("NamesAccepted", "True", "NoConflicts", "no conflicts found".to_owned()),
    };
    (new, condition)
}

/// Whether a group of the community says who approved it.
fn approval(definition: &Value) -> Option<Condition> {
    let group = definition["spec"]["group"].as_str()?;
    let protected = |domain: &str| group == domain || group.ends_with(&format!(".{domain}"));
    if !protected("k8s.io") && !protected("kubernetes.io") {
        return None;
    }
    let annotation = definition["metadata"]["annotations"][APPROVED].as_str().unwrap_or_default();
    let (holds, reason, message) = match annotation {
        "" => (
            "False",
            "MissingAnnotation",
            format!("protected groups must have approval annotation {APPROVED:?}, {APPROVAL_RULES}"),
        ),
        text if text.starts_with("unapproved") => ("False", "UnapprovedAnnotation", format!("not approved: {text:?}")),
        text if text.parse::<http::Uri>().is_ok_and(|url| url.host().is_some() && url.scheme().is_some()) => {
            ("True", "ApprovedAnnotation", format!("approved in {text}"))
        }
        _ => (
            "False",
            "InvalidAnnotation",
            format!(
                "protected groups must have approval annotation {APPROVED:?} with either a URL or a reason starting with \"unapproved\", {APPROVAL_RULES}"
            ),
        ),
    };
    Some(("KubernetesAPIApprovalPolicyConformant", holds, reason, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(name: &str, kind: &str, short: &str) -> Value {
        let names = json!({"plural": name, "singular": name, "kind": kind, "listKind": format!("{kind}List"), "shortNames": [short]});
        json!({"metadata": {"name": format!("{name}.example.com")}, "spec": {"group": "example.com", "names": names}})
    }

    fn with_status(definition: &Value, others: &[&Value]) -> Value {
        let mut changed = definition.clone();
        let taken = Taken::of(others.iter().map(|other| &other["status"]["acceptedNames"]));
        changed["status"] = settled(definition, &taken, true).unwrap();
        changed
    }

    fn said<'a>(definition: &'a Value, kind: &str) -> (&'a str, &'a str, &'a str) {
        let held = condition(&definition["status"], kind).unwrap();
        let text = |key: &str| held[key].as_str().unwrap();
        (text("status"), text("reason"), text("message"))
    }

    #[test]
    fn names_are_accepted_once_and_as_many_as_can() {
        let first = with_status(&definition("crons", "Cron", "cr"), &[]);
        assert!(is_established(&first["status"]));
        assert!(settled(&first, &Taken::default(), true).is_none(), "nothing more to say");
        let second = with_status(&definition("others", "Cron", "cr"), &[&first]);
        assert_eq!(said(&second, "NamesAccepted"), ("False", "ListKindConflict", "\"CronList\" is already in use"));
        assert_eq!(said(&second, "Established"), ("False", "NotAccepted", "not all names are accepted"));
        assert_eq!(second["status"]["acceptedNames"], json!({"plural": "others", "singular": "others", "kind": ""}));
        let freed = with_status(&second, &[]);
        assert!(is_established(&freed["status"]), "{freed:#}");
        assert_eq!(freed["status"]["acceptedNames"], freed["spec"]["names"]);
    }

    #[test]
    fn names_are_refused_one_by_one() {
        let holder = with_status(&definition("crons", "Cron", "cr"), &[]);
        let conflict = |path: &str, name: Value| {
            let mut other = definition("others", "Other", "ot");
            other["spec"]["names"][path] = name;
            let other = with_status(&other, &[&holder]);
            let (holds, reason, message) = said(&other, "NamesAccepted");
            (holds.to_owned(), format!("{reason}: {message}"))
        };
        for (path, name, expected) in [
            ("plural", json!("crons"), "PluralConflict: \"crons\" is already in use"),
            ("singular", json!("cr"), "SingularConflict: \"cr\" is already in use"),
            ("shortNames", json!(["x", "crons"]), "ShortNamesConflict: \"crons\" is already in use"),
            (
                "shortNames",
                json!(["cr", "crons"]),
                "ShortNamesConflict: [\"cr\" is already in use, \"crons\" is already in use]",
            ),
            ("kind", json!("CronList"), "KindConflict: \"CronList\" is already in use"),
            ("listKind", json!("Cron"), "ListKindConflict: \"Cron\" is already in use"),
        ] {
            assert_eq!(conflict(path, name), ("False".to_owned(), expected.to_owned()));
        }
        // A kind and a resource may share a name, and a definition its own names with itself.
        assert_eq!(conflict("kind", json!("crons")).0, "True");
        assert_eq!(conflict("shortNames", json!(["others"])).0, "True");
    }

    #[test]
    fn groups_of_the_community_need_an_approval() {
        for (annotation, holds, reason) in [
            ("unapproved, a test", "False", "UnapprovedAnnotation"),
            ("https://github.com/kubernetes/kubernetes/pull/1", "True", "ApprovedAnnotation"),
            ("yes", "False", "InvalidAnnotation"),
            ("", "False", "MissingAnnotation"),
        ] {
            let mut definition = definition("crons", "Cron", "cr");
            definition["spec"]["group"] = "batch.k8s.io".into();
            definition["metadata"]["annotations"] = json!({APPROVED: annotation});
            let settled = with_status(&definition, &[]);
            let found = said(&settled, "KubernetesAPIApprovalPolicyConformant");
            assert_eq!((found.0, found.1), (holds, reason));
        }
    }

    #[test]
    fn a_webhook_that_cannot_be_trusted_keeps_a_definition_from_being_served() {
        let mut definition = definition("crons", "Cron", "cr");
        let with = |bundle: &str| json!({"strategy": "Webhook", "webhook": {"clientConfig": {"caBundle": bundle}}});
        definition["spec"]["conversion"] = with("Cg==");
        let held = with_status(&definition, &[]);
        assert_eq!(
            said(&held, "Established"),
            ("False", "InvalidCABundle", "The conversion webhook CABundle is invalid")
        );
        definition["spec"]["conversion"] = with("");
        assert!(is_established(&with_status(&definition, &[])["status"]));
    }

    #[test]
    fn deleting_is_said_once() {
        let mut deleted = with_status(&definition("crons", "Cron", "cr"), &[]);
        deleted["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        assert!(settled(&deleted, &Taken::default(), true).is_none(), "nothing keeps it");
        deleted["metadata"]["finalizers"] = json!([CLEANUP]);
        let begun = with_status(&deleted, &[]);
        assert_eq!(
            said(&begun, "Terminating"),
            ("True", "InstanceDeletionInProgress", "CustomResource deletion is in progress")
        );
        assert!(settled(&begun, &Taken::default(), true).is_none());
    }

    #[test]
    fn schemas_of_old_that_are_not_structural_are_pointed_at() {
        let mut old = definition("crons", "Cron", "cr");
        let schema = |schema: Value| json!([{"name": "v1", "schema": {"openAPIV3Schema": schema}}]);
        old["spec"]["versions"] = schema(json!({"properties": {"a": {"type": "array"}}}));
        let told = with_status(&old, &[]);
        assert_eq!(
            said(&told, NON_STRUCTURAL),
            (
                "True",
                "Violations",
                "[spec.versions[0].schema.openAPIV3Schema.properties[a].items: Required value: must be specified, \
                 spec.versions[0].schema.openAPIV3Schema.type: Required value: must not be empty at the root]"
            )
        );
        let mut mended = told.clone();
        mended["spec"]["versions"] = schema(json!({"type": "object"}));
        assert!(settled(&mended, &Taken::default(), false).is_none(), "nothing new");
        let mended = with_status(&mended, &[]);
        assert!(condition(&mended["status"], NON_STRUCTURAL).is_none() && is_established(&mended["status"]));
    }
}

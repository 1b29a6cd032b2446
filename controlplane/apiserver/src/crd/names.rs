//! The status of a definition: which of its names are its own, and what its conditions say
//! (`naming_controller.go` and `apiapproval_controller.go` of apiextensions-apiserver). Pure.

use std::collections::HashSet;
use std::sync::Arc;

use serde_json::{Value, json};

use super::{condition, is_established};
use crate::registry::metadata;

const APPROVED: &str = "api-approved.kubernetes.io";
const APPROVAL_RULES: &str = "see https://github.com/kubernetes/enhancements/pull/1111";

/// Type, status, reason, message.
type Condition = (&'static str, &'static str, &'static str, String);

/// The new status of a definition; none if it says so already.
pub fn settled(definition: &Value, all: &[Arc<Value>]) -> Option<Value> {
    let mut status = definition["status"].clone();
    let (names, accepted) = names(definition, &taken(definition, all));
    let mut conditions = vec![accepted];
    if !is_established(definition) {
        let all_accepted = conditions[0].1 == "True";
        let (holds, reason, message) = match all_accepted {
            true => ("True", "InitialNamesAccepted", "the initial names have been accepted"),
            false => ("False", "NotAccepted", "not all names are accepted"),
        };
        conditions.push(("Established", holds, reason, message.to_owned()));
    }
    conditions.extend(approval(definition));
    let says = |(kind, holds, reason, message): &Condition| {
        condition(definition, kind)
            .is_some_and(|held| held["status"] == *holds && held["reason"] == *reason && held["message"] == *message)
    };
    if status["acceptedNames"] == names && conditions.iter().all(says) {
        return None;
    }
    status["acceptedNames"] = names;
    let now = metadata::timestamp(jiff::Timestamp::now());
    let mut held: Vec<Value> = status["conditions"].as_array().cloned().unwrap_or_default();
    for (kind, holds, reason, message) in conditions {
        let mut new =
            json!({"type": kind, "status": holds, "reason": reason, "message": message, "lastTransitionTime": now});
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
    status["conditions"] = held.into();
    Some(status)
}

/// Names that other definitions of the group have: of resources, and of kinds.
fn taken<'a>(definition: &Value, all: &'a [Arc<Value>]) -> (HashSet<&'a str>, HashSet<&'a str>) {
    let (mut resources, mut kinds) = (HashSet::new(), HashSet::new());
    let others = all.iter().filter(|other| {
        other["metadata"]["name"] != definition["metadata"]["name"]
            && other["spec"]["group"] == definition["spec"]["group"]
    });
    for names in others.map(|other| &other["status"]["acceptedNames"]) {
        resources.extend(["plural", "singular"].iter().filter_map(|key| names[*key].as_str()));
        resources.extend(names["shortNames"].as_array().into_iter().flatten().filter_map(Value::as_str));
        kinds.extend(["kind", "listKind"].iter().filter_map(|key| names[*key].as_str()));
    }
    resources.remove("");
    kinds.remove("");
    (resources, kinds)
}

/// The names that become the definition's, as many as can, and what is said of the last that cannot.
fn names(definition: &Value, (resources, kinds): &(HashSet<&str>, HashSet<&str>)) -> (Value, Condition) {
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

    fn definition(name: &str, kind: &str, short: &str) -> Arc<Value> {
        let names = json!({"plural": name, "singular": name, "kind": kind, "listKind": format!("{kind}List"), "shortNames": [short]});
        Arc::new(
            json!({"metadata": {"name": format!("{name}.example.com")}, "spec": {"group": "example.com", "names": names}}),
        )
    }

    fn with_status(definition: &Value, all: &[Arc<Value>]) -> Arc<Value> {
        let mut changed = definition.clone();
        changed["status"] = settled(definition, all).unwrap();
        Arc::new(changed)
    }

    #[test]
    fn names_are_accepted_once_and_as_many_as_can() {
        let first = definition("crons", "Cron", "cr");
        let first = with_status(&first, std::slice::from_ref(&first));
        assert!(is_established(&first));
        assert!(settled(&first, std::slice::from_ref(&first)).is_none(), "nothing more to say");
        let second = definition("others", "Cron", "cr");
        let second = with_status(&second, &[first.clone(), second.clone()]);
        let names = condition(&second, "NamesAccepted").unwrap();
        assert_eq!(
            (&names["reason"], &names["message"]),
            (&json!("ListKindConflict"), &json!("\"CronList\" is already in use"))
        );
        assert_eq!(condition(&second, "Established").unwrap()["reason"], "NotAccepted");
        assert_eq!(second["status"]["acceptedNames"], json!({"plural": "others", "singular": "others", "kind": ""}));
        let freed = with_status(&second, std::slice::from_ref(&second));
        assert!(is_established(&freed), "{freed:#}");
        assert_eq!(freed["status"]["acceptedNames"], freed["spec"]["names"]);
    }

    #[test]
    fn groups_of_the_community_need_an_approval() {
        for (annotation, holds, reason) in [
            ("unapproved, a test", "False", "UnapprovedAnnotation"),
            ("https://github.com/kubernetes/kubernetes/pull/1", "True", "ApprovedAnnotation"),
            ("yes", "False", "InvalidAnnotation"),
            ("", "False", "MissingAnnotation"),
        ] {
            let mut definition = (*definition("crons", "Cron", "cr")).clone();
            definition["spec"]["group"] = "batch.k8s.io".into();
            definition["metadata"]["annotations"] = json!({APPROVED: annotation});
            let status = settled(&definition, &[]).unwrap();
            let condition = status["conditions"][2].clone();
            assert_eq!((&condition["status"], &condition["reason"]), (&json!(holds), &json!(reason)));
        }
    }
}

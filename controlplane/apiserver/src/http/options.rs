//! What requests may say in their query: the options of writes and lists, checked with upstream's
//! words (`k8s.io/apimachinery/pkg/apis/meta/v1/validation` and `internalversion/validation`).

use api::field::{Error, ErrorList, Path};

use super::query::Query;
use crate::error::{ApiError, Result};

/// Longest name of a field manager, in bytes.
const LONGEST_MANAGER: usize = 128;

/// `fieldValidation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FieldValidation {
    Ignore,
    #[default]
    Warn,
    Strict,
}

/// The options object that a write is judged as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteKind {
    Create,
    Update,
    Patch,
    Apply,
}

impl WriteKind {
    fn name(self) -> &'static str {
        match self {
            WriteKind::Create => "CreateOptions",
            WriteKind::Update => "UpdateOptions",
            WriteKind::Patch | WriteKind::Apply => "PatchOptions",
        }
    }
}

/// What writes may say in the query.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WriteOptions {
    pub dry_run: bool,
    pub field_manager: String,
    pub field_validation: FieldValidation,
    pub force: bool,
}

impl WriteOptions {
    pub fn parse(query: &Query, kind: WriteKind) -> Result<Self> {
        let mut errors = ErrorList::new();
        let manager = query.text("fieldManager");
        if kind == WriteKind::Apply && manager.is_empty() {
            errors.push(Error::required(&Path::root("fieldManager"), "is required for apply patch"));
        }
        if kind == WriteKind::Patch && query.get("force").is_some() {
            errors.push(Error::forbidden(&Path::root("force"), "may not be specified for non-apply patch"));
        }
        check_manager(manager, &mut errors);
        let dry_run = check_dry_run(&query.all("dryRun").collect::<Vec<_>>(), &mut errors);
        let field_validation = match query.text("fieldValidation") {
            "" | "Warn" => FieldValidation::Warn,
            "Ignore" => FieldValidation::Ignore,
            "Strict" => FieldValidation::Strict,
            other => {
                let supported = ["", "Ignore", "Strict", "Warn"];
                errors.push(Error::not_supported(&Path::root("fieldValidation"), other, &supported));
                FieldValidation::Warn
            }
        };
        refuse(kind.name(), &errors)?;
        Ok(Self { dry_run, field_manager: manager.to_owned(), field_validation, force: query.flag("force") })
    }
}

fn check_manager(manager: &str, errors: &mut ErrorList) {
    let path = Path::root("fieldManager");
    if manager.len() > LONGEST_MANAGER {
        errors.push(Error::too_long(&path, LONGEST_MANAGER));
    }
    for (at, character) in manager.char_indices().filter(|(_, character)| character.is_control()) {
        let why = format!("invalid character U+{:04X} (at position {at})", u32::from(character));
        errors.push(Error::invalid(&path, manager, why));
    }
}

/// Whether `dryRun` values ask for one.
pub fn check_dry_run(values: &[&str], errors: &mut ErrorList) -> bool {
    let values: Vec<&str> = values.iter().copied().filter(|value| !value.is_empty()).collect();
    if values.iter().any(|value| *value != "All") {
        errors.push(Error::not_supported(&Path::root("dryRun"), values.clone(), &["All"]));
    }
    !values.is_empty()
}

/// 422 of an options object, unless there is nothing to say against it.
pub fn refuse(kind: &str, errors: &[Error]) -> Result<()> {
    if errors.is_empty() { Ok(()) } else { Err(ApiError::invalid("meta.k8s.io", kind, "", errors)) }
}

/// Refuses what lists (or watches) may not combine.
pub fn check_list(query: &Query, watch: bool) -> Result<()> {
    for number in ["limit", "timeoutSeconds"] {
        query.number(number)?;
    }
    let errors = if watch { watch_errors(query) } else { list_errors(query) };
    refuse("ListOptions", &errors)
}

fn forbidden(field: &str, why: &str) -> Error {
    Error::forbidden(&Path::root(field), why)
}

const WITH_CONTINUE: &str = "resourceVersionMatch is forbidden when continue is provided";

fn list_errors(query: &Query) -> ErrorList {
    let rule = query.text("resourceVersionMatch");
    let mut errors = ErrorList::new();
    if !rule.is_empty() {
        let mut forbid = |why: &str| errors.push(forbidden("resourceVersionMatch", why));
        if query.text("resourceVersion").is_empty() {
            forbid("resourceVersionMatch is forbidden unless resourceVersion is provided");
        }
        if !query.text("continue").is_empty() {
            forbid(WITH_CONTINUE);
        }
        if !matches!(rule, "Exact" | "NotOlderThan") {
            let path = Path::root("resourceVersionMatch");
            errors.push(Error::not_supported(&path, rule, &["Exact", "NotOlderThan", ""]));
        }
        if rule == "Exact" && query.text("resourceVersion") == "0" {
            let why = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
            errors.push(forbidden("resourceVersionMatch", why));
        }
    }
    if query.get("sendInitialEvents").is_some() {
        errors.push(forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list"));
    }
    errors
}

fn watch_errors(query: &Query) -> ErrorList {
    let (rule, streams) = (query.text("resourceVersionMatch"), query.get("sendInitialEvents").is_some());
    let mut errors = ErrorList::new();
    if streams && rule != "NotOlderThan" {
        let why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
        errors.push(forbidden("resourceVersionMatch", why));
    }
    if !rule.is_empty() {
        if !streams {
            let why = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
            errors.push(forbidden("resourceVersionMatch", why));
        }
        if rule != "NotOlderThan" {
            errors.push(Error::not_supported(&Path::root("resourceVersionMatch"), rule, &["NotOlderThan"]));
        }
        if !query.text("continue").is_empty() {
            errors.push(forbidden("resourceVersionMatch", WITH_CONTINUE));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(query: &str, kind: WriteKind) -> String {
        WriteOptions::parse(&Query::parse(query), kind).unwrap_err().to_string()
    }

    #[test]
    fn write_options_are_checked_in_upstreams_words() {
        let options = WriteOptions::parse(&Query::parse("dryRun=All&fieldManager=me&force"), WriteKind::Apply).unwrap();
        assert!(options.dry_run && options.force && options.field_manager == "me");
        for (query, kind, wanted) in [
            (
                "dryRun=Some",
                WriteKind::Create,
                r#"CreateOptions.meta.k8s.io "" is invalid: dryRun: Unsupported value: ["Some"]: supported values: "All""#,
            ),
            (
                "fieldValidation=Loose",
                WriteKind::Update,
                r#"UpdateOptions.meta.k8s.io "" is invalid: fieldValidation: Unsupported value: "Loose": supported values: "", "Ignore", "Strict", "Warn""#,
            ),
            (
                "fieldManager=a%0A&force=false",
                WriteKind::Patch,
                r#"PatchOptions.meta.k8s.io "" is invalid: [force: Forbidden: may not be specified for non-apply patch, fieldManager: Invalid value: "a\n": invalid character U+000A (at position 1)]"#,
            ),
            (
                "",
                WriteKind::Apply,
                r#"PatchOptions.meta.k8s.io "" is invalid: fieldManager: Required value: is required for apply patch"#,
            ),
        ] {
            assert_eq!(problem(query, kind), wanted);
        }
        let long = format!("fieldManager={}", "x".repeat(129));
        assert!(problem(&long, WriteKind::Create).ends_with("fieldManager: Too long: may not be more than 128 bytes"));
    }

    #[test]
    fn list_options_exclude_each_other() {
        for (query, watch, wanted) in [
            (
                "resourceVersionMatch=Exact",
                false,
                "resourceVersionMatch is forbidden unless resourceVersion is provided",
            ),
            ("sendInitialEvents=true", false, "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for list"),
            (
                "resourceVersionMatch=Bad&resourceVersion=1",
                false,
                r#"Unsupported value: "Bad": supported values: "Exact", "NotOlderThan", """#,
            ),
            (
                "sendInitialEvents=false",
                true,
                "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            ),
            ("limit=x", true, "strconv.ParseInt: parsing \"x\": invalid syntax"),
        ] {
            let why = check_list(&Query::parse(query), watch).unwrap_err().to_string();
            assert!(why.ends_with(wanted), "{query}: {why}");
        }
        check_list(&Query::parse("resourceVersionMatch=NotOlderThan&sendInitialEvents=true"), true).unwrap();
    }
}

//! What calls cost at most, in cel-go's units, and how large their results can be
//! (`cel-go/checker/cost.go`, `k8s.io/apiserver/pkg/cel/library/cost.go`).

use cel::common::ast::operators;

use crate::check::Checked;
use crate::decl::{Decl, Kind};

/// Of one rule with everything it may be applied to.
pub const RULE_LIMIT: u64 = 10_000_000;
/// Of all rules of a schema.
pub const SCHEMA_LIMIT: u64 = 100_000_000;

/// The longest regular expression of a named format.
const NAME_FORMAT: u64 = 128;

/// A tenth for each character walked through.
fn walk(size: u64) -> u64 {
    size.div_ceil(10)
}

/// The cost of a call beside that of its arguments, and the size of its result where that grows
/// with them.
/// `literals` are the lengths of those arguments that are texts in the expression itself.
pub fn of_call(name: &str, args: &[&Decl], checked: &[Checked], literals: &[Option<u64>]) -> (u64, Option<u64>) {
    let size = |at: usize| args.get(at).map_or(1, |decl| decl.size);
    let kind = |at: usize| args.get(at).map(|decl| &decl.kind);
    let is_text = |at: usize| matches!(kind(at), Some(Kind::String | Kind::Bytes));
    match name {
        operators::EQUALS | operators::NOT_EQUALS => (walk(size(0).min(size(1))), None),
        operators::LESS | operators::LESS_EQUALS | operators::GREATER | operators::GREATER_EQUALS if is_text(0) => {
            (walk(size(0).min(size(1))), None)
        }
        operators::ADD if is_text(0) => {
            let sum = size(0).saturating_add(size(1));
            (walk(sum), Some(sum))
        }
        operators::ADD => (1, Some(size(0).saturating_add(size(1)))),
        operators::IN if matches!(kind(1), Some(Kind::List(_))) => (size(1), None),
        operators::CONDITIONAL => (0, Some(size(1).max(size(2)))),
        operators::INDEX | operators::OPT_INDEX | "value" | "orValue" | "or" => (1, None),
        "contains" => (walk(size(0)).saturating_mul(walk(size(1))), None),
        "startsWith" | "endsWith" => (walk(size(1)), None),
        "matches" | "find" | "findAll" => {
            let pattern = size(1).div_ceil(4);
            (walk(size(0).saturating_add(1)).saturating_mul(pattern), Some(size(0)))
        }
        "lowerAscii" | "upperAscii" | "trim" | "substring" => (walk(size(0)), Some(size(0))),
        // The text is walked through, and the result is made.
        "split" => (walk(size(0).saturating_mul(2)), Some(size(0))),
        "replace" => {
            (walk(size(0).saturating_mul(2)), Some(replaced(size(0), literals.get(1).copied().flatten(), size(2))))
        }
        "join" => {
            let of = match kind(0) {
                Some(Kind::List(of)) => of.size,
                _ => 1,
            };
            let separators = if args.len() > 1 { size(0).saturating_sub(1).saturating_mul(size(1)) } else { 0 };
            let whole = size(0).saturating_mul(of).saturating_add(separators);
            (walk(whole), Some(whole))
        }
        "indexOf" | "lastIndexOf" if is_text(0) => (walk(size(0)), None),
        "isSorted" | "sum" | "min" | "max" | "indexOf" | "lastIndexOf" => {
            let each = match kind(0) {
                Some(Kind::List(of)) if matches!(of.kind, Kind::String | Kind::Bytes) => 1 + walk(of.size),
                _ => 1,
            };
            (size(0).saturating_mul(each), None)
        }
        "distinct" | "sort" | "slice" | "reverse" | "flatten" => (size(0).max(1), Some(size(0))),
        "sets.contains" | "sets.equivalent" | "sets.intersects" => (size(0).saturating_mul(size(1)).max(1), None),
        "url" => (walk(size(0)), None),
        // They are parsed.
        "cidr" | "isIP" | "isCIDR" | "quantity" | "isQuantity" | "semver" | "isSemver" => (walk(size(0)), None),
        "ip" if is_text(0) => (walk(size(0)), None),
        "ip.isCanonical" => (walk(size(0).saturating_mul(2)), None),
        "validate" => (walk(size(1)).saturating_mul(NAME_FORMAT / 4), None),
        // Two addresses of 16 bytes; a text is parsed first.
        "containsIP" => (4 + if is_text(1) { walk(size(1)) } else { 0 }, None),
        "containsCIDR" => (7 + if is_text(1) { walk(size(1)) } else { 0 }, None),
        "string" if matches!(kind(0), Some(Kind::Bytes)) => (walk(size(0)), Some(size(0))),
        "string" | "dyn" => (1, Some(size(0))),
        "bytes" => (walk(size(0)), Some(size(0).saturating_mul(4))),
        "quote" | "strings.quote" => (walk(size(0)), Some(size(0).saturating_mul(2).saturating_add(2))),
        "jsonpatch.escapeKey" => (walk(size(0)), Some(size(0).saturating_mul(2))),
        "format" => (walk(size(0)), Some(checked.iter().fold(0, |sum: u64, arg| sum.saturating_add(arg.decl.size)))),
        "optional.of" | "optional.ofNonZeroValue" => (1, Some(size(0))),
        // Each asks the authorizer.
        "check" => (350_000, None),
        _ => (1, None),
    }
}

/// The longest text that replacing can give: `old` is the length of what is replaced, if it is known.
fn replaced(text: u64, old: Option<u64>, new: u64) -> u64 {
    match old {
        // Around every character.
        None | Some(0) => text.saturating_add(1).saturating_mul(new).saturating_add(text),
        Some(old) if new <= old => text,
        Some(old) => text.div_ceil(old).saturating_mul(new),
    }
}

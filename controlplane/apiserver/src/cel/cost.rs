//! What calls cost at most, in cel-go's units, and how large their results can be
//! (`cel-go/checker/cost.go`, `k8s.io/apiserver/pkg/cel/library/cost.go`).

use cel::common::ast::operators;

use super::check::Checked;
use super::decl::{Decl, Kind};

/// Of one rule with everything it may be applied to.
pub const RULE_LIMIT: u64 = 10_000_000;
/// Of all rules of a schema.
pub const SCHEMA_LIMIT: u64 = 100_000_000;

/// A tenth for each character walked through.
fn walk(size: u64) -> u64 {
    size.div_ceil(10)
}

/// The cost of a call beside that of its arguments, and the size of its result where that grows
/// with them.
pub fn of_call(name: &str, args: &[&Decl], checked: &[Checked]) -> (u64, Option<u64>) {
    let size = |at: usize| args.get(at).map_or(1, |decl| decl.size);
    let is_text = |at: usize| args.get(at).is_some_and(|decl| matches!(decl.kind, Kind::String | Kind::Bytes));
    match name {
        operators::EQUALS | operators::NOT_EQUALS => (walk(size(0).min(size(1))).max(1), None),
        operators::LESS | operators::LESS_EQUALS | operators::GREATER | operators::GREATER_EQUALS if is_text(0) => {
            (walk(size(0).min(size(1))).max(1), None)
        }
        operators::ADD if is_text(0) => {
            let sum = size(0).saturating_add(size(1));
            (walk(sum).max(1), Some(sum))
        }
        operators::ADD => (1, Some(size(0).saturating_add(size(1)))),
        operators::IN if args.get(1).is_some_and(|decl| matches!(decl.kind, Kind::List(_))) => (size(1), None),
        operators::CONDITIONAL => (0, Some(size(1).max(size(2)))),
        operators::INDEX | operators::OPT_INDEX | "value" | "orValue" | "or" => (1, None),
        "contains" => (walk(size(0)).saturating_mul(walk(size(1)).max(1)).max(1), None),
        "startsWith" | "endsWith" => (walk(size(1)).max(1), None),
        "matches" | "find" | "findAll" => {
            let pattern = size(1).div_ceil(4).max(1);
            (walk(size(0).saturating_add(1)).saturating_mul(pattern), Some(size(0)))
        }
        "split" | "replace" | "lowerAscii" | "upperAscii" | "trim" | "substring" | "charAt" => {
            let grown = if name == "replace" { size(0).saturating_mul(size(2).max(1)) } else { size(0) };
            (walk(size(0)).max(1), Some(grown))
        }
        "join" => {
            let of = match args.first().map(|decl| &decl.kind) {
                Some(Kind::List(of)) => of.size,
                _ => 1,
            };
            let whole = size(0).saturating_mul(of.saturating_add(if args.len() > 1 { size(1) } else { 0 }));
            (walk(whole).max(1), Some(whole))
        }
        "indexOf" | "lastIndexOf" if is_text(0) => (walk(size(0)).saturating_mul(walk(size(1)).max(1)).max(1), None),
        "isSorted" | "sum" | "min" | "max" | "indexOf" | "lastIndexOf" | "distinct" | "sort" | "slice" | "reverse"
        | "flatten" => (size(0).max(1), Some(size(0))),
        "sets.contains" | "sets.equivalent" | "sets.intersects" => (size(0).saturating_mul(size(1)).max(1), None),
        "quantity" | "isQuantity" | "url" | "isURL" | "ip" | "isIP" | "cidr" | "isCIDR" | "semver" | "isSemver"
        | "validate" => (walk(size(0)).max(1), None),
        "string" | "bytes" | "dyn" | "quote" | "strings.quote" | "jsonpatch.escapeKey" => {
            (walk(size(0)).max(1), Some(size(0)))
        }
        "format" => (
            walk(size(0)).saturating_add(checked.iter().map(|arg| walk(arg.decl.size)).sum()).max(1),
            Some(size(0).saturating_mul(2)),
        ),
        "optional.of" | "optional.ofNonZeroValue" => (1, Some(size(0))),
        // Each asks the authorizer.
        "check" => (350_000, None),
        "@not_strictly_false" => (0, None),
        _ => (1, None),
    }
}

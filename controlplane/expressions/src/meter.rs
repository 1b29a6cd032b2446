//! What an evaluation may cost: the tree is rewritten so that loops and functions of growing cost
//! report what they spend, and an evaluation that spends more than it may ends with an error.
//!
//! Units are cel-go's: about one per step, one per ten characters walked through.

use std::cell::Cell;

use cel::common::ast::{
    CallExpr, EntryExpr, Expr, IdedEntryExpr, IdedExpr, LiteralValue, MapEntryExpr, MapExpr, operators,
};
use cel::common::types::{CelBytes, CelInt, CelList, CelMap, CelString, DYN_TYPE, INT_TYPE};
use cel::common::value::{CowVal, Val};
use cel::{Env, ExecutionError};

use crate::{parse, signatures};

/// Of one expression.
pub const PER_CALL_LIMIT: u64 = 1_000_000;
/// Of all expressions of one policy, or one object.
pub const BUDGET: u64 = 10_000_000;
/// What an evaluation that went over its limit says.
pub const EXCEEDED: &str = "operation cancelled: actual cost limit exceeded";

const TICK: &str = "@tick";
const WALK: &str = "@walk";

thread_local! {
    static LEFT: Cell<u64> = const { Cell::new(u64::MAX) };
}

/// Evaluates with `limit` units; gives what was spent. Over the limit the outcome is an error.
pub fn metered<T>(limit: u64, run: impl FnOnce() -> Result<T, String>) -> (Result<T, String>, u64) {
    let outer = LEFT.replace(limit);
    let outcome = run();
    let left = LEFT.replace(outer);
    if left == 0 { (Err(EXCEEDED.to_owned()), limit) } else { (outcome, limit - left) }
}

/// Takes `units`; an error when they are not left.
pub fn spend(units: u64) -> Result<(), ExecutionError> {
    let left = LEFT.get();
    if left <= units {
        LEFT.set(0);
        return Err(ExecutionError::function_error("cost", EXCEEDED));
    }
    LEFT.set(left - units);
    Ok(())
}

/// Registers what rewritten trees call.
pub fn extend(env: &mut Env) {
    // The names cannot be written in an expression: they are nobody else's.
    let _ = env.add_overload(TICK, "tick", vec![DYN_TYPE, INT_TYPE], |args| {
        let units = args.get(1).and_then(|units| units.downcast_ref::<CelInt>()).map_or(1, |units| *units.inner());
        spend(u64::try_from(units).unwrap_or(1))?;
        first(args)
    });
    let _ = env.add_overload(WALK, "walk", vec![DYN_TYPE], |args| {
        spend(args.first().map_or(0, |value| weight(value.as_ref())) / 10 + 1)?;
        first(args)
    });
}

fn first<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    args.into_iter().next().ok_or_else(|| ExecutionError::invalid_argument_count(1, 0))
}

/// About how many characters and elements a value has.
fn weight(value: &dyn Val) -> u64 {
    if let Some(text) = value.downcast_ref::<CelString>() {
        return text.inner().len() as u64;
    }
    if let Some(bytes) = value.downcast_ref::<CelBytes>() {
        return bytes.inner().len() as u64;
    }
    if let Some(list) = value.downcast_ref::<CelList>() {
        return list.inner().iter().map(|item| weight(item.as_ref()) + 1).sum();
    }
    if let Some(map) = value.downcast_ref::<CelMap>() {
        return map.inner().values().map(|item| weight(item.as_ref()) + 8).sum();
    }
    1
}

/// The tree that is evaluated in place of the one that was written: it meters itself, and builds
/// maps where typed objects were written (`Object.spec{...}`, `JSONPatch{...}`).
pub fn rewritten(root: IdedExpr) -> IdedExpr {
    let IdedExpr { id, expr } = root;
    let expr = match expr {
        Expr::Call(call) => rewritten_call(call),
        Expr::List(mut list) => {
            list.elements = list.elements.into_iter().map(rewritten).collect();
            Expr::List(list)
        }
        Expr::Select(mut select) => {
            *select.operand = rewritten(*select.operand);
            Expr::Select(select)
        }
        Expr::Map(mut map) => {
            map.entries = map.entries.into_iter().map(rewritten_entry).collect();
            Expr::Map(map)
        }
        Expr::Struct(record) => {
            Expr::Map(MapExpr { entries: record.entries.into_iter().map(rewritten_entry).collect() })
        }
        Expr::Comprehension(mut all) => {
            let units = parse::size(&all.loop_step) + parse::size(&all.loop_cond);
            all.iter_range = rewritten(all.iter_range);
            all.accu_init = rewritten(all.accu_init);
            // Steps of `all` and `exists` may fail and be passed over: the condition ends the loop.
            all.loop_cond = match all.loop_cond.expr {
                Expr::Literal(_) => all.loop_cond,
                _ => tick(rewritten(all.loop_cond), 1),
            };
            all.loop_step = rewritten_step(all.loop_step, &all.accu_var, units);
            all.result = rewritten(all.result);
            Expr::Comprehension(all)
        }
        leaf @ (Expr::Ident(_) | Expr::Literal(_) | Expr::Unspecified) => leaf,
    };
    IdedExpr { id, expr }
}

fn rewritten_entry(entry: IdedEntryExpr) -> IdedEntryExpr {
    let IdedEntryExpr { id, expr } = entry;
    let expr = match expr {
        EntryExpr::StructField(field) => EntryExpr::MapEntry(MapEntryExpr {
            key: IdedExpr { id, expr: Expr::Literal(LiteralValue::String(field.field.into())) },
            value: rewritten(field.value),
            optional: field.optional,
        }),
        EntryExpr::MapEntry(mut entry) => {
            entry.key = rewritten(entry.key);
            entry.value = rewritten(entry.value);
            EntryExpr::MapEntry(entry)
        }
    };
    IdedEntryExpr { id, expr }
}

/// Functions whose cost grows with what they are given.
const WALKING: &[&str] = &[
    operators::ADD,
    operators::EQUALS,
    operators::NOT_EQUALS,
    operators::IN,
    operators::LESS,
    operators::LESS_EQUALS,
    operators::GREATER,
    operators::GREATER_EQUALS,
    "contains",
    "startsWith",
    "endsWith",
    "indexOf",
    "lastIndexOf",
    "lowerAscii",
    "upperAscii",
    "trim",
    "split",
    "substring",
    "@format",
    "sort",
    "distinct",
    "flatten",
    "slice",
    "reverse",
    "sum",
    "min",
    "max",
    "isSorted",
    "string",
    "quantity",
    "isQuantity",
    "url",
    "isURL",
    "containsIP",
    "containsCIDR",
    "validate",
];

/// Functions that are replaced by others which report themselves what they cost.
const REPLACED: &[(&str, &str)] =
    &[("matches", "@matches"), ("replace", "@replace"), ("join", "@join"), ("format", "@format")];

fn rewritten_call(mut call: CallExpr) -> Expr {
    if let Some((_, other)) = REPLACED.iter().find(|(name, _)| *name == call.func_name) {
        call.func_name = (*other).to_owned();
    }
    let walks = WALKING.contains(&call.func_name.as_str());
    let qualified = |target: &IdedExpr| matches!(&target.expr, Expr::Ident(space) if signatures::find(&format!("{space}.{}", call.func_name)).is_some());
    // A qualified name (`sets.contains`) is no value to walk through.
    let walks = walks && !call.target.as_deref().is_some_and(qualified);
    let wrap = |expr: IdedExpr| if walks && !matches!(expr.expr, Expr::Literal(_)) { walking(expr) } else { expr };
    call.target = call.target.map(|target| Box::new(wrap(rewritten(*target))));
    call.args = call.args.into_iter().map(|arg| wrap(rewritten(arg))).collect();
    Expr::Call(call)
}

fn walking(expr: IdedExpr) -> IdedExpr {
    let id = expr.id;
    IdedExpr { id, expr: Expr::Call(CallExpr { func_name: WALK.to_owned(), target: None, args: vec![expr] }) }
}

/// The step of a loop, rewritten, reporting `units` each time. The report goes where the
/// interpreter's own treatment of well-known steps (`accumulator + [x]`, `accumulator && x`) is
/// left in force.
fn rewritten_step(step: IdedExpr, accumulator: &str, units: u64) -> IdedExpr {
    let IdedExpr { id, expr } = step;
    let expr = match expr {
        Expr::Call(call) if continues(&call, accumulator) => continued(call, Some(units)),
        Expr::Call(mut call) if call.func_name == operators::CONDITIONAL && call.args.len() == 3 => {
            let branches = call.args.split_off(1);
            call.args = call.args.into_iter().map(|condition| tick(rewritten(condition), units)).collect();
            call.args.extend(branches.into_iter().map(|branch| match branch.expr {
                Expr::Call(inner) if continues(&inner, accumulator) => {
                    IdedExpr { id: branch.id, expr: continued(inner, None) }
                }
                expr => rewritten(IdedExpr { id: branch.id, expr }),
            }));
            Expr::Call(call)
        }
        expr => return tick(rewritten(IdedExpr { id, expr }), units),
    };
    IdedExpr { id, expr }
}

/// `accumulator + x`, `accumulator && x`, `accumulator || x`.
fn continues(call: &CallExpr, accumulator: &str) -> bool {
    call.args.len() == 2
        && matches!(&call.args[0].expr, Expr::Ident(name) if name == accumulator)
        && matches!(call.func_name.as_str(), operators::ADD | operators::LOGICAL_AND | operators::LOGICAL_OR)
}

fn continued(mut call: CallExpr, units: Option<u64>) -> Expr {
    let reported = |expr: IdedExpr| match units {
        Some(units) => tick(rewritten(expr), units),
        None => rewritten(expr),
    };
    if let Some(last) = call.args.pop() {
        call.args.push(match last.expr {
            Expr::List(mut list) if list.elements.len() == 1 && list.optional_indices.is_empty() => {
                list.elements = list.elements.into_iter().map(reported).collect();
                IdedExpr { id: last.id, expr: Expr::List(list) }
            }
            expr => reported(IdedExpr { id: last.id, expr }),
        });
    }
    Expr::Call(call)
}

fn tick(expr: IdedExpr, units: u64) -> IdedExpr {
    let id = expr.id;
    let units =
        IdedExpr { id, expr: Expr::Literal(LiteralValue::Int(i64::try_from(units).unwrap_or(i64::MAX).into())) };
    IdedExpr { id, expr: Expr::Call(CallExpr { func_name: TICK.to_owned(), target: None, args: vec![expr, units] }) }
}

//! Follows paths. `None` stands for Go's errors: then a cell is empty.

use std::cmp::Ordering;

use serde_json::{Number, Value};

use super::{Filter, Operand, Slice, Step};

/// All that the steps find, from what is there to begin with.
pub fn walk<'a>(steps: &[Step], found: Vec<&'a Value>) -> Option<Vec<&'a Value>> {
    steps.iter().try_fold(found, |found, step| step.apply(found))
}

fn children(value: &Value) -> Vec<&Value> {
    match value {
        Value::Array(items) => items.iter().collect(),
        Value::Object(members) => members.values().collect(),
        _ => Vec::new(),
    }
}

/// The objects and lists from this one down that hold anything.
fn descend<'a>(value: &'a Value, found: &mut Vec<&'a Value>) {
    let below = children(value);
    if !below.is_empty() {
        found.push(value);
        below.into_iter().for_each(|child| descend(child, found));
    }
}

impl Step {
    fn apply<'a>(&self, found: Vec<&'a Value>) -> Option<Vec<&'a Value>> {
        match self {
            Step::Member(name) => Some(found.into_iter().filter_map(|value| value.get(name)).collect()),
            Step::All => Some(found.into_iter().flat_map(children).collect()),
            Step::Descend => {
                let mut all = Vec::new();
                found.into_iter().for_each(|value| descend(value, &mut all));
                Some(all)
            }
            Step::Slice(slice) => {
                let lists = found.into_iter().filter(|value| !value.is_null());
                let parts = lists.map(|list| slice.of(list.as_array()?)).collect::<Option<Vec<_>>>()?;
                Some(parts.into_iter().flatten().collect())
            }
            Step::Union(paths) => {
                let parts = paths.iter().map(|path| walk(path, found.clone())).collect::<Option<Vec<_>>>()?;
                Some(parts.into_iter().flatten().collect())
            }
            Step::Where(filter) => {
                let mut passed = Vec::new();
                for list in found {
                    for item in list.as_array()? {
                        if filter.passes(item)? {
                            passed.push(item);
                        }
                    }
                }
                Some(passed)
            }
        }
    }
}

impl Slice {
    fn of<'a>(&self, list: &'a [Value]) -> Option<Vec<&'a Value>> {
        let length = i64::try_from(list.len()).ok()?;
        let from = match self.from.unwrap_or(0) {
            from if from < 0 => from.checked_add(length)?,
            from => from,
        };
        let to = match self.to.unwrap_or(length) {
            to if to < 0 || (to == 0 && self.single) => to.checked_add(length)?,
            to => to,
        };
        if from == to {
            return Some(Vec::new());
        }
        let (from, to) = (usize::try_from(from).ok()?, usize::try_from(to).ok()?);
        let step = usize::try_from(self.step.unwrap_or(1)).ok().filter(|step| *step > 0)?;
        Some(list.get(from..to)?.iter().step_by(step).collect())
    }
}

impl Filter {
    fn passes(&self, item: &Value) -> Option<bool> {
        let Some((operator, right)) = &self.test else {
            return Some(self.left.values(item).is_some_and(|found| !found.is_empty()));
        };
        let (left, right) = (self.left.values(item)?, right.values(item)?);
        match (left.as_slice(), right.as_slice()) {
            ([left], [right]) => compare(left, operator, right),
            ([], _) | (_, []) => Some(false),
            // Only one value can be compared at a time.
            _ => None,
        }
    }
}

impl Operand {
    fn values<'a>(&'a self, item: &'a Value) -> Option<Vec<&'a Value>> {
        match self {
            Operand::Literal(value) => Some(vec![value]),
            Operand::Path(path) => walk(path, vec![item]),
        }
    }
}

/// Only values of one kind can be compared, and truths have no order.
fn compare(left: &Value, operator: &str, right: &Value) -> Option<bool> {
    let order = match (left, right) {
        (Value::String(left), Value::String(right)) => left.cmp(right),
        (Value::Bool(left), Value::Bool(right)) if matches!(operator, "==" | "!=") => left.cmp(right),
        (Value::Number(left), Value::Number(right)) => compare_numbers(left, right)?,
        _ => return None,
    };
    match operator {
        "==" => Some(order == Ordering::Equal),
        "!=" => Some(order != Ordering::Equal),
        "<" => Some(order == Ordering::Less),
        "<=" => Some(order != Ordering::Greater),
        ">" => Some(order == Ordering::Greater),
        ">=" => Some(order != Ordering::Less),
        _ => None,
    }
}

/// Whole numbers with whole ones, others with others.
fn compare_numbers(left: &Number, right: &Number) -> Option<Ordering> {
    match (left.as_i64(), right.as_i64()) {
        (Some(left), Some(right)) => Some(left.cmp(&right)),
        (None, None) => left.as_f64()?.partial_cmp(&right.as_f64()?),
        _ => None,
    }
}

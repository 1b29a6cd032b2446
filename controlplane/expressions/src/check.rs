//! Checks an expression against the types of its variables, and estimates what it may cost at most
//! (cel-go's `checker` and `checker/cost`).

use std::collections::HashMap;

use cel::common::ast::{
    CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, ListExpr, LiteralValue, SelectExpr, operators,
};

use crate::decl::{Decl, Kind};
use crate::literals::Literals;
use crate::parse::{self, Parsed};
use crate::signatures::{self, Overload};
use crate::{CelError, cost, library};

/// What an expression gives, and costs at most.
#[derive(Debug, Clone)]
pub struct Checked {
    pub decl: Decl,
    pub cost: u64,
}

/// Checks an expression whose variables are declared. `Err` holds cel-go's words.
pub fn check(text: &str, parsed: &Parsed, variables: &[(&str, Decl)]) -> Result<Checked, CelError> {
    let scope = variables.iter().map(|(name, decl)| ((*name).to_owned(), decl.clone())).collect();
    let mut checker = Checker { scope, problems: Vec::new(), literals: Literals::default() };
    let checked = parse::with_stack(parsed.depth, || checker.visit(&parsed.root));
    let mut problems = checker.problems;
    if problems.is_empty() {
        // These are only looked for when the types are right.
        problems = checker.literals.problems();
    }
    if problems.is_empty() {
        return Ok(checked);
    }
    let texts: Vec<String> = problems
        .iter()
        .map(|(id, message)| {
            let offset = parsed.source.offset_for(*id).map_or(0, |(start, _)| start as usize);
            parse::place(text, offset, message)
        })
        .collect();
    Err(CelError::Compile(texts.join("\n")))
}

struct Checker {
    scope: Vec<(String, Decl)>,
    problems: Vec<(u64, String)>,
    literals: Literals,
}

impl Checker {
    fn problem(&mut self, id: u64, message: String) -> Checked {
        self.problems.push((id, message));
        Checked { decl: Decl::dynamic(), cost: 1 }
    }

    fn variable(&self, name: &str) -> Option<&Decl> {
        self.scope.iter().rev().find(|(held, _)| held == name).map(|(_, decl)| decl)
    }

    fn visit(&mut self, at: &IdedExpr) -> Checked {
        let of = |decl, cost| Checked { decl, cost };
        match &at.expr {
            Expr::Literal(literal) => of(literal_type(literal), 0),
            Expr::Ident(name) => match self.variable(name) {
                Some(decl) => of(decl.clone(), 1),
                None if library::is_type(name) => of(Decl::new(Kind::Type), 1),
                None => self.problem(at.id, format!("undeclared reference to '{name}' (in container '')")),
            },
            Expr::Select(_) if self.names_type(&at.expr) => of(Decl::new(Kind::Type), 1),
            Expr::Select(select) => self.select(at.id, select),
            Expr::Call(call) => self.call(at.id, call),
            Expr::List(list) => self.list(list),
            Expr::Map(map) => self.entries(map.entries.iter().map(|entry| &entry.expr), 30),
            Expr::Struct(record) => {
                if !record.type_name.starts_with("Object") && record.type_name != "JSONPatch" {
                    return self
                        .problem(at.id, format!("undeclared reference to '{}' (in container '')", record.type_name));
                }
                let made = self.entries(record.entries.iter().map(|entry| &entry.expr), 40);
                of(Decl::object(&record.type_name, []), made.cost)
            }
            Expr::Comprehension(all) => self.comprehension(at.id, all),
            Expr::Unspecified => of(Decl::dynamic(), 0),
        }
    }

    /// Whether it is the dotted name of a type: `google.protobuf.Timestamp`.
    fn names_type(&self, expr: &Expr) -> bool {
        let Some(name) = dotted(expr) else { return false };
        library::is_type(&name) && self.variable(name.split('.').next().unwrap_or_default()).is_none()
    }

    fn list(&mut self, list: &ListExpr) -> Checked {
        let mut cost = 10;
        let mut element: Option<Decl> = None;
        let mut items = Vec::with_capacity(list.elements.len());
        for (index, item) in list.elements.iter().enumerate() {
            let checked = self.visit(item);
            cost = u64::saturating_add(cost, checked.cost);
            let decl = if list.optional_indices.contains(&index) { checked.decl.present() } else { checked.decl };
            element = Some(element.map_or(decl.clone(), |known| joined(known, decl.clone())));
            items.push((item.id, decl));
        }
        self.literals.same(&items);
        let element = element.unwrap_or(Decl::new(Kind::Free));
        Checked { decl: Decl::list(element, list.elements.len() as u64), cost }
    }

    fn entries<'a>(&mut self, entries: impl Iterator<Item = &'a EntryExpr>, base: u64) -> Checked {
        let (mut cost, mut count) = (base, 0);
        let mut types: Option<(Decl, Decl)> = None;
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for entry in entries {
            count += 1;
            let (key, mut value, optional) = match entry {
                EntryExpr::StructField(field) => (None, self.visit(&field.value), field.optional),
                EntryExpr::MapEntry(entry) => (Some(self.visit(&entry.key)), self.visit(&entry.value), entry.optional),
            };
            let key = key.unwrap_or(Checked { decl: Decl::text(), cost: 0 });
            if optional {
                value.decl = value.decl.present();
            }
            cost = cost.saturating_add(key.cost).saturating_add(value.cost);
            if let EntryExpr::MapEntry(entry) = entry {
                keys.push((entry.key.id, key.decl.clone()));
                values.push((entry.value.id, value.decl.clone()));
            }
            types = Some(match types {
                Some((keys, values)) => (joined(keys, key.decl), joined(values, value.decl)),
                None => (key.decl, value.decl),
            });
        }
        self.literals.same(&keys);
        self.literals.same(&values);
        let (key, value) = types.unwrap_or((Decl::new(Kind::Free), Decl::new(Kind::Free)));
        Checked { decl: Decl::map(key, value, count), cost }
    }

    fn select(&mut self, id: u64, select: &SelectExpr) -> Checked {
        if let Expr::Ident(root) = &select.operand.expr
            && let Some(decl) = self.variable(&format!("{root}.{}", select.field))
        {
            return Checked { decl: decl.clone(), cost: 1 };
        }
        let operand = self.visit(&select.operand);
        // Asking for presence costs nothing, whatever the way to it; nor does a member of what has no type.
        let typed = matches!(operand.decl.kind, Kind::Map(..) | Kind::Object(_) | Kind::Native(_) | Kind::Free);
        let cost = if select.test { 0 } else { operand.cost.saturating_add(u64::from(typed)) };
        let (inner, optional) = match &operand.decl.kind {
            Kind::Optional(of) => ((**of).clone(), true),
            _ => (operand.decl, false),
        };
        let field = match member(&inner, &select.field) {
            Ok(field) => field,
            Err(message) => return self.problem(id, message),
        };
        let decl = match (select.test, optional) {
            (true, _) => Decl::new(Kind::Bool),
            (false, true) => Decl::optional(field),
            (false, false) => field,
        };
        Checked { decl, cost }
    }

    fn call(&mut self, id: u64, call: &CallExpr) -> Checked {
        if call.func_name == operators::OPT_SELECT
            && let [operand, field] = call.args.as_slice()
            && let Expr::Literal(LiteralValue::String(name)) = &field.expr
        {
            let select = SelectExpr { operand: Box::new(operand.clone()), field: name.inner().to_owned(), test: false };
            let checked = self.select(id, &select);
            let decl = match checked.decl.kind {
                Kind::Optional(_) => checked.decl,
                _ => Decl::optional(checked.decl),
            };
            return Checked { decl, cost: checked.cost };
        }
        let mut name = call.func_name.clone();
        let mut receiver = call.target.as_deref();
        if let Some(IdedExpr { expr: Expr::Ident(space), .. }) = receiver
            && self.variable(space).is_none()
            && signatures::find(&format!("{space}.{name}")).is_some()
        {
            name = format!("{space}.{name}");
            receiver = None;
        }
        let method = receiver.is_some();
        self.literals.enter(&name);
        let args: Vec<Checked> = receiver.into_iter().chain(&call.args).map(|arg| self.visit(arg)).collect();
        self.literals.leave(&name);
        self.literals.argument(call, id);
        let Some(overloads) = signatures::find(&name) else {
            return self.problem(id, format!("undeclared reference to '{name}' (in container '')"));
        };
        let decls: Vec<&Decl> = args.iter().map(|arg| &arg.decl).collect();
        let mut results = overloads
            .iter()
            .filter(|overload| overload.method == method)
            .filter_map(|overload| applied(overload, &decls));
        let Some(mut result) = results.next() else {
            return self.problem(id, no_overload(&name, &decls, method));
        };
        if results.any(|other| other.kind != result.kind) {
            result = Decl::dynamic();
        }
        let spent = args.iter().fold(0, |sum: u64, arg| sum.saturating_add(arg.cost));
        let literals: Vec<Option<u64>> = receiver.into_iter().chain(&call.args).map(literal_length).collect();
        let (own, size) = cost::of_call(&name, &decls, &args, &literals);
        if let Some(size) = size {
            result.size = size;
        }
        let cost = match name.as_str() {
            operators::CONDITIONAL => {
                args[0].cost.saturating_add(args.iter().skip(1).map(|arg| arg.cost).max().unwrap_or(0))
            }
            operators::LOGICAL_AND | operators::LOGICAL_OR => spent,
            _ => spent.saturating_add(own),
        };
        Checked { decl: result, cost }
    }

    fn comprehension(&mut self, id: u64, all: &ComprehensionExpr) -> Checked {
        let range = self.visit(&all.iter_range);
        let item = match &range.decl.kind {
            Kind::List(of) => (**of).clone(),
            Kind::Map(key, _) => (**key).clone(),
            Kind::Dyn | Kind::Free => Decl::dynamic(),
            other => {
                let shown = Decl::new(other.clone());
                let message = format!(
                    "expression of type '{shown}' cannot be range of a comprehension (must be list, map, or dynamic)"
                );
                return self.problem(id, message);
            }
        };
        let accumulated = self.visit(&all.accu_init);
        let depth = self.scope.len();
        self.scope.push((all.accu_var.clone(), accumulated.decl.clone()));
        self.scope.push((all.iter_var.clone(), item));
        let condition = self.visit(&all.loop_cond);
        let step = self.visit(&all.loop_step);
        if accumulated.decl.contains_free() || matches!(accumulated.decl.kind, Kind::List(_)) {
            self.scope[depth].1 = Decl { size: range.decl.size, ..step.decl };
        }
        self.scope.truncate(depth + 1);
        let result = self.visit(&all.result);
        self.scope.truncate(depth);
        let each = condition.cost.saturating_add(step.cost);
        let cost = [accumulated.cost, range.decl.size.saturating_mul(each), result.cost]
            .into_iter()
            .fold(range.cost, u64::saturating_add);
        Checked { decl: result.decl, cost }
    }
}

/// `a.b.c` as text, of selections from a name.
fn dotted(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Ident(name) => Some(name.clone()),
        Expr::Select(select) if !select.test => Some(format!("{}.{}", dotted(&select.operand.expr)?, select.field)),
        _ => None,
    }
}

fn literal_length(of: &IdedExpr) -> Option<u64> {
    match &of.expr {
        Expr::Literal(LiteralValue::String(text)) => Some(text.inner().chars().count() as u64),
        _ => None,
    }
}

fn literal_type(literal: &LiteralValue) -> Decl {
    match literal {
        LiteralValue::Boolean(_) => Decl::new(Kind::Bool),
        LiteralValue::Bytes(bytes) => Decl::sized(Kind::Bytes, bytes.inner().len() as u64),
        LiteralValue::Double(_) => Decl::new(Kind::Double),
        LiteralValue::Int(_) => Decl::new(Kind::Int),
        LiteralValue::Null => Decl::new(Kind::Null),
        LiteralValue::String(text) => Decl::sized(Kind::String, text.inner().chars().count() as u64),
        LiteralValue::UInt(_) => Decl::new(Kind::Uint),
    }
}

/// The type of a field; `Err` says why there is none.
fn member(of: &Decl, name: &str) -> Result<Decl, String> {
    match &of.kind {
        Kind::Dyn | Kind::Free => Ok(Decl::dynamic()),
        Kind::Map(_, value) => Ok((**value).clone()),
        Kind::Object(object) if object.name.starts_with("Object") => Ok(Decl::dynamic()),
        Kind::Object(object) => object.fields.get(name).cloned().ok_or_else(|| format!("undefined field '{name}'")),
        Kind::Native(of) => of.member(name).ok_or_else(|| format!("undefined field '{name}'")),
        _ => Err(format!("type '{of}' does not support field selection")),
    }
}

fn no_overload(name: &str, args: &[&Decl], method: bool) -> String {
    let shown = |args: &[&Decl]| args.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    match args.split_first() {
        Some((receiver, rest)) if method => {
            format!("found no matching overload for '{name}' applied to '{receiver}.({})'", shown(rest))
        }
        _ => format!("found no matching overload for '{name}' applied to '({})'", shown(args)),
    }
}

/// What an overload gives for these arguments; none when it does not take them.
fn applied(overload: &Overload, args: &[&Decl]) -> Option<Decl> {
    if overload.args.len() != args.len() {
        return None;
    }
    let mut bound = HashMap::new();
    let fits = overload.args.iter().zip(args).all(|(wanted, given)| accepts(wanted, given, &mut bound));
    fits.then(|| substituted(&overload.result, &bound))
}

fn accepts(wanted: &Decl, given: &Decl, bound: &mut HashMap<char, Decl>) -> bool {
    match (&wanted.kind, &given.kind) {
        (Kind::Any(letter), _) => match bound.get(letter) {
            None => {
                bound.insert(*letter, given.clone());
                true
            }
            Some(known) if similar(known, given) => {
                let merged = joined(known.clone(), given.clone());
                bound.insert(*letter, merged);
                true
            }
            Some(_) => false,
        },
        (Kind::Dyn, _) => true,
        (_, Kind::Dyn | Kind::Free) => {
            bind_all(wanted, bound);
            true
        }
        (Kind::List(wanted), Kind::List(given)) | (Kind::Optional(wanted), Kind::Optional(given)) => {
            accepts(wanted, given, bound)
        }
        (Kind::Map(key, value), Kind::Map(given_key, given_value)) => {
            accepts(key, given_key, bound) && accepts(value, given_value, bound)
        }
        // Objects may be indexed and counted as the maps that they are.
        (wanted, given) => wanted == given,
    }
}

/// Parameters inside of what is only known when it runs are unknown too.
fn bind_all(wanted: &Decl, bound: &mut HashMap<char, Decl>) {
    match &wanted.kind {
        Kind::Any(letter) => drop(bound.entry(*letter).or_insert_with(Decl::dynamic)),
        Kind::List(of) | Kind::Optional(of) => bind_all(of, bound),
        Kind::Map(key, value) => {
            bind_all(key, bound);
            bind_all(value, bound);
        }
        _ => {}
    }
}

/// Whether values of the two types can be compared, or be in one list.
fn similar(a: &Decl, b: &Decl) -> bool {
    let is_object = |kind: &Kind| matches!(kind, Kind::Object(_) | Kind::Native(_));
    match (&a.kind, &b.kind) {
        (Kind::Dyn | Kind::Free, _) | (_, Kind::Dyn | Kind::Free) => true,
        (Kind::Null, other) | (other, Kind::Null) => nullable(other),
        (Kind::List(a), Kind::List(b)) | (Kind::Optional(a), Kind::Optional(b)) => similar(a, b),
        (Kind::Map(key, value), Kind::Map(other_key, other_value)) => {
            similar(key, other_key) && similar(value, other_value)
        }
        (Kind::Opaque(a), Kind::Opaque(b)) => a == b,
        (a, b) => a == b || (is_object(a) && is_object(b)),
    }
}

/// Whether a value of the type may be null; absent fields are not null, they are absent.
fn nullable(kind: &Kind) -> bool {
    matches!(
        kind,
        Kind::Null
            | Kind::Object(_)
            | Kind::Native(_)
            | Kind::Opaque(_)
            | Kind::Optional(_)
            | Kind::Duration
            | Kind::Timestamp
    )
}

/// One type for values of both.
fn joined(a: Decl, b: Decl) -> Decl {
    let size = a.size.max(b.size);
    if a.kind == b.kind {
        return Decl { kind: a.kind, size };
    }
    match (&a.kind, &b.kind) {
        (Kind::Free | Kind::Null, _) => Decl { kind: b.kind, size },
        (_, Kind::Free | Kind::Null) => Decl { kind: a.kind, size },
        (Kind::List(x), Kind::List(y)) => Decl::list(joined((**x).clone(), (**y).clone()), size),
        (Kind::Optional(x), Kind::Optional(y)) => Decl::optional(joined((**x).clone(), (**y).clone())),
        (Kind::Map(key, value), Kind::Map(other_key, other_value)) => Decl::map(
            joined((**key).clone(), (**other_key).clone()),
            joined((**value).clone(), (**other_value).clone()),
            size,
        ),
        _ => Decl::dynamic(),
    }
}

fn substituted(decl: &Decl, bound: &HashMap<char, Decl>) -> Decl {
    match &decl.kind {
        Kind::Any(letter) => bound.get(letter).cloned().unwrap_or_else(Decl::dynamic),
        Kind::List(of) => Decl::list(substituted(of, bound), decl.size),
        Kind::Optional(of) => Decl::optional(substituted(of, bound)),
        Kind::Map(key, value) => Decl::map(substituted(key, bound), substituted(value, bound), decl.size),
        _ => decl.clone(),
    }
}

//! Comprehensions with two variables (`m.all(k, v, ...)`, `l.transformList(i, v, ...)`), expanded
//! to loops over pairs; the two names stand for the parts of a pair.

use cel::Env;
use cel::common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, ListExpr, LiteralValue, operators};
use cel::parser::{Macro, MacroExprHelper, ParseError};

const RESULT: &str = "@result";
pub const PAIRS: &str = "@pairs";
pub const UNPAIRS: &str = "@unpairs";

pub fn extend(env: &mut Env) {
    for (name, args) in [
        ("all", 3),
        ("exists", 3),
        ("existsOne", 3),
        ("exists_one", 3),
        ("transformList", 3),
        ("transformList", 4),
        ("transformMap", 3),
        ("transformMap", 4),
        ("transformMapEntry", 3),
        ("transformMapEntry", 4),
    ] {
        let expander = move |helper: &mut MacroExprHelper<'_>,
                             target: &mut Option<IdedExpr>,
                             args: &mut Vec<IdedExpr>| { expand(name, helper, target, args) };
        // None of these is a macro yet: three arguments are a second variable.
        let _ = env.add_macro(Macro::receiver(name, args, expander));
    }
}

fn expand(
    name: &str,
    helper: &mut MacroExprHelper<'_>,
    target: &mut Option<IdedExpr>,
    args: &mut Vec<IdedExpr>,
) -> Result<Option<IdedExpr>, ParseError> {
    let variables: Vec<String> = args
        .iter()
        .take(2)
        .filter_map(|arg| match &arg.expr {
            Expr::Ident(name) => Some(name.clone()),
            _ => None,
        })
        .collect();
    let [first, second] = variables.as_slice() else {
        return Err(helper.new_error(args.first().map_or(0, |arg| arg.id), "argument must be a simple name"));
    };
    let Some(range) = target.take() else { return Ok(None) };
    // Its own name, so that an inner loop does not hide it.
    let pair = format!("@pair:{first}:{second}");
    let mut rest: Vec<IdedExpr> = args.drain(..).skip(2).collect();
    for expr in &mut rest {
        substitute(expr, first, &pair, 0);
        substitute(expr, second, &pair, 1);
    }
    let Some(last) = rest.pop() else { return Ok(None) };
    let make = &mut Maker { helper, pair };
    Ok(Some(match name {
        "all" => {
            let condition = make.call("@not_strictly_false", vec![Expr::Ident(RESULT.into())]);
            make.fold(range, literal(true), condition, |make| make.joined(operators::LOGICAL_AND, last))
        }
        "exists" => {
            let not = make.call(operators::LOGICAL_NOT, vec![Expr::Ident(RESULT.into())]);
            let condition = make.call("@not_strictly_false", vec![not]);
            make.fold(range, literal(false), condition, |make| make.joined(operators::LOGICAL_OR, last))
        }
        "existsOne" | "exists_one" => {
            let counted = make.fold(range, Expr::Literal(LiteralValue::Int(0.into())), literal(true), |make| {
                let one = make.node(Expr::Literal(LiteralValue::Int(1.into())));
                let more = make.joined(operators::ADD, one);
                make.either(last, more)
            });
            let one = make.node(Expr::Literal(LiteralValue::Int(1.into())));
            let call = CallExpr { func_name: operators::EQUALS.into(), target: None, args: vec![counted, one] };
            make.node(Expr::Call(call))
        }
        "transformList" => make.collected(range, rest.pop(), last),
        "transformMapEntry" => {
            let list = make.collected(range, rest.pop(), last);
            make.unpaired(list)
        }
        _ => {
            let key = make.part(0);
            let pair = make.node(Expr::List(ListExpr::new(vec![key, last])));
            let list = make.collected(range, rest.pop(), pair);
            make.unpaired(list)
        }
    }))
}

fn literal(truth: bool) -> Expr {
    Expr::Literal(LiteralValue::Boolean(truth.into()))
}

struct Maker<'a, 'b> {
    helper: &'a mut MacroExprHelper<'b>,
    /// What the loop's variable is called.
    pair: String,
}

impl Maker<'_, '_> {
    fn node(&mut self, expr: Expr) -> IdedExpr {
        self.helper.next_expr(expr)
    }

    fn call(&mut self, name: &str, args: Vec<Expr>) -> Expr {
        let args = args.into_iter().map(|arg| self.node(arg)).collect();
        Expr::Call(CallExpr { func_name: name.to_owned(), target: None, args })
    }

    fn part(&mut self, at: i64) -> IdedExpr {
        let args = vec![Expr::Ident(self.pair.clone()), Expr::Literal(LiteralValue::Int(at.into()))];
        let call = self.call(operators::INDEX, args);
        self.node(call)
    }

    /// `@result <operator> expr`
    fn joined(&mut self, operator: &str, expr: IdedExpr) -> IdedExpr {
        let result = self.node(Expr::Ident(RESULT.into()));
        self.node(Expr::Call(CallExpr { func_name: operator.to_owned(), target: None, args: vec![result, expr] }))
    }

    /// `condition ? step : @result`
    fn either(&mut self, condition: IdedExpr, step: IdedExpr) -> IdedExpr {
        let result = self.node(Expr::Ident(RESULT.into()));
        let args = vec![condition, step, result];
        self.node(Expr::Call(CallExpr { func_name: operators::CONDITIONAL.into(), target: None, args }))
    }

    fn fold(
        &mut self,
        range: IdedExpr,
        init: Expr,
        condition: Expr,
        step: impl FnOnce(&mut Self) -> IdedExpr,
    ) -> IdedExpr {
        let pairs = CallExpr { func_name: PAIRS.to_owned(), target: None, args: vec![range] };
        let all = ComprehensionExpr {
            iter_range: self.node(Expr::Call(pairs)),
            iter_var: self.pair.clone(),
            iter_var2: None,
            accu_var: RESULT.to_owned(),
            accu_init: self.node(init),
            loop_cond: self.node(condition),
            loop_step: step(self),
            result: self.node(Expr::Ident(RESULT.into())),
        };
        self.node(Expr::Comprehension(Box::new(all)))
    }

    fn collected(&mut self, range: IdedExpr, filter: Option<IdedExpr>, element: IdedExpr) -> IdedExpr {
        self.fold(range, Expr::List(ListExpr::new(Vec::new())), literal(true), |make| {
            let list = make.node(Expr::List(ListExpr::new(vec![element])));
            let step = make.joined(operators::ADD, list);
            match filter {
                Some(filter) => make.either(filter, step),
                None => step,
            }
        })
    }

    fn unpaired(&mut self, list: IdedExpr) -> IdedExpr {
        self.node(Expr::Call(CallExpr { func_name: UNPAIRS.to_owned(), target: None, args: vec![list] }))
    }
}

/// Puts a part of the pair in place of a name, but where the name means something else.
fn substitute(at: &mut IdedExpr, name: &str, pair: &str, part: i64) {
    let id = at.id;
    match &mut at.expr {
        Expr::Ident(found) if found == name => {
            let args = vec![
                IdedExpr { id, expr: Expr::Ident(pair.to_owned()) },
                IdedExpr { id, expr: Expr::Literal(LiteralValue::Int(part.into())) },
            ];
            at.expr = Expr::Call(CallExpr { func_name: operators::INDEX.into(), target: None, args });
        }
        Expr::Call(call) => {
            call.target.iter_mut().for_each(|target| substitute(target, name, pair, part));
            call.args.iter_mut().for_each(|arg| substitute(arg, name, pair, part));
        }
        Expr::List(list) => list.elements.iter_mut().for_each(|element| substitute(element, name, pair, part)),
        Expr::Select(select) => substitute(&mut select.operand, name, pair, part),
        Expr::Map(map) => map.entries.iter_mut().for_each(|entry| substitute_entry(&mut entry.expr, name, pair, part)),
        Expr::Struct(record) => {
            record.entries.iter_mut().for_each(|entry| substitute_entry(&mut entry.expr, name, pair, part));
        }
        Expr::Comprehension(all) => {
            substitute(&mut all.iter_range, name, pair, part);
            substitute(&mut all.accu_init, name, pair, part);
            if all.iter_var != name {
                for inner in [&mut all.loop_cond, &mut all.loop_step, &mut all.result] {
                    substitute(inner, name, pair, part);
                }
            }
        }
        Expr::Ident(_) | Expr::Literal(_) | Expr::Unspecified => {}
    }
}

fn substitute_entry(entry: &mut EntryExpr, name: &str, pair: &str, part: i64) {
    match entry {
        EntryExpr::StructField(field) => substitute(&mut field.value, name, pair, part),
        EntryExpr::MapEntry(entry) => {
            substitute(&mut entry.key, name, pair, part);
            substitute(&mut entry.value, name, pair, part);
        }
    }
}

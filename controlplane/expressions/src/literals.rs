//! What is wrong with literals although their types are right: arguments that no call can take, and
//! lists and maps of mixed types (`cel-go/cel/validator.go`).

use cel::Value;
use cel::common::ast::{CallExpr, Expr, IdedExpr, LiteralValue};

use crate::comprehensions::UNPAIRS;
use crate::decl::{Decl, Kind};
use crate::library;

/// Collects problems while types are found out, each with the node that it is about.
#[derive(Default)]
pub struct Literals {
    /// Calls that the current node is in whose lists may be of mixed types.
    free: usize,
    mixed: Vec<(u64, String)>,
    arguments: Vec<(u64, String)>,
}

impl Literals {
    pub fn problems(self) -> Vec<(u64, String)> {
        self.mixed.into_iter().chain(self.arguments).collect()
    }

    pub fn enter(&mut self, function: &str) {
        self.free += usize::from(takes_mixed(function));
    }

    pub fn leave(&mut self, function: &str) {
        self.free -= usize::from(takes_mixed(function));
    }

    /// The elements of a list, or the keys or values of a map.
    pub fn same(&mut self, elements: &[(u64, Decl)]) {
        let Some(((_, first), rest)) = elements.split_first().filter(|_| self.free == 0) else { return };
        if let Some((id, other)) = rest.iter().find(|(_, other)| !equivalent(first, other)) {
            self.mixed.push((*id, format!("expected type '{first}' but found '{other}'")));
        }
    }

    /// A call whose argument is written out is tried.
    pub fn argument(&mut self, call: &CallExpr, id: u64) {
        let Some(IdedExpr { id: place, expr: Expr::Literal(literal) }) = call.args.first() else { return };
        let fails = match (call.func_name.as_str(), &call.target, literal) {
            ("duration" | "timestamp", None, _) => {
                Value::resolve(&IdedExpr { id, expr: Expr::Call(call.clone()) }, library::context()).is_err()
            }
            ("matches", Some(_), LiteralValue::String(pattern)) => library::compiled(pattern.inner()).is_err(),
            _ => false,
        };
        if fails {
            self.arguments.push((*place, format!("invalid {} argument", call.func_name)));
        }
    }
}

/// What is formatted may be of any types; pairs are made of a key and a value.
fn takes_mixed(function: &str) -> bool {
    matches!(function, "format" | UNPAIRS)
}

/// The same types, whatever the sizes; what is in an empty list or map can be anything.
fn equivalent(a: &Decl, b: &Decl) -> bool {
    match (&a.kind, &b.kind) {
        (Kind::Free, _) | (_, Kind::Free) => true,
        (Kind::List(a), Kind::List(b)) | (Kind::Optional(a), Kind::Optional(b)) => equivalent(a, b),
        (Kind::Map(key, value), Kind::Map(other_key, other_value)) => {
            equivalent(key, other_key) && equivalent(value, other_value)
        }
        (Kind::Object(a), Kind::Object(b)) => a.name == b.name,
        (a, b) => a == b,
    }
}

#[cfg(test)]
mod tests {
    use crate::decl::Decl;

    #[test]
    fn literals_that_no_call_can_take_and_mixed_types_do_not_compile() {
        let variables = [("x", Decl::dynamic())];
        for (text, place, problem) in [
            ("duration('1')", 10, "invalid duration argument"),
            ("timestamp('1000-00-00T00:00:00Z') == x", 11, "invalid timestamp argument"),
            ("x.a == 'a' || 'a'.matches(')')", 27, "invalid matches argument"),
            ("[1, 'a', false].size() == 3", 5, "expected type 'int' but found 'string'"),
            ("{'a': 1, 'b': 'c'} == x", 15, "expected type 'int' but found 'string'"),
            ("[1, x].size() == 2", 5, "expected type 'int' but found 'dyn'"),
            ("x == null ? 'a' == null : true", 17, "found no matching overload for '_==_' applied to '(string, null)'"),
        ] {
            let error = crate::compile_checked(text, &variables).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("compilation failed: ERROR: <input>:1:{place}: {problem}\n")),
                "{error}"
            );
        }
        for text in [
            "duration('1h') == x && timestamp('2024-01-01T00:00:00Z') == x",
            "'%d %s'.format([1, 'a']) == x",
            "{'a': 1}.transformMap(k, v, v + 1) == x && ['a', ?optional.none(), 'c'] == x",
            "[[], [1]].size() == 2 && ['a', ?optional.of('b')] == x",
            "{?'a': optional.of(1), 'b': 2} == x && duration('1h') != null",
            "type(x) == google.protobuf.Timestamp || type(x) == net.IP",
            "[3, 1].sortBy(e, -e) == lists.range(2) && string(ip('::1')) == '::1'",
        ] {
            let outcome = crate::compile_checked(text, &variables);
            assert!(outcome.is_ok(), "{text}: {outcome:?}");
        }
        assert!(crate::compile_checked("math.greatest(1, 2) == 2", &variables).is_err());
    }
}

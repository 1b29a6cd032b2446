//! CEL selectors of devices: their types, and what they may cost at most ([`expressions::device`]).

use api::field::Error;
use expressions::decl::Kind;
use expressions::device::{self, MOST};

use super::report::Report;
use crate::kinds::check::Node;

pub fn validate(expression: &Node<'_>, report: &mut Report) {
    let (_, checked) = match device::compile_checked(expression.text()) {
        Ok(compiled) => compiled,
        Err(why) => return expression.invalid_text(&mut report.said, why.to_string()),
    };
    if !matches!(checked.decl.kind, Kind::Bool | Kind::Dyn) {
        let why = format!("must evaluate to bool or the unknown type, not {}", checked.decl);
        expression.invalid_text(&mut report.said, why);
    } else if checked.cost > MOST {
        report.said.push(Error::forbidden(&expression.path, "too complex, exceeds cost limit"));
    }
}

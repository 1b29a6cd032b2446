//! CEL selectors of devices: their types, and what they may cost at most
//! (`k8s.io/dynamic-resource-allocation/cel/compile.go`).

use api::field::Error;

use super::claim::MAX_ITEMS;
use super::report::Report;
use crate::cel::compile_checked;
use crate::cel::decl::{Decl, Kind};
use crate::kinds::check::Node;

/// What one selector may cost for one device, in the units of CEL.
const MOST: u64 = 1_000_000;
/// Characters of a driver's name, or of the domain of an attribute.
const DOMAIN: u64 = 63;
/// Characters of an attribute's name without its domain.
const ID: u64 = 32;
/// Characters of an attribute's value.
const VALUE: u64 = 64;

pub fn validate(expression: &Node<'_>, report: &mut Report) {
    let (_, checked) = match compile_checked(expression.text(), &[("device", device())]) {
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

/// The variable of selectors.
fn device() -> Decl {
    let sized = |size| Decl::sized(Kind::String, size);
    let by_name = |value| {
        let inner = Decl::map(sized(ID), value, MAX_ITEMS as u64);
        Decl::map(sized(DOMAIN), inner, MAX_ITEMS as u64)
    };
    Decl::object(
        "kubernetes.DRADevice",
        [
            ("driver", sized(DOMAIN)),
            ("allowMultipleAllocations", Decl::new(Kind::Bool)),
            ("attributes", by_name(Decl::sized(Kind::Dyn, VALUE))),
            ("capacity", by_name(Decl::new(Kind::Opaque("kubernetes.Quantity")))),
        ]
        .map(|(name, decl)| (name.to_owned(), decl)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_cost_what_upstream_estimates() {
        for (text, cost) in [
            ("true", 0),
            ("\"dra.example.com\" in device.attributes", 3),
            ("device.driver == \"dra.example.com\"", 4),
            ("device.attributes[\"dra.example.com\"].name", 4),
            ("device.attributes[\"dra.example.com\"].name > 0", 5),
            ("device.attributes[\"dra.example.com\"].name == \"fish\"", 5),
            ("device.attributes[\"dra.example.com\"].name.exists(x, x > 0)", 5 + 6 * 64),
            ("device.attributes[\"dra.example.com\"].name.isGreaterThan(semver(\"0.0.1\"))", 6),
            ("device.capacity[\"dra.example.com\"].name.isGreaterThan(quantity(\"1Ki\"))", 6),
            ("device.attributes.exists_one(x, x == \"dra.example.com\")", 164),
            ("device.attributes[\"dra.example.com\"].exists_one(x, x == \"services\")", 133),
            ("device.attributes[\"dra.example.com\"].services.split(\"example\").size() >= 2", 19),
            ("device.attributes[\"dra.example.com\"].services.matches(\"[^a]?sym\")", 18),
            ("device.allowMultipleAllocations == false", 3),
        ] {
            let (_, checked) = compile_checked(text, &[("device", device())]).unwrap();
            assert_eq!(checked.cost, cost, "{text}");
        }
    }
}

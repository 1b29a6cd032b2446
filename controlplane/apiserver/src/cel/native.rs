//! The types of built-in kinds, as expressions see them.

use std::sync::Arc;

use expressions::decl::{Decl, Foreign, Kind, LARGEST_REQUEST};

use crate::schema::Node;
use crate::schema::table::{Base, Element, Shape};

/// The type of a place in the schema of a built-in kind.
pub fn native(element: Element) -> Decl {
    let resolved = element.resolved();
    let sized = |kind| Decl::sized(kind, LARGEST_REQUEST);
    match resolved.shape {
        Shape::List => Decl::list(native(resolved.item()), LARGEST_REQUEST / 2),
        Shape::Map => Decl::map(Decl::text(), native(resolved.item()), LARGEST_REQUEST / 4),
        Shape::Single => match resolved.base {
            Base::Type(_) => Decl::new(Kind::Native(Arc::new(Place(resolved)))),
            Base::String | Base::Quantity => sized(Kind::String),
            Base::Bool => Decl::new(Kind::Bool),
            Base::Int32 | Base::Int64 => Decl::new(Kind::Int),
            Base::Float => Decl::new(Kind::Double),
            Base::Bytes => sized(Kind::Bytes),
            _ => Decl::dynamic(),
        },
    }
}

#[derive(Debug)]
struct Place(Element);

impl Foreign for Place {
    fn name(&self) -> &str {
        match self.0.base {
            Base::Type(id) => id.name(),
            _ => "object",
        }
    }

    fn member(&self, name: &str) -> Option<Decl> {
        Some(match Node::Builtin(self.0).member(name)? {
            Node::Builtin(field) => native(field),
            _ => Decl::dynamic(),
        })
    }
}

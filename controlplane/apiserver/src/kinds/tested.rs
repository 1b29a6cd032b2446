//! Short ways to ask a kind's hooks, for its table tests.

use api::field::join;
use jiff::Timestamp;
use serde_json::Value;

use crate::admission::fake::Fixed;
use crate::authn::UserInfo;
use crate::resource::{Context, Hooks};

/// Asks with a request of an administrator's.
pub fn with<T>(object: &Value, subresource: &str, ask: impl FnOnce(&Context<'_>) -> T) -> T {
    let (cluster, user) = (Fixed::default(), UserInfo::admin());
    let now = Timestamp::UNIX_EPOCH;
    let (namespace, name) = (super::value::namespace(object), super::value::name(object));
    let (group, _) = crate::resource::split_api_version(super::value::text(object, "apiVersion"));
    ask(&Context {
        user: &user,
        verb: "update",
        group,
        namespace,
        name,
        subresource,
        dry_run: false,
        now,
        cluster: &cluster,
        warnings: &Default::default(),
    })
}

/// What creating `object` is refused with, after defaults; `[]` when it is taken.
pub fn created(hooks: &dyn Hooks, object: &Value) -> String {
    let mut object = object.clone();
    hooks.defaults(&mut object);
    with(&object.clone(), "", |ctx| {
        hooks.prepare_create(ctx, &mut object);
        hooks.switched_off().drop_from(&mut object, None);
        join(&hooks.validate_create(ctx, &object))
    })
}

/// What replacing `old` by `new` is refused with.
pub fn updated(hooks: &dyn Hooks, old: &Value, new: &Value) -> String {
    let (mut old, mut new) = (old.clone(), new.clone());
    hooks.defaults(&mut old);
    hooks.defaults(&mut new);
    with(&new.clone(), "", |ctx| {
        hooks.prepare_update(ctx, &mut new, &old);
        hooks.switched_off().drop_from(&mut new, Some(&old));
        join(&hooks.validate_update(ctx, &new, &old))
    })
}

/// `new` as the kind's own preparation leaves it.
pub fn prepared(hooks: &dyn Hooks, new: &mut Value, old: &Value) {
    with(&new.clone(), "", |ctx| hooks.prepare_update(ctx, new, old));
    hooks.switched_off().drop_from(new, Some(old));
}

/// As [`updated`], of a write to a subresource.
pub fn updated_sub(hooks: &dyn Hooks, subresource: &str, old: &Value, new: &Value) -> String {
    with(&new.clone(), subresource, |ctx| join(&hooks.validate_subresource_update(ctx, new, old)))
}

/// The cells of an object's row, with `|` between them.
pub fn cells(hooks: &dyn Hooks, object: &Value, now: &str) -> String {
    let now = now.parse().expect("the test's own timestamp");
    let text = |cell: &Value| cell.as_str().map_or_else(|| cell.to_string(), str::to_owned);
    hooks.row(object, now).iter().map(text).collect::<Vec<_>>().join("|")
}

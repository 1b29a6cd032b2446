//! What the expressions of policies and match conditions can name, and of which types it is.

use crate::cel::decl::{Decl, Kind};

/// What an expression is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Of a webhook, or of a policy without parameters.
    Plain,
    /// Of a policy with parameters.
    WithParams,
}

/// The variables of an expression. `object` is typed where the kind is known; `variables` are
/// those declared before it, in order.
pub fn declarations(
    purpose: Purpose,
    object: Option<Decl>,
    params: Option<Decl>,
    variables: Option<&[(String, Decl)]>,
) -> Vec<(&'static str, Decl)> {
    let object = object.unwrap_or_else(Decl::dynamic);
    let mut all = vec![
        ("object", object.clone()),
        ("oldObject", object),
        ("request", request()),
        ("authorizer", Decl::new(Kind::Opaque("kubernetes.authorization.Authorizer"))),
        ("authorizer.requestResource", Decl::new(Kind::Opaque("kubernetes.authorization.ResourceCheck"))),
    ];
    if purpose == Purpose::WithParams {
        all.push(("params", params.unwrap_or_else(Decl::dynamic)));
    }
    if let Some(variables) = variables {
        all.push(("variables", Decl::object("kubernetes.variables", variables.iter().cloned())));
        all.push(("namespaceObject", namespace()));
    }
    all
}

fn fields<const N: usize>(fields: [(&str, Decl); N]) -> Vec<(String, Decl)> {
    fields.into_iter().map(|(name, decl)| (name.to_owned(), decl)).collect()
}

/// `kubernetes.AdmissionRequest`
fn request() -> Decl {
    let text = Decl::text;
    let texts = || Decl::list(text(), 1000);
    let kind = || {
        Decl::object("kubernetes.GroupVersionKind", fields([("group", text()), ("version", text()), ("kind", text())]))
    };
    let resource = || {
        Decl::object(
            "kubernetes.GroupVersionResource",
            fields([("group", text()), ("version", text()), ("resource", text())]),
        )
    };
    let user = Decl::object(
        "kubernetes.UserInfo",
        fields([
            ("username", text()),
            ("uid", text()),
            ("groups", texts()),
            ("extra", Decl::map(text(), texts(), 1000)),
        ]),
    );
    Decl::object(
        "kubernetes.AdmissionRequest",
        fields([
            ("kind", kind()),
            ("resource", resource()),
            ("subResource", text()),
            ("requestKind", kind()),
            ("requestResource", resource()),
            ("requestSubResource", text()),
            ("name", text()),
            ("namespace", text()),
            ("operation", text()),
            ("userInfo", user),
            ("dryRun", Decl::new(Kind::Bool)),
            ("options", Decl::dynamic()),
        ]),
    )
}

/// `kubernetes.Namespace`
fn namespace() -> Decl {
    let text = Decl::text;
    let texts = || Decl::list(text(), 1000);
    let map = || Decl::map(text(), text(), 1000);
    let metadata = Decl::object(
        "kubernetes.NamespaceMetadata",
        fields([
            ("name", text()),
            ("generateName", text()),
            ("namespace", text()),
            ("labels", map()),
            ("annotations", map()),
            ("UID", text()),
            ("creationTimestamp", Decl::dynamic()),
            ("deletionGracePeriodSeconds", Decl::new(Kind::Int)),
            ("deletionTimestamp", Decl::dynamic()),
            ("generation", Decl::new(Kind::Int)),
            ("resourceVersion", text()),
            ("finalizers", texts()),
        ]),
    );
    let spec = Decl::object("kubernetes.NamespaceSpec", fields([("finalizers", texts())]));
    let status = Decl::object(
        "kubernetes.NamespaceStatus",
        fields([("conditions", Decl::list(Decl::dynamic(), 1000)), ("phase", text())]),
    );
    Decl::object("kubernetes.Namespace", fields([("metadata", metadata), ("spec", spec), ("status", status)]))
}

//! What is data of a resource.

use super::{Column, FieldLabels, GroupVersionKind, NameRule, ScalePaths, SelectableField, Served, Subresource, Text};

/// Everything that can be said of a resource as data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// In order of preference. The hub (storage) version is `served[hub]`.
    pub served: Vec<Served>,
    pub hub: usize,
    pub kind: Text,
    pub list_kind: Text,
    pub plural: Text,
    pub singular: Text,
    pub short_names: Vec<Text>,
    pub categories: Vec<Text>,
    pub namespaced: bool,
    /// API verbs as discovery lists them, sorted.
    pub verbs: Vec<Text>,
    pub status: bool,
    pub scale: Option<ScalePaths>,
    pub subresources: Vec<Subresource>,
    /// The version that objects are stored in, where that is not the hub.
    pub stored_as: Option<Text>,
    /// Under `/registry/`, without slashes at the ends, e.g. `pods`, `services/specs`, `minions`.
    pub storage_prefix: Text,
    pub selectable: Vec<SelectableField>,
    pub field_labels: FieldLabels,
    pub columns: Vec<Column>,
    pub generation: bool,
    pub name_rule: NameRule,
    pub keep_status_on_create: bool,
    /// PUT of a name that does not exist creates it.
    pub create_on_update: bool,
    /// An update without `resourceVersion` is allowed (unconditional). Most kinds allow it.
    pub unconditional_update: bool,
    /// Answered without the store: `TokenReview`, `SubjectAccessReview`, `Binding`, `ComponentStatus`.
    pub virtual_: bool,
    /// Deleting marks the object first and waits this long by default: pods.
    pub graceful: bool,
    /// Seconds that an object lives in the store: events.
    pub ttl: Option<u64>,
    /// Comes from a CustomResourceDefinition.
    pub custom: bool,
    /// Deleting answers the deleted object instead of a `Status`.
    pub returns_deleted: bool,
}

pub const ALL_VERBS: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

impl Descriptor {
    /// A namespaced resource in one version with all verbs, columns Name and Age, no status.
    /// `plural` also serves as the storage prefix (with the group in front for groups not built in).
    pub fn new(group: &'static str, version: &'static str, kind: &'static str, plural: &'static str) -> Self {
        Self {
            served: vec![Served {
                group: group.into(),
                version: version.into(),
                deprecation: None,
                served: true,
                columns: None,
            }],
            hub: 0,
            kind: kind.into(),
            list_kind: format!("{kind}List").into(),
            plural: plural.into(),
            singular: kind.to_lowercase().into(),
            short_names: Vec::new(),
            categories: Vec::new(),
            namespaced: true,
            verbs: ALL_VERBS.iter().map(|verb| Text::from(*verb)).collect(),
            status: false,
            scale: None,
            subresources: Vec::new(),
            stored_as: None,
            storage_prefix: plural.into(),
            selectable: Vec::new(),
            field_labels: FieldLabels::default(),
            columns: vec![Column::name(), Column::age()],
            generation: false,
            name_rule: NameRule::DnsSubdomain,
            keep_status_on_create: false,
            create_on_update: false,
            unconditional_update: true,
            virtual_: false,
            graceful: false,
            ttl: None,
            custom: false,
            returns_deleted: false,
        }
    }

    #[must_use]
    pub fn cluster_scoped(mut self) -> Self {
        self.namespaced = false;
        self
    }

    /// Serves a further group version, less preferred than those before.
    #[must_use]
    pub fn also(mut self, group: &'static str, version: &'static str) -> Self {
        self.served.push(Served {
            group: group.into(),
            version: version.into(),
            deprecation: None,
            served: true,
            columns: None,
        });
        self
    }

    /// Warns users of the version named last.
    #[must_use]
    pub fn deprecated(mut self, warning: &'static str) -> Self {
        if let Some(last) = self.served.last_mut() {
            last.deprecation = Some(warning.into());
        }
        self
    }

    #[must_use]
    pub fn short(mut self, names: &[&'static str]) -> Self {
        self.short_names = names.iter().map(|name| Text::from(*name)).collect();
        self
    }

    #[must_use]
    pub fn categories(mut self, names: &[&'static str]) -> Self {
        self.categories = names.iter().map(|name| Text::from(*name)).collect();
        self
    }

    #[must_use]
    pub fn verbs(mut self, verbs: &[&'static str]) -> Self {
        self.verbs = verbs.iter().map(|verb| Text::from(*verb)).collect();
        self
    }

    #[must_use]
    pub fn with_status(mut self) -> Self {
        self.status = true;
        self
    }

    #[must_use]
    pub fn with_generation(mut self) -> Self {
        self.generation = true;
        self
    }

    #[must_use]
    pub fn with_scale(mut self, spec: &'static str, status: &'static str, selector: &'static str) -> Self {
        let selector = (!selector.is_empty()).then(|| selector.into());
        self.scale = Some(ScalePaths { spec_replicas: spec.into(), status_replicas: status.into(), selector });
        self
    }

    #[must_use]
    pub fn subresource(
        mut self,
        name: &'static str,
        kind: (&'static str, &'static str, &'static str),
        verbs: &'static [&'static str],
    ) -> Self {
        let kind = GroupVersionKind::new(kind.0, kind.1, kind.2);
        self.subresources.push(Subresource { name: name.into(), kind, verbs });
        self
    }

    #[must_use]
    pub fn stored_under(mut self, prefix: &'static str) -> Self {
        self.storage_prefix = prefix.into();
        self
    }

    #[must_use]
    pub fn names(mut self, rule: NameRule) -> Self {
        self.name_rule = rule;
        self
    }

    /// A field that selectors may name; its label is its path.
    #[must_use]
    pub fn selectable(mut self, label: &'static str) -> Self {
        self.selectable.push(SelectableField { label: label.into(), paths: vec![label.into()], absent: "".into() });
        self
    }

    /// Replaces the columns. `columns` starts with [`Column::name`] where there is one.
    #[must_use]
    pub fn columns(mut self, columns: Vec<Column>) -> Self {
        self.columns = columns;
        self
    }

    pub fn hub_group(&self) -> &str {
        &self.served[self.hub].group
    }

    pub fn hub_version(&self) -> &str {
        &self.served[self.hub].version
    }

    pub fn storage_version(&self) -> &str {
        self.stored_as.as_deref().unwrap_or_else(|| self.hub_version())
    }

    /// Group, hub version and kind.
    pub fn hub_kind(&self) -> GroupVersionKind {
        let hub = &self.served[self.hub];
        GroupVersionKind { group: hub.group.clone(), version: hub.version.clone(), kind: self.kind.clone() }
    }

    pub fn find_served(&self, group: &str, version: &str) -> Option<&Served> {
        self.served.iter().find(|served| served.group == group && served.version == version)
    }

    pub fn allows(&self, verb: &str) -> bool {
        self.verbs.iter().any(|allowed| allowed == verb)
    }

    /// `/registry/<prefix>/`.
    pub fn registry_root(&self) -> String {
        format!("/registry/{}/", self.storage_prefix)
    }

    /// Key of an object in the store; `namespace` is empty for cluster-scoped kinds.
    pub fn key(&self, namespace: &str, name: &str) -> String {
        match namespace {
            "" => ["/registry/", &*self.storage_prefix, "/", name].concat(),
            namespace => ["/registry/", &*self.storage_prefix, "/", namespace, "/", name].concat(),
        }
    }
}

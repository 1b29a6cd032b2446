//! The fields that field selectors may name, and by what names (`ConvertFieldLabel`).
//!
//! `metadata.name` goes everywhere. A kind with fields of its own takes `metadata.namespace` only
//! where it has one; kinds without take it always, and refuse other names in words of their own.

use crate::resource::{Descriptor, Text};

/// A field that field selectors may name, beside `metadata.name` and `metadata.namespace`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelectableField {
    /// As selectors name it, e.g. `spec.nodeName`, `involvedObject.name`.
    pub label: Text,
    /// Dotted path in the hub version. When several are given the first non-empty one counts;
    /// without any the field is known, and always absent.
    pub paths: Vec<Text>,
    /// What an absent field compares as: usually empty; `false` for `spec.unschedulable`.
    pub absent: Text,
}

/// What else is particular to a kind's labels.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FieldLabels {
    pub aliases: Vec<FieldAlias>,
    /// Refuses `metadata.namespace`, though the kind has namespaces.
    pub no_namespace: bool,
    /// How unknown labels are refused, with `{}` for the label.
    pub refusal: Option<&'static str>,
}

/// Another name of a selectable field in one API group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FieldAlias {
    pub group: &'static str,
    pub label: &'static str,
    pub field: &'static str,
    /// The field's own name is not known in that group.
    pub replaces: bool,
}

impl Descriptor {
    /// The field that `label` names in `group`, or why it names none.
    pub fn field_label<'a>(&self, group: &str, label: &'a str) -> Result<&'a str, String> {
        let own = &self.field_labels;
        let plain = !self.custom && self.selectable.is_empty();
        let mut aliases = own.aliases.iter().filter(|alias| alias.group == group);
        let known = match label {
            "metadata.name" => true,
            "metadata.namespace" => plain || self.namespaced && !own.no_namespace,
            _ if aliases.clone().any(|alias| alias.replaces && alias.field == label) => false,
            _ => self.selectable.iter().any(|field| field.label == label),
        };
        if known {
            return Ok(label);
        }
        if let Some(alias) = aliases.find(|alias| alias.label == label) {
            return Ok(alias.field);
        }
        Err(match own.refusal {
            Some(words) => words.replace("{}", label),
            None if plain => {
                format!("{label:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"")
            }
            None => format!("field label not supported: {label}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::kinds::all;

    /// What selectors may say of a kind of `group`; everything else in `LABELS` is refused.
    fn accepted(group: &str, plural: &str) -> Vec<String> {
        let resources = all();
        let found = resources.iter().map(|resource| &resource.descriptor).find(|descriptor| {
            descriptor.plural == plural && !descriptor.virtual_ && descriptor.served.iter().any(|s| s.group == group)
        });
        let shown = |label: &&str| match found.unwrap().field_label(group, label) {
            Ok(field) if field == *label => Some((*label).to_owned()),
            Ok(field) => Some(format!("{label}→{field}")),
            Err(_) => None,
        };
        LABELS.iter().filter_map(shown).collect()
    }

    const LABELS: [&str; 40] = [
        "metadata.name",
        "metadata.namespace",
        "metadata.uid",
        "name",
        "spec.nodeName",
        "spec.host",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "spec.hostNetwork",
        "status.phase",
        "status.podIP",
        "status.podIPs",
        "status.nominatedNodeName",
        "status.hostIP",
        "spec.unschedulable",
        "type",
        "spec.type",
        "spec.clusterIP",
        "status.replicas",
        "status.successful",
        "status.succeeded",
        "spec.signerName",
        "spec.podName",
        "spec.driver",
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.resourceVersion",
        "involvedObject.fieldPath",
        "reason",
        "source",
        "reportingComponent",
        "reportingController",
        "regarding.kind",
        "regarding.name",
        "regarding.fieldPath",
        "spec.attacher",
    ];

    #[test]
    fn labels_of_every_kind() {
        let both = "metadata.name metadata.namespace";
        for (group, plural, expected) in [
            (
                "",
                "pods",
                format!(
                    "{both} spec.nodeName spec.host→spec.nodeName spec.restartPolicy spec.schedulerName \
                     spec.serviceAccountName spec.hostNetwork status.phase status.podIP status.podIPs status.nominatedNodeName"
                ),
            ),
            ("", "nodes", "metadata.name spec.unschedulable".to_owned()),
            ("", "namespaces", "metadata.name status.phase".to_owned()),
            ("", "secrets", format!("{both} type")),
            ("", "services", format!("{both} spec.type spec.clusterIP")),
            ("", "replicationcontrollers", format!("{both} status.replicas")),
            (
                "",
                "events",
                format!(
                    "{both} type involvedObject.kind involvedObject.namespace involvedObject.name involvedObject.uid \
                     involvedObject.apiVersion involvedObject.resourceVersion involvedObject.fieldPath reason source reportingComponent"
                ),
            ),
            (
                "events.k8s.io",
                "events",
                format!(
                    "{both} type reason source reportingController→reportingComponent regarding.kind→involvedObject.kind \
                     regarding.name→involvedObject.name regarding.fieldPath→involvedObject.fieldPath"
                ),
            ),
            ("batch", "jobs", format!("{both} status.successful")),
            ("certificates.k8s.io", "certificatesigningrequests", "metadata.name spec.signerName".to_owned()),
            ("certificates.k8s.io", "clustertrustbundles", "metadata.name spec.signerName".to_owned()),
            (
                "certificates.k8s.io",
                "podcertificaterequests",
                "metadata.name spec.nodeName spec.signerName spec.podName".to_owned(),
            ),
            ("resource.k8s.io", "resourceslices", "metadata.name spec.nodeName spec.driver".to_owned()),
            ("apps", "replicasets", both.to_owned()),
            ("storage.k8s.io", "volumeattachments", both.to_owned()),
        ] {
            assert_eq!(accepted(group, plural).join(" "), expected, "{group} {plural}");
        }
        // All others know the two of metadata only.
        let own = all().into_iter().filter(|resource| !resource.descriptor.selectable.is_empty()).count();
        assert_eq!(own, 12);
    }

    #[test]
    fn refused() {
        for (group, plural, label, expected) in [
            ("", "pods", "spec.x", "field label not supported: spec.x"),
            ("", "nodes", "metadata.namespace", "field label not supported: metadata.namespace"),
            ("", "events", "regarding.name", "field label not supported: regarding.name"),
            ("events.k8s.io", "events", "involvedObject.name", "field label not supported: involvedObject.name"),
            ("batch", "jobs", "status.active", "field label \"status.active\" not supported for Job"),
            (
                "resource.k8s.io",
                "resourceslices",
                "spec.pool",
                "field label not supported for resource.k8s.io/v1, Kind=ResourceSlice: spec.pool",
            ),
            (
                "apps",
                "replicasets",
                "status.replicas",
                "\"status.replicas\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
            ),
        ] {
            let resources = all();
            let found = resources
                .iter()
                .find(|resource| resource.descriptor.plural == plural && !resource.descriptor.virtual_)
                .unwrap();
            assert_eq!(found.descriptor.field_label(group, label), Err(expected.to_owned()));
        }
    }
}

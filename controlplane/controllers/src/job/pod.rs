//! Pure: a Job's pod, with the finalizer that keeps it until it is counted, and its index.

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector, Pod};
use kube::ResourceExt;

use super::FINALIZER;
use super::plan::{INDEX, INDEX_FAILURES, NewPod};
use crate::{meta, podcontrol};

/// So much of a prefix the API server keeps before what it makes up.
const LONGEST_PREFIX: usize = 58;

/// What the name of an index's pod begins with: the index stays, however long the Job's name is.
fn prefix(job: &str, index: i32) -> String {
    let end = format!("-{index}-");
    let kept: String = job.chars().take(LONGEST_PREFIX - end.len()).collect();
    kept + &end
}

/// The pod to create.
pub fn new(job: &Job, new: &NewPod) -> Pod {
    let spec = job.spec.clone().unwrap_or_default();
    let mut pod = podcontrol::from_template(&spec.template, meta::controller_ref(job));
    pod.metadata.finalizers.get_or_insert_default().push(FINALIZER.to_owned());
    let Some(index) = new.index else { return pod };
    let name = job.name_any();
    pod.metadata.generate_name = Some(prefix(&name, index));
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(INDEX.to_owned(), index.to_string());
    if let Some(failures) = new.failures {
        annotations.insert(INDEX_FAILURES.to_owned(), failures.to_string());
    }
    pod.metadata.labels.get_or_insert_default().insert(INDEX.to_owned(), index.to_string());
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(format!("{name}-{index}"));
    let variable = EnvVar {
        name: "JOB_COMPLETION_INDEX".to_owned(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                field_path: format!("metadata.labels['{INDEX}']"),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    };
    for container in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
        let env = container.env.get_or_insert_default();
        if !env.iter().any(|known| known.name == variable.name) {
            env.push(variable.clone());
        }
    }
    pod
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_stays_in_the_names_of_a_long_jobs_pods() {
        assert_eq!(prefix("work", 3), "work-3-");
        let long = "a".repeat(60);
        assert_eq!(prefix(&long, 12), format!("{}-12-", "a".repeat(54)));
        assert_eq!(prefix(&"a".repeat(55), 0), format!("{}-0-", "a".repeat(55)));
    }
}

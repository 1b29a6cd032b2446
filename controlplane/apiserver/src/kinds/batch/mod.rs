//! The `batch` group.

mod cron_job;
mod job;
mod policies;
pub mod schedule;
mod status;

use crate::kinds::core::selectable_or;
use crate::resource::{Descriptor, Resource};

pub fn resources() -> Vec<Resource> {
    vec![
        Resource::new(cron_job_descriptor().columns(cron_job::columns()), cron_job::CronJob),
        Resource::new(job_descriptor().columns(job::columns()), job::Job),
    ]
}

fn cron_job_descriptor() -> Descriptor {
    Descriptor::new("batch", "v1", "CronJob", "cronjobs")
        .short(&["cj"])
        .categories(&["all"])
        .with_status()
        .with_generation()
}

fn job_descriptor() -> Descriptor {
    let mut descriptor =
        Descriptor::new("batch", "v1", "Job", "jobs").categories(&["all"]).with_status().with_generation();
    descriptor.selectable.push(selectable_or("status.successful", "status.succeeded", "0"));
    descriptor.field_labels.refusal = Some("field label \"{}\" not supported for Job");
    descriptor
}

//! PrioritySort: pods of higher priority first; the queue breaks ties by age.

use std::cmp::Ordering;

use crate::framework::{Plugin, Point};
use crate::pod::PodInfo;

pub struct PrioritySort;

impl Plugin for PrioritySort {
    fn name(&self) -> &'static str {
        "PrioritySort"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::QueueSort]
    }

    fn compare(&self, a: &PodInfo, b: &PodInfo) -> Ordering {
        b.priority.cmp(&a.priority)
    }
}

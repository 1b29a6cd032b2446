//! How many requests may be under way at once. Long-running ones (watch, exec, log -f, proxy)
//! do not count, and neither does what the administrators' group sends.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::info::RequestInfo;
use crate::error::{ApiError, Result};

pub struct Limits {
    reading: Arc<Semaphore>,
    writing: Arc<Semaphore>,
}

impl Limits {
    pub fn new((reading, writing): (usize, usize)) -> Self {
        Self { reading: Arc::new(Semaphore::new(reading)), writing: Arc::new(Semaphore::new(writing)) }
    }

    /// A place among the requests under way, or `429` with when to come back.
    pub fn admit(&self, info: &RequestInfo) -> Result<Option<OwnedSemaphorePermit>> {
        if is_long_running(info) {
            return Ok(None);
        }
        let places = if matches!(info.verb.as_str(), "get" | "list" | "head") { &self.reading } else { &self.writing };
        places.clone().try_acquire_owned().map(Some).map_err(|_| {
            ApiError::too_many_requests(
                "The apiserver is currently processing too many requests. Please try again later.",
                1,
            )
        })
    }
}

pub fn is_long_running(info: &RequestInfo) -> bool {
    info.verb == "watch"
        || info.verb == "proxy"
        || matches!(info.subresource.as_str(), "attach" | "exec" | "proxy" | "log" | "portforward")
}

//! What the container runtime last said, and whether that is recent enough to rely on
//! (`pkg/kubelet/runtime.go`). Pure over the time it is given.

use std::time::Duration;

use jiff::SignedDuration;
use proto::runtime::v1 as cri;
use tokio::time::Instant;

use crate::pod::backoff::go_duration;

/// A runtime that is silent for this long is down: one that is only restarted is not.
const DOWN: Duration = Duration::from_secs(30);
/// What it has must be known at least this often.
const RELIST: Duration = Duration::from_secs(180);

#[derive(Debug, Clone, Default)]
pub struct Heard {
    status: Option<(Instant, cri::StatusResponse)>,
    /// e.g. `containerd://1.6.20`.
    pub version: String,
    pub images: Vec<cri::Image>,
}

impl Heard {
    pub fn note(&mut self, status: cri::StatusResponse, now: Instant) {
        self.status = Some((now, status));
    }

    /// The last status, or why it says nothing of now. `relisted` is when everything the runtime has was last
    /// listed.
    pub fn judge(&self, relisted: Option<Instant>, now: Instant) -> Result<&cri::StatusResponse, String> {
        let mut problems = Vec::new();
        match &self.status {
            None => problems.push("container runtime status check may not have completed yet".to_owned()),
            Some((at, _)) if now.duration_since(*at) >= DOWN => problems.push("container runtime is down".to_owned()),
            Some(_) => {}
        }
        match relisted.map(|at| now.duration_since(at)) {
            None => problems.push("PLEG is not healthy: pleg has yet to be successful".to_owned()),
            Some(since) if since > RELIST => {
                let [since, limit] =
                    [since, RELIST].map(|time| go_duration(SignedDuration::try_from(time).unwrap_or_default()));
                problems
                    .push(format!("PLEG is not healthy: pleg was last seen active {since} ago; threshold is {limit}"));
            }
            Some(_) => {}
        }
        match (&self.status, problems.as_slice()) {
            (Some((_, status)), []) => Ok(status),
            (_, [one]) => Err(one.clone()),
            (_, several) => Err(format!("[{}]", several.join(", "))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_that_hangs_is_down_after_a_while_and_not_at_once() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut heard = Heard::default();
        let problem = |heard: &Heard, relisted, now| heard.judge(relisted, now).err().unwrap_or_default();
        assert_eq!(
            problem(&heard, None, at(0)),
            "[container runtime status check may not have completed yet, PLEG is not healthy: pleg has yet to be successful]"
        );
        heard.note(cri::StatusResponse::default(), at(0));
        for (relisted, now, expected) in [
            (at(0), at(29), ""),
            (at(0), at(30), "container runtime is down"),
            (at(0), at(180), "container runtime is down"),
            (
                at(5),
                at(190),
                "[container runtime is down, PLEG is not healthy: pleg was last seen active 3m5s ago; threshold is 3m0s]",
            ),
        ] {
            assert_eq!(problem(&heard, Some(relisted), now), expected);
        }
        heard.note(cri::StatusResponse::default(), at(190));
        assert_eq!(problem(&heard, Some(at(190)), at(191)), "");
    }
}

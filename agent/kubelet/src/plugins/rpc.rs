//! What comes back from plugins' gRPC servers, in the words of Kubernetes' kubelet.

use std::time::Duration;

use tonic::{Code, Response, Status};

/// A call that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("rpc error: code = {} desc = {message}", name(*.code))]
pub struct RpcError {
    pub code: Code,
    pub message: String,
}

impl RpcError {
    /// Whether the plugin is done with the call; otherwise what it asked for may still happen
    /// (`pkg/volume/csi/csi_client.go: isFinalError`).
    pub fn is_final(&self) -> bool {
        use Code::{Aborted, Cancelled, DeadlineExceeded, ResourceExhausted, Unavailable};
        !matches!(self.code, Cancelled | DeadlineExceeded | Unavailable | ResourceExhausted | Aborted)
    }
}

impl From<Status> for RpcError {
    fn from(status: Status) -> Self {
        Self { code: status.code(), message: status.message().to_owned() }
    }
}

/// The answer, if it comes in time.
pub async fn within<T>(
    limit: Duration,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, RpcError> {
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => Ok(answer?.into_inner()),
        Err(_) => Err(RpcError { code: Code::DeadlineExceeded, message: "context deadline exceeded".to_owned() }),
    }
}

fn name(code: Code) -> String {
    if code == Code::Cancelled { "Canceled".to_owned() } else { format!("{code:?}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_read_as_kubernetes_prints_them() {
        let error = RpcError::from(Status::invalid_argument("no such volume"));
        assert_eq!(error.to_string(), "rpc error: code = InvalidArgument desc = no such volume");
        assert!(error.is_final() && !RpcError::from(Status::cancelled("")).is_final());
        assert_eq!(RpcError::from(Status::cancelled("x")).to_string(), "rpc error: code = Canceled desc = x");
    }
}

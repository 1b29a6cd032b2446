//! What the API server's refusals mean.

/// The object is not there.
pub fn is_missing(error: &kube::Error) -> bool {
    has_code(error, 404)
}

/// Somebody else wrote it meanwhile; where a UID was given also: it was deleted and made anew.
pub fn is_conflict(error: &kube::Error) -> bool {
    has_code(error, 409)
}

fn has_code(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}

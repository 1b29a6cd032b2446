//! A pod's IDs in its directory, as Kubernetes' kubelet writes them: a node that changes from one to the
//! other keeps its pods.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::files;

const FILE: &str = "userns";

#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("{doing} {path}: {source}", path = path.display())]
    File { doing: &'static str, path: PathBuf, source: io::Error },
    #[error("{path} does not say which user IDs the pod has ({why}); remove it once the pod is gone", path = path.display())]
    Content { path: PathBuf, why: String },
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mappings {
    uid_mappings: Vec<Mapping>,
    gid_mappings: Vec<Mapping>,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mapping {
    host_id: u32,
    container_id: u32,
    length: u32,
}

pub fn file(pod: &Path) -> PathBuf {
    pod.join(FILE)
}

/// The first ID and how many; none if the pod has the host's users.
pub fn read(pod: &Path) -> Result<Option<(u32, u32)>, RecordError> {
    let path = file(pod);
    match std::fs::read(&path) {
        Ok(text) => parse(&text).map(Some).map_err(|why| RecordError::Content { path, why }),
        // What lies among the pods' directories and is none has no record either.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(source) => Err(RecordError::File { doing: "reading", path, source }),
    }
}

fn parse(text: &[u8]) -> Result<(u32, u32), String> {
    let mappings: Mappings = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    match (mappings.uid_mappings.as_slice(), mappings.gid_mappings.as_slice()) {
        ([of_users], [of_groups]) if of_users != of_groups => Err("users and groups are mapped differently".to_owned()),
        ([one], [_]) if one.container_id != 0 => Err("root is not mapped".to_owned()),
        ([one], [_]) => Ok((one.host_id, one.length)),
        _ => Err("it is not one range of users and one of groups".to_owned()),
    }
}

pub fn write(pod: &Path, first: u32, length: u32) -> Result<(), RecordError> {
    let path = file(pod);
    let mapping = || vec![Mapping { host_id: first, container_id: 0, length }];
    let mappings = Mappings { uid_mappings: mapping(), gid_mappings: mapping() };
    // The directory too: what is given to a pod must not be given again after a power cut.
    let written = files::replace_json(&path, &mappings).and_then(|()| std::fs::File::open(pod)?.sync_all());
    written.map_err(|source| RecordError::File { doing: "writing", path, source })
}

/// Without it nothing is missing: it goes with the pod's directory otherwise.
pub fn remove(pod: &Path) {
    let _ = std::fs::remove_file(file(pod));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_is_the_kubelets() {
        let pod = tempfile::tempdir().unwrap();
        assert_eq!(read(pod.path()).unwrap(), None);
        write(pod.path(), 131072, 65536).unwrap();
        assert_eq!(
            std::fs::read_to_string(file(pod.path())).unwrap(),
            r#"{"uidMappings":[{"hostId":131072,"containerId":0,"length":65536}],"gidMappings":[{"hostId":131072,"containerId":0,"length":65536}]}"#
        );
        assert_eq!(read(pod.path()).unwrap(), Some((131072, 65536)));
        assert_eq!(read(&file(pod.path())).unwrap(), None, "a file has no record");
        remove(pod.path());
        assert_eq!(read(pod.path()).unwrap(), None);
    }

    #[test]
    fn what_is_no_mapping_of_ours_is_refused() {
        let one =
            |host: u32, container: u32| format!(r#"[{{"hostId":{host},"containerId":{container},"length":65536}}]"#);
        for (users, groups, why) in [
            ("[]".to_owned(), "[]".to_owned(), "it is not one range of users and one of groups"),
            (one(65536, 0), "[]".to_owned(), "it is not one range of users and one of groups"),
            (one(65536, 0), one(131072, 0), "users and groups are mapped differently"),
            (one(65536, 1), one(65536, 1), "root is not mapped"),
        ] {
            let text = format!(r#"{{"uidMappings":{users},"gidMappings":{groups}}}"#);
            assert_eq!(parse(text.as_bytes()), Err(why.to_owned()), "{text}");
        }
        assert!(parse(b"").is_err());
    }
}

use tempfile::TempDir;

use super::*;
use crate::images::docker_config::Login;
use crate::images::keyring::{Coordinates, Source};

const IMAGE: &str = "r.io/a:1";
const ID: &str = "sha256:1";

fn records(root: &TempDir) -> Records {
    Records::open(&root.path().join("image_manager"), Policy::default()).unwrap()
}

fn secret(name: &str, password: &str) -> Credential {
    let coordinates = Coordinates { uid: name.to_owned(), namespace: "n".to_owned(), name: name.to_owned() };
    let login = Login { password: password.to_owned(), ..Login::default() };
    Credential { login, source: Source::Secret(coordinates) }
}

/// Whether a pod with these credentials may use the image; what is new about them is noted.
fn may(records: &Records, image: &str, credentials: &[Credential]) -> bool {
    let Access::By(recorded) = records.access(image, ID) else {
        return matches!(records.access(image, ID), Access::Exempt | Access::Open);
    };
    match compare(&recorded, credentials) {
        Comparison::Fits => true,
        Comparison::FitsAnew(secret) => {
            records.note(image, ID, secret);
            true
        }
        Comparison::Strange => false,
    }
}

#[test]
fn a_pull_with_a_secret_is_for_who_has_it() {
    let root = tempfile::tempdir().unwrap();
    let noted = records(&root);
    assert!(may(&noted, IMAGE, &[]), "nobody pulled it");
    let pull = noted.begin(IMAGE).unwrap();
    assert!(!may(&noted, IMAGE, &[]), "it is being pulled");
    pull.succeeded(ID, Some(&secret("s", "1")));
    assert_eq!(noted.counts(), (0, 1));
    for (image, credentials, expected) in [
        (IMAGE, vec![], false),
        (IMAGE, vec![secret("t", "2")], false),
        (IMAGE, vec![secret("copy", "1")], true),
        // noted by what it holds, then known by what it is
        (IMAGE, vec![secret("copy", "rotated")], true),
        (IMAGE, vec![secret("s", "1")], true),
        ("r.io/a@sha256:00", vec![secret("s", "1")], true),
        ("r.io/other-name:1", vec![secret("s", "1")], false),
    ] {
        assert_eq!(may(&noted, image, &credentials), expected, "{image} {credentials:?}");
        assert_eq!(may(&records(&root), image, &credentials), expected, "after a restart");
    }
    noted.begin(IMAGE).unwrap().succeeded(ID, None);
    assert!(may(&noted, IMAGE, &[]), "it needs no credentials any more");
}

#[test]
fn a_failed_pull_leaves_nothing_and_one_of_two_leaves_the_other() {
    let root = tempfile::tempdir().unwrap();
    let noted = records(&root);
    let (first, second) = (noted.begin(IMAGE).unwrap(), noted.begin(IMAGE).unwrap());
    first.failed();
    assert_eq!(noted.counts(), (1, 0));
    second.failed();
    assert_eq!(noted.counts(), (0, 0));
    assert_eq!(noted.access(IMAGE, ID), Access::Exempt);
}

#[test]
fn a_pull_whose_end_nobody_saw_closes_the_image() {
    let root = tempfile::tempdir().unwrap();
    drop(records(&root).begin(IMAGE).unwrap());
    let noted = records(&root);
    assert!(noted.has_intents() && noted.access(IMAGE, ID) == Access::Closed);
    let listed = |tag: &str| Image { id: ID.to_owned(), repo_tags: vec![tag.to_owned()], ..Image::default() };
    noted.adopt(&[listed("r.io/other:1")]);
    assert_eq!(noted.counts(), (1, 0), "it is not there");
    noted.adopt(&[listed(IMAGE)]);
    assert_eq!(noted.counts(), (0, 1));
    assert_eq!(noted.access(IMAGE, ID), Access::Closed);
}

#[test]
fn records_go_with_their_images() {
    let root = tempfile::tempdir().unwrap();
    let noted = records(&root);
    noted.begin(IMAGE).unwrap().succeeded(ID, None);
    let later = Timestamp::now() + std::time::Duration::from_secs(5);
    noted.prune(&HashSet::new(), Timestamp::UNIX_EPOCH);
    noted.prune(&HashSet::from([ID]), later);
    assert_eq!(noted.counts(), (0, 1), "it is newer than the question, or there");
    noted.prune(&HashSet::new(), later);
    assert_eq!(noted.counts(), (0, 0));
}

#[test]
fn a_record_that_cannot_be_read_forbids_until_it_is_written_anew() {
    let root = tempfile::tempdir().unwrap();
    let noted = records(&root);
    noted.begin(IMAGE).unwrap().succeeded(ID, None);
    let directory = root.path().join("image_manager/pulled");
    let file = std::fs::read_dir(directory).unwrap().next().unwrap().unwrap().path();
    std::fs::write(file, "{}").unwrap();
    assert_eq!(noted.access(IMAGE, ID), Access::Unknown);
    noted.begin(IMAGE).unwrap().succeeded(ID, None);
    assert_eq!(noted.access(IMAGE, ID), Access::Open);
}

//! A container that says much: its log is rotated, and whoever follows it misses nothing.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use integration::{BUSYBOX, Lab, command};

use crate::SOON;

/// A pod that counts, a hundred lines at a time.
const COUNTS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: counts}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: main, image: BUSYBOX, imagePullPolicy: IfNotPresent, command: [sh, -c, 'n=0; while :; do seq $n $((n+99)); n=$((n+100)); sleep 0.1; done']}
";

#[test]
fn logs() {
    let options = ["--node-arg=--container-log-max-size=64Ki", "--node-arg=--container-log-max-files=3"];
    let lab = Lab::up("clogs", &options);
    lab.apply(&COUNTS.replace("BUSYBOX", BUSYBOX));
    lab.wait("pod/counts", "condition=Ready", 60);
    let mut follower = lab.spawn_kubectl(&["logs", "-f", "counts"]);
    let uid = lab.kubectl(&["get", "pod", "counts", "-o", "jsonpath={.metadata.uid}"]);
    let data = lab.member("node-1")["dataDir"].as_str().unwrap_or_default().to_owned();
    let directory = PathBuf::from(data).join(format!("pod-logs/default_counts_{uid}/main"));

    // Over time: the log, the one before it, and a compressed one before that.
    let mut stamps = BTreeSet::new();
    lab.eventually("the log is rotated four times", SOON, || {
        let names = names(&directory);
        stamps.extend(names.iter().filter_map(|name| stamp(name)));
        if stamps.len() >= 4 { Ok(()) } else { Err(format!("{names:?}")) }
    });
    let kept = lab.eventually("three files are kept, the oldest compressed", SOON, || {
        let names = names(&directory);
        let shapes: Vec<(bool, bool)> =
            names.iter().map(|name| (stamp(name).is_some(), name.ends_with(".gz"))).collect();
        if shapes == [(false, false), (true, true), (true, false)] { Ok(names) } else { Err(format!("{names:?}")) }
    });
    let old: Vec<u64> = kept[1..].iter().flat_map(|name| records(&directory.join(name))).collect();
    consecutive(&old);

    // Reading begins with the newest file.
    let text = lab.kubectl(&["logs", "counts"]);
    let now = numbers(text.lines());
    consecutive(&now);
    assert!(now[0] > 0, "the first lines are gone");
    let text = lab.kubectl(&["logs", "counts", "--tail=3"]);
    let tail = numbers(text.lines());
    consecutive(&tail);
    assert_eq!(tail.len(), 3);

    let mut followed = Vec::new();
    lab.eventually("the follower comes that far", SOON, || {
        followed.extend(numbers(follower.lines_so_far().iter().map(String::as_str)));
        if followed.contains(&tail[2]) { Ok(()) } else { Err(format!("{} lines", followed.len())) }
    });
    assert_eq!(followed[0], 0);
    consecutive(&followed);
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// The time in a rotated log's name, `0.log.20260102-030405`, perhaps compressed.
fn stamp(name: &str) -> Option<String> {
    let stamp = name.strip_prefix("0.log.")?;
    let stamp = stamp.strip_suffix(".gz").unwrap_or(stamp);
    let shape: String = stamp.chars().map(|letter| if letter.is_ascii_digit() { '0' } else { letter }).collect();
    (shape == "00000000-000000").then(|| stamp.to_owned())
}

/// The numbers in a log file as the runtime writes it.
fn records(path: &Path) -> Vec<u64> {
    let path = path.display().to_string();
    let reader = if path.ends_with(".gz") { "zcat" } else { "cat" };
    let text = command(reader, &[&path], &[], "").expect_ok();
    numbers(text.lines().filter_map(|line| line.rsplit(' ').next()))
}

fn numbers<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<u64> {
    lines.map(|line| line.parse().unwrap_or_else(|error| panic!("{line:?}: {error}"))).collect()
}

#[track_caller]
fn consecutive(numbers: &[u64]) {
    assert!(!numbers.is_empty());
    let gap = numbers.windows(2).find(|pair| pair[0] + 1 != pair[1]);
    assert!(gap.is_none(), "{gap:?}");
}

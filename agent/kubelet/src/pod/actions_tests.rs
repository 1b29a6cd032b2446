//! Tables of (pod, observed) and what is decided.

use super::tests_support::{exited, run, sandbox};
use super::*;
use serde_json::{Value, json};

fn pod(spec: Value) -> Pod {
    serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": spec})).unwrap()
}

fn now() -> Timestamp {
    Timestamp::from_second(1100).unwrap()
}

fn decide_at(spec: Value, observed: &Observed, memory: &Memory, now: Timestamp) -> Decision {
    decide(&View { pod: &pod(spec), observed, memory, busy: false, starting: None, now })
}

fn decide_plain(spec: Value, sandboxes: Vec<crate::pod::observed::Sandbox>, runs: Vec<Run>) -> Decision {
    decide_at(spec, &Observed::new(sandboxes, runs), &Memory::default(), now())
}

/// A decision in a few words: `sandbox 0`, `start a #1`, `kill a-0`, `stop sb`, `finished`, `-`.
fn words(decision: &Decision) -> String {
    let mut words = Vec::new();
    if decision.finished {
        words.push("finished".to_owned());
    }
    if let Some(id) = &decision.stop_sandbox {
        words.push(format!("stop {id}"));
    }
    words.extend(decision.kills.iter().map(|kill| format!("kill {}", kill.run_id)));
    match &decision.setup {
        Some(Setup::Sandbox { attempt }) => words.push(format!("sandbox {attempt}")),
        Some(Setup::Container { name, restart_count, .. }) => words.push(format!("start {name} #{restart_count}")),
        None => {}
    }
    if words.is_empty() { "-".to_owned() } else { words.join(", ") }
}

fn containers(names: &[&str]) -> Value {
    json!(names.iter().map(|name| json!({"name": name})).collect::<Vec<_>>())
}

use RunState::{Created, Exited, Running, Unknown};

#[test]
fn from_nothing_to_running_in_order() {
    let spec = json!({"initContainers": containers(&["i1", "i2"]), "containers": containers(&["a", "b"])});
    let sb = || vec![sandbox("sb", 0, true)];
    for (runs, expected) in [
        (vec![], "start i1 #0"),
        (vec![run("i1", "sb", Running, 0)], "-"),
        (vec![run("i1", "sb", Exited, 0)], "start i2 #0"),
        (vec![run("i1", "sb", Exited, 0), run("i2", "sb", Running, 0)], "-"),
        (vec![run("i1", "sb", Exited, 0), run("i2", "sb", Exited, 0)], "start a #0"),
        (vec![run("i1", "sb", Exited, 0), run("i2", "sb", Exited, 0), run("a", "sb", Running, 0)], "start b #0"),
        // init containers whose remains were removed do not run again
        (vec![run("a", "sb", Running, 0)], "start b #0"),
        (vec![run("a", "sb", Running, 0), run("b", "sb", Running, 0)], "-"),
        // interrupted between create and start, or lost
        (vec![run("a", "sb", Created, 0), run("b", "sb", Running, 0)], "start a #1"),
        (vec![run("a", "sb", Unknown, 0), run("b", "sb", Running, 0)], "start a #1"),
    ] {
        let decision = decide_plain(spec.clone(), sb(), runs.clone());
        assert_eq!(words(&decision), expected, "{runs:?}");
    }
    assert_eq!(words(&decide_plain(spec, vec![], vec![])), "sandbox 0");
}

#[test]
fn restart_policies() {
    let sb = || vec![sandbox("sb", 0, true)];
    for (policy, code, expected) in [
        ("Always", 0, "start a #1"),
        ("Always", 1, "start a #1"),
        ("OnFailure", 1, "start a #1"),
        ("OnFailure", 0, "finished"),
        ("Never", 1, "finished"),
        ("Never", 0, "finished"),
    ] {
        let spec = json!({"restartPolicy": policy, "containers": containers(&["a"])});
        assert_eq!(words(&decide_plain(spec, sb(), vec![exited("a", "sb", code, 0)])), expected, "{policy} {code}");
    }
    let own = json!({"restartPolicy": "Never", "containers": [{"name": "a", "restartPolicy": "Never", "restartPolicyRules": [
        {"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]}]});
    assert_eq!(words(&decide_plain(own.clone(), sb(), vec![exited("a", "sb", 42, 0)])), "start a #1");
    assert_eq!(words(&decide_plain(own, sb(), vec![exited("a", "sb", 1, 0)])), "finished");
}

#[test]
fn init_containers_that_fail() {
    let sb = || vec![sandbox("sb", 0, true)];
    for (policy, expected) in [("Always", "start i #1"), ("OnFailure", "start i #1"), ("Never", "finished")] {
        let spec =
            json!({"restartPolicy": policy, "initContainers": containers(&["i"]), "containers": containers(&["a"])});
        assert_eq!(words(&decide_plain(spec, sb(), vec![exited("i", "sb", 1, 0)])), expected, "{policy}");
    }
}

#[test]
fn sidecars_start_in_order_and_are_kept() {
    let sidecar = json!({"name": "s", "restartPolicy": "Always", "startupProbe": {"tcpSocket": {"port": 1}}});
    let spec =
        json!({"restartPolicy": "Never", "initContainers": [sidecar, {"name": "i"}], "containers": containers(&["a"])});
    let sb = vec![sandbox("sb", 0, true)];
    let started = |started: Option<bool>| {
        let mut memory = Memory::default();
        memory.probes.insert("s-0".to_owned(), ProbeState { started, ..Default::default() });
        memory
    };
    let observed = Observed::new(sb.clone(), vec![run("s", "sb", Running, 0)]);
    let not_yet = Memory {
        probes: HashMap::from([("s-0".to_owned(), ProbeState { started: Some(false), ..Default::default() })]),
        ..Default::default()
    };
    assert_eq!(words(&decide_at(spec.clone(), &observed, &not_yet, now())), "-");
    assert_eq!(words(&decide_at(spec.clone(), &observed, &started(Some(true)), now())), "start i #0");
    let mut hook = started(Some(true));
    hook.in_post_start.insert("s-0".to_owned());
    assert_eq!(words(&decide_at(spec.clone(), &observed, &hook, now())), "-", "its postStart hook comes first");
    // restarted even if the pod never restarts, also while the main container runs
    let later = vec![exited("s", "sb", 0, 0), run("a", "sb", Running, 0)];
    assert_eq!(words(&decide_plain(spec.clone(), sb.clone(), later)), "start s #1");
    // the pod ends with its main containers
    let done = vec![run("s", "sb", Running, 0), exited("a", "sb", 0, 0)];
    assert_eq!(words(&decide_plain(spec, sb, done)), "finished");
}

#[test]
fn a_startup_probe_that_has_not_answered_holds_the_next_container() {
    let sidecar = json!({"name": "s", "restartPolicy": "Always"});
    let spec = json!({"initContainers": [sidecar], "containers": containers(&["a"])});
    let observed = Observed::new(vec![sandbox("sb", 0, true)], vec![run("s", "sb", Running, 0)]);
    let undecided = Memory { probes: HashMap::from([("s-0".to_owned(), ProbeState::default())]), ..Default::default() };
    assert_eq!(words(&decide_at(spec, &observed, &undecided, now())), "-");
}

#[test]
fn sandboxes_that_are_lost() {
    let spec = json!({"containers": containers(&["a"])});
    for (sandboxes, runs, expected) in [
        // its containers still run: they go first
        (vec![sandbox("sb", 0, false)], vec![run("a", "sb", Running, 0)], "stop sb"),
        (vec![sandbox("sb", 0, false)], vec![exited("a", "sb", 137, 0)], "sandbox 1"),
        (vec![sandbox("sb0", 0, false), sandbox("sb1", 1, true)], vec![exited("a", "sb0", 137, 0)], "start a #1"),
    ] {
        assert_eq!(words(&decide_plain(spec.clone(), sandboxes, runs)), expected);
    }
    let two = vec![sandbox("sb0", 0, true), sandbox("sb1", 1, true)];
    assert_eq!(words(&decide_plain(spec.clone(), two, vec![])), "stop sb0, start a #0", "a pod has one sandbox");
    let mut no_address = sandbox("sb", 0, true);
    no_address.ips.clear();
    assert_eq!(words(&decide_plain(spec.clone(), vec![no_address.clone()], vec![])), "stop sb");
    no_address.host_network = true;
    assert_eq!(words(&decide_plain(spec, vec![no_address], vec![])), "start a #0");
    // one of two has succeeded: only the other runs again
    let two = json!({"restartPolicy": "OnFailure", "containers": containers(&["a", "b"])});
    let runs = vec![exited("a", "sb0", 0, 0), exited("b", "sb0", 137, 0)];
    assert_eq!(words(&decide_plain(two, vec![sandbox("sb0", 0, false), sandbox("sb1", 1, true)], runs)), "start b #1");
}

#[test]
fn probes_and_changed_images_kill() {
    let spec = json!({"containers": [{"name": "a", "image": "new"}]});
    let observed = |hash: &str| {
        Observed::new(vec![sandbox("sb", 0, true)], vec![Run { hash: hash.to_owned(), ..run("a", "sb", Running, 0) }])
    };
    let message = |hash: &str, memory: &Memory| {
        let decision = decide_at(spec.clone(), &observed(hash), memory, now());
        decision.kills.first().map(|kill| (kill.message.clone(), kill.grace))
    };
    let with = |state: ProbeState| Memory { probes: HashMap::from([("a-0".to_owned(), state)]), ..Default::default() };
    assert_eq!(message("", &Memory::default()), None);
    assert_eq!(
        message("other", &Memory::default()),
        Some(("Container a definition changed, will be restarted".to_owned(), None))
    );
    let live = with(ProbeState { started: Some(true), liveness_failed: true, grace: Some(7), ..Default::default() });
    assert_eq!(message("", &live), Some(("Container a failed liveness probe, will be restarted".to_owned(), Some(7))));
    let startup = with(ProbeState { startup_failed: true, ..Default::default() });
    assert_eq!(message("", &startup), Some(("Container a failed startup probe, will be restarted".to_owned(), None)));
    let mut stopping = live;
    stopping.stopping.insert("a-0".to_owned());
    assert_eq!(message("", &stopping), None, "once is enough");
}

/// The back-off key of a container that has nothing but its name.
fn key(name: &str) -> String {
    backoff_key(&Container { name: name.to_owned(), ..Default::default() })
}

#[test]
fn back_off_begins_anew_with_another_image_or_other_resources() {
    let failed = exited("a", "sb", 1, 1);
    let finished_at = failed.finished_at.unwrap();
    let observed = Observed::new(vec![sandbox("sb", 0, true)], vec![failed]);
    let mut memory = Memory::default();
    let container: Container = serde_json::from_value(json!({"name": "a", "image": "one"})).unwrap();
    memory.restarts.advance(&backoff_key(&container), finished_at, finished_at);
    for (container, expected) in [
        (json!({"name": "a", "image": "one"}), "-"),
        (json!({"name": "a", "image": "one", "env": [{"name": "A", "value": "b"}]}), "-"),
        (json!({"name": "a", "image": "two"}), "start a #2"),
        (json!({"name": "a", "image": "one", "resources": {"limits": {"memory": "1Gi"}}}), "start a #2"),
    ] {
        let decision = decide_at(json!({"containers": [container]}), &observed, &memory, finished_at);
        assert_eq!(words(&decision), expected, "{container}");
    }
}

#[test]
fn back_off_says_how_long_and_wakes_when_over() {
    let spec = json!({"containers": containers(&["a"])});
    let failed = exited("a", "sb", 1, 1);
    let finished_at = failed.finished_at.unwrap();
    let observed = Observed::new(vec![sandbox("sb", 0, true)], vec![failed]);
    let mut memory = Memory::default();
    memory.restarts.advance(&key("a"), finished_at, finished_at);
    let decision = decide_at(spec.clone(), &observed, &memory, finished_at);
    assert_eq!(words(&decision), "-");
    let waiting = &decision.waiting["a"];
    assert_eq!(
        (waiting.reason.as_str(), waiting.message.as_str()),
        ("CrashLoopBackOff", "back-off 10s restarting failed container=a pod=p_n(u)")
    );
    let due = decision.wake_at.unwrap();
    assert_eq!(due.duration_since(finished_at).as_secs(), 10);
    assert_eq!(words(&decide_at(spec, &observed, &memory, due)), "start a #2");
}

#[test]
fn a_failure_waits_for_its_time_and_does_not_hold_the_others() {
    let spec = json!({"containers": containers(&["a", "b"])});
    let observed = Observed::new(vec![sandbox("sb", 0, true)], vec![]);
    let waiting = Waiting { reason: "ErrImagePull".to_owned(), message: "no".to_owned() };
    let retry_at = Timestamp::from_second(1200).unwrap();
    let memory = Memory {
        failures: HashMap::from([("a".to_owned(), Failure { waiting: waiting.clone(), retry_at })]),
        ..Default::default()
    };
    let decision = decide_at(spec.clone(), &observed, &memory, now());
    assert_eq!((words(&decision).as_str(), decision.wake_at), ("start b #0", Some(retry_at)));
    assert_eq!(decision.waiting["a"], waiting);
    let due = decide_at(spec, &observed, &memory, retry_at);
    assert_eq!(words(&due), "start a #0");
    assert_eq!(due.waiting["a"], waiting, "it says so until the next try is over");
}

#[test]
fn ephemeral_containers_run_once_beside_the_others() {
    let spec = json!({"containers": containers(&["a"]), "ephemeralContainers": [{"name": "debug"}]});
    let sb = || vec![sandbox("sb", 0, true)];
    assert_eq!(words(&decide_plain(spec.clone(), sb(), vec![run("a", "sb", Running, 0)])), "start debug #0");
    let ended = vec![run("a", "sb", Running, 0), exited("debug", "sb", 1, 0)];
    assert_eq!(words(&decide_plain(spec, sb(), ended)), "-");
}

#[test]
fn nothing_is_built_while_something_is_being_built() {
    let observed = Observed::default();
    let spec = pod(json!({"containers": containers(&["a"])}));
    let decision = decide(&View {
        pod: &spec,
        observed: &observed,
        memory: &Memory::default(),
        busy: true,
        starting: None,
        now: now(),
    });
    assert_eq!(decision.setup, None);
}

#[test]
fn one_end_may_restart_all_containers() {
    let rules = json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [42]}}]);
    let spec = json!({"restartPolicy": "Never", "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}],
        "containers": [{"name": "a", "restartPolicy": "Never", "restartPolicyRules": rules}, {"name": "b"}]});
    let sb = || vec![sandbox("sb", 0, true)];
    let runs = |a: Run, b: RunState| vec![exited("i", "sb", 0, 0), run("s", "sb", b, 0), a, run("b", "sb", b, 0)];
    let began = decide_plain(spec.clone(), sb(), runs(exited("a", "sb", 42, 0), Running));
    let graces: Vec<_> = began.kills.iter().map(|kill| kill.grace).collect();
    assert_eq!((began.remove.len(), began.finished, graces), (0, false, vec![Some(0); 2]));
    let ended = decide_plain(spec.clone(), sb(), runs(exited("a", "sb", 42, 0), RunState::Exited));
    assert_eq!((ended.remove.len(), ended.remove.last().unwrap().as_str(), ended.setup), (4, "a-0", None));
    assert_eq!(words(&decide_plain(spec.clone(), sb(), vec![])), "start i #0", "and all begins again");
    assert!(decide_plain(spec, sb(), runs(exited("a", "sb", 1, 0), RunState::Exited)).finished, "other codes end it");
}

#[test]
fn a_container_that_is_being_started_is_not_in_back_off() {
    let spec = pod(json!({"containers": containers(&["a"])}));
    let observed = Observed::new(vec![sandbox("sb", 0, true)], vec![exited("a", "sb", 1, 0)]);
    let finished_at = observed.newest("a").unwrap().finished_at.unwrap();
    let mut memory = Memory::default();
    memory.restarts.advance(&key("a"), finished_at, finished_at);
    let decision = |starting| {
        decide(&View { pod: &spec, observed: &observed, memory: &memory, busy: true, starting, now: finished_at })
    };
    assert_eq!(decision(None).waiting["a"].reason, CRASH_LOOP);
    assert!(decision(Some("a")).waiting.is_empty());
}

#[test]
fn a_killed_run_is_followed_by_the_next_at_once() {
    // runs end a minute apart
    let observed = Observed::new(vec![], (0..3).map(|count| exited("a", "sb", 137, count)).collect());
    let ends: Vec<Timestamp> = observed.runs_of("a").map(|run| run.finished_at.unwrap()).collect();
    let newest = observed.newest("a").unwrap();
    let mut memory = Memory::default();
    assert_eq!(failed_at(&observed, &memory, &key("a"), newest), Some(ends[0]), "it ended by itself");
    memory.killed.insert(newest.id.clone());
    assert_eq!(failed_at(&observed, &memory, &key("a"), newest), Some(ends[1]));
    // 10, 20, 40 s have passed by then; 80 s have not
    for delay in [10, 20, 40] {
        assert_eq!(memory.restarts.advance(&key("a"), ends[1], ends[0]).as_secs(), delay);
        assert_eq!(failed_at(&observed, &memory, &key("a"), newest), Some(ends[1]), "{delay}");
    }
    memory.restarts.advance(&key("a"), ends[1], ends[0]);
    assert_eq!(failed_at(&observed, &memory, &key("a"), newest), Some(ends[0]));
    let first = Observed::new(vec![], vec![exited("a", "sb", 137, 2)]);
    assert_eq!(failed_at(&first, &memory, &key("a"), newest), None, "there was none before");
}

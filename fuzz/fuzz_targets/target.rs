//! One source for all targets: the name of the executable says which of `apiserver::fuzz` it runs.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let name = std::env::current_exe().ok().and_then(|path| Some(path.file_stem()?.to_string_lossy().into_owned()));
    let found = apiserver::fuzz::TARGETS.iter().find(|(known, _, _)| name.as_deref() == Some(known));
    found.map(|(_, target, _)| *target).expect("the executable is called as a target of apiserver::fuzz")
});

fuzz_target!(|data: &[u8]| TARGET(data));

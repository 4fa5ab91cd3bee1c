//! One program for all targets: `FUZZ_TARGET` names the one to run, the arguments are libFuzzer's.
#![no_main]

mod targets;

use std::sync::OnceLock;

static TARGET: OnceLock<fn(&[u8])> = OnceLock::new();

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let target = TARGET.get_or_init(|| {
        let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
        let found = targets::TARGETS.iter().find(|(known, _)| *known == name);
        let Some((_, target)) = found else {
            let known: Vec<&str> = targets::TARGETS.iter().map(|(known, _)| *known).collect();
            panic!("FUZZ_TARGET={name:?}, which is none of {}", known.join(" "));
        };
        *target
    });
    target(data);
});

//! The fuzz targets on what they have kept, and on all golden files: whatever they found once stays found.

#[path = "../../fuzz/src/targets.rs"]
mod targets;

use std::{collections::BTreeMap, fs, path::Path};

/// Every file below, by its path.
fn files(directory: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else {
            found.insert(path.display().to_string(), fs::read(&path).unwrap());
        }
    }
}

#[test]
fn every_target_holds_on_every_kept_input_and_on_every_golden_file() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut kept, mut inputs) = (BTreeMap::new(), BTreeMap::new());
    files(&root.join("../fuzz/corpus"), &mut kept);
    assert!(
        kept.len() >= targets::TARGETS.len(),
        "a corpus for each target"
    );
    files(&root.join("tests/golden"), &mut inputs);
    inputs.append(&mut kept);
    for (name, bytes) in &inputs {
        for (target, run) in targets::TARGETS {
            // Where it panics, this is the last line.
            let shown = format!("{target} on {name}");
            let result = std::panic::catch_unwind(|| run(bytes));
            assert!(result.is_ok(), "{shown}");
        }
    }
}

//! An actor is a shell: what follows from what is decided in the protocol, and nowhere else.

use std::path::{Path, PathBuf};

/// Whoever names one of these decides by it. A variant is named by its type, so these are all.
const DECIDED_IN_PROTOCOL: [&str; 6] = [
    "Vote",
    "Tally",
    "tally",
    "State",
    "TransactionState",
    "BranchPhase",
];

#[test]
fn no_actor_names_a_vote_a_tally_or_a_state() {
    let actors = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../coordinator/src/actors");
    let files = sources(&actors);
    for path in &files {
        let text = std::fs::read_to_string(path).unwrap();
        for (number, line) in (1..).zip(text.lines()) {
            let code = line.split("//").next().unwrap_or_default();
            let mut words = code.split(|c: char| !c.is_alphanumeric() && c != '_');
            let named = words.find(|word| DECIDED_IN_PROTOCOL.contains(word));
            let place = format!("{}:{number}", path.display());
            assert_eq!(named, None, "{place} decides: {line}");
        }
    }
    assert!(
        files.len() >= 6,
        "the actors are not in {}",
        actors.display()
    );
}

#[test]
fn only_actors_name_the_actor_crate() {
    let coordinator = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../coordinator/src");
    for path in sources(&coordinator) {
        if path.starts_with(coordinator.join("actors")) {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(
            !text.contains("actix::"),
            "{} names the actor crate",
            path.display()
        );
    }
}

fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else {
            files.push(path);
        }
    }
    files
}

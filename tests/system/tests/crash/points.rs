//! The list of all points, and what holds it against the sources.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::Ask::{self, Abort, Commit, ReadOnly, Single};
use unanimous_lab::fault::Victim::{self, Bank, Coordinator};
use unanimous_lab::transfer::Side::{East, West};

/// How a process comes to a point.
#[derive(Clone, Copy, Debug)]
pub(super) enum Met {
    /// While these are asked for.
    Asked(&'static [Ask]),
    /// As it starts, after these were left in doubt by a coordinator that died at that point.
    Started(&'static str, &'static [Ask]),
    /// While it runs, as a coordinator starts again that died at that point.
    Resumed(&'static str, &'static [Ask]),
    /// As it starts, beside a coordinator that died at that point and runs again.
    Joined(&'static str, &'static [Ask]),
    /// As [`Self::Started`], on a log in Postgres only.
    StartedOnPostgres(&'static str, &'static [Ask]),
    /// In a test of its own.
    Apart(&'static str),
    /// By no program of ours, so nothing dies there yet.
    Never(&'static str),
}

use Met::{Apart, Asked, Joined, Never, Resumed, Started, StartedOnPostgres};

/// Every point: where it is, who dies there, and how he comes there.
pub(super) const POINTS: &[(&str, Victim, Met)] = &[
    // The coordinator's writes.
    ("epoch-before", Coordinator, Started("decision-after", &ALL)),
    ("epoch-after", Coordinator, Started("decision-after", &ALL)),
    ("other-epoch-before", Coordinator, Apart(OTHER_NODES)),
    ("other-epoch-after", Coordinator, Apart(OTHER_NODES)),
    ("adopt-before", Coordinator, Apart(ADOPTION)),
    ("adopt-after", Coordinator, Apart(ADOPTION)),
    (
        "mark-before",
        Coordinator,
        StartedOnPostgres("decision-after", &ALL),
    ),
    (
        "mark-after",
        Coordinator,
        StartedOnPostgres("decision-after", &ALL),
    ),
    ("decision-before", Coordinator, Asked(&ALL)),
    ("decision-after", Coordinator, Asked(&ALL)),
    ("append-before", Coordinator, Asked(&[Commit, Single])),
    ("append-after", Coordinator, Asked(&[Commit, Single])),
    ("forget-before", Coordinator, Apart(FORGETTING)),
    ("forget-after", Coordinator, Apart(FORGETTING)),
    ("put-participant-before", Coordinator, Apart(REGISTERING)),
    ("put-participant-after", Coordinator, Apart(REGISTERING)),
    ("remove-participant-before", Coordinator, Apart(REGISTERING)),
    ("remove-participant-after", Coordinator, Apart(REGISTERING)),
    ("went-back-before", Coordinator, Apart(WENT_BACK)),
    ("went-back-after", Coordinator, Apart(WENT_BACK)),
    ("new-identity-before", Coordinator, Apart(NEW_IDENTITY)),
    ("new-identity-after", Coordinator, Apart(NEW_IDENTITY)),
    // Its calls and answers.
    ("prepare-before", Coordinator, Asked(&ALL)),
    ("prepare-after", Coordinator, Asked(&ALL)),
    ("commit-before", Coordinator, Asked(&[Commit, Single])),
    ("commit-after", Coordinator, Asked(&[Commit, Single])),
    ("abort-before", Coordinator, Asked(&[Abort])),
    ("abort-after", Coordinator, Asked(&[Abort])),
    ("batch-before", Coordinator, Apart(BATCHES)),
    ("batch-after", Coordinator, Apart(BATCHES)),
    ("client-answer", Coordinator, Asked(&ALL)),
    ("client-abort-answer", Coordinator, Apart(CLIENTS_ABORT)),
    (
        "inquiry-answer",
        Coordinator,
        Started("decision-before", &[Commit, Single]),
    ),
    // A participant's writes.
    (
        "migrate-before",
        Bank(East),
        Started("decision-after", &[Commit]),
    ),
    (
        "migrate-after",
        Bank(East),
        Started("decision-after", &[Commit]),
    ),
    ("yes-before", Bank(East), Asked(&[Commit, Single])),
    ("yes-after", Bank(East), Asked(&[Commit, Single])),
    ("yes-before", Bank(West), Asked(&[Abort])),
    ("yes-after", Bank(West), Asked(&[Abort])),
    ("committed-before", Bank(East), Asked(&[Commit, Single])),
    ("committed-after", Bank(East), Asked(&[Commit, Single])),
    ("aborted-before", Bank(East), Asked(&[Abort])),
    ("aborted-after", Bank(East), Asked(&[Abort])),
    ("aborted-before", Bank(West), Asked(&[Abort])),
    ("aborted-after", Bank(West), Asked(&[Abort])),
    (
        "repeat-before",
        Bank(East),
        Resumed("commit-after", &[Single]),
    ),
    (
        "repeat-after",
        Bank(East),
        Resumed("commit-after", &[Single]),
    ),
    ("prune-before", Bank(East), Asked(&[Commit, Single])),
    ("prune-after", Bank(East), Asked(&[Commit, Single])),
    // Its answers and calls.
    ("prepare-answer", Bank(East), Asked(&ALL)),
    (
        "prepare-answer",
        Bank(West),
        Asked(&[Commit, Abort, ReadOnly]),
    ),
    ("commit-answer", Bank(East), Asked(&[Commit, Single])),
    ("abort-answer", Bank(East), Asked(&[Abort])),
    ("abort-answer", Bank(West), Asked(&[Abort])),
    ("batch-answer", Bank(East), Apart(BATCHES)),
    (
        "inquiry-before",
        Bank(East),
        Started("decision-before", &[Commit, Single]),
    ),
    (
        "inquiry-after",
        Bank(East),
        Joined("decision-before", &[Commit, Single]),
    ),
    ("enlist-before", Bank(East), Never("interactive branches")),
    ("enlist-after", Bank(East), Never("interactive branches")),
];

const ALL: [Ask; 4] = [Commit, Abort, ReadOnly, Single];

const OTHER_NODES: &str = "a_start_killed_between_the_nodes_of_a_file_takes_them_all_the_next_time";
const ADOPTION: &str = "an_adopter_killed_at_the_adoption_adopts_the_next_time";
const FORGETTING: &str = "a_coordinator_killed_as_it_forgets_forgets_the_next_time";
const REGISTERING: &str =
    "a_participant_put_or_removed_by_a_coordinator_that_is_killed_is_there_or_not";
const WENT_BACK: &str = "once_it_is_remembered_that_a_log_went_back_no_life_begins_on_it";
const NEW_IDENTITY: &str = "a_new_identity_that_was_killed_is_drawn_again";
const BATCHES: &str = "whoever_dies_at_a_batch_loses_nothing_of_any_of_its_transactions";
const CLIENTS_ABORT: &str = "a_client_whose_abort_was_not_answered_is_told_when_it_asks_again";

/// Rust files below the sources of a crate.
fn sources(of: &str) -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(of);
    let mut files = Vec::new();
    let mut directories = vec![root];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory).expect("sources are there") {
            let path = entry.expect("a directory can be read").path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).expect("a source can be read");
                files.push((path, text));
            }
        }
    }
    files.sort();
    files
}

fn all_sources() -> Vec<(PathBuf, String)> {
    [sources("coordinator/src"), sources("participant/src")].concat()
}

#[test]
fn every_point_in_the_sources_is_in_the_list_and_has_a_test() {
    let mut there = BTreeSet::new();
    for (_, text) in all_sources() {
        for part in text.split("crash::point(\"").skip(1) {
            let (name, _) = part.split_once('"').expect("a name ends");
            there.insert(name.to_owned());
        }
    }
    let listed: BTreeSet<_> = POINTS.iter().map(|(name, ..)| (*name).to_owned()).collect();
    assert_eq!(there, listed);
    assert!(there.len() >= 40, "{}", there.len());
    let tests = [include_str!("apart.rs"), include_str!("mod.rs")].concat();
    for (name, _, met) in POINTS {
        match met {
            Apart(test) => assert!(tests.contains(&format!("fn {test}(")), "{name}: no {test}"),
            Never(why) => assert!(!why.is_empty(), "{name}"),
            Asked(_) | Started(..) | Resumed(..) | Joined(..) | StartedOnPostgres(..) => {}
        }
    }
}

/// What writes so that it lasts, or sends, as the sources spell it, and how many lines a point may be away from it.
const WRITES_AND_SENDS: &[(&str, &str)] = &[
    ("coordinator/src/actors", "log.decide("),
    ("coordinator/src/actors", "log.append("),
    ("coordinator/src/actors", "log.open_epoch("),
    ("coordinator/src/actors", "log.adopt("),
    ("coordinator/src/actors", "log.mark("),
    ("coordinator/src/actors", "log.forget("),
    ("coordinator/src/actors", "log.put_participant("),
    ("coordinator/src/actors", "log.remove_participant("),
    ("coordinator/src/actors", "log.remember_that_it_went_back("),
    ("coordinator/src/cli", ".new_identity("),
    ("coordinator/src/courier/couriers.rs", "transport.call("),
    ("coordinator/src/courier/batches.rs", ".send();"),
    ("participant/src", "try_join_all(steps)"),
    ("participant/src", "correcting, committing)"),
    ("participant/src", "batch_execute(\"COMMIT\")"),
    ("participant/src", "transaction.commit()"),
    ("participant/src", ".send().await"),
];

#[test]
fn every_write_that_lasts_and_every_call_has_a_point_before_and_after_it() {
    const NEAR: usize = 9;
    let is_point = |line: &str| line.contains("crash::");
    for (below, spelled) in WRITES_AND_SENDS {
        let mut found = 0;
        for (path, text) in all_sources() {
            if !path.to_string_lossy().contains(below) {
                continue;
            }
            let lines: Vec<_> = text.lines().collect();
            for (at, line) in lines.iter().enumerate() {
                if !line.contains(spelled) {
                    continue;
                }
                found += 1;
                let before = lines[at.saturating_sub(NEAR)..at].iter();
                let after = lines[at + 1..].iter().take(NEAR);
                let place = format!("{}:{}: {line}", path.display(), at + 1);
                assert!(
                    before.rev().any(|line| is_point(line)),
                    "no point before {place}"
                );
                assert!(
                    after.into_iter().any(|line| is_point(line)),
                    "no point after {place}"
                );
            }
        }
        assert!(found > 0, "nothing is spelled {spelled} below {below}");
    }
}

/// The contract of the log has no write that the list above does not know.
#[test]
fn every_write_of_the_decision_log_is_known_here() {
    const READS: [&str; 13] = [
        "is_exclusive",
        "nodes",
        "abandoned",
        "head",
        "look_up",
        "by_key",
        "unfinished",
        "went_back",
        "history",
        "participants",
        "identity",
        "close",
        "in_doubt",
    ];
    let text = std::fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../coordinator/src/log/mod.rs"),
    )
    .expect("the contract is there");
    let (_, contract) = text
        .split_once("pub trait DecisionLog")
        .expect("it has the trait");
    let (contract, _) = contract.split_once("\n}\n").expect("the trait ends");
    for part in contract.split("async fn ").skip(1) {
        let (name, _) = part.split_once('(').expect("a method has parameters");
        let is_known = READS.contains(&name)
            || WRITES_AND_SENDS
                .iter()
                .any(|(_, spelled)| spelled.contains(&format!("{name}(")));
        assert!(is_known, "{name} neither reads only nor has a point");
    }
}

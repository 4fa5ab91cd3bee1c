//! The exhaustive searches that CI runs, held against the table of `docs/PROOF.md`.

use std::{fs, num::NonZero, path::PathBuf, thread::available_parallelism};

use unanimous_world::model::{Configuration, Order, Report, SMALL, compare, search};

/// Fewer would not be worth the name.
const STATES_AT_LEAST: usize = 1_000_000;

/// Its line in the page's table, but for how long it took.
fn line(configuration: &Configuration, report: &Report) -> String {
    format!(
        "| {} | {} | {} |",
        configuration.name, report.states, report.steps
    )
}

fn page() -> String {
    let page = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/PROOF.md");
    fs::read_to_string(page).expect("the page is there")
}

#[test]
fn the_page_says_of_every_mutant_which_search_notices_it_or_why_none_can() {
    let page = page();
    let (_, section) = page.split_once("### Mutants by search").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    for file in fs::read_dir(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("mutants")).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        let name = name.strip_suffix(".patch").unwrap();
        assert!(
            section.contains(&format!("| `{name}` | ")),
            "nothing of {name}"
        );
    }
}

#[test]
fn all_that_can_happen_within_small_bounds_is_searched_exhaustively() {
    let page = page();
    let threads = available_parallelism().map_or(1, NonZero::get);
    let mut states = 0;
    let mut unlike = Vec::new();
    for configuration in SMALL {
        let report = search(configuration, threads, Order::DepthFirst, |_| {});
        if let Some(failure) = &report.failure {
            panic!(
                "{}: {}: {}\n{}",
                configuration.name,
                failure.property,
                failure.what,
                failure.steps.join("\n")
            );
        }
        super::print(&format!(
            "{}: {} distinct states, {} steps, {} deep, {:?}",
            configuration.name, report.states, report.steps, report.depth, report.took
        ));
        states += report.states;
        let line = line(configuration, &report);
        if !page.contains(&line) {
            unlike.push(line);
        }
    }
    assert!(states >= STATES_AT_LEAST, "only {states} distinct states");
    assert!(
        unlike.is_empty(),
        "docs/PROOF.md says otherwise; it should say:\n{}",
        unlike.join("\n")
    );
}

/// Those that take seconds; `model --compare` takes any.
const COMPARED: [&str; 5] = [
    "single branch",
    "late prepare",
    "made-up inquiry",
    "two nodes",
    "interactive",
];

#[test]
fn what_a_search_drops_as_spent_hides_nothing() {
    let threads = available_parallelism().map_or(1, NonZero::get);
    for name in COMPARED {
        let mut named = SMALL
            .iter()
            .filter(|configuration| configuration.name == name);
        let report = compare(named.next().unwrap(), threads, Order::DepthFirst, |_| {});
        assert!(report.failure.is_none(), "{name}: {:?}", report.failure);
    }
}

#[test]
fn how_many_threads_search_and_in_which_order_changes_nothing_of_what_there_is() {
    let configuration = &SMALL[0];
    let alone = search(configuration, 1, Order::BreadthFirst, |_| {});
    let together = search(configuration, 3, Order::DepthFirst, |_| {});
    assert_eq!(
        (alone.states, alone.steps),
        (together.states, together.steps)
    );
}

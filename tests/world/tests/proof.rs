//! `docs/PROOF.md` names a guard for every rule, and every guard that it names is there.

use std::{collections::BTreeMap, fs, path::PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn names_in(directory: &str) -> Vec<String> {
    fs::read_dir(root().join(directory))
        .expect("the directory is there")
        .map(|entry| {
            let name = entry.expect("it is listed").file_name();
            name.into_string().expect("its name is text")
        })
        .collect()
}

/// The guards of each line of the table: what kind, and its name.
fn table() -> BTreeMap<String, Vec<(String, String)>> {
    let page = read("docs/PROOF.md");
    let (_, table) = page
        .split_once("| rule | guards |")
        .expect("the page has the table");
    let lines = table
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'));
    lines
        .map(|line| {
            let mut cells = line.trim_matches('|').splitn(2, '|').map(str::trim);
            let rule = cells.next().expect("a line has two cells").to_owned();
            let guards = cells
                .next()
                .expect("a line has two cells")
                .split("<br>")
                .map(|guard| {
                    let (kind, name) = guard.split_once(' ').unwrap_or((guard, ""));
                    (
                        kind.trim_matches([':', '*']).to_owned(),
                        name.trim_matches('`').to_owned(),
                    )
                });
            (rule, guards.collect())
        })
        .collect()
}

#[test]
fn the_page_names_a_guard_for_every_rule() {
    let table = table();
    let rules = read("docs/RULES.md");
    let rules: Vec<&str> = rules
        .lines()
        .filter_map(|line| line.split_once(". **"))
        .map(|(number, _)| number)
        .filter(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
        .collect();
    assert_eq!(rules.len(), 24);
    for rule in rules {
        let guards = table
            .get(rule)
            .unwrap_or_else(|| panic!("rule {rule} has no line"));
        assert!(!guards.is_empty(), "rule {rule} has no guard");
    }
    for (rule, guards) in &table {
        for (kind, name) in guards {
            let is_there = match kind.as_str() {
                "script" => root().join("tests/world/scripts").join(name).is_file(),
                "mutant" => root()
                    .join("tests/world/mutants")
                    .join(format!("{name}.patch"))
                    .is_file(),
                "test" => {
                    let (path, test) = name.split_once("::").unwrap();
                    read(path).contains(test)
                }
                // Says that nothing is built yet.
                "open" => true,
                _ => false,
            };
            assert!(
                is_there,
                "rule {rule} names a {kind} that is not there: {name}"
            );
        }
    }
}

#[test]
fn every_script_stands_in_the_table() {
    let table = table();
    let guards: Vec<&(String, String)> = table.values().flatten().collect();
    for script in names_in("tests/world/scripts") {
        let line = ("script".to_owned(), script);
        assert!(guards.contains(&&line), "{} guards no rule", line.1);
    }
}

#[test]
fn every_mutant_says_which_rule_it_breaks_and_stands_in_the_line_of_that_rule() {
    let table = table();
    for file in names_in("tests/world/mutants") {
        let text = read(&format!("tests/world/mutants/{file}"));
        let (rule, _) = text.lines().next().unwrap().split_once(": ").unwrap();
        let line = rule.strip_prefix("Rule ").unwrap_or(rule);
        let name = file.strip_suffix(".patch").unwrap().to_owned();
        let guards = table
            .get(line)
            .unwrap_or_else(|| panic!("{file}: no line {line}"));
        assert!(
            guards.contains(&("mutant".to_owned(), name)),
            "{file} does not stand in the line of {rule}"
        );
    }
}

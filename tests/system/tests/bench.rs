//! The benchmark that `make bench` runs, with the programs of this build: how fast they are is not looked at, but that all
//! of it is measured.

use serde_json::Value;
use unanimous_lab::{Program, postgres, scratch};

use crate::support::coordinator::{BANK, BINARY};
use crate::support::lab;

/// For a few seconds of measuring, on a very busy machine.
const MINUTES: std::time::Duration = std::time::Duration::from_secs(150);

const WAYS: [&str; 4] = ["by_hand", "unanimous", "applied", "one_database"];

fn number(of: &Value, pointer: &str) -> f64 {
    let found = of.pointer(pointer).and_then(Value::as_f64);
    found.unwrap_or_else(|| panic!("{pointer} is a number: {of:#}"))
}

#[tokio::test]
async fn the_benchmark_measures_all_ways_and_prints_every_figure() {
    let directory = scratch::directory("bench").unwrap();
    let json = directory.path().join("bench.json");
    let mut program = Program::new("bench", lab())
        .args(["bench", "--unanimous", BINARY, "--bank", BANK])
        .args(["--clients", "2", "--secs", "1", "--repeat", "1", "--json"])
        .arg(&json)
        .env(scratch::DIRECTORY_VARIABLE, directory.path());
    // It would run initdb, which is not what is tested here.
    if let Some(template) = std::env::var_os(postgres::TEMPLATE_VARIABLE) {
        program = program.env(postgres::TEMPLATE_VARIABLE, template);
    }
    let mut bench = program.start().unwrap();
    let status = bench.wait_exit(MINUTES).await.unwrap();
    let output = bench.output().unwrap();
    assert!(status.success(), "{output}");

    let text = std::fs::read_to_string(&json).unwrap();
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(report["findings"], Value::Array(Vec::new()));
    for list in ["medians", "points"] {
        let points = report[list].as_array().unwrap();
        let mut ways: Vec<&str> = points
            .iter()
            .filter_map(|point| point["way"].as_str())
            .collect();
        ways.sort_by_key(|way| WAYS.iter().position(|known| known == way));
        assert_eq!(ways, WAYS, "{list}");
        for point in points {
            for positive in ["/per_second", "/p50_ms", "/p95_ms", "/p99_ms", "/max_ms"] {
                assert!(number(point, positive) > 0.0, "{positive}: {point:#}");
            }
            for positive in ["/costs/postgres_us", "/costs/client_us", "/costs/forced"] {
                assert!(number(point, positive) > 0.0, "{positive}: {point:#}");
            }
            let through = ["unanimous", "applied"].contains(&point["way"].as_str().unwrap());
            for ours in [
                "coordinator_us",
                "participants_us",
                "log_syncs",
                "coordinator_peak_bytes",
            ] {
                let ours = point["costs"][ours].as_f64().unwrap_or_default();
                assert_eq!(ours > 0.0, through, "{point:#}");
            }
        }
    }
    let figures = report["figures"].as_array().unwrap();
    assert_eq!(figures.len(), 5, "{figures:#?}");
    for figure in figures {
        assert!(number(figure, "/measured") > 0.0, "{figure:#}");
        assert!(number(figure, "/wanted") > 0.0, "{figure:#}");
        let name = figure["name"].as_str().unwrap();
        assert!(output.contains(name), "{name}: {output}");
    }
}

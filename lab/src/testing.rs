//! What tests take from the two clusters that `unanimous-lab with-clusters` started for the whole
//! run, and from the machine.

use std::process::{Command, Stdio};

use anyhow::Context;

use crate::postgres;

/// The variable that holds the superuser's URL of the `n`th cluster, counted from 1.
pub fn cluster_variable(n: usize) -> String {
    format!("UNANIMOUS_TEST_POSTGRES_{n}")
}

/// Creates a database of the caller's own on the `n`th cluster, 1 or 2; its URL.
///
/// Two databases on one cluster share its log and its crash, two clusters share nothing: take one
/// database from each where a test is about two participants.
pub async fn fresh_database(n: usize) -> anyhow::Result<String> {
    let variable = cluster_variable(n);
    let url = std::env::var(&variable).with_context(|| {
        format!(
            "{variable} is not set: run the tests by `make test`, or as `cargo run -p unanimous-lab -- \
             with-clusters -- cargo nextest run`"
        )
    })?;
    postgres::create_database(&url, "test").await
}

/// A Python that can run the participant in `examples/python`.
pub fn python() -> anyhow::Result<&'static str> {
    // The first may be a developer's own; Debian's packages are for the second.
    let pythons = ["python3", "/usr/bin/python3"];
    let found = pythons.into_iter().find(|python| {
        let mut import = Command::new(python);
        import.args([
            "-c",
            "import sys, psycopg; sys.exit(sys.version_info < (3, 10))",
        ]);
        let imported = import.stdout(Stdio::null()).stderr(Stdio::null()).status();
        imported.is_ok_and(|status| status.success())
    });
    found.context("no Python 3.10 or newer with psycopg 3; on Debian or Ubuntu install the package python3-psycopg")
}

//! What tests take from the two clusters that `unanimous-lab with-clusters` started for the whole
//! run.

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

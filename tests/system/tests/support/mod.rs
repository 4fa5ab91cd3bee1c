//! The coordinator as a process, and participants that do what a test says.

pub(crate) mod contract;
pub(crate) mod coordinator;
pub(crate) mod load;
pub(crate) mod log;
pub(crate) mod metrics;
pub(crate) mod page;
pub(crate) mod stub;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub(crate) use coordinator::{Answer, Coordinator};
pub(crate) use load::{Checked, Clients};
pub(crate) use log::{Log, On, on_both_logs};
pub(crate) use stub::{Does, Seen, Stub};

/// Longer than anything takes that happens at all.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// One branch of a request's `branches`, with one operation.
pub(crate) fn branch(participant: &str) -> serde_json::Value {
    serde_json::json!({"participant": participant, "operations": [{"kind": "debit", "amount": 1}]})
}

/// The lab's program of this build: cargo puts all programs of the workspace into one directory.
pub(crate) fn lab() -> PathBuf {
    let lab = Path::new(coordinator::BINARY).with_file_name("unanimous-lab");
    assert!(
        lab.is_file(),
        "{} is built by `cargo build --workspace --bins`",
        lab.display()
    );
    lab
}

//! What a command leaves in files.

use std::io::Write as _;
use std::path::Path;

use anyhow::Context;
use serde::Serialize;

/// Writes a report where the flag `--json` says, if it says so. True where that is standard output, and nothing else may
/// go there.
pub(crate) fn write_json(file: Option<&Path>, report: &impl Serialize) -> anyhow::Result<bool> {
    let Some(file) = file else {
        return Ok(false);
    };
    let text = serde_json::to_string_pretty(report)?;
    if file.as_os_str() == "-" {
        writeln!(std::io::stdout(), "{text}")?;
        return Ok(true);
    }
    write(file, &text)?;
    Ok(false)
}

/// Writes a file.
pub(crate) fn write(file: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

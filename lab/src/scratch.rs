//! Where data directories and captured output are put.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use tempfile::{Builder, NamedTempFile, TempDir};

/// Names the directory below which everything temporary goes; the system's own by default.
///
/// `with-clusters` sets it to a directory of its own and removes that at the end. So a test that
/// was killed, and could not clean up, leaves nothing behind either.
pub const DIRECTORY_VARIABLE: &str = "UNANIMOUS_LAB_DIR";

fn root() -> PathBuf {
    std::env::var_os(DIRECTORY_VARIABLE).map_or_else(std::env::temp_dir, PathBuf::from)
}

/// A new directory that is removed when dropped. Other users may pass through it, for Postgres runs
/// as another one when we are root.
pub fn directory(prefix: &str) -> anyhow::Result<TempDir> {
    directory_in(&root(), prefix)
}

/// As [`directory`], there.
pub(crate) fn directory_in(root: &Path, prefix: &str) -> anyhow::Result<TempDir> {
    let directory = Builder::new()
        .prefix(&format!("unanimous-{prefix}-"))
        .tempdir_in(root)
        .with_context(|| format!("cannot make a directory in {}", root.display()))?;
    std::fs::set_permissions(directory.path(), Permissions::from_mode(0o755))
        .with_context(|| format!("cannot open {} to others", directory.path().display()))?;
    Ok(directory)
}

/// A new empty file that is removed when dropped.
pub(crate) fn file(prefix: &str) -> anyhow::Result<NamedTempFile> {
    let root = root();
    Builder::new()
        .prefix(&format!("unanimous-{prefix}-"))
        .suffix(".log")
        .tempfile_in(&root)
        .with_context(|| format!("cannot make a file in {}", root.display()))
}

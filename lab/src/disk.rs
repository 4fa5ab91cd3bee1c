//! A disk that can lose its power: a file system of its own in a file, which forgets all that was not flushed.
//!
//! `EXT4_IOC_SHUTDOWN` stops an ext4 file system without writing anything more, its journal included. What programs wrote
//! and did not `fsync` is then in no file, as after a power failure; and every later write of theirs fails.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::unistd::Uid;
use tempfile::TempDir;

use crate::{Program, scratch};

const SIZE_MB: u64 = 1024;
/// Each step takes milliseconds on a machine with time.
const PATIENCE: Duration = Duration::from_secs(60);

/// `_IOR('X', 125, __u32)` with `EXT4_GOING_FLAGS_NOLOGFLUSH`. Perl is in every Debian, and needs no unsafe code of ours.
const SHUTDOWN: &str = r#"open(my $d, "<", $ARGV[0]) or die "$!\n"; my $how = pack("L", 2); ioctl($d, 0x8004587D, $how) // die "$!\n""#;

/// A mounted file system. Dropped, it is unmounted and gone.
#[derive(Debug)]
pub struct Disk {
    directory: TempDir,
}

impl Disk {
    /// Why there can not be one here, if so.
    pub async fn is_impossible() -> Option<String> {
        if !Uid::effective().is_root() {
            return Some("only root may mount a file system".to_owned());
        }
        match Self::create().await {
            Ok(_) => None,
            Err(error) => Some(format!("{error:#}")),
        }
    }

    /// Makes and mounts one.
    pub async fn create() -> anyhow::Result<Self> {
        ensure!(
            Uid::effective().is_root(),
            "only root may mount a file system"
        );
        let disk = Self {
            directory: scratch::directory("disk")?,
        };
        let image = fs::File::create_new(disk.image()).context("cannot make the disk's file")?;
        image.set_len(SIZE_MB << 20)?;
        fs::create_dir(disk.path())?;
        run("mkfs.ext4", &[Path::new("-q"), &disk.image()]).await?;
        disk.mount().await?;
        Ok(disk)
    }

    fn image(&self) -> PathBuf {
        self.directory.path().join("image")
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("mounted")
    }

    /// Flushes all that is on it, as what was installed long ago is.
    pub async fn flush(&self) -> anyhow::Result<()> {
        run("sync", &[Path::new("--file-system"), &self.path()]).await
    }

    /// The power is gone: nothing is written any more, and what was not flushed is lost.
    pub async fn cut(&self) -> anyhow::Result<()> {
        run(
            "perl",
            &[Path::new("-e"), Path::new(SHUTDOWN), &self.path()],
        )
        .await
    }

    /// The power is back. Nobody may have a file on it open.
    pub async fn restore(&self) -> anyhow::Result<()> {
        run("umount", &[&self.path()]).await?;
        self.mount().await
    }

    async fn mount(&self) -> anyhow::Result<()> {
        let options = [Path::new("-o"), Path::new("loop")];
        let [flag, option] = options;
        run("mount", &[flag, option, &self.image(), &self.path()]).await?;
        // Others have to get at what is below, for Postgres runs as another user.
        run("chmod", &[Path::new("755"), &self.path()]).await
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Whatever state it is in; it fails where it is not mounted.
        let unmounting = std::process::Command::new("umount")
            .arg("--lazy")
            .arg(self.path())
            .stderr(std::process::Stdio::null())
            .status();
        drop(unmounting);
    }
}

async fn run(program: &str, arguments: &[&Path]) -> anyhow::Result<()> {
    let mut process = Program::new(program, program).args(arguments).start()?;
    let status = process.wait_exit(PATIENCE).await?;
    ensure!(
        status.success(),
        "{program}: {status}\n{}",
        process.output()?
    );
    Ok(())
}

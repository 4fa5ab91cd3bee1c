//! What the kit can not do over HTTP, done by commands of whoever runs it.

use std::os::fd::AsFd as _;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tokio::process::Command;
use tokio::time::timeout;

use super::{Life, Look, Restart};

/// A command may take that long.
const COMMAND_MAX: Duration = Duration::from_secs(60);

/// Restarts by `sh -c COMMAND`, which finds what it has to tell the participant in its environment:
/// `CHECK_COORDINATOR`, and for a service that is to be renamed `CHECK_NAME` and `CHECK_FORMER_NAME`.
#[must_use]
pub fn restart_by(command: String) -> Restart {
    Arc::new(move |life: Life| {
        let mut shell = shell(&command);
        shell.env("CHECK_COORDINATOR", &life.coordinator);
        for (name, value) in [
            ("CHECK_NAME", &life.name),
            ("CHECK_FORMER_NAME", &life.former),
        ] {
            match value {
                Some(value) => shell.env(name, value.as_str()),
                None => shell.env_remove(name),
            };
        }
        let command = command.clone();
        Box::pin(async move {
            // What it leaves running may write for as long as it lives: ours to show, and not to wait for.
            let ours = std::io::stderr().as_fd().try_clone_to_owned();
            shell.stdout(ours.context("standard error can not be shared")?);
            let ended = timeout(COMMAND_MAX, shell.status()).await;
            let Ok(ended) = ended else {
                bail!(
                    "--restart did not end within {COMMAND_MAX:?}: what it starts has to go on in the background"
                );
            };
            let status = ended.context("cannot run sh")?;
            ensure!(status.success(), "--restart: {status}");
            Ok(command)
        })
    })
}

/// Looks by `sh -c COMMAND`: what it prints is compared with what it printed before.
#[must_use]
pub fn look_by(command: String) -> Look {
    Arc::new(move || {
        let mut shell = shell(&command);
        Box::pin(async move {
            let ended = timeout(COMMAND_MAX, shell.kill_on_drop(true).output()).await;
            let Ok(ended) = ended else {
                bail!("--look did not end within {COMMAND_MAX:?}");
            };
            let output = ended.context("cannot run sh")?;
            ensure!(output.status.success(), "--look: {}", output.status);
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        })
    })
}

fn shell(command: &str) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", command]).stdin(Stdio::null());
    shell
}

//! `with-clusters`: starts clusters once for a whole test run, runs a command, and cleans up.

use std::ffi::OsString;
use std::future::pending;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::signal::unix::{self, SignalKind};
use tokio::time::{Instant, sleep_until};

use unanimous_lab::{
    Cluster, DeathSignal, Options, Template, command_that_dies_with_us, kill_all_descendants,
    postgres, scratch, spawn, testing,
};

/// How long the command may take to end once it was told to; then it is killed.
const GRACE: Duration = Duration::from_secs(20);

/// Runs a command with Postgres clusters of its own, and ends as it ends.
///
/// The command finds their URLs in `UNANIMOUS_TEST_POSTGRES_1`, `_2` and so on, and a data
/// directory to copy in `UNANIMOUS_TEST_PG_TEMPLATE`. Nothing is left behind, also of what the
/// command left running.
#[derive(Args)]
pub(crate) struct Arguments {
    /// How many clusters to start.
    #[arg(long, default_value_t = 2)]
    clusters: usize,
    /// The command and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    // From here on the orphans of the command's killed children are ours, and can be found at the
    // end.
    set_child_subreaper(true).context("cannot adopt the command's orphans")?;
    // Before anything is started: a signal that comes now must still lead to the end of this
    // function.
    let mut signals = Signals::listen()?;

    let directory = scratch::directory("run")?;
    let template = Template::create().await?;
    let options = Options::default().template(&template);
    let mut clusters = Vec::new();
    for n in 1..=arguments.clusters {
        clusters.push(Cluster::start(&options.clone().name(format!("postgres-{n}"))).await?);
    }

    let (program, rest) = arguments.command.split_first().context("no command")?;
    let mut command = command_that_dies_with_us(program, DeathSignal::Kill, None);
    command.args(rest);
    remove_what_cargo_run_has_set(&mut command);
    command.env(scratch::DIRECTORY_VARIABLE, directory.path());
    command.env(postgres::TEMPLATE_VARIABLE, template.path());
    for (index, cluster) in clusters.iter().enumerate() {
        command.env(testing::cluster_variable(index + 1), cluster.admin_url());
    }
    let child = spawn(command).context("cannot start the command with setpriv")?;
    let status = wait(child, &mut signals).await?;

    drop(clusters);
    kill_all_descendants();
    Ok(exit_code(status))
}

/// Started by `cargo run`, we carry variables that describe our own package. To a cargo below us
/// they look like a changed environment, and it would build some dependencies again.
fn remove_what_cargo_run_has_set(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
}

/// What interrupts the wait for the command.
struct Signals {
    child: unix::Signal,
    interrupt: unix::Signal,
    terminate: unix::Signal,
}

impl Signals {
    fn listen() -> anyhow::Result<Self> {
        let listen = |kind| unix::signal(kind).context("cannot listen for signals");
        Ok(Self {
            child: listen(SignalKind::child())?,
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }
}

/// Waits until the command ends. Told to stop, it gets a time to end, and is killed after it.
async fn wait(mut child: Child, signals: &mut Signals) -> anyhow::Result<ExitStatus> {
    let pid = Pid::from_raw(i32::try_from(child.id()).context("no process id")?);
    let mut deadline: Option<Instant> = None;
    loop {
        if let Some(status) = child.try_wait().context("cannot wait for the command")? {
            return Ok(status);
        }
        tokio::select! {
            _ = signals.child.recv() => continue,
            () = until(deadline) => {
                child.kill().context("cannot kill the command")?;
                return child.wait().context("cannot wait for the command");
            }
            // A Ctrl-C at the terminal reaches the command too, and sent twice it would mean "at
            // once".
            _ = signals.interrupt.recv() => {}
            _ = signals.terminate.recv() => { kill(pid, Signal::SIGTERM).ok(); }
        }
        deadline.get_or_insert(Instant::now() + GRACE);
    }
}

/// Returns at the deadline; without one, never.
async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}

/// The command's own code; for a signal 128 more than its number, as shells have it.
fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
}

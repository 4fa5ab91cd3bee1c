//! Our programs as child processes: started, listened to, and done harm to.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};
use tempfile::NamedTempFile;

use crate::spawn::{DeathSignal, command_that_dies_with_us, in_its_own_group, spawn};
use crate::wait::until;
use crate::{scratch, tree};

/// How long a program may take to end after SIGTERM.
const TERMINATION: Duration = Duration::from_secs(30);
/// A failed test shows this many lines of a program's output; more would hide the failure.
const LINES_SHOWN: usize = 80;

/// What to start; can be started more than once.
///
/// ```no_run
/// # use std::time::Duration;
/// # use unanimous_lab::Program;
/// # async fn example() -> anyhow::Result<()> {
/// let mut coordinator = Program::new("coordinator", "target/debug/unanimous")
///     .args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"])
///     .start()?;
/// let ready = coordinator.wait_for_line("ready", Duration::from_secs(10)).await?;
/// let url = format!("http://{}", ready.field("listen")?);
/// coordinator.kill();
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Program {
    name: String,
    path: PathBuf,
    arguments: Vec<OsString>,
    environment: BTreeMap<OsString, OsString>,
    directory: Option<PathBuf>,
    user: Option<User>,
    death_signal: DeathSignal,
}

impl Program {
    /// `name` is how failures call it ("east"), `path` the executable.
    pub fn new(name: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            path: path.into(),
            arguments: Vec::new(),
            environment: BTreeMap::new(),
            directory: None,
            user: None,
            death_signal: DeathSignal::Kill,
        }
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments.extend(
            arguments
                .into_iter()
                .map(|argument| argument.as_ref().to_owned()),
        );
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.environment
            .insert(name.as_ref().to_owned(), value.as_ref().to_owned());
        self
    }

    /// Sets the directory it runs in.
    #[must_use]
    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    pub(crate) fn user(mut self, user: Option<User>) -> Self {
        self.user = user;
        self
    }

    pub(crate) fn death_signal(mut self, signal: DeathSignal) -> Self {
        self.death_signal = signal;
        self
    }

    /// Starts it. It dies with this process, whatever ends that.
    pub fn start(&self) -> anyhow::Result<Process> {
        let output = scratch::file(&self.name)?;
        let child = self.spawn_into(output.as_file())?;
        Ok(Process {
            program: self.clone(),
            child,
            status: None,
            output,
            life_begins: 0,
            is_paused: false,
        })
    }

    fn spawn_into(&self, output: &File) -> anyhow::Result<Child> {
        let mut command =
            command_that_dies_with_us(&self.path, self.death_signal, self.user.as_ref());
        command
            .args(&self.arguments)
            .stdin(Stdio::null())
            // Both go to one file, in the order in which they were written.
            .stdout(output.try_clone().context("cannot share the output file")?)
            .stderr(output.try_clone().context("cannot share the output file")?);
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        remove_inherited_settings(&mut command);
        command.envs(&self.environment);
        in_its_own_group(&mut command);
        spawn(command).with_context(|| {
            format!(
                "cannot start {} ({}) with setpriv",
                self.name,
                self.path.display()
            )
        })
    }
}

/// A program under test is told everything by the test: what a developer's shell holds for another
/// coordinator or another Postgres must not change what it does.
fn remove_inherited_settings(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("UNANIMOUS_") || text.starts_with("PG") || text == "FAILPOINTS" {
            command.env_remove(&name);
        }
    }
}

/// A line that a program printed, such as `ready listen=127.0.0.1:7070 admin=127.0.0.1:7071`.
#[derive(Clone, Debug)]
pub struct Line {
    text: String,
}

impl Line {
    /// The whole line.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The value of `name=value` in the line.
    pub fn field(&self, name: &str) -> anyhow::Result<&str> {
        self.text
            .split_ascii_whitespace()
            .filter_map(|word| word.split_once('='))
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value)
            .with_context(|| format!("no `{name}=` in the line `{}`", self.text))
    }
}

/// A child process. Dropped, it is killed; when that happens in a panic, the end of its output is
/// shown first.
#[derive(Debug)]
pub struct Process {
    program: Program,
    child: Child,
    /// Known once it has ended and was waited for; from then on its id may be another's.
    status: Option<ExitStatus>,
    output: NamedTempFile,
    /// Where in the output the present life begins.
    life_begins: u64,
    is_paused: bool,
}

impl Process {
    /// The process id; another's once this one has ended.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    fn pid(&self) -> Pid {
        // Linux allows no more than 2^22 process ids.
        Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(i32::MAX))
    }

    /// True until it has ended; a paused one runs.
    pub fn is_running(&mut self) -> bool {
        self.exit_status().is_none()
    }

    /// Its exit status, once it has ended.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            // An error here means that there is no such child, and there is until `status` is set.
            self.status = self.child.try_wait().unwrap_or_default();
        }
        self.status
    }

    /// Waits until it ends by itself.
    pub async fn wait_exit(&mut self, timeout: Duration) -> anyhow::Result<ExitStatus> {
        let what = format!("{} ends", self.program.name);
        let waited = until(&what, timeout, async || self.exit_status()).await;
        waited.with_context(|| self.shown_output())
    }

    /// Waits for a line that begins with `prefix`, in what it has printed since it was started or
    /// restarted. Fails when the program ends without it.
    pub async fn wait_for_line(&mut self, prefix: &str, timeout: Duration) -> anyhow::Result<Line> {
        let what = format!("{} prints `{prefix}`", self.program.name);
        let waited = until(&what, timeout, async || {
            // Asked before the output is read: what it printed last is then in what we read.
            let ended = self.exit_status();
            let output = self.output_of_this_life()?;
            let line = output
                .split_inclusive('\n')
                .filter_map(|line| line.strip_suffix('\n'))
                .find(|line| line.starts_with(prefix));
            match (line, ended) {
                (Some(line), _) => Ok(Ok(Line {
                    text: line.to_owned(),
                })),
                (None, Some(status)) => Ok(Err(anyhow!("{what}: it ended instead, {status}"))),
                (None, None) => Err(anyhow!("no such line")),
            }
        })
        .await;
        waited.flatten().with_context(|| self.shown_output())
    }

    /// SIGKILL to it and all its children, as if the power had gone. Returns when they are gone.
    pub fn kill(&mut self) {
        if self.is_running() {
            tree::kill_tree(self.pid());
            self.status = self.child.wait().ok();
        }
    }

    /// SIGTERM, and waits until it has ended. One that does not end in 30 s is killed, and that is
    /// an error.
    pub async fn terminate(&mut self) -> anyhow::Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        let ended = self.wait_exit(TERMINATION).await;
        self.kill();
        ended.context("it did not obey SIGTERM")
    }

    /// SIGSTOP to it and all its children: it holds what it holds, connections and locks, and does
    /// nothing. Returns when all stand still.
    pub fn pause(&mut self) {
        if self.is_running() {
            tree::pause(self.pid());
            self.is_paused = true;
        }
    }

    /// Ends a [pause](Self::pause).
    pub fn resume(&mut self) {
        if self.is_running() {
            tree::resume(self.pid());
            self.is_paused = false;
        }
    }

    /// True from a [pause](Self::pause) until it goes on or has ended.
    pub fn is_paused(&mut self) -> bool {
        self.is_paused && self.is_running()
    }

    /// Kills it if it runs and starts it again as it was started before.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.kill();
        let file = self.output.as_file();
        self.life_begins = file
            .metadata()
            .context("cannot read the length of the output")?
            .len();
        self.child = self.program.spawn_into(file)?;
        self.status = None;
        self.is_paused = false;
        Ok(())
    }

    /// Like [`restart`](Self::restart), with other arguments or another environment.
    pub fn restart_as(&mut self, program: Program) -> anyhow::Result<()> {
        self.program = program;
        self.restart()
    }

    /// What to start it again with.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Sends it any signal.
    pub(crate) fn signal(&mut self, signal: Signal) -> anyhow::Result<()> {
        if !self.is_running() {
            bail!(
                "{} has already ended\n{}",
                self.program.name,
                self.shown_output()
            );
        }
        kill(self.pid(), signal)
            .with_context(|| format!("cannot send {signal} to {}", self.program.name))
    }

    /// All that it has printed, in all its lives.
    pub fn output(&self) -> anyhow::Result<String> {
        self.output_since(0)
    }

    /// What it has printed since it was started or restarted.
    pub fn output_of_this_life(&self) -> anyhow::Result<String> {
        self.output_since(self.life_begins)
    }

    /// Leaves the file with its output when it is dropped; where that is.
    pub(crate) fn keep_output(&mut self) -> &Path {
        self.output.disable_cleanup(true);
        self.output.path()
    }

    fn output_since(&self, position: u64) -> anyhow::Result<String> {
        let read = || {
            let mut file = File::open(self.output.path())?;
            file.seek(SeekFrom::Start(position))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok::<_, std::io::Error>(bytes)
        };
        let bytes =
            read().with_context(|| format!("cannot read the output of {}", self.program.name))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    pub(crate) fn shown_output(&self) -> String {
        let output = self.output().unwrap_or_else(|error| format!("{error:#}"));
        let lines: Vec<&str> = output.lines().collect();
        let shown = &lines[lines.len().saturating_sub(LINES_SHOWN)..];
        format!(
            "the end of the output of {}:\n{}",
            self.program.name,
            shown.join("\n")
        )
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            #[expect(
                clippy::print_stderr,
                reason = "the test runner shows it beside the failure"
            )]
            {
                eprintln!("{}", self.shown_output());
            }
        }
        self.kill();
    }
}

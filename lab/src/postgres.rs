//! Private Postgres clusters: real servers on 127.0.0.1 with a data directory of their own, that
//! can be stopped, killed, paused and brought back on the same port with their data.
//!
//! `fsync` and `synchronous_commit` are on, as in production: what we claim rests on them.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use nix::sys::signal::Signal;
use nix::unistd::{Uid, User};
use tempfile::TempDir;
use tokio::time::timeout;
use tokio_postgres::{Client, NoTls};

use crate::server::without_password;
use crate::spawn::DeathSignal;
use crate::wait::until;
use crate::{Process, Program, ports, scratch};

/// Names the directory of the Postgres programs to use, where the newest installed is not wanted.
pub const PROGRAMS_VARIABLE: &str = "UNANIMOUS_POSTGRES_BIN";
/// Names a directory made by `initdb`, to copy instead of running that again.
pub const TEMPLATE_VARIABLE: &str = "UNANIMOUS_TEST_PG_TEMPLATE";

/// The superuser of every cluster; it needs no password on 127.0.0.1.
const SUPERUSER: &str = "postgres";
/// Crash recovery after a kill is a part of this.
const READINESS: Duration = Duration::from_secs(60);
/// Whoever else has its port may accept a connection and then say nothing.
const ANSWER: Duration = Duration::from_secs(5);
const STOPPING: Duration = Duration::from_secs(60);
/// Another program may take a free port before the server does; that often in a row it does not.
const PORTS_TRIED: u32 = 10;

/// An installed Postgres, and the user to run it as.
#[derive(Clone, Debug)]
struct Installation {
    programs: PathBuf,
    /// Set when we are root: the programs refuse to run as root.
    user: Option<User>,
}

impl Installation {
    fn find() -> anyhow::Result<Self> {
        let programs = match std::env::var_os(PROGRAMS_VARIABLE) {
            Some(directory) => {
                let directory = PathBuf::from(directory);
                ensure!(
                    has_programs(&directory),
                    "{PROGRAMS_VARIABLE}: no initdb and postgres in {}",
                    directory.display()
                );
                directory
            }
            None => newest_programs().context(
                "no initdb and postgres in PATH or /usr/lib/postgresql/*/bin; on Debian or Ubuntu \
                 install the package postgresql, elsewhere set UNANIMOUS_POSTGRES_BIN",
            )?,
        };
        let user = if Uid::effective().is_root() {
            Some(unprivileged_user()?)
        } else {
            None
        };
        Ok(Self { programs, user })
    }

    /// Runs one of the programs to its end.
    async fn run(&self, program: &str, arguments: &[&OsStr]) -> anyhow::Result<()> {
        let mut process = Program::new(program, self.programs.join(program))
            .args(arguments)
            .env("LC_ALL", "C")
            .directory("/")
            .user(self.user.clone())
            .start()?;
        let status = process.wait_exit(READINESS).await?;
        ensure!(
            status.success(),
            "{program}: {status}\n{}",
            process.output()?
        );
        Ok(())
    }

    /// Makes a data directory with a new cluster in it.
    async fn initialize(&self, data: &Path) -> anyhow::Result<()> {
        self.make_directory(data)?;
        let mut arguments: Vec<&OsStr> = [
            ["--username", SUPERUSER],
            ["--auth", "trust"],
            ["--encoding", "UTF8"],
            ["--locale", "C"],
        ]
        .as_flattened()
        .iter()
        .map(OsStr::new)
        .collect();
        // Nobody needs this directory after a crash of the machine; the server itself does sync.
        arguments.extend([OsStr::new("--no-sync"), OsStr::new("--no-instructions")]);
        arguments.extend([OsStr::new("--pgdata"), data.as_os_str()]);
        // Held while it runs: interrupted, we kill it, and its server leaves what killed ones leave.
        let _leavings = SharedMemoryOf(data);
        self.run("initdb", &arguments).await
    }

    /// A directory as the server wants it: its own, and closed to others.
    fn make_directory(&self, path: &Path) -> anyhow::Result<()> {
        let make = || {
            fs::DirBuilder::new().mode(0o700).create(path)?;
            match &self.user {
                Some(user) => chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw())),
                None => Ok(()),
            }
        };
        make().with_context(|| format!("cannot make {}", path.display()))
    }
}

fn has_programs(directory: &Path) -> bool {
    ["initdb", "postgres"]
        .iter()
        .all(|program| directory.join(program).is_file())
}

/// PATH is the user's own choice and comes first; Debian's packages leave their programs out of it.
fn newest_programs() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if let Some(found) = std::env::split_paths(&path).find(|directory| has_programs(directory)) {
        return Some(found);
    }
    fs::read_dir("/usr/lib/postgresql")
        .ok()?
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let version: u32 = entry.file_name().to_str()?.parse().ok()?;
            Some((version, entry.path().join("bin")))
        })
        .filter(|(_, programs)| has_programs(programs))
        .max()
        .map(|(_, programs)| programs)
}

fn unprivileged_user() -> anyhow::Result<User> {
    for name in ["postgres", "nobody"] {
        if let Some(user) = User::from_name(name).context("cannot look up users")? {
            return Ok(user);
        }
    }
    bail!("Postgres does not run as root, and there is neither a user postgres nor nobody")
}

/// A data directory fresh from `initdb`, which takes a second; copying it takes a tenth.
#[derive(Debug)]
pub struct Template {
    directory: TempDir,
}

impl Template {
    /// Runs `initdb`.
    pub async fn create() -> anyhow::Result<Self> {
        let directory = scratch::directory("postgres-template")?;
        let template = Self { directory };
        Installation::find()?.initialize(&template.path()).await?;
        Ok(template)
    }

    /// The directory to copy.
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("data")
    }
}

/// How a cluster is set up.
#[derive(Clone, Debug)]
pub struct Options {
    name: String,
    template: Option<PathBuf>,
    settings: Vec<(String, String)>,
    directory: Option<PathBuf>,
}

impl Default for Options {
    /// Room for 300 connections and 100 prepared transactions; the template that `with-clusters`
    /// made, if it is there.
    fn default() -> Self {
        Self {
            name: "postgres".to_owned(),
            template: std::env::var_os(TEMPLATE_VARIABLE).map(PathBuf::from),
            settings: Vec::new(),
            directory: None,
        }
        .setting("max_connections", "300")
        .setting("max_prepared_transactions", "100")
        .setting("fsync", "on")
        .setting("synchronous_commit", "on")
    }
}

impl Options {
    /// How failures call the cluster.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Whether there is a data directory to copy.
    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// The data directory to copy; without one, `initdb` is run.
    #[must_use]
    pub fn template(mut self, template: &Template) -> Self {
        self.template = Some(template.path());
        self
    }

    /// Where its data directory is made, instead of among what is temporary.
    #[must_use]
    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// A setting of the server, as in `postgresql.conf`; the last one given counts.
    #[must_use]
    pub fn setting(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.push((name.into(), value.into()));
        self
    }
}

/// How a server is asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Disconnects everybody, rolls back what they were at, writes a checkpoint.
    Fast,
    /// Ends at once; the next start recovers from the log, as after a crash.
    Immediate,
}

/// A running (or stopped, or killed) server with its data. Dropped, it is killed and its directory
/// removed.
///
/// ```no_run
/// # use unanimous_lab::{Cluster, Options};
/// # async fn example() -> anyhow::Result<()> {
/// let mut cluster = Cluster::start(&Options::default()).await?;
/// let url = cluster.create_database("east").await?;
/// cluster.kill();
/// cluster.restart().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Cluster {
    name: String,
    // Before the directory: fields are dropped in this order, and the server must be gone by then.
    server: Process,
    directory: TempDir,
    port: u16,
}

impl Cluster {
    /// Makes a data directory, starts a server on a free port, and waits until it answers.
    pub async fn start(options: &Options) -> anyhow::Result<Self> {
        let installation = Installation::find()?;
        let directory = match &options.directory {
            Some(root) => scratch::directory_in(root, &options.name)?,
            None => scratch::directory(&options.name)?,
        };
        let data = directory.path().join("data");
        match &options.template {
            Some(template) => copy(template, &data).await?,
            None => installation.initialize(&data).await?,
        }
        let port = ports::free()?;
        let server = server_program(&installation, options, &data, port).start()?;
        let mut cluster = Self {
            name: options.name.clone(),
            server,
            directory,
            port,
        };
        for _ in 1..PORTS_TRIED {
            match cluster.wait_until_ready().await {
                Err(_) if cluster.port_was_taken() => {
                    cluster.port = ports::free()?;
                    let program = server_program(&installation, options, &data, cluster.port);
                    cluster.server.restart_as(program)?;
                }
                ready => return ready.map(|()| cluster),
            }
        }
        bail!(
            "{}: {PORTS_TRIED} ports were taken by others just before the start",
            cluster.name
        )
    }

    /// Waits until this server, and not another one on its port, answers a query.
    async fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let what = format!("{} is ready", self.name);
        let url = self.admin_url();
        let data = self.data_directory();
        let server = &mut self.server;
        let ready = until(&what, READINESS, async || {
            if let Some(status) = server.exit_status() {
                return Ok(Err(anyhow!("{what}: it ended instead, {status}")));
            }
            let answered = timeout(ANSWER, data_directory(&url))
                .await
                .context("no answer")??;
            ensure!(answered == data, "another server answers on its port");
            Ok(Ok(()))
        });
        let ready = ready.await.flatten();
        ready.with_context(|| self.server.output_of_this_life().unwrap_or_default())
    }

    fn port_was_taken(&self) -> bool {
        let output = self.server.output_of_this_life().unwrap_or_default();
        output.contains("Address already in use")
    }

    /// The port on 127.0.0.1; the same for all its life.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The server's own process id; after a restart it has another one.
    pub fn process_id(&self) -> u32 {
        self.server.id()
    }

    /// The superuser's URL of a database.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{SUPERUSER}@127.0.0.1:{}/{database}", self.port)
    }

    /// The URL of the database from which others are created.
    pub fn admin_url(&self) -> String {
        self.url("postgres")
    }

    /// Where its data is.
    pub fn data_directory(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// Creates a database with a name of its own that begins with `prefix`; its URL.
    pub async fn create_database(&self, prefix: &str) -> anyhow::Result<String> {
        create_database(&self.admin_url(), prefix).await
    }

    /// Leaves its data where it is when it is dropped.
    pub(crate) fn keep(&mut self) {
        self.directory.disable_cleanup(true);
    }

    /// The server's log, of all its lives.
    pub fn output(&self) -> anyhow::Result<String> {
        self.server.output()
    }

    /// True until it has ended; a paused one runs.
    pub fn is_running(&mut self) -> bool {
        self.server.is_running()
    }

    /// Stops it in good order or at once. Its data stays.
    pub async fn stop(&mut self, stop: Stop) -> anyhow::Result<()> {
        let signal = match stop {
            Stop::Fast => Signal::SIGINT,
            Stop::Immediate => Signal::SIGQUIT,
        };
        self.server.signal(signal)?;
        self.server.wait_exit(STOPPING).await?;
        Ok(())
    }

    /// SIGKILL to the server and all its backends at once. Its data stays.
    pub fn kill(&mut self) {
        self.server.kill();
    }

    /// Starts it again on the same port with its data, and waits until it answers, which is after
    /// crash recovery. One that runs is killed first.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            self.server.restart()?;
            match self.wait_until_ready().await {
                // Whoever took the port while it was free (a test that looked for one) will leave
                // again.
                Err(_) if self.port_was_taken() && begun.elapsed() < READINESS => {}
                ready => return ready,
            }
        }
    }

    /// SIGSTOP to the server and all its backends: connections stay open and nobody answers.
    pub fn pause(&mut self) {
        self.server.pause();
    }

    /// Ends a [pause](Self::pause).
    pub fn resume(&mut self) {
        self.server.resume();
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.server.kill();
        remove_shared_memory(&self.data_directory());
    }
}

/// The data directory of the server that answers.
async fn data_directory(url: &str) -> anyhow::Result<PathBuf> {
    let client = connect(url).await?;
    let row = client
        .query_one("SELECT current_setting('data_directory')", &[])
        .await?;
    Ok(PathBuf::from(row.get::<_, String>(0)))
}

fn server_program(
    installation: &Installation,
    options: &Options,
    data: &Path,
    port: u16,
) -> Program {
    let mut program = Program::new(&options.name, installation.programs.join("postgres"))
        .env("LC_ALL", "C")
        .directory(data)
        .user(installation.user.clone())
        .death_signal(DeathSignal::Quit)
        .arg("-D")
        .arg(data);
    let port = port.to_string();
    let ours = [
        ("listen_addresses", "127.0.0.1"),
        ("port", &port),
        // TCP only: a socket's directory would have to be writable for the server's user.
        ("unix_socket_directories", ""),
        // In files of the data directory, so that a killed server leaves none in /dev/shm.
        ("dynamic_shared_memory_type", "mmap"),
    ];
    let theirs = options
        .settings
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()));
    for (name, value) in ours.into_iter().chain(theirs) {
        program = program.arg("-c").arg(format!("{name}={value}"));
    }
    program
}

/// Copies a data directory with owners and modes.
async fn copy(template: &Path, data: &Path) -> anyhow::Result<()> {
    let mut process = Program::new("cp", "cp")
        .arg("--archive")
        .arg(template)
        .arg(data)
        .start()?;
    let status = process.wait_exit(READINESS).await?;
    ensure!(
        status.success(),
        "cannot copy {}: {}",
        template.display(),
        process.output()?
    );
    Ok(())
}

struct SharedMemoryOf<'a>(&'a Path);

impl Drop for SharedMemoryOf<'_> {
    fn drop(&mut self) {
        remove_shared_memory(self.0);
    }
}

/// A server that was killed leaves a small System V segment, by which the next one in this
/// directory notices backends that still live. There is no next one any more.
fn remove_shared_memory(data: &Path) {
    let Ok(text) = fs::read_to_string(data.join("postmaster.pid")) else {
        return;
    };
    // Its seventh line is "key id".
    let Some(id) = text
        .lines()
        .nth(6)
        .and_then(|line| line.split_ascii_whitespace().nth(1))
    else {
        return;
    };
    // A failure leaves 56 bytes in the kernel, and there is nobody to tell.
    Command::new("ipcrm").args(["--shmem-id", id]).output().ok();
}

/// Creates a database with a name of its own on the server of `admin_url`; its URL.
pub(crate) async fn create_database(admin_url: &str, prefix: &str) -> anyhow::Result<String> {
    ensure!(
        prefix
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_'),
        "a database's prefix is of a-z, 0-9 and _, not `{prefix}`"
    );
    let (server, _) = admin_url
        .rsplit_once('/')
        .context("no database in the server's URL")?;
    let name = format!("{prefix}_{:016x}", rand::random::<u64>());
    let client = connect(admin_url).await?;
    // Nobody can be connected to template0, so that this never has to wait or fail.
    client
        .batch_execute(&format!("CREATE DATABASE {name} TEMPLATE template0"))
        .await
        .with_context(|| format!("cannot create the database {name}"))?;
    Ok(format!("{server}/{name}"))
}

/// Connects; the connection ends with the client.
pub async fn connect(url: &str) -> anyhow::Result<Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls)
        .await
        .with_context(|| format!("cannot connect to {}", without_password(url)))?;
    // An error of the connection is seen by whoever uses the client.
    tokio::spawn(connection);
    Ok(client)
}

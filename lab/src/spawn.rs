//! Starting child processes that do not outlive this one, whatever ends it.

use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::thread;

use nix::unistd::User;

/// The signal that a child gets when this process is gone.
#[derive(Clone, Copy, Debug)]
pub enum DeathSignal {
    /// It ends at once.
    Kill,
    /// It may clean up, without waiting for anybody. A Postgres server removes its shared memory;
    /// at SIGTERM it would wait for its clients first.
    Quit,
}

/// A command that gets `signal` when this process ends, also when that is killed, and that runs as
/// `user` if one is given (only root can). It is to be started by [`spawn`].
///
/// The process id is the program's own, because `setpriv` becomes the program.
pub fn command_that_dies_with_us(
    program: impl AsRef<OsStr>,
    signal: DeathSignal,
    user: Option<&User>,
) -> Command {
    let mut command = Command::new("setpriv");
    command.args(match signal {
        DeathSignal::Kill => ["--pdeathsig", "KILL"],
        DeathSignal::Quit => ["--pdeathsig", "QUIT"],
    });
    if let Some(user) = user {
        command.arg("--reuid").arg(user.uid.to_string());
        command.arg("--regid").arg(user.gid.to_string());
        command.arg("--clear-groups");
    }
    command.arg("--").arg(program);
    command
}

/// A command to be started in a process group of its own: a Ctrl-C at the terminal is for us, and
/// we end our children in good order.
pub(crate) fn in_its_own_group(command: &mut Command) -> &mut Command {
    command.process_group(0)
}

struct Order {
    command: Command,
    answer: Sender<io::Result<Child>>,
}

/// The kernel sends the parent's death signal when the *thread* that started the child ends, not
/// the process. A thread of a runtime's pool or of a test may end long before we do; this one never
/// does.
static SPAWNER: LazyLock<Mutex<Sender<Order>>> = LazyLock::new(|| {
    let (orders, inbox): (_, Receiver<Order>) = mpsc::channel();
    thread::spawn(move || {
        for Order {
            mut command,
            answer,
        } in inbox
        {
            // Nobody listens any more only when the caller is gone; then its child goes as well.
            if let Err(mpsc::SendError(Ok(mut child))) = answer.send(command.spawn()) {
                child.kill().ok();
                child.wait().ok();
            }
        }
    });
    Mutex::new(orders)
});

/// Starts `command` from a thread that lives as long as this process.
pub fn spawn(command: Command) -> io::Result<Child> {
    let (answer, child) = mpsc::channel();
    let spawner = SPAWNER.lock().unwrap_or_else(PoisonError::into_inner);
    let gone = |_| io::Error::other("the thread that starts child processes has ended");
    spawner
        .send(Order { command, answer })
        .map_err(|_| gone(mpsc::RecvError))?;
    drop(spawner);
    child.recv().map_err(gone)?
}

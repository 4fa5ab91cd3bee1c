//! A process and all that descend from it, as `/proc` shows them.
//!
//! Each of a server's backends is in a process group of its own, so there is no group to signal:
//! they are found by their parents.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A process in a disk write stops or dies only after it; beyond this something else is wrong.
const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(1);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Life {
    Running,
    Stopped,
    /// Ended, whether or not its parent has noticed.
    Gone,
}

struct Stat {
    parent: Pid,
    life: Life,
}

fn stat(pid: Pid) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // "pid (name) state parent …", and the name may hold anything, parentheses too.
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let life = match fields.next()? {
        "T" | "t" => Life::Stopped,
        "Z" | "X" => Life::Gone,
        _ => Life::Running,
    };
    let parent = Pid::from_raw(fields.next()?.parse().ok()?);
    Some(Stat { parent, life })
}

fn life(pid: Pid) -> Life {
    stat(pid).map_or(Life::Gone, |stat| stat.life)
}

/// The living descendants of a process, without itself; parents come before their children.
fn descendants(ancestor: Pid) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let living: Vec<(Pid, Pid)> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .map(Pid::from_raw)
        .filter_map(|pid| {
            stat(pid)
                .filter(|s| s.life != Life::Gone)
                .map(|s| (pid, s.parent))
        })
        .collect();
    let mut found = vec![ancestor];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        found.extend(
            living
                .iter()
                .filter(|(_, its)| *its == parent)
                .map(|(pid, _)| *pid),
        );
        next += 1;
    }
    found.split_off(1)
}

/// A signal to a process that has just ended goes nowhere, and that is right for all that we send.
fn send(pid: Pid, signal: Signal) {
    kill(pid, signal).ok();
}

fn wait_for(pid: Pid, reached: impl Fn(Life) -> bool) {
    let begun = Instant::now();
    while !reached(life(pid)) && begun.elapsed() < PATIENCE {
        sleep(PAUSE);
    }
}

/// Stops a process and all its descendants; returns once they stand still.
pub(crate) fn pause(root: Pid) {
    let halt = |pid| {
        send(pid, Signal::SIGSTOP);
        wait_for(pid, |life| life != Life::Running);
    };
    // Parents first, and again until nobody new is found: who still ran may have made a child.
    halt(root);
    loop {
        let mut moving = descendants(root);
        moving.retain(|pid| life(*pid) == Life::Running);
        if moving.is_empty() {
            return;
        }
        moving.into_iter().for_each(halt);
    }
}

/// Lets a paused process and its descendants go on, children first: a parent that wakes up finds
/// them alive.
pub(crate) fn resume(root: Pid) {
    for pid in descendants(root).into_iter().rev().chain([root]) {
        send(pid, Signal::SIGCONT);
    }
}

/// Kills a process and all its descendants as if the power had gone: nobody sees another one die
/// first. Returns once they are gone; the caller reaps the root if it is its own child.
pub(crate) fn kill_tree(root: Pid) {
    pause(root);
    kill_each(&descendants(root));
    kill_each(&[root]);
}

fn kill_each(pids: &[Pid]) {
    pids.iter().for_each(|pid| send(*pid, Signal::SIGKILL));
    pids.iter()
        .for_each(|pid| wait_for(*pid, |life| life == Life::Gone));
}

/// Kills everything that still descends from this process.
///
/// A process that called `prctl(PR_SET_CHILD_SUBREAPER)` inherits the orphans below it, so that
/// this reaches what killed children have left behind, a server stopped by SIGSTOP included.
pub fn kill_all_descendants() {
    loop {
        let left = descendants(nix::unistd::getpid());
        if left.is_empty() {
            return;
        }
        kill_each(&left);
    }
}

/// The living processes that descend from the one with this id, whoever started it.
pub fn descendants_of(id: u32) -> Vec<u32> {
    let found = i32::try_from(id).map(|id| descendants(Pid::from_raw(id)));
    let ids = found.unwrap_or_default().into_iter();
    ids.filter_map(|pid| u32::try_from(pid.as_raw()).ok())
        .collect()
}

/// True while a process with this id has not ended, whoever started it.
pub fn is_alive(id: u32) -> bool {
    i32::try_from(id).is_ok_and(|id| life(Pid::from_raw(id)) != Life::Gone)
}

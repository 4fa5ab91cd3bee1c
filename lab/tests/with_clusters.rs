use std::path::Path;
use std::time::Duration;

use anyhow::ensure;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use unanimous_lab::wait::until;
use unanimous_lab::{Process, Program, is_alive, scratch};

const LAB: &str = env!("CARGO_BIN_EXE_unanimous-lab");
/// Two runs of initdb and a start, on a busy machine.
const MINUTE: Duration = Duration::from_secs(60);

/// `unanimous-lab with-clusters … -- sh -c script`, with all its temporary files in `directory`.
fn with_clusters(clusters: &str, script: &str, directory: &Path) -> anyhow::Result<Process> {
    Program::new("with-clusters", LAB)
        .args([
            "with-clusters",
            "--clusters",
            clusters,
            "--",
            "sh",
            "-c",
            script,
        ])
        .env(scratch::DIRECTORY_VARIABLE, directory)
        .start()
}

fn is_empty(directory: &Path) -> anyhow::Result<bool> {
    Ok(std::fs::read_dir(directory)?.next().is_none())
}

/// The process ids of the servers whose data is below `directory`.
fn servers_below(directory: &Path) -> anyhow::Result<Vec<u32>> {
    let mut ids = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let pid_file = entry?.path().join("data/postmaster.pid");
        if let Ok(text) = std::fs::read_to_string(pid_file) {
            ids.extend(text.lines().next().and_then(|id| id.parse::<u32>().ok()));
        }
    }
    Ok(ids)
}

#[tokio::test]
async fn it_runs_the_command_with_clusters_returns_its_code_and_leaves_nothing_behind()
-> anyhow::Result<()> {
    let directory = scratch::directory("test")?;
    // A child that nobody waits for, and a file that nobody removes.
    let script = "
        (trap '' TERM; exec sleep 1000) & left=$!
        touch \"$UNANIMOUS_LAB_DIR/file\"; test -f \"$UNANIMOUS_TEST_PG_TEMPLATE/PG_VERSION\" || exit 9
        echo urls $UNANIMOUS_TEST_POSTGRES_1 $UNANIMOUS_TEST_POSTGRES_2
        echo left pid=$left; while ! test -e \"$UNANIMOUS_LAB_DIR/go\"; do sleep 0.01; done; exit 7";
    let mut lab = with_clusters("2", script, directory.path())?;
    let left = lab
        .wait_for_line("left", MINUTE)
        .await?
        .field("pid")?
        .parse()?;
    let servers = servers_below(directory.path())?;
    assert_eq!(servers.len(), 2);
    let urls = lab.wait_for_line("urls", MINUTE).await?;
    assert_eq!(
        urls.text()
            .matches("postgres://postgres@127.0.0.1:")
            .count(),
        2
    );

    for entry in std::fs::read_dir(directory.path())? {
        let path = entry?.path();
        if path.join("file").exists() {
            std::fs::write(path.join("go"), "")?;
        }
    }
    assert_eq!(lab.wait_exit(MINUTE).await?.code(), Some(7));
    ensure!(is_empty(directory.path())?, "a file is left");
    ensure!(!is_alive(left), "the child is left");
    ensure!(!servers.into_iter().any(is_alive), "a server is left");
    Ok(())
}

#[tokio::test]
async fn told_to_stop_it_stops_the_command_and_cleans_up() -> anyhow::Result<()> {
    let directory = scratch::directory("test")?;
    let script = "trap 'exit 5' TERM; echo ready; while :; do sleep 0.01; done";
    let mut lab = with_clusters("1", script, directory.path())?;
    lab.wait_for_line("ready", MINUTE).await?;
    let servers = servers_below(directory.path())?;
    assert_eq!(servers.len(), 1);
    assert_eq!(lab.terminate().await?.code(), Some(5));
    ensure!(is_empty(directory.path())?, "a file is left");
    ensure!(!servers.into_iter().any(is_alive), "the server is left");
    Ok(())
}

#[tokio::test]
async fn programs_and_servers_die_when_their_parent_is_killed() -> anyhow::Result<()> {
    let directory = scratch::directory("test")?;
    let mut lab = with_clusters("1", "echo ready pid=$$; exec sleep 1000", directory.path())?;
    let command = lab
        .wait_for_line("ready", MINUTE)
        .await?
        .field("pid")?
        .parse()?;
    let mut children = servers_below(directory.path())?;
    children.push(command);
    assert_eq!(children.len(), 2);
    ensure!(children.iter().all(|id| is_alive(*id)));

    // Only the parent: `Process::kill` would reach the children too.
    kill(Pid::from_raw(i32::try_from(lab.id())?), Signal::SIGKILL)?;
    lab.wait_exit(MINUTE).await?;
    until("its children are gone", MINUTE, async || {
        !children.iter().any(|id| is_alive(*id))
    })
    .await
}

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use anyhow::{Context, ensure};
use unanimous_lab::wait::until;
use unanimous_lab::{Process, Program, is_alive};

const SECONDS: Duration = Duration::from_secs(10);

fn shell(script: &str) -> Program {
    Program::new("shell", "sh").args(["-c", script])
}

/// A process that counts for ever, so that one sees whether it runs.
fn counter() -> Program {
    shell("n=0; while :; do n=$((n+1)); echo n=$n; sleep 0.01; done")
}

/// One letter, as the kernel tells it: `T` is stopped.
fn state(process: u32) -> anyhow::Result<String> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    let (_, after_name) = stat.rsplit_once(") ").context("no name in it")?;
    Ok(after_name.chars().take(1).collect())
}

fn counted(process: &Process) -> anyhow::Result<usize> {
    Ok(process.output_of_this_life()?.lines().count())
}

#[tokio::test]
async fn a_line_is_found_with_its_fields() -> anyhow::Result<()> {
    let program = shell(
        "echo starting >&2; echo ready listen=127.0.0.1:7070 admin=127.0.0.1:7071; sleep 100",
    );
    let mut process = program.start()?;
    let ready = process.wait_for_line("ready", SECONDS).await?;
    assert_eq!(ready.field("listen")?, "127.0.0.1:7070");
    assert_eq!(ready.field("admin")?, "127.0.0.1:7071");
    ensure!(ready.field("missing").is_err());
    ensure!(
        process.output()?.starts_with("starting\n"),
        "both streams are kept"
    );
    Ok(())
}

#[tokio::test]
async fn a_program_that_ends_without_the_line_fails_the_wait_at_once_and_shows_its_output()
-> anyhow::Result<()> {
    let mut process = shell("echo no such table; exit 3").start()?;
    let error = process
        .wait_for_line("ready", SECONDS * 60)
        .await
        .err()
        .context("no error")?;
    let text = format!("{error:#}");
    ensure!(
        text.contains("exit status: 3") && text.contains("no such table"),
        "{text}"
    );
    Ok(())
}

#[tokio::test]
async fn a_program_that_can_not_be_started_says_so() -> anyhow::Result<()> {
    let mut process = Program::new("nothing", "/nonexistent/program").start()?;
    let error = process
        .wait_for_line("ready", SECONDS)
        .await
        .err()
        .context("no error")?;
    ensure!(
        format!("{error:#}").contains("/nonexistent/program"),
        "{error:#}"
    );
    Ok(())
}

#[tokio::test]
async fn terminate_lets_a_program_clean_up_and_tells_its_status() -> anyhow::Result<()> {
    let mut process =
        shell("trap 'echo cleaned up; exit 4' TERM; echo ready; while :; do sleep 0.01; done")
            .start()?;
    process.wait_for_line("ready", SECONDS).await?;
    assert_eq!(process.terminate().await?.code(), Some(4));
    ensure!(process.output()?.ends_with("cleaned up\n"));
    ensure!(!process.is_running());
    ensure!(process.terminate().await.is_err(), "it has already ended");
    Ok(())
}

#[tokio::test]
async fn a_kill_takes_the_children_along() -> anyhow::Result<()> {
    let mut process = shell("sleep 1000 & echo ready child=$!; wait").start()?;
    let child = process
        .wait_for_line("ready", SECONDS)
        .await?
        .field("child")?
        .parse()?;
    ensure!(is_alive(child));
    process.kill();
    ensure!(!is_alive(child));
    assert_eq!(
        process.exit_status().and_then(|status| status.signal()),
        Some(9)
    );
    Ok(())
}

#[tokio::test]
async fn a_paused_program_stands_still_until_it_is_resumed() -> anyhow::Result<()> {
    let mut process = counter().start()?;
    until("it counts", SECONDS, async || {
        counted(&process).is_ok_and(|n| n > 0)
    })
    .await?;
    process.pause();
    let stopped = async || state(process.id()).is_ok_and(|state| state == "T");
    until("it is stopped", SECONDS, stopped).await?;
    let before = counted(&process)?;
    ensure!(process.is_running(), "paused is not ended");
    process.resume();
    until("it goes on", SECONDS, async || {
        counted(&process).is_ok_and(|n| n > before)
    })
    .await
}

#[tokio::test]
async fn a_restarted_program_is_not_confused_with_its_former_life() -> anyhow::Result<()> {
    let mut process = shell("echo ready pid=$$; exec sleep 1000").start()?;
    let first = process.wait_for_line("ready", SECONDS).await?;
    process.restart()?;
    let second = process.wait_for_line("ready", SECONDS).await?;
    assert_ne!(first.text(), second.text());
    assert_eq!(second.field("pid")?, process.id().to_string());
    assert_eq!(process.output()?.lines().count(), 2);
    Ok(())
}

#[tokio::test]
async fn a_program_does_not_inherit_settings_of_the_shell() -> anyhow::Result<()> {
    // The lab's own settings are there whenever the tests run with clusters.
    let mut process = shell("env").env("UNANIMOUS_GIVEN", "yes").start()?;
    process.wait_exit(SECONDS).await?;
    let output = process.output()?;
    let ours: Vec<&str> = output
        .lines()
        .filter(|line| line.starts_with("UNANIMOUS_"))
        .collect();
    assert_eq!(ours, ["UNANIMOUS_GIVEN=yes"]);
    Ok(())
}

#[tokio::test]
async fn a_wait_that_fails_says_for_what_and_what_was_seen_last() -> anyhow::Result<()> {
    let mut looks = 0;
    let result: anyhow::Result<()> =
        until("three of them", Duration::from_millis(100), async || {
            looks += 1;
            Err(format!("{looks} so far"))
        })
        .await;
    let text = result.err().context("no error")?.to_string();
    ensure!(
        text.starts_with("three of them: not within 100ms; last seen: "),
        "{text}"
    );

    let hangs = until("an answer", Duration::from_millis(100), async || {
        std::future::pending::<bool>().await
    });
    ensure!(
        hangs.await.is_err(),
        "a look that hangs does not hang the wait"
    );
    Ok(())
}

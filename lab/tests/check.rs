//! `unanimous-lab check` as a person runs it: the participant in Python passes it, and what it exits with.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use unanimous_lab::testing::{fresh_database, python};
use unanimous_lab::wait::until;
use unanimous_lab::{Cluster, Options, Program, kill_all_descendants, ports, postgres, scratch};

const SOON: Duration = Duration::from_secs(20);

const CHECK: &str = env!("CARGO_BIN_EXE_unanimous-lab");

async fn check(arguments: &[&str]) -> anyhow::Result<Output> {
    let mut command = tokio::process::Command::new(CHECK);
    command.arg("check").args(arguments).kill_on_drop(true);
    let output = tokio::time::timeout(Duration::from_secs(170), command.output());
    output
        .await
        .context("it does not end")?
        .context("it does not start")
}

/// The script that kills the participant in Python and starts it again, and all else that the kit is told of it.
struct Stock {
    directory: tempfile::TempDir,
    port: u16,
}

impl Stock {
    async fn new() -> anyhow::Result<Self> {
        let directory = scratch::directory("check")?;
        let (port, database) = (ports::free()?, fresh_database(1).await?);
        let script = format!(
            "#!/bin/sh\n\
             cd {directory} || exit\n\
             [ -f pid ] && kill -9 \"$(cat pid)\"\n\
             {python} {examples}/participant.py --name \"${{CHECK_NAME:-stock}}\" --database {database} \
             --listen 127.0.0.1:{port} --coordinator \"$CHECK_COORDINATOR\" --stock tea=1000000 --stock seat=1 \
             >>log 2>&1 &\n\
             echo $! >pid\n",
            directory = directory.path().display(),
            python = python()?,
            examples = examples(),
        );
        let path = directory.path().join("restart.sh");
        std::fs::write(&path, script)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
        Ok(Self { directory, port })
    }

    fn restart(&self) -> String {
        self.directory
            .path()
            .join("restart.sh")
            .display()
            .to_string()
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

impl Drop for Stock {
    fn drop(&mut self) {
        // Orphans of the script are ours since the test has said so.
        kill_all_descendants();
    }
}

fn examples() -> String {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/python");
    examples.display().to_string()
}

#[tokio::test]
async fn the_participant_in_python_passes() -> anyhow::Result<()> {
    nix::sys::prctl::set_child_subreaper(true)?;
    let stock = Stock::new().await?;
    let file = |name: &str| format!("{}/{name}.json", examples());
    let (operations, refused, exclusive) = (file("operations"), file("refused"), file("exclusive"));
    let (url, restart) = (stock.url(), stock.restart());
    let look = format!("curl -sS {url}/stock/tea");
    let output = check(&[
        &url,
        "--restart",
        &restart,
        "--renamed",
        "shop",
        "--look",
        &look,
        "--json",
        "--operations",
        &operations,
        "--refused",
        &refused,
        "--exclusive",
        &exclusive,
    ])
    .await?;
    let told = String::from_utf8(output.stderr)?;
    let log = std::fs::read_to_string(stock.directory.path().join("log"))?;
    ensure!(output.status.code() == Some(0), "{told}\n{log}");
    // Standard output is the object and nothing else.
    let card: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(
        card["participant"] == "stock" && card["url"] == url.as_str(),
        "{card}"
    );
    let checks = card["checks"].as_array().context("no checks")?;
    for check in checks {
        // It announces no batches, and has nothing that only looks.
        let id = check["id"].as_str().unwrap_or_default();
        let expected = match id == "read-only" || id.starts_with("batch-") {
            true => "not applicable",
            false => "passed",
        };
        ensure!(check["result"] == expected, "{check}\n{log}");
        for member in ["rule", "without_it"] {
            ensure!(
                check[member].as_str().is_some_and(|text| !text.is_empty()),
                "{check}"
            );
        }
    }
    let all = unanimous_lab::check::checks().count();
    ensure!(checks.len() == all, "{told}");
    let of_batches = unanimous_lab::check::checks().filter(|check| check.id.starts_with("batch-"));
    let not_applicable = 1 + of_batches.count();
    let first = &checks[0]["requests"][0];
    let request = first["request"].as_str().unwrap_or_default();
    ensure!(
        request.starts_with(&format!("curl -sS -i {url}/v1/prepare -H")),
        "{first}"
    );
    ensure!(
        first["answer"]
            .as_str()
            .is_some_and(|answer| answer.starts_with("200 {")),
        "{first}"
    );
    ensure!(
        told.contains(&format!(
            "{all} checks: {} passed, 0 failed, {not_applicable} not applicable",
            all - not_applicable
        )),
        "{told}"
    );
    Ok(())
}

#[tokio::test]
async fn a_commit_of_the_participant_in_python_that_stopped_waiting_for_its_standby_is_no_yes()
-> anyhow::Result<()> {
    let cluster = Cluster::start(&Options::default()).await?;
    let database = cluster.create_database("stock").await?;
    let sql = postgres::connect(&database).await?;
    let listen = format!("127.0.0.1:{}", ports::free()?);
    let mut stock = Program::new("stock", python()?)
        .arg(format!("{}/participant.py", examples()))
        .args([
            "--database",
            &database,
            "--listen",
            &listen,
            "--stock",
            "tea=1",
        ])
        .args(["--coordinator", "http://127.0.0.1:9"])
        .start()?;
    stock.wait_for_line("ready", SOON).await?;
    let wait_for = async |standby: &str| -> anyhow::Result<()> {
        let set = format!("ALTER SYSTEM SET synchronous_standby_names = '{standby}'");
        sql.batch_execute(&set).await?;
        sql.batch_execute("SELECT pg_reload_conf()").await?;
        until("the server has read it", SOON, async || {
            let row = sql.query_one("SHOW synchronous_standby_names", &[]).await?;
            ensure!(row.get::<_, &str>(0) == standby);
            Ok(())
        })
        .await
    };
    // There is no such standby: every commit waits for it.
    wait_for("nobody").await?;
    let _ = rustls::crypto::ring::default_provider().install_default();
    let http = reqwest::Client::builder().no_proxy().build()?;
    let prepare = json!({"transaction": "00000001-0001-8000-8000-100000000001", "participant": "stock",
                         "operations": [{"kind": "reserve", "item": "tea", "count": 1}],
                         "remaining_ms": 60_000, "begun_at_ms": 1});
    let url = format!("http://{listen}/v1/prepare");
    let voted = http.post(&url).json(&prepare).send();
    let cancelled = until(
        "its commit waits, and somebody ends the wait",
        SOON,
        async || {
            let waits = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity \
                     WHERE datname = current_database() AND wait_event = 'SyncRep'";
            sql.query_opt(waits, &[]).await?.context("nobody waits")
        },
    );
    let (voted, cancelled) = tokio::join!(voted, cancelled);
    cancelled?;
    assert_eq!(
        voted?.status(),
        503,
        "Postgres calls it a success, and it is none"
    );
    // Asked again it waits again, and says yes once the standby has it: here, once there is none to wait for.
    wait_for("").await?;
    let vote: Value = http.post(&url).json(&prepare).send().await?.json().await?;
    assert_eq!(vote["vote"], "yes", "{vote}");
    Ok(())
}

#[tokio::test]
async fn a_failure_shows_the_sentence_and_the_requests_and_ends_with_1() -> anyhow::Result<()> {
    nix::sys::prctl::set_child_subreaper(true)?;
    let stock = Stock::new().await?;
    let (url, restart) = (stock.url(), stock.restart());
    // Under another name than its own it is another service.
    let operations = format!("{}/operations.json", examples());
    let output = check(&[
        &url,
        "--operations",
        &operations,
        "--name",
        "bakery",
        "--restart",
        &restart,
        "--only",
        "describe",
        "--only",
        "read-only",
    ])
    .await?;
    let told = String::from_utf8(output.stdout)?;
    ensure!(output.status.code() == Some(1), "{told}");
    for line in [
        "FAILED          describe",
        "    the sentence: docs/API.md: | `GET /v1/describe`",
        "    what was seen: it calls itself stock, and is to be bakery",
        &format!("    $ curl -sS -i {url}/v1/describe"),
        "not applicable  read-only: no --read-only FILE was given",
        "2 checks: 0 passed, 1 failed, 1 not applicable",
    ] {
        ensure!(
            told.lines().any(|told| told.starts_with(line)),
            "{line:?} is not in\n{told}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn without_a_participant_nothing_is_checked_and_it_ends_with_2() -> anyhow::Result<()> {
    let nobody = format!("http://127.0.0.1:{}", ports::free()?);
    for arguments in [
        &[nobody.as_str()][..],
        &["127.0.0.1:1"],
        &[nobody.as_str(), "--only", "everything"],
        &[nobody.as_str(), "--operations", "/nonexistent"],
        &[],
    ] {
        let output = check(arguments).await?;
        let told = String::from_utf8(output.stderr)?;
        ensure!(
            output.status.code() == Some(2),
            "{arguments:?}: {}\n{told}",
            output.status
        );
        ensure!(!told.is_empty(), "{arguments:?}: nothing says why");
    }
    Ok(())
}

#[tokio::test]
async fn operations_that_the_participant_refuses_are_the_callers_mistake() -> anyhow::Result<()> {
    nix::sys::prctl::set_child_subreaper(true)?;
    let stock = Stock::new().await?;
    let (url, restart) = (stock.url(), stock.restart());
    let refused = format!("{}/refused.json", examples());
    // Without a file they are a bank's, which this service does not know.
    for (given, why) in [
        (&[][..], "400 invalid-request"),
        (&["--operations", &refused], "not enough tea in stock"),
    ] {
        let output = check(&[&[&url, "--restart", &restart][..], given].concat()).await?;
        let told = String::from_utf8(output.stderr)?;
        ensure!(output.status.code() == Some(2), "{}: {told}", output.status);
        ensure!(
            told.contains("--operations") && told.contains(why),
            "{told}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn the_list_names_every_check() -> anyhow::Result<()> {
    let output = check(&["--list"]).await?;
    let told = String::from_utf8(output.stdout)?;
    ensure!(output.status.success());
    for check in unanimous_lab::check::checks() {
        ensure!(
            told.lines().any(|line| line == check.id),
            "{}\n{told}",
            check.id
        );
    }
    Ok(())
}

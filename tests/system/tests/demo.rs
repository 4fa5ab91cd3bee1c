//! The demo that `make demo` shows, with the programs of this build: what it tells, what it leaves, and how it ends.

use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use unanimous_lab::wait::until;
use unanimous_lab::{
    Cluster, Options, Process, Program, descendants_of, is_alive, postgres, scratch,
};

use crate::support::coordinator::{BANK, BINARY};
use crate::support::{On, lab, on_both_logs};

const FORGETFUL_BANK: &str = env!("CARGO_BIN_EXE_system-forgetful-bank");

/// For a small demo on a very busy machine.
const MINUTES: std::time::Duration = std::time::Duration::from_secs(150);

/// A demo with everything temporary in a directory of its own.
struct Demo {
    process: Process,
    directory: TempDir,
}

impl Demo {
    fn start(bank: &str, arguments: &[&str]) -> Self {
        let directory = scratch::directory("demo").expect("a directory can be made");
        let mut program = Program::new("demo", lab())
            .args(["demo", "--unanimous", BINARY, "--bank", bank])
            .args(arguments)
            .env(scratch::DIRECTORY_VARIABLE, directory.path());
        // It would run initdb, which is not what is tested here.
        if let Some(template) = std::env::var_os(postgres::TEMPLATE_VARIABLE) {
            program = program.env(postgres::TEMPLATE_VARIABLE, template);
        }
        Self {
            process: program.start().expect("the demo starts"),
            directory,
        }
    }

    async fn ends(&mut self) -> ExitStatus {
        self.process.wait_exit(MINUTES).await.expect("it ends")
    }

    fn output(&self) -> String {
        self.process.output().expect("its output can be read")
    }

    /// Files and directories that it has left.
    fn left(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.directory.path()).expect("the directory is there");
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    fn send(&self, signal: Signal) {
        let id = i32::try_from(self.process.id()).expect("a process id");
        kill(Pid::from_raw(id), signal).expect("it can be signalled");
    }

    /// Waits until it is in the middle of its load and has killed somebody; all that runs below it.
    async fn in_the_middle(&mut self) -> Vec<u32> {
        let killed = self.process.wait_for_line("  kill -9", MINUTES).await;
        killed.expect("it kills");
        let running = descendants_of(self.process.id());
        // Two servers with a few processes each, two banks, a coordinator.
        assert!(running.len() > 10, "{running:?}");
        running
    }
}

async fn are_gone(running: &[u32]) {
    until("its processes are gone", MINUTES, async || {
        let left: Vec<_> = running.iter().filter(|id| is_alive(**id)).collect();
        anyhow::ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
    .await
    .expect("they end");
}

on_both_logs! {
    the_demo_shows_a_commit_a_refusal_and_recoveries_and_its_audit_finds_nothing
}

async fn the_demo_shows_a_commit_a_refusal_and_recoveries_and_its_audit_finds_nothing(on: On) {
    let log = match on {
        On::Sqlite => "sqlite",
        On::Postgres => "postgres",
    };
    let arguments = ["--transfers", "120", "--clients", "8", "--seed", SHOWN_SEED];
    let mut demo = Demo::start(BANK, &[&arguments[..], &["--log", log]].concat());
    let status = demo.ends().await;
    let output = demo.output();
    assert!(status.success(), "{status}\n{output}");
    for words in [
        "committed, applied at both banks",
        "insufficient funds",
        "  kill -9",
        "every client was told how its transfer ended  yes",
        "no money was made or lost                     yes   200000 before, 200000 after",
        "killed          in doubt",
        "Nothing lost, nothing doubled",
    ] {
        assert!(output.contains(words), "no {words:?} in:\n{output}");
    }
    assert_eq!(output.matches("\n  kill -9 ").count(), 4, "{output}");
    assert!(
        !output.contains('\u{1b}'),
        "colours where there is no terminal"
    );
    assert!(demo.left().is_empty(), "{:?}", demo.left());
    if on == On::Sqlite {
        let shown = shown_on_the_front_page();
        assert_eq!(shape(&shown), shape(&output), "\n{shown}\n{output}");
    }
}

/// The seed of the demo that the front page shows: it says who is killed, and in which order.
const SHOWN_SEED: &str = "7";

fn shown_on_the_front_page() -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md");
    let page = std::fs::read_to_string(page).expect("the page is there");
    let (_, rest) = page.split_once("```text\nUnanimous: a change").unwrap();
    let (shown, _) = rest.split_once("\n```").unwrap();
    format!("Unanimous: a change{shown}")
}

/// What is printed, without what differs from run to run: numbers, the spaces that align them, the log's directory, and
/// how far the load is.
fn shape(printed: &str) -> Vec<String> {
    let lines = printed.lines().filter(|line| !line.contains("/s "));
    let words = |line: &str| {
        let line: String = line
            .chars()
            .map(|letter| if letter.is_ascii_digit() { '0' } else { letter })
            .collect();
        let words = line.split_ascii_whitespace().map(|word| {
            let mut word = word.to_owned();
            while word.contains("00") {
                word = word.replace("00", "0");
            }
            match word.split_once("unanimous-log-") {
                Some(_) => "LOG".to_owned(),
                None => word,
            }
        });
        words.collect::<Vec<_>>().join(" ")
    };
    lines.map(words).collect()
}

/// The members of the last line and their order, as programs read them.
const MEMBERS: [&str; 17] = [
    "transfers",
    "committed",
    "aborted",
    "unknown",
    "coordinator_kills",
    "participant_kills",
    "in_doubt",
    "applied_twice",
    "half_applied",
    "lost",
    "total_before",
    "total_after",
    "recovery_ms_max",
    "p50_ms",
    "p99_ms",
    "per_second",
    "seed",
];

#[tokio::test]
async fn with_json_standard_output_has_one_line_and_the_story_is_told_elsewhere() {
    let directory = scratch::directory("demo").expect("a directory can be made");
    let script = "\"$@\" >out 2>err; echo \"ended status=$?\"";
    let mut shell = Program::new("demo", "sh")
        .args(["-c", script, "sh"])
        .arg(lab())
        .args(["demo", "--unanimous", BINARY, "--bank", BANK, "--json"])
        .args(["--transfers", "80", "--clients", "8", "--kills", "2"])
        .args(["--seed", "4711"])
        .directory(directory.path())
        .start()
        .expect("there is a shell");
    let ended = shell.wait_for_line("ended", MINUTES).await;
    let read = |name| std::fs::read_to_string(directory.path().join(name)).unwrap();
    let (out, err) = (read("out"), read("err"));
    let ended = ended.expect("it ends");
    assert_eq!(ended.field("status").unwrap(), "0", "{out}{err}");
    assert!(err.contains("Nothing lost, nothing doubled"), "{err}");
    assert_eq!(out.lines().count(), 1, "{out}");
    let names: Vec<&str> = out.split('"').skip(1).step_by(2).collect();
    assert_eq!(names, MEMBERS, "{out}");
    let summary: Value = serde_json::from_str(&out).expect("it is JSON");
    let number = |name: &str| summary[name].as_i64().expect(name);
    assert_eq!(number("transfers"), 80);
    assert_eq!(number("committed") + number("aborted"), 80);
    assert!(number("committed") > 40, "{out}");
    for none in [
        "unknown",
        "in_doubt",
        "applied_twice",
        "half_applied",
        "lost",
    ] {
        assert_eq!(number(none), 0, "{none}: {out}");
    }
    assert_eq!(number("coordinator_kills"), 1);
    assert_eq!(number("participant_kills"), 1);
    assert_eq!(
        (number("total_before"), number("total_after")),
        (200_000, 200_000)
    );
    assert_eq!(number("seed"), 4711);
    for positive in ["recovery_ms_max", "p50_ms", "p99_ms", "per_second"] {
        assert!(number(positive) > 0, "{positive}: {out}");
    }
    assert!(number("p50_ms") <= number("p99_ms"), "{out}");
}

#[tokio::test]
async fn an_audit_that_finds_something_ends_with_1_and_says_where_to_look() {
    let arguments = ["--transfers", "40", "--clients", "4", "--kills", "0"];
    let mut demo = Demo::start(FORGETFUL_BANK, &arguments);
    let status = demo.ends().await;
    let output = demo.output();
    assert_eq!(status.code(), Some(1), "{output}");
    for words in [
        "no commit is applied at one bank only         NO, 2 findings",
        "The audit FAILED, 3 findings",
        "committed and is applied in part: at west the entry",
        "look at the table entries of west",
        "Kept, to be looked at:",
    ] {
        assert!(output.contains(words), "no {words:?} in:\n{output}");
    }
    let (_, kept) = output.split_once("Kept, to be looked at:\n").unwrap();
    let kept: Vec<&Path> = kept.lines().map(|line| Path::new(line.trim())).collect();
    assert_eq!(
        kept.len(),
        6,
        "a log, two databases, three outputs: {kept:?}"
    );
    for path in kept {
        assert!(path.exists(), "{}\n{output}", path.display());
    }
}

#[tokio::test]
async fn interrupted_in_the_middle_it_ends_everything_leaves_nothing_and_says_so() {
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        let mut demo = Demo::start(BANK, &["--transfers", "20000", "--kills", "900"]);
        let running = demo.in_the_middle().await;
        demo.send(signal);
        let status = demo.ends().await;
        assert_eq!(status.code(), Some(code), "{}", demo.output());
        assert!(
            demo.output().contains("\nInterrupted: everything"),
            "{}",
            demo.output()
        );
        let left: Vec<_> = running.iter().filter(|id| is_alive(**id)).collect();
        assert!(left.is_empty(), "{left:?}");
        assert!(demo.left().is_empty(), "{:?}", demo.left());
    }
}

#[tokio::test]
async fn killed_it_takes_every_process_with_it() {
    let mut demo = Demo::start(BANK, &["--transfers", "20000", "--kills", "900"]);
    let running = demo.in_the_middle().await;
    // Only the demo itself: `Process::kill` would reach the others too.
    demo.send(Signal::SIGKILL);
    demo.ends().await;
    are_gone(&running).await;
}

#[tokio::test]
async fn it_stays_for_who_wants_to_try_and_ends_on_ctrl_c() {
    let arguments = ["--transfers", "20", "--clients", "4", "--kills", "0"];
    let mut demo = Demo::start(BANK, &[&arguments[..], &["--stay"]].concat());
    let last = demo
        .process
        .wait_for_line("  curl -sS 'http", MINUTES)
        .await;
    last.expect("it says what to try");
    let output = demo.output();
    let lines: Vec<&str> = output
        .lines()
        .filter(|line| line.starts_with("  curl "))
        .collect();
    assert_eq!(lines.len(), 3, "{output}");
    for (line, answer) in
        lines
            .iter()
            .zip(["\"outcome\":\"committed\"", "\"account\":7", "\"next\":"])
    {
        let mut shell = Program::new("curl", "sh")
            .args(["-c", line])
            .start()
            .unwrap();
        shell.wait_exit(MINUTES).await.expect("it ends");
        let answered = shell.output().unwrap();
        assert!(answered.contains(answer), "{line}\n{answered}");
    }
    let running = descendants_of(demo.process.id());
    demo.send(Signal::SIGINT);
    assert_eq!(demo.ends().await.code(), Some(0), "{}", demo.output());
    assert!(!running.into_iter().any(is_alive));
    assert!(demo.left().is_empty(), "{:?}", demo.left());
}

/// The demo's databases on a server.
async fn databases(server: &Cluster) -> Vec<String> {
    let client = postgres::connect(&server.admin_url()).await.unwrap();
    let ours = "SELECT datname::text FROM pg_database WHERE datname LIKE 'unanimous%' ORDER BY 1";
    let rows = client.query(ours, &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

#[tokio::test]
async fn databases_on_somebodys_server_are_made_there_and_dropped_again_also_when_interrupted() {
    let server = Cluster::start(&Options::default()).await.unwrap();
    let client = postgres::connect(&server.admin_url()).await.unwrap();
    client
        .batch_execute("CREATE ROLE demo LOGIN CREATEDB PASSWORD 'secret'")
        .await
        .unwrap();
    let url = format!("postgres://demo:secret@127.0.0.1:{}", server.port());
    let given = [
        "--postgres-url",
        &url,
        "--postgres-url",
        &url,
        "--log",
        "postgres",
    ];

    let arguments = ["--transfers", "40", "--clients", "4", "--kills", "2"];
    let mut demo = Demo::start(BANK, &[&given[..], &arguments].concat());
    assert!(demo.ends().await.success(), "{}", demo.output());
    assert!(!demo.output().contains("secret"), "{}", demo.output());
    assert_eq!(databases(&server).await, [""; 0]);

    let arguments = ["--transfers", "20000", "--kills", "900"];
    let mut demo = Demo::start(BANK, &[&given[..], &arguments].concat());
    let killed = demo.process.wait_for_line("  kill -9", MINUTES).await;
    killed.expect("it kills");
    let made = databases(&server).await;
    for (name, purpose) in made.iter().zip(["decisions", "east", "west"]) {
        assert!(
            name.starts_with(&format!("unanimous_demo_{purpose}_")),
            "{made:?}"
        );
    }
    assert_eq!(made.len(), 3, "{made:?}");
    demo.send(Signal::SIGINT);
    assert_eq!(demo.ends().await.code(), Some(130), "{}", demo.output());
    assert_eq!(databases(&server).await, [""; 0]);
}

#[tokio::test]
async fn a_wrong_server_is_named_without_its_password_and_with_what_to_do() {
    let server = Cluster::start(&Options::default()).await.unwrap();
    let client = postgres::connect(&server.admin_url()).await.unwrap();
    client
        .batch_execute("CREATE ROLE nobody LOGIN")
        .await
        .unwrap();
    let right = server.admin_url();
    let may_not = format!("postgres://nobody:topsecret@127.0.0.1:{}", server.port());
    let cases: [(&[&str], &[&str]); 4] = [
        (
            &["postgres://me:topsecret@127.0.0.1:1/x", &right],
            &["postgres://me@127.0.0.1:1/x", "refused", "without TLS"],
        ),
        (
            &[&right, &may_not],
            &[
                "postgres://nobody@127.0.0.1",
                "ALTER ROLE \"nobody\" CREATEDB",
            ],
        ),
        (
            &["mysql://me:topsecret@localhost", &right],
            &["postgres://user:password@host:port/database"],
        ),
        (&[&right], &["needed twice"]),
    ];
    for (urls, names) in cases {
        let arguments: Vec<&str> = urls
            .iter()
            .flat_map(|url| ["--postgres-url", url])
            .collect();
        let mut demo = Demo::start(BANK, &arguments);
        let status = demo.ends().await;
        let output = demo.output();
        assert_eq!(status.code(), Some(1), "{output}");
        for name in names {
            assert!(output.contains(name), "no {name:?} in:\n{output}");
        }
        assert!(!output.contains("topsecret"), "{output}");
        assert!(demo.left().is_empty(), "{:?}", demo.left());
    }
}

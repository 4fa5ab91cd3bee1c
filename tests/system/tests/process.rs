//! The coordinator as a program: its start, its end, its command line.

use std::process::Command;

use reqwest::Method;
use serde_json::{Value, json};
use unanimous_lab::wait::until;
use unanimous_lab::{Program, scratch};

use crate::support::coordinator::{BINARY, serve};
use crate::support::{Answer, Coordinator, Does, Log, On, SOON, Stub, branch, on_both_logs};

/// Runs the program until it ends by itself: whether it succeeded, and all it printed.
pub(crate) async fn runs(program: Program) -> (bool, String) {
    let mut process = program.start().unwrap();
    let status = process.wait_exit(SOON).await.unwrap();
    (status.success(), process.output().unwrap())
}

pub(crate) fn new_identity(log: &Log) -> Program {
    Program::new("new-identity", BINARY).args(["log", "new-identity", "--log", &log.url()])
}

on_both_logs! {
    after_a_new_identity_ids_of_the_former_one_are_answered_from_their_records_only
}

#[tokio::test]
async fn a_coordinator_that_is_ready_says_so_in_one_line_and_is_alive_and_ready() {
    let mut coordinator = Coordinator::start(&[]).await;
    let line = coordinator.process.wait_for_line("ready ", SOON).await;
    let line = line.unwrap();
    let words: Vec<&str> = line.text().split(' ').collect();
    let [ready, listen, admin] = words[..] else {
        panic!("{line:?}")
    };
    assert_eq!(ready, "ready");
    assert!(listen.starts_with("listen=127.0.0.1:"), "{listen}");
    assert!(admin.starts_with("admin=127.0.0.1:"), "{admin}");
    for path in ["/healthz", "/readyz"] {
        Answer::of(coordinator.admin(Method::GET, path))
            .await
            .is(200);
    }
}

#[tokio::test]
async fn a_second_coordinator_on_one_file_is_refused_by_name_and_the_first_goes_on() {
    let coordinator = Coordinator::start(&[]).await;
    let id = coordinator.open().await;
    let (succeeded, output) = runs(serve(coordinator.log())).await;
    assert!(!succeeded, "{output}");
    let name = coordinator.log().path().display().to_string();
    assert!(output.contains(&name), "{output}");
    assert!(!output.contains("ready "), "{output}");
    // By another path to it, too.
    let link = coordinator.log().path().with_file_name("link.sqlite");
    std::os::unix::fs::symlink(coordinator.log().path(), &link).unwrap();
    let (succeeded, output) = runs(serve(&Log::at(&link))).await;
    assert!(!succeeded && output.contains(&name), "{output}");
    coordinator.commit(&id).await.is(200);
}

#[tokio::test]
async fn sigterm_lets_what_runs_finish_and_takes_nothing_new() {
    let east = Stub::start("east").await;
    let mut coordinator = Coordinator::start(&[&east]).await;
    east.hold("prepare");
    let body = json!({"branches": [branch("east")], "commit": true});
    let pid = coordinator.process.id().to_string();
    let running = coordinator.begin(&body);
    let stopped = async {
        east.arrived("prepare", 1).await;
        assert!(
            Command::new("kill")
                .args(["-TERM", &pid])
                .status()
                .unwrap()
                .success()
        );
        until("new ones are refused", SOON, async || {
            let refused = coordinator.begin(&json!({})).await;
            (refused.status == 503).then_some(refused).ok_or("taken")
        })
        .await
        .unwrap()
        .problem(503, "overloaded")
        .names(&["stopping"])
        .header("retry-after")
        .parse::<u64>()
        .unwrap();
        east.release("prepare");
    };
    let (done, ()) = tokio::join!(running, stopped);
    assert_eq!(done.is(200).body["outcome"], "committed");
    let status = coordinator.process.wait_exit(SOON).await.unwrap();
    assert!(status.success(), "{status}");
}

#[tokio::test]
async fn what_does_not_end_within_the_grace_time_is_aborted() {
    let east = Stub::start("east").await;
    let participants = [("east", east.url())];
    let grace = |program: Program| program.args(["--grace", "100ms"]);
    let mut coordinator = Coordinator::start_with(&participants, grace).await;
    let id = coordinator.open().await;
    coordinator.enlist(&id, &branch("east")).await.is(201);
    let status = coordinator.process.terminate().await.unwrap();
    assert!(status.success(), "{status}");
    coordinator.kill_and_restart().await;
    coordinator
        .commit(&id)
        .await
        .aborted("coordinator-restarted");
    assert_eq!(east.seen().len(), 0);
}

#[tokio::test]
async fn wrong_settings_are_refused_by_name_with_what_to_write_instead() {
    let directory = scratch::directory("settings").unwrap();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let unknown_key = file("unknown.toml", "lisen = \"127.0.0.1:1\"");
    let wrong_name = file("name.toml", "[participants]\nEast = \"http://h/\"");
    let no_log = file(
        "text.sqlite",
        "this is a letter to a friend, and no decision log at all",
    );
    let missing = directory
        .path()
        .join("missing/log.sqlite")
        .display()
        .to_string();
    let log = format!("sqlite:{}", directory.path().join("log.sqlite").display());
    let cases: &[(&[&str], &[&str])] = &[
        (&["--listen", "nowhere"], &["--listen"]),
        (&["--node", "0"], &["--node", "1..=65535"]),
        (&["--adopt-node", "0"], &["--adopt-node", "1..=65535"]),
        (
            &["--node", "7", "--adopt-node", "8,7"],
            &["--adopt-node 7", "own --node"],
        ),
        (&["--participant", "east"], &["NAME=URL"]),
        (&["--participant", "East=http://h/"], &["East"]),
        (
            &["--participant", "east=ftp://h/"],
            &["east", "ftp", "http"],
        ),
        (
            &["--participant", "east=http://u:secret@h/"],
            &["east", "password"],
        ),
        (
            &[
                "--participant",
                "east=http://h/a",
                "--participant",
                "east=http://h/b",
            ],
            &["east", "twice"],
        ),
        (&["--log", "mysql://h/db"], &["sqlite:PATH", "postgres://"]),
        (
            &["--log", "postgres://u:secret@h:port/db"],
            &["postgres://USER"],
        ),
        (&["--log", "log.sqlite"], &["sqlite:PATH"]),
        (&["--retention", "soon"], &["--retention"]),
        (&["--retention", "999ms"], &["retention", "1s"]),
        (
            &["--config", "/does/not/exist.toml"],
            &["/does/not/exist.toml"],
        ),
        (
            &["--config", &unknown_key],
            &["unknown.toml", "lisen", "listen"],
        ),
        (
            &["--config", &wrong_name],
            &["name.toml", "participants", "East"],
        ),
        (
            &["--log", &format!("sqlite:{no_log}")],
            &["text.sqlite", "not a decision log"],
        ),
        (&["--log", &format!("sqlite:{missing}")], &["missing"]),
        (&["--colour", "red"], &["--colour"]),
    ];
    let running = cases.iter().map(async |(arguments, names)| {
        let program = Program::new("coordinator", BINARY)
            .arg("serve")
            .env("UNANIMOUS_LOG", &log)
            .env("UNANIMOUS_LISTEN", "127.0.0.1:0")
            .env("UNANIMOUS_ADMIN_LISTEN", "127.0.0.1:0")
            .args(*arguments);
        let (succeeded, output) = runs(program).await;
        assert!(!succeeded, "{arguments:?}: {output}");
        assert!(!output.contains("ready "), "{arguments:?}: {output}");
        for name in *names {
            assert!(
                output.contains(name),
                "{arguments:?} without {name:?}: {output}"
            );
        }
    });
    futures_util::future::join_all(running).await;
    let kept = std::fs::read_to_string(&no_log).unwrap();
    assert!(
        kept.starts_with("this is a letter"),
        "nothing in it was changed"
    );
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let coordinator = Coordinator::start(&[]).await;
    let directory = scratch::directory("address").unwrap();
    let taken = coordinator.url().trim_start_matches("http://").to_owned();
    let program = serve(&Log::at(&directory.path().join("log.sqlite")));
    let program = Program::new("coordinator", BINARY)
        .args(["serve", "--admin-listen", "127.0.0.1:0", "--listen", &taken])
        .directory(directory.path())
        .env("UNANIMOUS_LOG", "sqlite:log.sqlite")
        .env("UNUSED", format!("{program:?}"));
    let (succeeded, output) = runs(program).await;
    assert!(!succeeded && output.contains(&taken), "{output}");
    assert!(
        !directory.path().join("log.sqlite").exists(),
        "nobody was fenced"
    );
}

#[tokio::test]
async fn settings_come_from_flags_before_the_environment_before_the_file() {
    let (east, west) = (Stub::start("east").await, Stub::start("west").await);
    let directory = scratch::directory("settings").unwrap();
    let file = directory.path().join("unanimous.toml");
    let text = format!(
        "node = 9\nlisten = \"127.0.0.1:1\"\n[participants]\neast = \"http://127.0.0.1:1/\"\n\
         west = \"{}\"\n",
        west.url()
    );
    std::fs::write(&file, text).unwrap();
    let east_url = format!("east={}", east.url());
    let coordinator = Coordinator::start_with(&[], |program| {
        program
            .env("UNANIMOUS_CONFIG", &file)
            .env("UNANIMOUS_LISTEN", "127.0.0.1:2")
            .env("UNANIMOUS_PARTICIPANTS", east_url)
    })
    .await;
    let body = json!({"branches": [branch("east"), branch("west")], "commit": true});
    let id = coordinator.begin(&body).await.is(200).id();
    let id: unanimous_protocol::id::TransactionId = id.parse().unwrap();
    assert_eq!(id.node().0, 9, "only the file names it");
}

#[tokio::test]
async fn a_new_identity_is_refused_while_a_coordinator_runs_and_for_a_file_that_is_not_there() {
    let coordinator = Coordinator::start(&[]).await;
    let (succeeded, output) = runs(new_identity(coordinator.log())).await;
    assert!(!succeeded, "{output}");
    let name = coordinator.log().path().display().to_string();
    assert!(output.contains(&name), "{output}");
    let missing = coordinator.log().path().with_file_name("missing.sqlite");
    let (succeeded, output) = runs(new_identity(&Log::at(&missing))).await;
    assert!(!succeeded && output.contains("missing.sqlite"), "{output}");
    assert!(!missing.exists());
    coordinator.begin(&json!({"commit": true})).await.is(200);
}

async fn after_a_new_identity_ids_of_the_former_one_are_answered_from_their_records_only(on: On) {
    let east = Stub::start("east").await;
    let mut coordinator = Coordinator::start_on(on, &[&east]).await;
    let body = json!({"branches": [branch("east")], "commit": true});
    let finished = coordinator.begin_keyed("k", &body).await.is(200).id();
    coordinator.reaches(&finished, "committed").await;
    let no = Does::Refuse {
        code: None,
        reason: "no",
    };
    east.once("prepare", no);
    let aborted = coordinator.begin_keyed("no", &body).await.is(409).id();
    east.hold("commit");
    let unfinished = coordinator.begin(&body).await.is(200).id();
    let open = coordinator.open().await;
    coordinator.process.kill();

    let (succeeded, output) = runs(new_identity(coordinator.log())).await;
    assert!(succeeded, "{output}");
    let former = &open[..8];
    assert!(output.contains(&format!("former={former}")), "{output}");
    coordinator.kill_and_restart().await;
    let present = coordinator.open().await;
    assert!(
        output.contains(&format!("identity={}", &present[..8])),
        "{output}"
    );
    assert_ne!(&present[..8], former);

    for (id, outcome) in [
        (&finished, "committed"),
        (&unfinished, "committed"),
        (&aborted, "aborted"),
    ] {
        let shown = coordinator.show(id).await.is(200);
        assert_eq!(shown.body["outcome"], outcome, "{}", shown.text);
        let asked = coordinator.outcome(id, "east").await.is(200);
        assert_eq!(asked.body["outcome"], outcome);
    }
    let again = coordinator.begin_keyed("k", &body).await.is(200);
    assert_eq!(again.id(), finished);
    east.release("commit");
    coordinator.reaches(&unfinished, "committed").await;

    // The part of the log that was lost may have committed it, so nobody says that it is aborted.
    let asked = coordinator.outcome(&open, "east").await.is(200);
    assert_eq!(asked.body["outcome"], "pending");
    for answer in [
        coordinator.show(&open).await,
        coordinator.commit(&open).await,
        coordinator.abort(&open).await,
        coordinator.enlist(&open, &branch("east")).await,
    ] {
        let answer = answer.problem(503, "outcome-unknown");
        assert_eq!(answer.header("retry-after"), "60");
        answer.names(&["operator"]);
    }
}

#[tokio::test]
async fn two_participants_that_refuse_a_live_prepare_as_below_low_water_stop_all_decisions() {
    let (east, west) = (Stub::start("east").await, Stub::start("west").await);
    let mut coordinator = Coordinator::start(&[&east, &west]).await;
    let of = |name: &str| json!({"branches": [branch(name)], "commit": true});
    let recorded = coordinator.begin(&of("east")).await.is(200).id();
    coordinator.reaches(&recorded, "committed").await;
    let open = coordinator.open().await;
    let below = Does::Refuse {
        code: Some("below-low-water"),
        reason: "finished long ago",
    };
    east.always("prepare", below.clone());
    for _ in 0..2 {
        coordinator.begin(&of("east")).await.aborted("refused");
    }
    let ready = Answer::of(coordinator.admin(Method::GET, "/readyz")).await;
    ready.is(200);
    west.always("prepare", below);
    let body = of("west");
    // The second one's answer may already be that nothing is said any more.
    coordinator.begin(&body).await;
    until("it is not ready", SOON, async || {
        let ready = Answer::of(coordinator.admin(Method::GET, "/readyz")).await;
        (ready.status == 503).then_some(ready).ok_or("ready")
    })
    .await
    .unwrap()
    .problem(503, "log-unavailable")
    .names(&["new-identity"]);
    Answer::of(coordinator.admin(Method::GET, "/healthz"))
        .await
        .is(200);
    for refused in [
        coordinator.begin(&json!({})).await,
        coordinator.commit(&open).await,
        coordinator.abort(&open).await,
    ] {
        let refused = refused.problem(503, "log-unavailable");
        assert!(!refused.header("retry-after").is_empty());
    }
    let asked = coordinator.outcome(&open, "east").await.is(200);
    assert_eq!(asked.body["outcome"], "pending");
    let asked = coordinator.outcome(&recorded, "east").await.is(200);
    assert_eq!(asked.body["outcome"], "committed");
    assert_eq!(
        coordinator.show(&recorded).await.is(200).body["state"],
        "committed"
    );
    assert!(
        coordinator.process.is_running(),
        "a restart would open the same epoch again"
    );
    assert_ne!(open, Value::Null);
}

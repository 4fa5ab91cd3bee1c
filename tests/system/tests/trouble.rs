//! Participants and disks in trouble: unknown is not no, and nobody waits behind a dead one.

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use unanimous_lab::lean::Lean;
use unanimous_lab::wait::until;
use unanimous_lab::{Program, scratch};

use crate::support::coordinator::BINARY;
use crate::support::metrics::Scrape;
use crate::support::{Answer, Coordinator, Does, SOON, Seen, Stub, branch};

fn transfer(participants: &[&str]) -> Value {
    let branches: Vec<Value> = participants.iter().map(|name| branch(name)).collect();
    json!({"branches": branches, "commit": true})
}

/// 200 with these members instead of the echo.
fn echo(transaction: &str, participant: &str, member: &str, value: &str) -> Does {
    Does::Json(json!({"transaction": transaction, "participant": participant, member: value}))
}

/// What is no answer to any request, by name. `member` and `value` are what would be one.
fn no_answers(member: &str, value: &str, elsewhere: &str) -> Vec<(&'static str, Does)> {
    let (own, name) = ("$transaction", "$participant");
    let other = "00000001-0001-8000-8000-100000000001";
    let long = format!(
        r#"{{"transaction":"{own}","participant":"{name}","{member}":"{value}","x":"{}"}}"#,
        "x".repeat(1 << 20)
    );
    vec![
        ("a server's error", Does::page(500, "oops")),
        ("a proxy's error", Does::page(502, "<h1>Bad Gateway</h1>")),
        ("unauthorized", Does::page(401, "")),
        ("not found", Does::page(404, "")),
        ("too many requests", Does::page(429, "")),
        ("busy", Does::problem(503, "key-busy")),
        (
            "a refusal without our media type",
            Does::page(400, r#"{"code":"invalid-request"}"#),
        ),
        ("an empty 200", Does::page(200, "")),
        ("204", Does::page(204, "")),
        ("HTML", Does::page(200, "<html>welcome</html>")),
        ("a redirect", Does::Redirect(elsewhere.to_owned())),
        ("no echo", Does::Json(json!({member: value}))),
        (
            "another transaction's echo",
            echo(other, name, member, value),
        ),
        (
            "another participant's echo",
            echo(own, "west", member, value),
        ),
        (
            "an echo with white space",
            echo(" $transaction", name, member, value),
        ),
        ("another word", echo(own, name, member, "perhaps")),
        (
            "a megabyte",
            Does::Json(serde_json::from_str(&long).unwrap()),
        ),
        ("a cut connection", Does::Cut),
    ]
}

#[tokio::test]
async fn what_is_no_answer_to_prepare_is_asked_again_and_commits_when_it_heals() {
    let (east, target) = (Stub::start("east").await, Stub::start("target").await);
    let coordinator = Coordinator::start(&[&east]).await;
    let mut asked = 0;
    let body = transfer(&["east"]);
    for (what, does) in no_answers("vote", "yes", &target.url()) {
        east.once("prepare", does);
        let done = coordinator.begin(&body).await;
        assert_eq!(done.status, 200, "{what}: {}", done.text);
        asked += 2;
        assert_eq!(east.seen_of("prepare").len(), asked, "{what}");
    }
    assert_eq!(target.seen().len(), 0, "no redirect is followed");
}

#[tokio::test]
async fn what_is_no_answer_to_prepare_by_the_deadline_aborts_and_the_abort_is_still_sent() {
    let target = Stub::start("target").await;
    let mut stubs = Vec::new();
    for (nth, (what, does)) in no_answers("vote", "yes", &target.url())
        .into_iter()
        .enumerate()
    {
        let stub = Stub::start(&format!("p{nth}")).await;
        stub.always("prepare", does);
        stubs.push((what, stub));
    }
    let stub = Stub::start("hangs").await;
    stub.always("prepare", Does::Hang);
    stubs.push(("nothing at all", stub));
    let stub = Stub::start("commits").await;
    stub.always("prepare", Does::problem(409, "vote-lost"));
    stubs.push(("a problem of another route", stub));
    let well = Stub::start("well").await;
    let all: Vec<&Stub> = stubs.iter().map(|(_, stub)| stub).chain([&well]).collect();
    let coordinator = Coordinator::start(&all).await;
    let running = stubs.iter().map(async |(what, stub)| {
        let mut body = transfer(&["well", &stub.name]);
        body["timeout_ms"] = 400.into();
        let aborted = coordinator.begin(&body).await;
        assert_eq!(aborted.status, 409, "{what}: {}", aborted.text);
        let aborted = aborted.aborted("timeout");
        assert_eq!(aborted.body["reason"]["participant"], stub.name, "{what}");
        let told = stub.arrived("abort", 1).await;
        assert_eq!(told.transaction(), aborted.id(), "{what}");
        assert_eq!(stub.seen_of("commit").len(), 0, "{what}");
    });
    join_all(running).await;
    well.arrived("abort", stubs.len()).await;
    assert_eq!(well.seen_of("commit").len(), 0);
    assert_eq!(target.seen().len(), 0, "no redirect is followed");
}

#[tokio::test]
async fn what_is_no_acknowledgement_of_a_commit_is_asked_again_until_there_is_one() {
    let (east, target) = (Stub::start("east").await, Stub::start("target").await);
    let coordinator = Coordinator::start(&[&east]).await;
    let mut told = 0;
    let mut body = transfer(&["east"]);
    body["wait"] = "applied".into();
    for (what, does) in no_answers("state", "committed", &target.url()) {
        east.once("commit", does);
        let done = coordinator.begin(&body).await;
        assert_eq!(done.status, 200, "{what}: {}", done.text);
        told += 2;
        assert_eq!(east.seen_of("commit").len(), told, "{what}");
    }
    for state in ["aborted", "prepared", "active", "read_only"] {
        east.once(
            "commit",
            echo("$transaction", "$participant", "state", state),
        );
        coordinator.begin(&body).await.is(200);
        told += 2;
        assert_eq!(east.seen_of("commit").len(), told, "{state}");
    }
    assert_eq!(target.seen().len(), 0, "no redirect is followed");
}

#[tokio::test]
async fn what_is_no_acknowledgement_of_an_abort_is_asked_again_and_the_client_does_not_wait() {
    let (east, target) = (Stub::start("east").await, Stub::start("target").await);
    let coordinator = Coordinator::start(&[&east]).await;
    let no = Does::Refuse {
        code: None,
        reason: "no",
    };
    east.always("prepare", no);
    let body = transfer(&["east"]);
    let mut told = 0;
    for (what, does) in no_answers("state", "aborted", &target.url()) {
        east.once("abort", does);
        let aborted = coordinator.begin(&body).await.aborted("refused");
        told += 2;
        east.arrived("abort", told).await;
        coordinator.reaches(&aborted.id(), "aborted").await;
        assert_eq!(east.seen_of("abort").len(), told, "{what}");
    }
}

#[tokio::test]
async fn a_participant_that_is_down_is_unreachable_by_the_deadline() {
    let (east, west) = (Stub::start("east").await, Stub::start("west").await);
    let west = west.stop().await;
    let named = [("east", east.url()), ("west", west.url())];
    let coordinator = Coordinator::start_with(&named, |program| program).await;
    let mut body = transfer(&["east", "west"]);
    body["timeout_ms"] = 300.into();
    let aborted = coordinator.begin(&body).await.aborted("unreachable");
    assert_eq!(aborted.body["reason"]["participant"], "west");
    assert_eq!(east.arrived("abort", 1).await.transaction(), aborted.id());
    // The abort goes there too, whenever it comes back.
    let west = Stub::restarted(west).await;
    assert_eq!(west.arrived("abort", 1).await.transaction(), aborted.id());
    coordinator.reaches(&aborted.id(), "aborted").await;
    assert_eq!(west.seen().len(), 1);
}

#[tokio::test]
async fn a_participant_that_comes_back_before_the_deadline_commits() {
    let (east, west) = (Stub::start("east").await, Stub::start("west").await);
    let west = west.stop().await;
    let named = [("east", east.url()), ("west", west.url())];
    let coordinator = Coordinator::start_with(&named, |program| program).await;
    let body = transfer(&["east", "west"]);
    let running = coordinator.begin(&body);
    let heals = async {
        east.arrived("prepare", 1).await;
        Stub::restarted(west).await
    };
    let (done, west) = tokio::join!(running, heals);
    let id = done.is(200).id();
    assert_eq!(west.arrived("commit", 1).await.transaction(), id);
    coordinator.reaches(&id, "committed").await;
}

#[tokio::test]
async fn a_commit_is_repeated_past_the_deadline() {
    let east = Stub::start("east").await;
    let coordinator = Coordinator::start(&[&east]).await;
    east.always("commit", Does::page(500, "oops"));
    let mut body = transfer(&["east"]);
    body["timeout_ms"] = 300.into();
    let begun = Instant::now();
    let id = coordinator.begin(&body).await.is(200).id();
    until("a commit arrives past the deadline", SOON, async || {
        let late = |seen: &Seen| seen.at - begun > Duration::from_millis(320);
        east.seen_of("commit").iter().any(late)
    })
    .await
    .unwrap();
    east.always("commit", Does::Agree);
    coordinator.reaches(&id, "committed").await;
}

#[tokio::test]
async fn vote_lost_and_outcome_differs_are_never_acknowledgements() {
    let (east, west) = (Stub::start("east").await, Stub::start("west").await);
    let north = Stub::start("north").await;
    east.always("commit", Does::problem(409, "vote-lost"));
    west.always("commit", Does::problem(409, "outcome-differs"));
    let mut coordinator = Coordinator::start(&[&east, &west, &north]).await;
    let body = transfer(&["east", "west", "north"]);
    let id = coordinator.begin(&body).await.is(200).id();
    let shown_in_doubt = async |coordinator: &Coordinator| {
        until("both alarms are shown", SOON, async || {
            let shown = coordinator.show(&id).await.body;
            let errors: Vec<&Value> = (0..3)
                .map(|n| &shown["branches"][n]["last_error"])
                .collect();
            let alarmed = errors == [&json!("vote-lost"), &Value::Null, &json!("outcome-differs")];
            let state = |n: usize| shown["branches"][n]["state"] == "committing";
            let stays = shown["state"] == "committing" && state(0) && state(2);
            if alarmed && stays { Ok(()) } else { Err(shown) }
        })
        .await
        .unwrap();
    };
    shown_in_doubt(&coordinator).await;
    // Lines are written by a thread of their own.
    until("the alarms are logged", SOON, async || {
        let log = coordinator.process.output().unwrap();
        let logged = ["vote-lost", "outcome-differs"]
            .iter()
            .all(|word| log.contains(word));
        if logged { Ok(()) } else { Err(log) }
    })
    .await
    .unwrap();
    // Asked again, at the longest interval.
    let first = east.arrived("commit", 1).await;
    let second = east.arrived("commit", 2).await;
    assert!(second.at - first.at > Duration::from_secs(5), "not at once");
    west.arrived("commit", 2).await;
    shown_in_doubt(&coordinator).await;
    // And in the next life, which asks all of them at once.
    coordinator.kill_and_restart().await;
    for stub in [&east, &west] {
        stub.arrived("commit", 3).await;
    }
    shown_in_doubt(&coordinator).await;
    let asked = coordinator.outcome(&id, "east").await;
    assert_eq!(asked.body["outcome"], "committed");
}

#[tokio::test]
async fn a_branch_that_committed_against_an_abort_keeps_it_unfinished() {
    let (east, west) = (Stub::start("east").await, Stub::start("west").await);
    let coordinator = Coordinator::start(&[&east, &west]).await;
    let no = Does::Refuse {
        code: None,
        reason: "no",
    };
    west.always("prepare", no);
    east.always("abort", Does::problem(409, "outcome-differs"));
    let id = coordinator.begin(&transfer(&["east", "west"])).await;
    let id = id.aborted("refused").id();
    let shown = until("the alarm is shown", SOON, async || {
        let shown = coordinator.show(&id).await.body;
        let error = &shown["branches"][0]["last_error"];
        if error == "outcome-differs" {
            Ok(shown)
        } else {
            Err(shown)
        }
    })
    .await
    .unwrap();
    assert_eq!(shown["state"], "aborting");
    assert_eq!(shown["branches"][0]["state"], "aborting");
}

/// The middle one of so many transfers, one after the other.
async fn median_latency(coordinator: &Coordinator, body: &Value) -> Duration {
    let mut latencies = Vec::new();
    for _ in 0..41 {
        let before = Instant::now();
        coordinator.begin(body).await.is(200);
        latencies.push(before.elapsed());
    }
    latencies.sort_unstable();
    latencies[latencies.len() / 2]
}

#[tokio::test]
async fn measured_nobody_waits_behind_a_participant_whose_prepares_never_answer() {
    const PREPARES_IN_FLIGHT_MAX: usize = 64;
    let (east, west) = (Stub::start("east").await, Stub::start("west").await);
    let north = Stub::start("north").await;
    let coordinator = Coordinator::start(&[&east, &west, &north]).await;
    let between_others = transfer(&["north", "west"]);
    let usual = median_latency(&coordinator, &between_others).await;

    // One that east has promised, and that waits for west's vote.
    west.hold("prepare");
    let mut promised = transfer(&["east", "west"]);
    promised["wait"] = "none".into();
    let promised = coordinator.begin(&promised).await.is(202).id();
    east.arrived("prepare", 1).await;
    until("east has promised", SOON, async || {
        let shown = coordinator.show(&promised).await.body;
        shown["branches"][0]["state"] == "prepared"
    })
    .await
    .unwrap();
    // Then all of east's slots, and as many that wait for one.
    east.always("prepare", Does::Hang);
    let mut hangs = transfer(&["east"]);
    hangs["wait"] = "none".into();
    let begins = (0..2 * PREPARES_IN_FLIGHT_MAX).map(|_| coordinator.begin(&hangs));
    join_all(begins).await;
    east.arrived("prepare", 1 + PREPARES_IN_FLIGHT_MAX).await;

    let decided = Instant::now();
    west.release("prepare");
    let commit = east.arrived("commit", 1).await;
    assert_eq!(commit.transaction(), promised);
    let waited = commit.at - decided;
    assert!(
        waited < Duration::from_secs(1),
        "the commit left after {waited:?}"
    );
    let meanwhile = median_latency(&coordinator, &between_others).await;
    let bound = 3 * usual + Duration::from_millis(10);
    assert!(meanwhile < bound, "{usual:?} became {meanwhile:?}");
    assert_eq!(east.seen_of("prepare").len(), 1 + PREPARES_IN_FLIGHT_MAX);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn measured_64_clients_share_decision_writes() {
    const CLIENTS: usize = 64;
    const EACH: usize = 20;
    let (east, west) = (Stub::start("east").await, Stub::start("west").await);
    let coordinator = Coordinator::start(&[&east, &west]).await;
    let body = transfer(&["east", "west"]);
    coordinator.begin(&body).await.is(200);
    let before = coordinator.log().decision_writes().await;
    // A closed loop: each asks again as soon as it was answered, and nothing brings them into step.
    let address = coordinator.address();
    let text = Bytes::from(body.to_string());
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let text = text.clone();
        clients.spawn(async move {
            let mut client = Lean::connect(address).await.unwrap();
            for _ in 0..EACH {
                let answer = client.post("/v1/transactions", &[], &text).await;
                assert_eq!(answer.unwrap().status(), 200);
            }
        });
    }
    clients.join_all().await;
    let writes = coordinator.log().decision_writes().await - before;
    let decisions = i64::try_from(CLIENTS * EACH).unwrap();
    assert!(writes > 0, "the log counts them");
    assert!(
        writes * 4 < decisions,
        "{writes} writes for {decisions} decisions"
    );
}

/// A coordinator whose log is on a small disk of its own, in a mount namespace of its own.
struct SmallDisk {
    coordinator: Coordinator,
    /// Its directory, as seen from outside of the namespace.
    filler: PathBuf,
    _directory: tempfile::TempDir,
}

impl SmallDisk {
    async fn start(participants: &[&Stub]) -> Self {
        let directory = scratch::directory("disk").unwrap();
        let path = directory.path().display().to_string();
        let mount = format!(
            "mount -t tmpfs -o size=1m tmpfs '{path}' && exec \"$0\" serve --listen 127.0.0.1:0 \
             --admin-listen 127.0.0.1:0 --log 'sqlite:{path}/log.sqlite' \"$@\""
        );
        // `-r` makes it work for whoever is not root, too.
        let mut program = Program::new("coordinator", "unshare");
        program = program.args(["-r", "-m", "sh", "-c", &mount, BINARY]);
        for stub in participants {
            program = program.args(["--participant", &format!("{}={}", stub.name, stub.url())]);
        }
        let coordinator = Coordinator::start_with(&[], |_| program).await;
        let pid = coordinator.process.id();
        let inside = PathBuf::from(format!("/proc/{pid}/root{path}"));
        Self {
            coordinator,
            filler: inside.join("filler"),
            _directory: directory,
        }
    }

    /// Until nothing more fits.
    fn fill(&self) {
        let mut file = File::create(&self.filler).unwrap();
        let error = loop {
            if let Err(error) = file.write_all(&[0; 512]) {
                break error;
            }
        };
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    }

    fn make_room(&self) {
        std::fs::remove_file(&self.filler).unwrap();
    }
}

#[tokio::test]
async fn while_the_log_s_disk_is_full_nothing_new_begins_and_what_runs_waits_for_room() {
    let east = Stub::start("east").await;
    let disk = SmallDisk::start(&[&east]).await;
    let coordinator = &disk.coordinator;
    let body = transfer(&["east"]);
    let told = coordinator.begin(&body).await.is(200).id();
    coordinator.reaches(&told, "committed").await;
    east.hold("prepare");
    let mut now = body.clone();
    now["wait"] = "none".into();
    let running = coordinator.begin(&now).await.is(202).id();
    let keyed = coordinator.begin_keyed("open", &json!({})).await;
    let keyed = keyed.is(201).id();
    east.arrived("prepare", 2).await;
    disk.fill();
    east.release("prepare");
    let ready = async || Answer::of(coordinator.admin(Method::GET, "/readyz")).await;
    until("the log is known not to answer", SOON, async || {
        ready().await.status == 503
    })
    .await
    .unwrap();
    // It stays so for as long as the disk is full: longer than the log's reads, which succeed, are apart.
    let since = Instant::now();
    while since.elapsed() < Duration::from_millis(2500) {
        ready().await.problem(503, "log-unavailable");
        let refused = coordinator.begin(&json!({})).await;
        let refused = refused.problem(503, "log-unavailable");
        assert!(!refused.header("retry-after").is_empty());
        let refused = coordinator.begin_keyed("k", &json!({})).await;
        refused.problem(503, "log-unavailable");
        let waiting = coordinator
            .show(&format!("{running}?wait_ms=100"))
            .await
            .is(200);
        assert_eq!(waiting.body["state"], "deciding");
        assert_eq!(waiting.body["outcome"], Value::Null);
    }
    let asked = coordinator.outcome(&running, "east").await.is(200);
    assert_eq!(asked.body["outcome"], "pending");
    // An abort changes nothing any more, and one with a key is told to clients only once it is durable.
    let briefly = json!({"wait_ms": 50});
    for id in [&running, &keyed] {
        let path = format!("/v1/transactions/{id}/abort");
        let waiting = coordinator.post(&path, &briefly).await.is(202);
        assert_eq!(waiting.body["state"], "deciding");
        assert_eq!(waiting.body["outcome"], Value::Null);
        assert_eq!(waiting.body["reason"], Value::Null);
        let path = format!("/v1/transactions/{id}/commit");
        let waiting = coordinator.post(&path, &briefly).await.is(202);
        assert_eq!(waiting.body["state"], "deciding");
    }
    let asked = coordinator.outcome(&keyed, "east").await.is(200);
    assert_eq!(
        asked.body["outcome"], "aborted",
        "branches may be told at once"
    );
    assert_eq!(
        coordinator.show(&told).await.is(200).body["outcome"],
        "committed"
    );
    assert_eq!(east.seen_of("commit").len(), 1, "logged before told");
    let scrape = Scrape::of(coordinator).await;
    let unavailable = "unanimous_condition{condition=\"log_unavailable\"}";
    assert_eq!(scrape.value(unavailable), 1.0);
    // The same write, again and again; no other was made since the first commit's.
    assert!(scrape.value("unanimous_log_writes_unclear_total") >= 2.0);
    assert_eq!(scrape.value("unanimous_log_decisions_total"), 1.0);
    disk.make_room();
    coordinator.commit(&running).await.is(200);
    coordinator.reaches(&running, "committed").await;
    coordinator.commit(&keyed).await.aborted("requested");
    until("new ones are taken", SOON, async || {
        ready().await.status == 200
    })
    .await
    .unwrap();
    // The refused request made no transaction, so its key is free for another.
    coordinator.begin_keyed("k", &body).await.is(200);
}

//! Whether a coordinator may still decide (design rule 11): fenced, it ends; over a log that went back, it stays and decides
//! nothing. The log is changed behind its back, as another coordinator or a restored backup would.

use std::time::{Duration, SystemTime};

use reqwest::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use unanimous_lab::wait::until;
use unanimous_protocol::id::{Epoch, TransactionId};

use crate::process::new_identity;
use crate::support::coordinator::serve;
use crate::support::{Answer, Coordinator, Does, On, SOON, Stub, branch, on_both_logs};

/// The exit code of a fenced coordinator: a supervisor tells it from a crash.
const FENCED: i32 = 3;

async fn is_not_ready(coordinator: &Coordinator) -> Answer {
    until("it is not ready", SOON, async || {
        let ready = Answer::of(coordinator.admin(Method::GET, "/readyz")).await;
        (ready.status == 503).then_some(ready).ok_or("ready")
    })
    .await
    .expect("it notices")
}

/// The same id in the next epoch, which the log has not seen.
fn in_the_next_epoch(id: &str) -> String {
    let id: TransactionId = id.parse().expect("an id");
    let next = Epoch::new(id.epoch().number() + 1).expect("there is a next epoch");
    TransactionId::new(id.prefix(), next, id.sequence()).to_string()
}

on_both_logs! {
    a_fenced_coordinator_ends_says_why_and_tells_nobody_anything
    over_a_log_that_went_back_nothing_is_decided_the_deadline_included
    a_branch_prepared_in_an_epoch_that_the_log_does_not_know_shows_that_the_log_went_back
    no_life_begins_on_a_log_that_went_back_before_it_has_a_new_identity
}

async fn a_fenced_coordinator_ends_says_why_and_tells_nobody_anything(on: On) {
    let east = Stub::start("east").await;
    let mut coordinator = Coordinator::start_on(on, &[&east]).await;
    east.hold("prepare");
    let body = json!({"branches": [branch("east")], "commit": true});
    let request = coordinator
        .request(Method::POST, "/v1/transactions")
        .json(&body);
    let client = tokio::spawn(Answer::try_of(request));
    east.arrived("prepare", 1).await;
    coordinator
        .log()
        .change("UPDATE epoch SET epoch = epoch + 1")
        .await;
    east.release("prepare");
    let status = coordinator.process.wait_exit(SOON).await.expect("it ends");
    assert_eq!(status.code(), Some(FENCED), "{status}");
    let output = coordinator.process.output().expect("its output");
    assert!(
        output.contains("fenced") && output.contains("epoch 2"),
        "{output}"
    );
    client
        .await
        .expect("no panic")
        .expect_err("the client is told nothing");
    for kind in ["commit", "abort"] {
        assert!(
            east.seen_of(kind).is_empty(),
            "the branch was sent a {kind}"
        );
    }
}

async fn over_a_log_that_went_back_nothing_is_decided_the_deadline_included(on: On) {
    let east = Stub::start("east").await;
    let mut coordinator = Coordinator::start_on(on, &[&east]).await;
    let of_east = json!({"branches": [branch("east")], "commit": true, "wait": "applied"});
    let recorded = coordinator.begin(&of_east).await.is(200).id();
    east.hold("prepare");
    let running = json!({"branches": [branch("east")], "commit": true, "wait": "none",
                         "timeout_ms": 3_000});
    let running = coordinator.begin(&running).await.is(202).id();
    east.arrived("prepare", 2).await;
    // The write of the first commit is gone from the log.
    coordinator
        .log()
        .change("UPDATE epoch SET decisions = 0")
        .await;
    let deadline = SystemTime::now() + Duration::from_secs(3);
    is_not_ready(&coordinator)
        .await
        .problem(503, "log-unavailable")
        .names(&["new-identity"]);
    east.release("prepare");
    until("the deadline has passed", SOON, async || {
        SystemTime::now() > deadline
    })
    .await
    .expect("time goes by");
    let asked = coordinator.outcome(&running, "east").await.is(200);
    assert_eq!(asked.body["outcome"], "pending");
    coordinator
        .show(&running)
        .await
        .problem(503, "log-unavailable");
    coordinator
        .begin(&of_east)
        .await
        .problem(503, "log-unavailable");
    for kind in ["commit", "abort"] {
        let sent = east
            .seen_of(kind)
            .iter()
            .filter(|seen| seen.transaction() == running)
            .count();
        assert_eq!(sent, 0, "the branch was sent a {kind}");
    }
    // What has a record is answered from it, and a restart would only open the same epoch again.
    assert_eq!(
        coordinator.outcome(&recorded, "east").await.is(200).body["outcome"],
        "committed"
    );
    assert!(coordinator.process.is_running());
}

async fn a_branch_prepared_in_an_epoch_that_the_log_does_not_know_shows_that_the_log_went_back(
    on: On,
) {
    let east = Stub::start("east").await;
    let coordinator = Coordinator::start_on(on, &[&east]).await;
    let lost = in_the_next_epoch(&coordinator.open().await);
    let held = json!({"transaction": lost, "participant": "east", "state": "prepared",
                      "since": "2026-01-02T03:04:05Z"});
    east.always(&lost, Does::Json(held));
    let asked = coordinator.outcome(&lost, "east").await.is(200);
    assert_eq!(asked.body["outcome"], "pending");
    is_not_ready(&coordinator)
        .await
        .problem(503, "log-unavailable")
        .names(&["east", &lost]);
    coordinator
        .begin(&json!({}))
        .await
        .problem(503, "log-unavailable");
}

async fn no_life_begins_on_a_log_that_went_back_before_it_has_a_new_identity(on: On) {
    let east = Stub::start("east").await;
    let mut coordinator = Coordinator::start_on(on, &[&east]).await;
    let open = coordinator.open().await;
    coordinator.log().change("DELETE FROM epoch").await;
    is_not_ready(&coordinator).await;
    coordinator.process.kill();
    // Each start would raise the epoch, past the lost ones in the end, and call aborted what they had committed.
    for _ in 0..3 {
        let mut start = serve(coordinator.log()).start().expect("it can be started");
        let status = start.wait_exit(SOON).await.expect("it ends");
        assert!(!status.success());
        let output = start.output().expect("its output");
        assert!(
            output.contains("went back") && output.contains("new-identity"),
            "{output}"
        );
    }
    let mut mended = new_identity(coordinator.log())
        .start()
        .expect("it can be started");
    assert!(mended.wait_exit(SOON).await.expect("it ends").success());
    coordinator.kill_and_restart().await;
    coordinator.begin(&json!({})).await.is(201);
    coordinator
        .show(&open)
        .await
        .problem(503, "outcome-unknown");
}

#[tokio::test]
async fn a_body_that_does_not_come_is_given_up_and_the_connection_with_it() {
    let coordinator = Coordinator::start(&[]).await;
    let address = coordinator.url().trim_start_matches("http://").to_owned();
    let mut slow = tokio::net::TcpStream::connect(address)
        .await
        .expect("it listens");
    let head = "POST /v1/transactions HTTP/1.1\r\nhost: c\r\ncontent-type: application/json\r\n\
                content-length: 100\r\n\r\n{";
    slow.write_all(head.as_bytes())
        .await
        .expect("the head is taken");
    let mut answer = vec![0; 64];
    let read = tokio::time::timeout(SOON, slow.read(&mut answer)).await;
    let read = read
        .expect("an answer, long before the client gives up")
        .expect("a readable one");
    let answer = String::from_utf8_lossy(&answer[..read]);
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
}

#[tokio::test]
async fn an_id_of_a_newer_epoch_that_somebody_made_up_changes_nothing() {
    let east = Stub::start("east").await;
    let coordinator = Coordinator::start(&[&east]).await;
    let made_up = in_the_next_epoch(&coordinator.open().await);
    east.always(&made_up, Does::problem(404, "unknown-branch"));
    let asked = coordinator.outcome(&made_up, "east").await.is(200);
    assert_eq!(asked.body["outcome"], "pending");
    east.arrived(&made_up, 1).await;
    // Whoever is not registered is not even asked.
    coordinator.outcome(&made_up, "nobody").await.is(200);
    let body = json!({"branches": [branch("east")], "commit": true});
    coordinator.begin(&body).await.is(200);
    Answer::of(coordinator.admin(Method::GET, "/readyz"))
        .await
        .is(200);
}

//! `…/commit`, `…/abort` and `GET …/{id}`, with their waits.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Coordinator, Does, On, Stub, branch, on_both_logs};

async fn open_with(coordinator: &Coordinator, participants: &[&str]) -> String {
    let branches: Vec<Value> = participants.iter().map(|name| branch(name)).collect();
    let begun = coordinator.begin(&json!({"branches": branches})).await;
    begun.is(201).id()
}

fn commit_path(id: &str) -> String {
    format!("/v1/transactions/{id}/commit")
}

fn abort_path(id: &str) -> String {
    format!("/v1/transactions/{id}/abort")
}

on_both_logs! {
    a_transaction_that_ended_is_shown_the_same_from_its_record_in_the_next_life
}

#[tokio::test]
async fn a_commit_answers_once_the_decision_is_durable_and_not_once_it_is_applied() {
    let (east, west) = (Stub::start("east").await, Stub::start("west").await);
    let coordinator = Coordinator::start(&[&east, &west]).await;
    east.hold("commit");
    let id = open_with(&coordinator, &["east", "west"]).await;
    let done = coordinator.commit(&id).await.is(200);
    assert_eq!(done.body["outcome"], "committed");
    assert_eq!(done.body["state"], "committing");
    east.release("commit");
    coordinator.reaches(&id, "committed").await;
}

#[tokio::test]
async fn waiting_for_applied_answers_once_every_updating_branch_has_acknowledged() {
    let (east, west) = (Stub::start("east").await, Stub::start("west").await);
    let coordinator = Coordinator::start(&[&east, &west]).await;
    east.hold("prepare");
    east.hold("commit");
    let id = open_with(&coordinator, &["east", "west"]).await;
    let briefly = json!({"wait": "applied", "wait_ms": 1});
    let not_yet = coordinator.post(&commit_path(&id), &briefly).await;
    assert_eq!(
        not_yet.is(202).body["outcome"],
        Value::Null,
        "a vote is missing"
    );
    east.release("prepare");
    east.arrived("commit", 1).await;
    let not_yet = coordinator.post(&commit_path(&id), &briefly).await.is(202);
    assert_eq!(not_yet.body["outcome"], "committed", "and not everywhere");
    let shown = coordinator
        .show(&format!("{id}?wait=applied&wait_ms=1"))
        .await;
    assert_eq!(shown.is(200).body["state"], "committing");
    let (path, applied) = (commit_path(&id), json!({"wait": "applied"}));
    let applied = coordinator.post(&path, &applied);
    let look = coordinator.show(&id);
    let release = async {
        look.await.is(200);
        east.release("commit");
    };
    let (done, ()) = tokio::join!(applied, release);
    assert_eq!(done.is(200).body["state"], "committed");
}

#[tokio::test]
async fn waiting_for_nothing_answers_at_once() {
    let east = Stub::start("east").await;
    let coordinator = Coordinator::start(&[&east]).await;
    east.hold("prepare");
    let body = json!({"branches": [branch("east")], "commit": true, "wait": "none"});
    let begun = coordinator.begin(&body).await.is(202);
    assert_eq!(begun.body["outcome"], Value::Null);
    assert_eq!(begun.body["state"], "preparing");
    assert_eq!(
        begun.header("location"),
        format!("/v1/transactions/{}", begun.id())
    );
    let id = open_with(&coordinator, &["east"]).await;
    let now = json!({"wait": "none"});
    let begun = coordinator.post(&commit_path(&id), &now).await.is(202);
    assert_eq!(begun.body["id"], id.as_str());
    east.release("prepare");
    coordinator.reaches(&id, "committed").await;
    let done = coordinator.post(&commit_path(&id), &now).await.is(200);
    assert_eq!(done.body["state"], "committed");
}

#[tokio::test]
async fn what_is_not_known_within_wait_ms_is_202_and_goes_on() {
    let east = Stub::start("east").await;
    let coordinator = Coordinator::start(&[&east]).await;
    east.hold("prepare");
    let body = json!({"branches": [branch("east")], "commit": true, "wait_ms": 0});
    let begun = coordinator.begin(&body).await.is(202);
    let waits = json!({"wait": "decided", "wait_ms": 50});
    let before = Instant::now();
    let same = coordinator.post(&commit_path(&begun.id()), &waits).await;
    assert_eq!(same.is(202).body["outcome"], Value::Null);
    assert!(before.elapsed() >= Duration::from_millis(50));
    east.release("prepare");
    let done = coordinator.commit(&begun.id()).await.is(200);
    assert_eq!(done.body["outcome"], "committed");
}

#[tokio::test]
async fn a_repeated_commit_returns_the_answer_as_it_stands() {
    let east = Stub::start("east").await;
    let coordinator = Coordinator::start(&[&east]).await;
    let id = open_with(&coordinator, &["east"]).await;
    let (one, other) = tokio::join!(coordinator.commit(&id), coordinator.commit(&id));
    one.is(200);
    other.is(200);
    let recorded = coordinator.reaches(&id, "committed").await;
    let again = coordinator.commit(&id).await.is(200);
    assert_eq!(again.body["decided_at"], recorded["decided_at"]);
    let applied = json!({"wait": "applied"});
    coordinator.post(&commit_path(&id), &applied).await.is(200);
    assert_eq!(east.seen_of("prepare").len(), 1);
    let no = Does::Refuse {
        code: None,
        reason: "no",
    };
    east.always("prepare", no);
    let id = open_with(&coordinator, &["east"]).await;
    let first = coordinator.commit(&id).await.aborted("refused");
    let again = coordinator.commit(&id).await.aborted("refused");
    assert_eq!(again.body["reason"], first.body["reason"]);
    for body in [json!({"wait": "applied"}), json!({"wait": "none"})] {
        let again = coordinator.post(&commit_path(&id), &body).await;
        again.aborted("refused");
    }
}

async fn a_transaction_that_ended_is_shown_the_same_from_its_record_in_the_next_life(on: On) {
    let (east, west) = (Stub::start("east").await, Stub::start("west").await);
    let mut coordinator = Coordinator::start_on(on, &[&east, &west]).await;
    let labels = json!({"order": "4711"});
    let body = json!({
        "branches": [branch("east"), branch("west")], "commit": true, "labels": labels,
    });
    let committed = coordinator.begin_keyed("good", &body).await.is(200).id();
    let no = Does::Refuse {
        code: None,
        reason: "no funds",
    };
    east.once("prepare", no);
    let aborted = coordinator.begin_keyed("bad", &body).await;
    let aborted = aborted.aborted("refused").id();
    let committed = coordinator.reaches(&committed, "committed").await;
    let aborted = coordinator.reaches(&aborted, "aborted").await;
    coordinator.process.terminate().await.unwrap();
    coordinator.kill_and_restart().await;
    let members = [
        "id",
        "state",
        "outcome",
        "reason",
        "idempotency_key",
        "labels",
        "created_at",
    ];
    let times = ["deadline", "decided_at", "finished_at"];
    for before in [committed, aborted] {
        let id = before["id"].as_str().unwrap();
        let after = coordinator.show(id).await.is(200).body;
        for member in members.iter().chain(&times) {
            assert_eq!(after[member], before[member], "{member}");
        }
        for nth in 0..2 {
            let state = |shown: &Value| shown["branches"][nth]["state"].clone();
            assert_eq!(state(&after), state(&before));
        }
    }
}

#[tokio::test]
async fn a_client_s_abort_keeps_its_reason_and_may_be_repeated() {
    let (east, west) = (Stub::start("east").await, Stub::start("west").await);
    let coordinator = Coordinator::start(&[&east, &west]).await;
    let id = open_with(&coordinator, &["east", "west"]).await;
    let body = json!({"reason": "the customer left"});
    let aborted = coordinator.post(&abort_path(&id), &body).await.is(200);
    assert_eq!(aborted.body["outcome"], "aborted");
    let reason = json!({"code": "requested", "detail": "the customer left"});
    assert_eq!(aborted.body["reason"], reason);
    let again = coordinator.abort(&id).await.is(200);
    assert_eq!(again.body["reason"], reason, "the first one stays");
    let refused = coordinator.commit(&id).await.aborted("requested");
    assert_eq!(refused.body["reason"], reason);
    assert_eq!(
        east.seen().len() + west.seen().len(),
        0,
        "nobody holds anything"
    );
}

#[tokio::test]
async fn an_abort_while_branches_are_asked_is_sent_to_them() {
    let (east, west) = (Stub::start("east").await, Stub::start("west").await);
    let coordinator = Coordinator::start(&[&east, &west]).await;
    west.hold("prepare");
    let id = open_with(&coordinator, &["east", "west"]).await;
    let now = json!({"wait": "none"});
    coordinator.post(&commit_path(&id), &now).await.is(202);
    west.arrived("prepare", 1).await;
    coordinator.abort(&id).await.is(200);
    for stub in [&east, &west] {
        assert_eq!(stub.arrived("abort", 1).await.transaction(), id);
    }
    coordinator.reaches(&id, "aborted").await;
    assert_eq!(
        east.seen_of("commit").len() + west.seen_of("commit").len(),
        0
    );
}

#[tokio::test]
async fn what_is_committed_is_not_aborted_any_more() {
    let east = Stub::start("east").await;
    let coordinator = Coordinator::start(&[&east]).await;
    east.hold("commit");
    let id = open_with(&coordinator, &["east"]).await;
    coordinator.commit(&id).await.is(200);
    for state in ["committing", "committed"] {
        coordinator.reaches(&id, state).await;
        let refused = coordinator.abort(&id).await;
        let refused = refused.problem(409, "transaction-committed");
        assert_eq!(refused.transaction()["outcome"], "committed");
        east.release("commit");
    }
    assert_eq!(east.seen_of("abort").len(), 0);
}

#[tokio::test]
async fn an_abort_s_reason_is_bounded_and_must_not_hold_u_0000() {
    let coordinator = Coordinator::start(&[]).await;
    let id = coordinator.open().await;
    let body = json!({"reason": "a\u{0}b"});
    let refused = coordinator.post(&abort_path(&id), &body).await;
    let refused = refused.problem(400, "invalid-request");
    refused.names(&["reason", "U+0000"]);
    for (body, names) in [
        (json!({"reason": 7}), "reason"),
        (json!({"wait_ms": 60_001}), "wait_ms"),
        (json!({"wait": "decided"}), "wait"),
    ] {
        let refused = coordinator.post(&abort_path(&id), &body).await;
        refused.problem(400, "invalid-request").names(&[names]);
    }
    assert_eq!(coordinator.show(&id).await.body["state"], "active");
    let body = json!({"reason": "ü".repeat(2000)});
    let aborted = coordinator.post(&abort_path(&id), &body).await.is(200);
    let detail = aborted.body["reason"]["detail"].as_str().unwrap();
    assert_eq!(detail, "ü".repeat(1024));
}

#[tokio::test]
async fn an_open_transaction_aborts_at_its_deadline() {
    let east = Stub::start("east").await;
    let coordinator = Coordinator::start(&[&east]).await;
    let body = json!({"timeout_ms": 100, "branches": [branch("east")]});
    let id = coordinator.begin(&body).await.is(201).id();
    let shown = coordinator
        .show(&format!("{id}?wait=decided"))
        .await
        .is(200);
    assert_eq!(shown.body["outcome"], "aborted");
    assert_eq!(shown.body["reason"], json!({"code": "timeout"}));
    coordinator.commit(&id).await.aborted("timeout");
    assert_eq!(east.seen().len(), 0);
}

#[tokio::test]
async fn a_branch_that_enlisted_itself_is_told_that_the_deadline_has_passed() {
    let east = Stub::start("east").await;
    let coordinator = Coordinator::start(&[&east]).await;
    let id = coordinator.begin(&json!({"timeout_ms": 200})).await.id();
    let itself = json!({"participant": "east", "session": "s-1"});
    coordinator.enlist(&id, &itself).await.is(201);
    assert_eq!(east.arrived("abort", 1).await.transaction(), id);
    coordinator.reaches(&id, "aborted").await;
}

#[tokio::test]
async fn get_holds_its_answer_until_what_it_waits_for_or_the_time_is_up() {
    let east = Stub::start("east").await;
    let coordinator = Coordinator::start(&[&east]).await;
    let id = open_with(&coordinator, &["east"]).await;
    let shown = coordinator.show(&id).await.is(200);
    assert_eq!(
        shown.body["state"], "active",
        "without a wait it answers at once"
    );
    for query in [
        "wait_ms=30",
        "wait=decided&wait_ms=30",
        "wait=applied&wait_ms=30",
    ] {
        let before = Instant::now();
        let shown = coordinator.show(&format!("{id}?{query}")).await.is(200);
        assert_eq!(shown.body["state"], "active");
        assert!(before.elapsed() >= Duration::from_millis(30), "{query}");
    }
    east.hold("commit");
    let decided = format!("{id}?wait=decided");
    let applied = format!("{id}?wait=applied");
    let (decided, committed) = tokio::join!(coordinator.show(&decided), coordinator.commit(&id));
    committed.is(200);
    assert_eq!(decided.is(200).body["outcome"], "committed");
    let release = async {
        east.arrived("commit", 1).await;
        east.release("commit");
    };
    let (applied, ()) = tokio::join!(coordinator.show(&applied), release);
    assert_eq!(applied.is(200).body["state"], "committed");
    // Of what has ended, whoever waits is answered at once.
    coordinator
        .show(&format!("{id}?wait=applied&wait_ms=60000"))
        .await
        .is(200);
}

#[tokio::test]
async fn attempts_and_the_last_error_of_a_branch_are_shown() {
    let east = Stub::start("east").await;
    let coordinator = Coordinator::start(&[&east]).await;
    east.always("prepare", Does::page(500, "<h1>oops</h1>"));
    let id = open_with(&coordinator, &["east"]).await;
    let now = json!({"wait": "none"});
    coordinator.post(&commit_path(&id), &now).await.is(202);
    east.arrived("prepare", 3).await;
    let shown = coordinator.show(&id).await.body;
    let shown = &shown["branches"][0];
    assert_eq!(shown["state"], "preparing");
    assert!(shown["attempts"].as_u64().unwrap() >= 3, "{shown}");
    assert!(
        shown["last_error"].as_str().unwrap().contains("500"),
        "{shown}"
    );
    east.always("prepare", Does::Agree);
    coordinator.commit(&id).await.is(200);
    let shown = coordinator.reaches(&id, "committed").await;
    let shown = &shown["branches"][0];
    assert_eq!(shown["last_error"], Value::Null, "{shown}");
}

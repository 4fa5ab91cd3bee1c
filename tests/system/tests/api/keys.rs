//! `Idempotency-Key`

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Answer, Coordinator, Does, On, Stub, branch, on_both_logs};

fn transfer() -> Value {
    json!({"branches": [branch("east")], "commit": true})
}

const NO: Does = Does::Refuse {
    code: None,
    reason: "no",
};

on_both_logs! {
    a_repeat_gets_the_same_transaction_and_does_its_work_once
    a_key_whose_outcome_was_told_survives_a_kill_right_after_it
    a_key_whose_outcome_was_not_recorded_begins_anew_and_the_first_one_is_aborted
    a_repeat_without_commit_is_201_even_when_the_transaction_has_ended
    an_abort_is_an_answer_and_consumes_the_key
    of_64_requests_at_once_one_makes_the_transaction_and_all_are_answered_with_it
    a_repeat_is_answered_though_its_participant_is_no_longer_registered
}

async fn a_repeat_gets_the_same_transaction_and_does_its_work_once(on: On) {
    let east = Stub::start("east").await;
    let coordinator = Coordinator::start_on(on, &[&east]).await;
    let first = coordinator.begin_keyed("k-1", &transfer()).await.is(200);
    assert_eq!(first.body["idempotency_key"], "k-1");
    let again = coordinator.begin_keyed("k-1", &transfer()).await.is(200);
    assert_eq!(again.id(), first.id());
    assert_eq!(again.header("location"), first.header("location"));
    coordinator.reaches(&first.id(), "committed").await;
    let again = coordinator.begin_keyed("k-1", &transfer()).await.is(200);
    assert_eq!(again.id(), first.id());
    assert_eq!(east.seen_of("prepare").len(), 1);
    // Without a key every request is a transaction of its own, and so it is with another key.
    for other in [
        coordinator.begin_keyed("k-2", &transfer()).await,
        coordinator.begin(&transfer()).await,
    ] {
        assert_ne!(other.is(200).id(), first.id());
    }
}

#[tokio::test]
async fn bodies_are_compared_without_null_members_waits_white_space_and_member_order() {
    let east = Stub::start("east").await;
    let coordinator = Coordinator::start(&[&east]).await;
    let send = async |body: &'static str| {
        let request = coordinator.request(Method::POST, "/v1/transactions");
        let request = request.header("idempotency-key", "k");
        let request = request.header("content-type", "application/json");
        Answer::of(request.body(body)).await
    };
    let first = send(
        r#"{"branches":[{"participant":"east","operations":[{"a":1.0,"b":null}]}],"commit":true,"labels":{"o":"1"}}"#,
    )
    .await
    .is(200);
    for same in [
        r#"{"commit":true,"labels":{"o":"1","p":null},"timeout_ms":null,
            "branches":[ {"operations":[{"b":null, "a":1.0}],"participant":"east"} ]}"#,
        r#"{"branches":[{"participant":"east","operations":[{"a":1.0,"b":null}]}],"commit":true,"labels":{"o":"1"},"wait":"applied","wait_ms":20000}"#,
        r#"{"branches":[{"participant":"east","operations":[{"\u0061":1.0,"b":null}]}],"commit":true,"labels":{"o":"\u0031"},"wait":null}"#,
    ] {
        assert_eq!(send(same).await.is(200).id(), first.id());
    }
    for other in [
        r#"{"branches":[{"participant":"east","operations":[{"a":1.00,"b":null}]}],"commit":true,"labels":{"o":"1"}}"#,
        r#"{"branches":[{"participant":"east","operations":[{"a":1.0}]}],"commit":true,"labels":{"o":"1"}}"#,
        r#"{"branches":[{"participant":"east","operations":[{"a":1.0,"b":null}]}],"commit":true,"labels":{"o":"2"}}"#,
        r#"{"branches":[{"participant":"east","operations":[{"a":1.0,"b":null}]}],"commit":true}"#,
        r#"{"branches":[{"participant":"east","operations":[{"a":1.0,"b":null}]}],"labels":{"o":"1"}}"#,
        r#"{"branches":[{"participant":"east","operations":[{"a":1.0,"b":null}]}],"commit":true,"labels":{"o":"1"},"timeout_ms":29000}"#,
        "{}",
    ] {
        send(other).await.problem(422, "idempotency-key-reused");
    }
    assert_eq!(east.seen_of("prepare").len(), 1);
}

#[tokio::test]
async fn a_repeat_while_it_runs_is_answered_as_it_stands_and_waits_with_it() {
    let east = Stub::start("east").await;
    let coordinator = Coordinator::start(&[&east]).await;
    east.hold("prepare");
    let mut now = transfer();
    now["wait"] = "none".into();
    let first = coordinator.begin_keyed("k", &now).await.is(202);
    let again = coordinator.begin_keyed("k", &now).await.is(202);
    assert_eq!(again.id(), first.id());
    let other = coordinator.begin_keyed("k", &json!({})).await;
    other.problem(422, "idempotency-key-reused");
    let body = transfer();
    let waiting = coordinator.begin_keyed("k", &body);
    let release = async {
        east.arrived("prepare", 1).await;
        east.release("prepare");
    };
    let (done, ()) = tokio::join!(waiting, release);
    assert_eq!(done.is(200).id(), first.id());
    assert_eq!(east.seen_of("prepare").len(), 1);
}

async fn a_key_whose_outcome_was_told_survives_a_kill_right_after_it(on: On) {
    let east = Stub::start("east").await;
    let mut coordinator = Coordinator::start_on(on, &[&east]).await;
    let committed = coordinator.begin_keyed("good", &transfer()).await.is(200);
    east.once("prepare", NO);
    let aborted = coordinator.begin_keyed("bad", &transfer()).await;
    let aborted = aborted.aborted("refused");
    let empty = json!({"commit": true});
    let nothing = coordinator.begin_keyed("empty", &empty).await.is(200);
    coordinator.kill_and_restart().await;
    let again = coordinator.begin_keyed("good", &transfer()).await.is(200);
    assert_eq!(again.id(), committed.id());
    let again = coordinator.begin_keyed("bad", &transfer()).await;
    let again = again.aborted("refused");
    assert_eq!(again.id(), aborted.id());
    assert_eq!(again.body["reason"], aborted.body["reason"]);
    let again = coordinator.begin_keyed("empty", &empty).await.is(200);
    assert_eq!(again.id(), nothing.id());
    for key in ["good", "bad", "empty"] {
        let other = coordinator.begin_keyed(key, &json!({})).await;
        other.problem(422, "idempotency-key-reused");
    }
    assert_eq!(east.seen_of("prepare").len(), 2, "no work was done twice");
}

async fn a_key_whose_outcome_was_not_recorded_begins_anew_and_the_first_one_is_aborted(on: On) {
    let east = Stub::start("east").await;
    let mut coordinator = Coordinator::start_on(on, &[&east]).await;
    east.hold("prepare");
    let mut now = transfer();
    now["wait"] = "none".into();
    let first = coordinator.begin_keyed("k", &now).await.is(202).id();
    east.arrived("prepare", 1).await;
    coordinator.process.kill();
    east.release("prepare");
    coordinator.kill_and_restart().await;
    let second = coordinator.begin_keyed("k", &transfer()).await.is(200).id();
    assert_ne!(second, first);
    let shown = coordinator.show(&first).await.is(200);
    assert_eq!(shown.body["reason"]["code"], "coordinator-restarted");
}

async fn a_repeat_without_commit_is_201_even_when_the_transaction_has_ended(on: On) {
    let mut coordinator = Coordinator::start_on(on, &[]).await;
    let body = json!({"labels": {"order": "1"}});
    let id = coordinator.begin_keyed("k", &body).await.is(201).id();
    let again = coordinator.begin_keyed("k", &body).await.is(201);
    assert_eq!(
        (again.id(), &again.body["state"]),
        (id.clone(), &json!("active"))
    );
    coordinator.abort(&id).await.is(200);
    let again = coordinator.begin_keyed("k", &body).await.is(201);
    assert_eq!(
        (again.id(), &again.body["outcome"]),
        (id.clone(), &json!("aborted"))
    );
    assert_eq!(again.header("location"), format!("/v1/transactions/{id}"));
    coordinator.kill_and_restart().await;
    let again = coordinator.begin_keyed("k", &body).await.is(201);
    assert_eq!(
        (again.id(), &again.body["outcome"]),
        (id, &json!("aborted"))
    );
}

#[tokio::test]
async fn a_request_that_made_no_transaction_does_not_consume_its_key() {
    let east = Stub::start("east").await;
    let coordinator = Coordinator::start(&[&east]).await;
    let send = async |content_type: &'static str, body: String| {
        let request = coordinator.request(Method::POST, "/v1/transactions");
        let request = request.header("idempotency-key", "k");
        Answer::of(request.header("content-type", content_type).body(body)).await
    };
    let json = "application/json";
    send(json, r#"{"timeout_ms": 0}"#.to_owned()).await.is(400);
    let unknown = r#"{"branches":[{"participant":"north"}]}"#.to_owned();
    send(json, unknown)
        .await
        .problem(400, "unknown-participant");
    send("text/plain", "{}".to_owned()).await.is(415);
    send(json, " ".repeat(300_000)).await.is(413);
    let id = coordinator.begin_keyed("k", &transfer()).await.is(200).id();
    let refused = coordinator.begin_keyed("k", &json!({})).await;
    refused.problem(422, "idempotency-key-reused");
    let again = coordinator.begin_keyed("k", &transfer()).await.is(200);
    assert_eq!(again.id(), id, "nor did the 422 change anything");
}

async fn an_abort_is_an_answer_and_consumes_the_key(on: On) {
    let east = Stub::start("east").await;
    let coordinator = Coordinator::start_on(on, &[&east]).await;
    east.once("prepare", NO);
    let first = coordinator.begin_keyed("k", &transfer()).await;
    let first = first.aborted("refused");
    let again = coordinator.begin_keyed("k", &transfer()).await;
    assert_eq!(again.aborted("refused").id(), first.id());
    assert_eq!(east.seen_of("prepare").len(), 1);
}

#[tokio::test]
async fn a_key_is_1_to_255_printable_ascii_characters_and_given_once() {
    let coordinator = Coordinator::start(&[]).await;
    let printable: String = (b'!'..=b'~').map(char::from).collect();
    for good in ["k".to_owned(), "a b".to_owned(), printable, "k".repeat(255)] {
        let begun = coordinator.begin_keyed(&good, &json!({})).await.is(201);
        assert_eq!(begun.body["idempotency_key"], good.as_str());
    }
    for bad in [
        &b""[..],
        &b"k".repeat(256),
        b"a\tb",
        "ü".as_bytes(),
        b"\xff",
    ] {
        let request = coordinator.request(Method::POST, "/v1/transactions");
        let refused = Answer::of(request.header("idempotency-key", bad)).await;
        let refused = refused.problem(400, "invalid-request");
        refused.names(&["Idempotency-Key"]);
    }
    for (one, other) in [("a", "b"), ("a", "a")] {
        let request = coordinator.request(Method::POST, "/v1/transactions");
        let request = request.header("idempotency-key", one);
        let refused = Answer::of(request.header("idempotency-key", other)).await;
        let refused = refused.problem(400, "invalid-request");
        refused.names(&["Idempotency-Key"]);
    }
}

async fn of_64_requests_at_once_one_makes_the_transaction_and_all_are_answered_with_it(on: On) {
    let east = Stub::start("east").await;
    let coordinator = Coordinator::start_on(on, &[&east]).await;
    let body = transfer();
    for key in ["one", "two"] {
        let requests = (0..64).map(|_| coordinator.begin_keyed(key, &body));
        let answers = futures_util::future::join_all(requests).await;
        let id = answers[0].id();
        for answer in answers {
            assert_eq!(answer.is(200).id(), id);
        }
    }
    assert_eq!(east.seen_of("prepare").len(), 2);
}

async fn a_repeat_is_answered_though_its_participant_is_no_longer_registered(on: On) {
    let east = Stub::start("east").await;
    let mut coordinator = Coordinator::start_on(on, &[&east]).await;
    let id = coordinator.begin_keyed("k", &transfer()).await.is(200).id();
    coordinator.reaches(&id, "committed").await;
    let without = crate::support::coordinator::serve(coordinator.log());
    coordinator.restart_as(without).await;
    let again = coordinator.begin_keyed("k", &transfer()).await.is(200);
    assert_eq!(again.id(), id);
    let unknown = coordinator.begin_keyed("other", &transfer()).await;
    unknown.problem(400, "unknown-participant");
}

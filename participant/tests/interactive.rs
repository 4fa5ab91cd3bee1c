//! Interactive work is all there at prepare, or the vote is no.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use serde_json::{Value, json};
use unanimous_participant::{InteractiveError, TraceContext, TransactionId};

use crate::{
    inquiry::Coordinator,
    service::{NOWHERE, Operation, Service, branch_body, id, note, post, prepare_body},
};

fn added(text: &str) -> Operation {
    Operation::Note {
        text: text.to_owned(),
    }
}

fn enlisted_answer(remaining_ms: u64) -> String {
    let branch = json!({"participant": "east", "state": "enlisted", "attempts": 0, "last_error": null,
                        "remaining_ms": remaining_ms});
    branch.to_string()
}

/// Takes every enlisting, and tells which session it was given.
async fn enlisting(remaining_ms: u64) -> (Coordinator, Arc<Mutex<Vec<Value>>>) {
    let bodies = Arc::<Mutex<Vec<Value>>>::default();
    let seen = Arc::clone(&bodies);
    let coordinator = Coordinator::answering(move |asked, body| {
        if asked.contains("/outcome") {
            return (503, String::new());
        }
        seen.lock().unwrap().push(body.clone());
        (201, enlisted_answer(remaining_ms))
    })
    .await;
    (coordinator, bodies)
}

fn transaction(number: u32) -> TransactionId {
    id(number).parse().unwrap()
}

#[tokio::test]
async fn added_operations_run_at_prepare_after_those_that_were_sent() {
    let (coordinator, enlisted) = enlisting(20_000).await;
    let url = coordinator.url.clone();
    let east = Service::start_with(|builder| builder.coordinator(NOWHERE).coordinator(url)).await;
    let branch = east.participant.interactive(transaction(1)).await.unwrap();
    branch.add(&added("b")).unwrap();
    let again = east.participant.interactive(transaction(1)).await.unwrap();
    again.add(&added("c")).unwrap();
    let enlisted = enlisted.lock().unwrap().clone();
    assert_eq!(enlisted.len(), 1, "enlisted once, before the first work");
    assert_eq!(enlisted[0]["participant"], "east");
    let seen = east.get(&format!("/v1/branches/{}", id(1))).await;
    seen.is_state("active");
    let active = east.get("/v1/branches?state=active").await;
    assert_eq!(active.body["branches"].as_array().unwrap().len(), 1);
    east.commit(&id(1)).await.is_problem(409, "vote-lost");

    let mut body = prepare_body(&id(1), note("a"));
    body["session"] = enlisted[0]["session"].clone();
    east.post("/v1/prepare", &body).await.is_vote("yes");
    assert!(branch.add(&added("late")).is_err());
    let east = east.restart(|builder| builder.coordinator(NOWHERE)).await;
    east.post("/v1/prepare", &body).await.is_vote("yes");
    east.commit(&id(1)).await.is_state("committed");
    assert_eq!(
        east.journal(&id(1)).await,
        [
            "prepared a",
            "prepared b",
            "prepared c",
            "committed a",
            "committed b",
            "committed c"
        ]
    );
}

#[tokio::test]
async fn a_prepare_of_another_session_or_of_none_finds_its_work_lost() {
    let (coordinator, enlisted) = enlisting(20_000).await;
    let url = coordinator.url.clone();
    let east = Service::start_with(|builder| builder.coordinator(url)).await;
    for (number, session) in [(1, json!("another")), (2, Value::Null)] {
        let branch = east
            .participant
            .interactive(transaction(number))
            .await
            .unwrap();
        branch.add(&added("b")).unwrap();
        let mut body = prepare_body(&id(number), json!([]));
        body["session"] = session;
        east.post("/v1/prepare", &body).await.is_no("work-lost");
        assert!(branch.add(&added("late")).is_err());
    }
    let branch = east.participant.interactive(transaction(3)).await.unwrap();
    branch.add(&added("b")).unwrap();
    let east = east.restart(|builder| builder.coordinator(NOWHERE)).await;
    let mut body = prepare_body(&id(3), json!([]));
    body["session"] = enlisted.lock().unwrap()[2]["session"].clone();
    east.post("/v1/prepare", &body).await.is_no("work-lost");
    assert_eq!(east.count("SELECT count(*) FROM journal").await, 0);
}

#[tokio::test]
async fn work_of_a_client_that_died_is_dropped_at_the_deadline() {
    let (coordinator, enlisted) = enlisting(200).await;
    let url = coordinator.url.clone();
    let east = Service::start_with(|builder| builder.coordinator(url)).await;
    let branch = east.participant.interactive(transaction(1)).await.unwrap();
    branch.add(&added("b")).unwrap();
    east.until("SELECT count(*) = 1 FROM unanimous.branches WHERE state = 'tombstone'")
        .await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(branch.add(&added("late")).is_err());
    let mut body = prepare_body(&id(1), json!([]));
    body["session"] = enlisted.lock().unwrap()[0]["session"].clone();
    east.post("/v1/prepare", &body).await.is_no("aborted");
}

#[tokio::test]
async fn a_read_only_vote_is_repeated_when_its_answer_was_lost() {
    let (coordinator, enlisted) = enlisting(20_000).await;
    let url = coordinator.url.clone();
    let east = Service::start_with(|builder| builder.coordinator(url)).await;
    let branch = east.participant.interactive(transaction(1)).await.unwrap();
    branch.add(&Operation::Look).unwrap();
    let mut body = prepare_body(&id(1), json!([]));
    body["session"] = enlisted.lock().unwrap()[0]["session"].clone();
    for _ in 0..3 {
        east.post("/v1/prepare", &body).await.is_vote("read_only");
    }
    assert!(branch.add(&added("late")).is_err());
    assert_eq!(east.count("SELECT count(*) FROM journal").await, 0);
    let seen = east.get(&format!("/v1/branches/{}", id(1))).await;
    seen.is_state("read_only");
    let active = east.get("/v1/branches?state=active").await;
    assert_eq!(active.body["branches"], json!([]));
    body["session"] = json!("another");
    east.post("/v1/prepare", &body).await.is_no("work-lost");
}

#[tokio::test]
async fn work_is_forgotten_as_soon_as_a_row_answers_for_it() {
    let (coordinator, enlisted) = enlisting(20_000).await;
    let url = coordinator.url.clone();
    let east = Service::start_with(|builder| builder.coordinator(url)).await;
    let branch = east.participant.interactive(transaction(1)).await.unwrap();
    branch.add(&added("b")).unwrap();
    // The abort reaches another process of the service.
    let other = crate::service::east(&east.database).coordinator(NOWHERE);
    let other = other.start().await.unwrap();
    let aborted = post(&other, "/v1/abort", &branch_body(&id(1))).await;
    aborted.is_state("aborted");
    let mut body = prepare_body(&id(1), json!([]));
    body["session"] = enlisted.lock().unwrap()[0]["session"].clone();
    east.post("/v1/prepare", &body).await.is_no("aborted");
    let active = east.get("/v1/branches?state=active").await;
    assert_eq!(active.body["branches"], json!([]));
}

#[tokio::test]
async fn an_enlisting_without_an_answer_is_tried_again_with_the_same_session() {
    let bodies = Arc::<Mutex<Vec<Value>>>::default();
    let seen = Arc::clone(&bodies);
    let coordinator = Coordinator::answering(move |_, body| {
        let mut seen = seen.lock().unwrap();
        seen.push(body.clone());
        // It takes each of them, and the first answer gets lost on the way.
        match seen.len() {
            1 => (502, String::new()),
            _ => (200, enlisted_answer(20_000)),
        }
    })
    .await;
    let url = coordinator.url.clone();
    let east = Service::start_with(|builder| builder.coordinator(url)).await;
    let error = east.participant.interactive(transaction(1)).await;
    assert!(matches!(error, Err(InteractiveError::NoCoordinator { .. })));
    let branch = east.participant.interactive(transaction(1)).await.unwrap();
    branch.add(&added("b")).unwrap();
    let bodies = bodies.lock().unwrap().clone();
    assert_eq!(bodies.len(), 2);
    assert_eq!(bodies[0], bodies[1]);
    let mut body = prepare_body(&id(1), json!([]));
    body["session"] = bodies[0]["session"].clone();
    east.post("/v1/prepare", &body).await.is_vote("yes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_enlisting_goes_on_when_the_request_that_began_it_is_dropped() {
    let (arrives, mut arrived) = tokio::sync::mpsc::unbounded_channel();
    let (goes_on, go_on) = std::sync::mpsc::channel::<()>();
    let go_on = Mutex::new(go_on);
    let coordinator = Coordinator::answering(move |asked, _| {
        if asked.contains("/outcome") {
            return (503, String::new());
        }
        arrives.send(()).unwrap();
        go_on.lock().unwrap().recv().unwrap();
        (201, enlisted_answer(20_000))
    })
    .await;
    let url = coordinator.url.clone();
    let east = Service::start_with(|builder| builder.coordinator(url)).await;
    let participant = east.participant.clone();
    let first = tokio::spawn(async move { participant.interactive(transaction(1)).await });
    arrived.recv().await.unwrap();
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    // For one enlisting, and for one more if it comes.
    goes_on.send(()).unwrap();
    goes_on.send(()).unwrap();
    let branch = east.participant.interactive(transaction(1)).await.unwrap();
    branch.add(&added("b")).unwrap();
    assert!(arrived.try_recv().is_err(), "enlisted once");
}

#[tokio::test]
async fn a_coordinator_that_never_answers_throttles_no_interactive_work() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent_url = format!("http://{}", silent.local_addr().unwrap());
    let (coordinator, _) = enlisting(20_000).await;
    let url = coordinator.url.clone();
    let east =
        Service::start_with(|builder| builder.coordinator(silent_url).coordinator(url)).await;
    let begun = Instant::now();
    // One behind the other, each behind the silent one's 3 s, they would take half a minute.
    let first = (1..=10).map(|number| east.participant.interactive(transaction(number)));
    for branch in join_all(first).await {
        branch.unwrap();
    }
    assert!(
        begun.elapsed() < Duration::from_secs(8),
        "{:?}",
        begun.elapsed()
    );
    let begun = Instant::now();
    for number in 11..=20 {
        let branch = east.participant.interactive(transaction(number)).await;
        branch.unwrap();
    }
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test]
async fn an_abort_drops_the_work() {
    let (coordinator, _) = enlisting(20_000).await;
    let url = coordinator.url.clone();
    let east = Service::start_with(|builder| builder.coordinator(url)).await;
    let branch = east.participant.interactive(transaction(1)).await.unwrap();
    branch.add(&added("b")).unwrap();
    east.abort(&id(1)).await.is_state("aborted");
    assert!(matches!(
        branch.add(&added("late")),
        Err(InteractiveError::Ended { .. })
    ));
}

#[tokio::test]
async fn a_transaction_that_takes_no_more_branches_takes_no_work() {
    let coordinator = Coordinator::answering(|_, _| {
        let problem = json!({"type": "urn:unanimous:problem:transaction-not-active", "title": "", "status": 409,
                             "code": "transaction-not-active", "detail": "commit has begun"});
        (409, problem.to_string())
    })
    .await;
    let url = coordinator.url.clone();
    let east = Service::start_with(|builder| builder.coordinator(url)).await;
    let error = east
        .participant
        .interactive(transaction(1))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("commit has begun"), "{error}");
    let east = east.restart(|builder| builder.coordinator(NOWHERE)).await;
    let error = east
        .participant
        .interactive(transaction(1))
        .await
        .unwrap_err();
    assert!(
        matches!(error, InteractiveError::NoCoordinator { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn enlisting_belongs_to_the_trace_of_the_work_that_it_is_for() {
    let (coordinator, _) = enlisting(20_000).await;
    let url = coordinator.url.clone();
    let east = Service::start_with(|builder| builder.coordinator(url)).await;
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let work = format!("00-{trace}-b7ad6b7169203331-01");
    let work = TraceContext::received(&work, Some("congo=t61rcWkgMzE")).unwrap();
    let participant = &east.participant;
    let branch = participant.interactive_in_trace(transaction(1), &work);
    branch.await.unwrap();
    participant.interactive(transaction(2)).await.unwrap();
    let traced = coordinator.traced();
    let [[parent, state], [other, no_state]] = &traced[..] else {
        panic!("{traced:?}")
    };
    assert!(parent.starts_with(&format!("00-{trace}-")), "{parent}");
    assert!(!parent.contains("b7ad6b7169203331"), "a parent of its own");
    assert_eq!(state, "congo=t61rcWkgMzE");
    assert!(!other.is_empty() && !other.contains(trace), "{other}");
    assert_eq!(no_state, "");
}

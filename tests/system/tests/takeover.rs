//! Several coordinators on one log: who may still decide, and for whom.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::json;

use crate::support::{Answer, Clients, Coordinator, On, SOON, Stub, branch};

/// The exit code of a fenced coordinator.
const FENCED: i32 = 3;

/// It looks every second; the rest is for a machine that is busy with other tests.
const NOTICED_WITHIN: Duration = Duration::from_secs(4);

#[tokio::test]
async fn the_older_of_two_coordinators_of_one_node_ends_and_every_client_was_told_what_the_log_holds()
 {
    let (east, west) = (Stub::start("east").await, Stub::start("west").await);
    let participants = [&east, &west];
    let mut older = Coordinator::start_on(On::Postgres, &participants).await;
    let clients = Clients::start(8, older.url());
    clients.told_more(40).await;
    let newer = Coordinator::start_beside(older.log(), &participants, |program| program).await;
    let began = Instant::now();
    let status = older.process.wait_exit(SOON).await.expect("it ends");
    let took = began.elapsed();
    assert_eq!(status.code(), Some(FENCED), "{status}");
    assert!(took < NOTICED_WITHIN, "it went on for {took:?}");
    let output = older.process.output().expect("its output");
    assert!(
        output.contains("fenced") && output.contains("epoch 2"),
        "{output}"
    );
    clients.turn_to(newer.url());
    clients.told_more(40).await;
    clients.end_and_audit(newer.url(), participants).await;
}

#[tokio::test]
async fn a_coordinator_that_stood_still_while_another_took_its_node_says_nothing_more() {
    let east = Stub::start("east").await;
    let mut older = Coordinator::start_on(On::Postgres, &[&east]).await;
    east.hold_answers("prepare");
    let body = json!({"branches": [branch("east")], "commit": true});
    let request = older.request(Method::POST, "/v1/transactions").json(&body);
    let client = tokio::spawn(Answer::try_of(request));
    let id = east.arrived("prepare", 1).await.transaction();
    older.process.pause();
    let newer = Coordinator::start_beside(older.log(), &[&east], |program| program).await;
    let told = newer.outcome(&id, "east").await.is(200);
    assert_eq!(told.body["outcome"], "aborted");
    // The last vote is there when it goes on, and it would commit.
    east.release("prepare");
    older.process.resume();
    let status = older.process.wait_exit(SOON).await.expect("it ends");
    assert_eq!(status.code(), Some(FENCED), "{status}");
    client
        .await
        .expect("no panic")
        .expect_err("the client is told nothing");
    for kind in ["commit", "abort"] {
        assert!(east.seen_of(kind).is_empty(), "east was sent a {kind}");
    }
    let shown = newer.show(&id).await.is(200);
    assert_eq!(shown.body["reason"]["code"], "coordinator-restarted");
}

//! `POST /v1/transactions/{id}/branches`

use serde_json::{Value, json};

use crate::support::{Coordinator, Stub, branch};

fn with_session(participant: &str, session: &str) -> Value {
    json!({"participant": participant, "session": session})
}

#[tokio::test]
async fn a_new_branch_is_created_and_shown_with_what_is_left_until_the_deadline() {
    let east = Stub::start("east").await;
    let coordinator = Coordinator::start(&[&east]).await;
    let id = coordinator.begin(&json!({"timeout_ms": 20_000})).await.id();
    let enlisted = coordinator.enlist(&id, &branch("east")).await.is(201);
    let remaining = enlisted.body["remaining_ms"].as_u64().unwrap();
    assert!((1..=20_000).contains(&remaining), "{remaining}");
    let mut shown = enlisted.body.clone();
    shown.as_object_mut().unwrap().remove("remaining_ms");
    let expected =
        json!({"participant": "east", "state": "enlisted", "attempts": 0, "last_error": null});
    assert_eq!(shown, expected);
    assert_eq!(
        coordinator.show(&id).await.body["branches"],
        json!([expected])
    );
    assert_eq!(east.seen().len(), 0, "nobody is asked before the commit");
    coordinator.commit(&id).await.is(200);
    let prepared = east.arrived("prepare", 1).await.json();
    assert_eq!(prepared["operations"], branch("east")["operations"]);
}

#[tokio::test]
async fn a_repeat_with_the_same_body_returns_the_branch() {
    let east = Stub::start("east").await;
    let coordinator = Coordinator::start(&[&east]).await;
    let id = coordinator.open().await;
    let path = format!("/v1/transactions/{id}/branches");
    let first = r#"{"participant":"east","operations":[{"a":1.0,"b":[]}]}"#;
    let first = coordinator.post_text(&path, first).await.is(201);
    // The same apart from white space and member order.
    let again =
        r#"{ "operations": [ {"b":[ ], "a":1.0} ], "participant": "east", "session": null}"#;
    let again = coordinator.post_text(&path, again).await.is(200);
    assert_eq!(again.body["state"], first.body["state"]);
    assert!(again.body["remaining_ms"].is_u64());
    // Numbers are the same by their text only.
    for other in [
        r#"{"participant":"east","operations":[{"a":1.00,"b":[]}]}"#,
        r#"{"participant":"east","operations":[]}"#,
        r#"{"participant":"east"}"#,
    ] {
        let refused = coordinator.post_text(&path, other).await;
        let refused = refused.problem(409, "already-enlisted");
        refused.names(&["east", &id]);
    }
    assert_eq!(
        coordinator.show(&id).await.body["branches"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

#[tokio::test]
async fn absent_operations_are_the_empty_list() {
    let east = Stub::start("east").await;
    let coordinator = Coordinator::start(&[&east]).await;
    let id = coordinator.open().await;
    let absent = json!({"participant": "east"});
    coordinator.enlist(&id, &absent).await.is(201);
    let empty = json!({"participant": "east", "operations": []});
    coordinator.enlist(&id, &empty).await.is(200);
    let refused = coordinator.enlist(&id, &branch("east")).await;
    refused.problem(409, "already-enlisted");
}

#[tokio::test]
async fn a_33rd_branch_is_too_many_and_a_repeat_is_not_one() {
    let stub = Stub::start("any").await;
    let names: Vec<String> = (0..33).map(|n| format!("p{n}")).collect();
    let participants: Vec<_> = names.iter().map(|n| (n.as_str(), stub.url())).collect();
    let coordinator = Coordinator::start_with(&participants, |program| program).await;
    let id = coordinator.open().await;
    for name in &names[..32] {
        coordinator.enlist(&id, &branch(name)).await.is(201);
    }
    let refused = coordinator.enlist(&id, &branch("p32")).await;
    refused.problem(409, "too-many-branches").names(&["32"]);
    coordinator.enlist(&id, &branch("p31")).await.is(200);
    coordinator.commit(&id).await.is(200);
}

#[tokio::test]
async fn an_unknown_participant_or_a_wrong_member_is_refused_and_changes_nothing() {
    let east = Stub::start("east").await;
    let coordinator = Coordinator::start(&[&east]).await;
    let id = coordinator.open().await;
    let refused = coordinator.enlist(&id, &branch("north")).await;
    let refused = refused.problem(400, "unknown-participant");
    refused.names(&["participant", "north"]);
    for (body, names) in [
        (json!({}), "participant"),
        (json!({"participant": "North"}), "participant"),
        (
            json!({"participant": "east", "operations": {}}),
            "operations",
        ),
        (json!({"participant": "east", "session": ""}), "session"),
        (with_session("east", &"x".repeat(256)), "session"),
        (with_session("east", "ü"), "session"),
        (json!({"participant": "east", "session": 7}), "session"),
        (json!({"participant": "east", "state": "prepared"}), "state"),
    ] {
        let refused = coordinator.enlist(&id, &body).await;
        refused.problem(400, "invalid-request").names(&[names]);
    }
    assert_eq!(coordinator.show(&id).await.body["branches"], json!([]));
}

#[tokio::test]
async fn once_commit_or_abort_has_begun_nothing_is_enlisted() {
    let (east, west) = (Stub::start("east").await, Stub::start("west").await);
    let coordinator = Coordinator::start(&[&east, &west]).await;
    let id = coordinator.open().await;
    coordinator.enlist(&id, &branch("east")).await.is(201);
    east.hold("prepare");
    let now = json!({"wait": "none"});
    let path = format!("/v1/transactions/{id}/commit");
    coordinator.post(&path, &now).await.is(202);
    for name in ["east", "west"] {
        let refused = coordinator.enlist(&id, &branch(name)).await;
        refused.problem(409, "transaction-not-active");
    }
    east.release("prepare");
    coordinator.commit(&id).await.is(200);
    coordinator.reaches(&id, "committed").await;
    let refused = coordinator.enlist(&id, &branch("west")).await;
    refused.problem(409, "transaction-not-active");
    let id = coordinator.open().await;
    coordinator.abort(&id).await.is(200);
    let refused = coordinator.enlist(&id, &branch("west")).await;
    refused.problem(409, "transaction-not-active");
    assert_eq!(west.seen().len(), 0);
}

#[tokio::test]
async fn a_participant_that_enlists_itself_is_prepared_with_its_session() {
    let east = Stub::start("east").await;
    let coordinator = Coordinator::start(&[&east]).await;
    let id = coordinator.open().await;
    let itself = with_session("east", "s-1 ~");
    coordinator.enlist(&id, &itself).await.is(201);
    coordinator.enlist(&id, &itself).await.is(200);
    coordinator.commit(&id).await.is(200);
    let prepare = east.arrived("prepare", 1).await.json();
    assert_eq!(prepare["session"], "s-1 ~");
    assert_eq!(prepare["operations"], json!([]));
}

#[tokio::test]
async fn a_named_branch_takes_the_first_session_and_keeps_its_operations() {
    let east = Stub::start("east").await;
    let coordinator = Coordinator::start(&[&east]).await;
    let id = coordinator.open().await;
    coordinator.enlist(&id, &branch("east")).await.is(201);
    // Whatever comes with the session: the branch keeps its operations, and so it is when repeated.
    let itself = with_session("east", "s-1");
    coordinator.enlist(&id, &itself).await.is(200);
    coordinator.enlist(&id, &itself).await.is(200);
    // An enlist without a session says nothing about it.
    coordinator.enlist(&id, &branch("east")).await.is(200);
    coordinator.commit(&id).await.is(200);
    let prepare = east.arrived("prepare", 1).await.json();
    assert_eq!(prepare["session"], "s-1");
    assert_eq!(prepare["operations"], branch("east")["operations"]);
}

#[tokio::test]
async fn another_session_than_the_first_means_lost_work_and_aborts() {
    let (east, west) = (Stub::start("east").await, Stub::start("west").await);
    let coordinator = Coordinator::start(&[&east, &west]).await;
    let id = coordinator.open().await;
    coordinator.enlist(&id, &branch("west")).await.is(201);
    let first = with_session("east", "s-1");
    coordinator.enlist(&id, &first).await.is(201);
    let other = with_session("east", "s-2");
    let refused = coordinator.enlist(&id, &other).await;
    refused.problem(409, "work-lost").names(&["east", &id]);
    let aborted = coordinator.commit(&id).await.aborted("work-lost");
    assert_eq!(aborted.body["reason"]["participant"], "east");
    // The one that enlisted itself may hold work; the other was never told anything.
    assert_eq!(east.arrived("abort", 1).await.transaction(), id);
    coordinator.reaches(&id, "aborted").await;
    assert_eq!(west.seen().len(), 0);
    let refused = coordinator.enlist(&id, &first).await;
    refused.problem(409, "transaction-not-active");
}

//! `POST /v1/transactions`, open and run at once.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Answer, Coordinator, Does, Stub, branch};

#[tokio::test]
async fn a_transaction_without_commit_is_created_open_and_found_at_its_location() {
    let coordinator = Coordinator::start(&[]).await;
    let begun = coordinator.begin(&json!({})).await.is(201);
    let location = format!("/v1/transactions/{}", begun.id());
    assert_eq!(begun.header("location"), location);
    assert_eq!(coordinator.get(&location).await.is(200).body, begun.body);
    let shown = begun.body.as_object().unwrap();
    let members: Vec<&str> = shown.keys().map(String::as_str).collect();
    let mut expected = vec![
        "id",
        "state",
        "outcome",
        "reason",
        "idempotency_key",
        "labels",
        "created_at",
        "deadline",
        "decided_at",
        "finished_at",
        "branches",
    ];
    expected.sort_unstable();
    assert_eq!(members, expected);
    assert_eq!(shown["state"], "active");
    assert_eq!(shown["labels"], json!({}));
    assert_eq!(shown["branches"], json!([]));
    for member in [
        "outcome",
        "reason",
        "idempotency_key",
        "decided_at",
        "finished_at",
    ] {
        assert_eq!(shown[member], Value::Null, "{member}");
    }
}

#[tokio::test]
async fn an_empty_body_is_an_empty_object_whatever_its_content_type() {
    let coordinator = Coordinator::start(&[]).await;
    for content_type in [None, Some("text/plain"), Some("application/json")] {
        let mut request = coordinator.request(Method::POST, "/v1/transactions");
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        Answer::of(request).await.is(201);
    }
    let id = coordinator.open().await;
    let commit = format!("/v1/transactions/{id}/commit");
    Answer::of(coordinator.request(Method::POST, &commit))
        .await
        .is(200);
}

#[tokio::test]
async fn an_id_is_a_uuid_of_version_8_in_lower_case() {
    let coordinator = Coordinator::start(&[]).await;
    let id = coordinator.open().await;
    let id: unanimous_protocol::id::TransactionId = id.parse().unwrap();
    assert_eq!((id.node().0, id.epoch().number()), (1, 1));
}

#[tokio::test]
async fn a_transaction_run_at_once_is_prepared_and_committed_at_every_branch() {
    let (east, west) = (Stub::start("east").await, Stub::start("west").await);
    let coordinator = Coordinator::start(&[&east, &west]).await;
    let body = json!({
        "branches": [branch("east"), branch("west")], "commit": true, "labels": {"order": "4711"},
    });
    let done = coordinator.begin(&body).await.is(200);
    assert_eq!(done.body["outcome"], "committed");
    assert_eq!(
        done.header("location"),
        format!("/v1/transactions/{}", done.id())
    );
    let shown = coordinator.reaches(&done.id(), "committed").await;
    assert_eq!(shown["labels"], json!({"order": "4711"}));
    assert_eq!(shown["reason"], Value::Null);
    assert!(shown["decided_at"].is_string() && shown["finished_at"].is_string());
    let names = |branches: &Value| {
        let each = branches.as_array().unwrap().iter();
        each.map(|b| format!("{}: {}", b["participant"], b["state"]))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        names(&shown["branches"]),
        [r#""east": "committed""#, r#""west": "committed""#]
    );
    for stub in [&east, &west] {
        let kinds: Vec<String> = stub.seen().iter().map(|s| s.kind().to_owned()).collect();
        assert_eq!(kinds, ["prepare", "commit"], "{}", stub.name);
        for seen in stub.seen() {
            let sent = seen.json();
            assert_eq!(seen.method, "POST");
            assert_eq!(seen.headers["content-type"], "application/json");
            assert_eq!(sent["transaction"], done.id());
            assert_eq!(sent["participant"], stub.name);
        }
    }
}

#[tokio::test]
async fn a_prepare_says_what_is_left_and_when_the_transaction_began() {
    let east = Stub::start("east").await;
    let coordinator = Coordinator::start(&[&east]).await;
    let body = json!({"timeout_ms": 7000, "branches": [branch("east")], "commit": true});
    let done = coordinator.begin(&body).await.is(200);
    let prepare = east.arrived("prepare", 1).await;
    let sent = prepare.json();
    let remaining = sent["remaining_ms"].as_u64().unwrap();
    assert!((1..=7000).contains(&remaining), "{remaining}");
    let begun_at = sent["begun_at_ms"].as_i64().unwrap();
    let begun_at = unanimous_protocol::record::WallMillis(begun_at);
    let begun_at = serde_json::to_value(unanimous_protocol::wire::Timestamp(begun_at)).unwrap();
    assert_eq!(done.body["created_at"], begun_at);
    assert_eq!(sent.get("session"), None, "it did not enlist itself");
}

#[tokio::test]
async fn operations_are_forwarded_to_the_letter() {
    let east = Stub::start("east").await;
    let coordinator = Coordinator::start(&[&east]).await;
    let operations = concat!(
        r#"[ {"z":1, "a" : 100000000000000000000.10, "e":1E400,"#,
        "\n",
        r#" "text":"\u00e9\/ü\u0000", "null":null, "z":2} ,[], -0.0, "" ]"#
    );
    let body = format!(
        r#"{{"branches":[{{"operations":{operations},"participant":"east"}}],"commit":true}}"#
    );
    coordinator
        .post_text("/v1/transactions", body)
        .await
        .is(200);
    let prepare = east.arrived("prepare", 1).await;
    assert!(prepare.body.contains(operations), "{}", prepare.body);
    // And the same by an enlist.
    let id = coordinator.open().await;
    let body = format!(r#"{{"participant":"east","operations":{operations}}}"#);
    let path = format!("/v1/transactions/{id}/branches");
    coordinator.post_text(&path, body).await.is(201);
    coordinator.commit(&id).await.is(200);
    let prepare = east.arrived("prepare", 2).await;
    assert!(prepare.body.contains(operations), "{}", prepare.body);
}

#[tokio::test]
async fn a_branch_without_operations_is_prepared_with_an_empty_list() {
    let east = Stub::start("east").await;
    let coordinator = Coordinator::start(&[&east]).await;
    let body = json!({"branches": [{"participant": "east"}], "commit": true});
    coordinator.begin(&body).await.is(200);
    assert_eq!(
        east.arrived("prepare", 1).await.json()["operations"],
        json!([])
    );
}

#[tokio::test]
async fn a_transaction_without_branches_commits() {
    let coordinator = Coordinator::start(&[]).await;
    let done = coordinator.begin(&json!({"commit": true})).await.is(200);
    assert_eq!(done.body["state"], "committed");
    let id = coordinator.open().await;
    let done = coordinator.commit(&id).await.is(200);
    assert_eq!(done.body["outcome"], "committed");
    let keyed = coordinator.begin_keyed("k", &json!({"commit": true})).await;
    assert_eq!(keyed.is(200).body["state"], "committed");
}

#[tokio::test]
async fn a_read_only_branch_is_not_told_the_outcome() {
    let (east, west) = (Stub::start("east").await, Stub::start("west").await);
    east.always("prepare", Does::Vote("read_only"));
    let coordinator = Coordinator::start(&[&east, &west]).await;
    let only = json!({"branches": [branch("east")], "commit": true, "wait": "applied"});
    let done = coordinator.begin(&only).await.is(200);
    assert_eq!(done.body["state"], "committed", "nothing is owed");
    assert_eq!(done.body["branches"][0]["state"], "read_only");
    let both = json!({
        "branches": [branch("east"), branch("west")], "commit": true, "wait": "applied",
    });
    let done = coordinator.begin(&both).await.is(200);
    assert_eq!(done.body["branches"][0]["state"], "read_only");
    assert_eq!(done.body["branches"][1]["state"], "committed");
    assert_eq!(west.seen_of("commit").len(), 1);
    assert_eq!(east.seen().len(), 2, "two prepares and nothing else");
}

#[tokio::test]
async fn a_refusal_aborts_every_branch_and_says_who_refused_and_why() {
    let (east, west) = (Stub::start("east").await, Stub::start("west").await);
    let no = Does::Refuse {
        code: None,
        reason: "insufficient funds",
    };
    east.always("prepare", no);
    let coordinator = Coordinator::start(&[&east, &west]).await;
    west.hold("prepare");
    let body = json!({"branches": [branch("east"), branch("west")], "commit": true});
    let aborted = coordinator.begin(&body).await.aborted("refused");
    let reason = json!({"code": "refused", "participant": "east", "detail": "insufficient funds"});
    assert_eq!(aborted.body["reason"], reason);
    let aborted = aborted.names(&["insufficient funds", "east"]);
    assert_eq!(
        aborted.header("location"),
        format!("/v1/transactions/{}", aborted.id())
    );
    // The one that refused too, and the one whose vote nobody waits for any more.
    for stub in [&east, &west] {
        assert_eq!(stub.arrived("abort", 1).await.transaction(), aborted.id());
        assert_eq!(stub.seen_of("commit").len(), 0);
    }
    west.release("prepare");
    let shown = coordinator.reaches(&aborted.id(), "aborted").await;
    assert_eq!(shown["branches"][0]["state"], "refused");
    assert_eq!(shown["branches"][1]["state"], "aborted");
    assert_eq!(shown["reason"], reason);
}

#[tokio::test]
async fn the_code_of_a_no_becomes_the_reason_s_code() {
    let east = Stub::start("east").await;
    let coordinator = Coordinator::start(&[&east]).await;
    let body = json!({"branches": [branch("east")], "commit": true});
    for (code, becomes) in [
        ("refused", "refused"),
        ("conflict", "conflict"),
        ("work-lost", "work-lost"),
        ("deadline", "timeout"),
        ("aborted", "refused"),
        ("something-new", "refused"),
    ] {
        let (code, reason) = (Some(code), "because");
        east.once("prepare", Does::Refuse { code, reason });
        let aborted = coordinator.begin(&body).await.aborted(becomes);
        assert_eq!(aborted.body["reason"]["participant"], "east");
        assert_eq!(aborted.body["reason"]["detail"], "because");
    }
}

#[tokio::test]
async fn a_participant_s_clear_refusals_are_a_no_and_the_abort_is_still_sent() {
    let east = Stub::start("east").await;
    let coordinator = Coordinator::start(&[&east]).await;
    let body = json!({"branches": [branch("east")], "commit": true});
    for (nth, (status, code)) in (1..).zip([
        (400, "invalid-request"),
        (413, "payload-too-large"),
        (415, "unsupported-media-type"),
        (422, "prepare-changed"),
    ]) {
        east.once("prepare", Does::problem(status, code));
        let aborted = coordinator.begin(&body).await.aborted("refused");
        aborted.names(&["east", code]);
        east.arrived("abort", nth).await;
        assert_eq!(east.seen_of("prepare").len(), nth, "asked once");
    }
}

#[tokio::test]
async fn a_reason_is_cut_and_loses_what_postgres_can_not_store() {
    let east = Stub::start("east").await;
    let coordinator = Coordinator::start(&[&east]).await;
    let reason = format!("a\0b{}", "ü".repeat(2000));
    let answer = json!({
        "transaction": "$transaction", "participant": "$participant", "vote": "no", "reason": reason,
    });
    east.always("prepare", Does::Json(answer));
    let body = json!({"branches": [branch("east")], "commit": true});
    let aborted = coordinator.begin_keyed("k", &body).await.aborted("refused");
    let detail = aborted.body["reason"]["detail"].as_str().unwrap();
    assert_eq!(detail.chars().count(), 1024);
    assert!(detail.starts_with("abü"), "{detail}");
}

#[tokio::test]
async fn a_deadline_is_between_1_ms_and_300_s() {
    let coordinator = Coordinator::start(&[]).await;
    for (timeout, whole) in [
        (json!(1), 1),
        (json!(300_000), 300_000),
        (json!(null), 30_000),
    ] {
        let begun = coordinator.begin(&json!({"timeout_ms": timeout})).await;
        let begun = begun.is(201);
        let at = |member: &str| {
            let text = begun.body[member].as_str().unwrap();
            let seconds = &text[text.len() - 7..text.len() - 1];
            let minutes: u64 = text[text.len() - 10..text.len() - 8].parse().unwrap();
            minutes * 60_000 + (seconds.parse::<f64>().unwrap() * 1000.0).round() as u64
        };
        let hour = 3_600_000;
        let apart = (at("deadline") + hour - at("created_at")) % hour;
        assert_eq!(apart, whole, "{}", begun.text);
    }
    for timeout in ["0", "300001", "-1", "1.5", "1e3", "\"1\"", "true", "[]"] {
        let body = format!(r#"{{"timeout_ms": {timeout}}}"#);
        let refused = coordinator.post_text("/v1/transactions", body).await;
        refused
            .problem(400, "invalid-request")
            .names(&["timeout_ms"]);
    }
}

#[tokio::test]
async fn labels_are_kept_within_their_bounds_and_refused_beyond_them() {
    let coordinator = Coordinator::start(&[]).await;
    let mut most = serde_json::Map::new();
    for n in 10..26 {
        let key = format!("a.b_c-{n}{}", "x".repeat(63 - 8));
        most.insert(key, "ü".repeat(256).into());
    }
    let begun = coordinator.begin(&json!({"labels": most})).await.is(201);
    assert_eq!(begun.body["labels"], Value::Object(most.clone()));
    most.insert("one-more".to_owned(), "x".into());
    for (labels, names) in [
        (Value::Object(most), "16"),
        (json!({"Order": "1"}), "Order"),
        (json!({"": "1"}), "label"),
        (json!({"a b": "1"}), "a b"),
        (json!({"ü": "1"}), "ü"),
        (json!({"x".repeat(64): "1"}), "xxxx"),
        (json!({"order": "x".repeat(257)}), "256"),
        (json!({"order": "a\u{0}b"}), "U+0000"),
        (json!({"order": 4711}), "order"),
        (json!(["order"]), "labels"),
    ] {
        let refused = coordinator.begin(&json!({"labels": labels})).await;
        let refused = refused.problem(400, "invalid-request");
        refused.names(&["labels", names]);
    }
    let twice = r#"{"labels": {"order": "1", "order": "2"}}"#;
    let refused = coordinator.post_text("/v1/transactions", twice).await;
    refused.problem(400, "invalid-request").names(&["order"]);
}

#[tokio::test]
async fn a_transaction_has_at_most_32_branches() {
    let stub = Stub::start("any").await;
    let names: Vec<String> = (0..33).map(|n| format!("p{n}")).collect();
    let participants: Vec<_> = names.iter().map(|n| (n.as_str(), stub.url())).collect();
    let coordinator = Coordinator::start_with(&participants, |program| program).await;
    let body = |count: usize| {
        let branches: Vec<Value> = names[..count].iter().map(|name| branch(name)).collect();
        json!({"branches": branches, "commit": true, "wait": "applied"})
    };
    let refused = coordinator.begin(&body(33)).await;
    let refused = refused.problem(400, "invalid-request");
    refused.names(&["branches", "32"]);
    assert_eq!(stub.seen().len(), 0);
    coordinator.begin(&body(32)).await.is(200);
    assert_eq!(stub.seen().len(), 64);
}

#[tokio::test]
async fn a_participant_is_named_once_and_must_be_registered() {
    let east = Stub::start("east").await;
    let coordinator = Coordinator::start(&[&east]).await;
    let twice = json!({"branches": [branch("east"), branch("east")]});
    let refused = coordinator.begin(&twice).await;
    let refused = refused.problem(400, "invalid-request");
    refused.names(&["branches[1].participant", "east"]);
    let unknown = json!({"branches": [branch("east"), branch("north")], "commit": true});
    let refused = coordinator.begin(&unknown).await;
    let refused = refused.problem(400, "unknown-participant");
    refused.names(&["branches[1].participant", "north"]);
    assert_eq!(east.seen().len(), 0);
}

#[tokio::test]
async fn what_is_wrong_in_a_branch_is_said_with_its_place() {
    let east = Stub::start("east").await;
    let coordinator = Coordinator::start(&[&east]).await;
    for (wrong, names) in [
        (json!({"participant": "East"}), "branches[1].participant"),
        (
            json!({"participant": "x".repeat(64)}),
            "branches[1].participant",
        ),
        (json!({"participant": ""}), "branches[1].participant"),
        (json!({"participant": 7}), "branches[1].participant"),
        (json!({"participant": null}), "branches[1].participant"),
        (json!({}), "participant"),
        (
            json!({"participant": "east", "operations": {}}),
            "branches[1].operations",
        ),
        (
            json!({"participant": "east", "operations": "x"}),
            "branches[1].operations",
        ),
        (json!({"participant": "east", "session": "s"}), "session"),
        (json!({"participant": "east", "url": "http://x"}), "url"),
        (json!(["east"]), "branches[1]"),
        (json!("east"), "branches[1]"),
    ] {
        let body = json!({"branches": [{"participant": "east"}, wrong]});
        let refused = coordinator.begin(&body).await;
        refused.problem(400, "invalid-request").names(&[names]);
    }
}

#[tokio::test]
async fn waiting_is_only_for_a_transaction_that_is_run_at_once() {
    let coordinator = Coordinator::start(&[]).await;
    for body in [
        json!({"wait": "decided"}),
        json!({"wait_ms": 0}),
        json!({"commit": false, "wait": "none"}),
        json!({"commit": null, "wait_ms": 1}),
    ] {
        let refused = coordinator.begin(&body).await;
        let refused = refused.problem(400, "invalid-request");
        refused.names(&["wait", "commit"]);
    }
    for (body, names) in [
        (json!({"commit": true, "wait": "sometimes"}), "wait"),
        (json!({"commit": true, "wait": {"decided": null}}), "wait"),
        (json!({"commit": true, "wait_ms": 60_001}), "wait_ms"),
        (json!({"commit": true, "wait_ms": -1}), "wait_ms"),
        (json!({"commit": "true"}), "commit"),
    ] {
        let refused = coordinator.begin(&body).await;
        refused.problem(400, "invalid-request").names(&[names]);
    }
    let body = json!({"commit": true, "wait": "decided", "wait_ms": 60_000});
    coordinator.begin(&body).await.is(200);
}

#[tokio::test]
async fn a_null_member_is_the_same_as_an_absent_one() {
    let east = Stub::start("east").await;
    let coordinator = Coordinator::start(&[&east]).await;
    let body = json!({
        "timeout_ms": null, "branches": null, "commit": null, "wait": null, "wait_ms": null,
        "labels": null,
    });
    let begun = coordinator.begin(&body).await.is(201);
    assert_eq!(begun.body["state"], "active");
    let body = json!({
        "branches": [{"participant": "east", "operations": null}], "labels": {"order": null},
        "commit": true,
    });
    let done = coordinator.begin(&body).await.is(200);
    assert_eq!(done.body["labels"], json!({}));
    assert_eq!(
        east.arrived("prepare", 1).await.json()["operations"],
        json!([])
    );
    let id = coordinator.open().await;
    let enlist = json!({"participant": "east", "operations": null, "session": null});
    coordinator.enlist(&id, &enlist).await.is(201);
    let path = |what: &str| format!("/v1/transactions/{id}/{what}");
    let commit = json!({"wait": null, "wait_ms": null});
    coordinator.post(&path("commit"), &commit).await.is(200);
    let abort = json!({"reason": null, "wait_ms": null});
    coordinator.post(&path("abort"), &abort).await.is(409);
}

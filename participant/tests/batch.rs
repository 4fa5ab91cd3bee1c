//! Many messages in one request: each as if it had come alone.

use std::collections::BTreeMap;

use futures_util::StreamExt as _;
use serde_json::{Value, json};
use unanimous_participant::Body;

use crate::service::{Answer, Service, branch_body, id, note, prepare_body, send};

fn message(kind: &str, body: Value) -> Value {
    let mut message = body;
    message["kind"] = json!(kind);
    message
}

fn prepare(number: u32, operations: Value) -> Value {
    message("prepare", prepare_body(&id(number), operations))
}

fn outcome(kind: &str, number: u32) -> Value {
    message(kind, branch_body(&id(number)))
}

fn lines(bytes: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(bytes).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "{text}");
    let read = |line| serde_json::from_str(line).unwrap();
    text.lines().map(read).collect()
}

/// The answer to a batch, before all of it is there.
async fn begun(east: &Service, messages: &[Value]) -> Body {
    let body = json!({ "messages": messages }).to_string().into_bytes();
    let request = http::Request::post("/v1/batch").header("content-type", "application/json");
    let answer = east.participant.answer(request.body(body).unwrap()).await;
    let (head, body) = answer.into_parts();
    assert_eq!(head.status, 200);
    assert_eq!(head.headers["content-type"], "application/x-ndjson");
    assert_eq!(head.headers["cache-control"], "no-store");
    body
}

/// The lines that answer a batch, by their transaction, as answers to single messages.
async fn answers(east: &Service, messages: &[Value]) -> BTreeMap<String, Answer> {
    let whole = begun(east, messages).await.whole().await;
    let lines = lines(&whole);
    assert_eq!(lines.len(), messages.len(), "{lines:?}");
    let answer = |line: Value| {
        assert_eq!(line["participant"], "east", "{line}");
        let mut headers = http::HeaderMap::new();
        headers.insert("content-type", "application/problem+json".parse().unwrap());
        let answer = Answer {
            status: line["status"].as_u64().unwrap().try_into().unwrap(),
            headers,
            body: line["body"].clone(),
        };
        (line["transaction"].as_str().unwrap().to_owned(), answer)
    };
    let answers: BTreeMap<_, _> = lines.into_iter().map(answer).collect();
    assert_eq!(answers.len(), messages.len(), "one for each");
    answers
}

#[tokio::test]
async fn every_message_runs_as_if_it_had_come_alone_and_has_a_line_of_its_own() {
    let east = Service::start().await;
    for number in [1, 2, 3] {
        east.prepare(&id(number), note("a")).await.is_vote("yes");
    }
    let refuse = json!([{"kind": "refuse", "reason": "no"}]);
    let answers = answers(
        &east,
        &[
            outcome("commit", 1),
            outcome("abort", 2),
            // A repeat, and one with other operations.
            prepare(3, note("a")),
            prepare(4, note("b")),
            prepare(5, refuse),
            prepare(6, json!([{"kind": "look"}])),
            outcome("commit", 7),
            outcome("abort", 8),
        ],
    )
    .await;
    answers[&id(1)].is_state("committed");
    answers[&id(2)].is_state("aborted");
    answers[&id(3)].is_vote("yes");
    answers[&id(4)].is_vote("yes");
    answers[&id(5)].is_no("refused");
    answers[&id(6)].is_vote("read_only");
    answers[&id(7)].is_problem(409, "vote-lost");
    answers[&id(8)].is_state("aborted");
    for answer in answers.values().filter(|answer| answer.status == 200) {
        assert_eq!(answer.body["participant"], "east");
    }
    assert_eq!(east.journal(&id(1)).await, ["prepared a", "committed a"]);
    assert_eq!(east.journal(&id(3)).await, ["prepared a"]);
    assert_eq!(east.row(&id(4)).await.as_deref(), Some("prepared"));
    assert_eq!(east.row(&id(8)).await.as_deref(), Some("tombstone"));
}

#[tokio::test]
async fn a_message_that_fails_or_is_none_touches_only_itself() {
    let east = Service::start().await;
    east.prepare(&id(6), note("a")).await.is_vote("yes");
    let without = |member: &str| {
        let mut message = prepare(2, note("b"));
        message.as_object_mut().unwrap().remove(member);
        message["transaction"] = json!(id(2));
        message
    };
    for wrong in [
        without("operations"),
        without("remaining_ms"),
        without("kind"),
        message("vote", prepare_body(&id(2), note("b"))),
        prepare(2, json!({})),
        prepare(2, json!([{"kind": "fly"}])),
        prepare(2, json!([[[[[[[]]]]]]])),
    ] {
        let answers = answers(&east, &[wrong, prepare(1, note("a"))]).await;
        answers[&id(1)].is_vote("yes");
        answers[&id(2)].is_problem(400, "invalid-request");
    }
    assert_eq!(east.row(&id(2)).await, None);
    let mut other = prepare(3, note("c"));
    other["participant"] = json!("west");
    let whole = begun(&east, &[other, prepare(4, note("d"))]).await;
    for line in lines(&whole.whole().await) {
        let is_other = line["participant"] == "west";
        assert_eq!(line["status"], if is_other { 409 } else { 200 }, "{line}");
        assert_eq!(line["transaction"], id(if is_other { 3 } else { 4 }));
    }
    let failing = [
        prepare(5, json!([{"kind": "fail"}])),
        prepare(6, note("b")),
        prepare(7, note("e")),
    ];
    let answers = answers(&east, &failing).await;
    answers[&id(5)].is_problem(503, "service-failed");
    answers[&id(6)].is_problem(422, "prepare-changed");
    answers[&id(7)].is_vote("yes");
}

#[tokio::test]
async fn what_names_no_branch_is_echoed_as_far_as_it_can_be() {
    let east = Service::start().await;
    let upper = id(0xab).to_uppercase();
    let spelled = json!({"kind": "commit", "transaction": upper, "participant": "east"});
    let nameless = json!({"kind": "commit", "transaction": 7});
    let messages = [
        json!(4711),
        json!([]),
        nameless,
        spelled,
        prepare(1, note("a")),
    ];
    let mut lines = lines(&begun(&east, &messages).await.whole().await);
    lines.sort_by_key(|line| (line["status"].as_u64(), line["transaction"].to_string()));
    let echoes: Vec<_> = lines
        .iter()
        .map(|line| {
            let text = |member: &str| line[member].as_str().unwrap().to_owned();
            (
                line["status"].as_u64().unwrap(),
                text("transaction"),
                text("participant"),
            )
        })
        .collect();
    let nobody = (400, String::new(), String::new());
    let expected = [
        (200, id(1), "east".to_owned()),
        nobody.clone(),
        nobody.clone(),
        nobody,
        (400, upper, "east".to_owned()),
    ];
    assert_eq!(echoes, expected);
    assert_eq!(lines[1]["body"]["code"], "invalid-request");
}

#[tokio::test]
async fn a_line_does_not_wait_for_a_prepare_that_waits_for_a_key() {
    let east = Service::start().await;
    let hold = json!([{"kind": "hold", "key": "a", "text": "k"}]);
    east.prepare(&id(9), hold.clone()).await.is_vote("yes");
    east.prepare(&id(8), note("a")).await.is_vote("yes");
    // The older one waits for a second.
    let messages = [
        prepare(1, hold),
        prepare(2, note("b")),
        outcome("commit", 8),
    ];
    let Body::Lines(mut pieces) = begun(&east, &messages).await else {
        panic!("it waits for nobody");
    };
    let mut quick = Vec::new();
    while lines(&quick).len() < 2 {
        quick.extend(pieces.next().await.unwrap());
    }
    for line in lines(&quick) {
        assert_eq!(line["status"], 200, "{line}");
    }
    // The outcome for which it waits is heard meanwhile.
    east.commit(&id(9)).await.is_state("committed");
    let last = lines(&pieces.next().await.unwrap());
    assert_eq!(last[0]["transaction"], id(1));
    assert_eq!(last[0]["body"]["vote"], "yes");
    assert_eq!(pieces.next().await, None);
}

#[tokio::test]
async fn a_branch_that_is_in_two_batches_at_once_does_its_work_once() {
    let east = Service::start().await;
    for kind in ["prepare", "commit"] {
        let messages: Vec<_> = (0..20)
            .map(|number| match kind {
                "prepare" => prepare(number, note("a")),
                _ => outcome(kind, number),
            })
            .collect();
        let (one, other) = tokio::join!(answers(&east, &messages), answers(&east, &messages));
        assert_eq!(one, other);
        assert!(one.values().all(|answer| answer.status == 200), "{one:?}");
    }
    for number in 0..20 {
        assert_eq!(
            east.journal(&id(number)).await,
            ["prepared a", "committed a"]
        );
    }
}

#[tokio::test]
async fn a_batch_is_refused_as_a_whole_only_for_what_it_is_itself() {
    let east = Service::start().await;
    for none in [json!({}), json!({"messages": []}), json!({"messages": {}})] {
        east.post("/v1/batch", &none)
            .await
            .is_problem(400, "invalid-request");
    }
    let messages: Vec<_> = (0..65).map(|number| prepare(number, note("a"))).collect();
    let all = json!({ "messages": messages });
    let answer = east.post("/v1/batch", &all).await;
    answer.is_problem(413, "payload-too-large");
    let long = vec![b' '; 256 * 1024 + 1];
    let json_type = Some("application/json");
    let answer = send(&east.participant, "POST", "/v1/batch", json_type, long).await;
    answer.is_problem(413, "payload-too-large");
    let (text, body) = (Some("text/plain"), b"{}".to_vec());
    let answer = send(&east.participant, "POST", "/v1/batch", text, body).await;
    answer.is_problem(415, "unsupported-media-type");
    let answer = east.get("/v1/batch").await;
    answer.is_problem(405, "method-not-allowed");
    assert_eq!(answer.headers["allow"], "POST");
    let branches = "SELECT count(*) FROM unanimous.branches";
    assert_eq!(east.count(branches).await, 0);
    assert_eq!(answers(&east, &messages[..64]).await.len(), 64);
    assert_eq!(east.count(branches).await, 64);
}

//! The routes' shape: what is refused, and how.

use serde_json::json;

use crate::service::{Service, branch_body, id, note, prepare_body, send};

#[tokio::test]
async fn what_is_not_asked_by_the_contract_is_refused_by_name() {
    let east = Service::start().await;
    let participant = &east.participant;
    let json = Some("application/json");
    let upper = "00000001-0001-8000-8000-1000ABCDEF01";
    for (body, member) in [
        (json!({}), "transaction"),
        (json!({"transaction": id(1)}), "participant"),
        (json!({"transaction": upper, "participant": "east"}), "UUID"),
        (
            json!({"transaction": "00000001-0001-4000-8000-100000000001", "participant": "east"}),
            "version 8",
        ),
        (json!({"transaction": id(1), "participant": "East"}), "name"),
    ] {
        let answer = east.post("/v1/commit", &body).await;
        answer.is_problem(400, "invalid-request");
        let detail = answer.body["detail"].as_str().unwrap();
        assert!(detail.contains(member), "{detail}");
    }
    for (member, wrong) in [
        ("operations", json!({})),
        ("remaining_ms", json!(-1)),
        ("session", json!("")),
        ("low_water", json!("x")),
    ] {
        let mut body = prepare_body(&id(1), note("a"));
        body[member] = wrong;
        east.post("/v1/prepare", &body)
            .await
            .is_problem(400, "invalid-request");
    }
    // The members' values in the order of our source are not the members.
    let array = json!([id(1), "east", null]);
    let answer = east.post("/v1/commit", &array).await;
    answer.is_problem(400, "invalid-request");
    assert_eq!(east.row(&id(1)).await, None);
    let answer = send(participant, "POST", "/v1/commit", json, b"{".to_vec()).await;
    answer.is_problem(400, "invalid-request");
    let answer = send(participant, "POST", "/v1/commit", None, Vec::new()).await;
    answer.is_problem(400, "invalid-request");
    let answer = send(
        participant,
        "POST",
        "/v1/commit",
        Some("text/plain"),
        b"{}".to_vec(),
    )
    .await;
    answer.is_problem(415, "unsupported-media-type");
    let answer = send(
        participant,
        "POST",
        "/v1/commit",
        json,
        vec![b' '; 256 * 1024 + 1],
    )
    .await;
    answer.is_problem(413, "payload-too-large");
    let answer = send(participant, "GET", "/v1/commit", None, Vec::new()).await;
    answer.is_problem(405, "method-not-allowed");
    assert_eq!(answer.headers["allow"], "POST");
    let answer = send(participant, "POST", "/v1/branches", None, Vec::new()).await;
    assert_eq!(
        (answer.status, &answer.headers["allow"]),
        (405, &"GET".parse().unwrap())
    );
    let answer = send(participant, "GET", "/v2/prepare", None, Vec::new()).await;
    answer.is_problem(404, "not-found");
    assert_eq!(
        east.count("SELECT count(*) FROM unanimous.branches").await,
        0
    );
}

#[tokio::test]
async fn unknown_members_are_ignored_and_null_is_absent() {
    let east = Service::start().await;
    let mut body = prepare_body(&id(1), note("a"));
    body["session"] = json!(null);
    body["low_water"] = json!(null);
    body["later"] = json!({"some": "thing"});
    east.post("/v1/prepare", &body).await.is_vote("yes");
    let mut body = branch_body(&id(1));
    body["low_water"] = json!(id(0));
    body["later"] = json!(1);
    east.post("/v1/commit", &body).await.is_state("committed");
}

#[tokio::test]
async fn operations_that_are_none_of_the_services_are_refused_by_place_and_reason() {
    let east = Service::start().await;
    let operations = json!([{"kind": "note", "text": "a"}, {"kind": "fly"}]);
    let answer = east.prepare(&id(1), operations).await;
    answer.is_problem(400, "invalid-request");
    let detail = answer.body["detail"].as_str().unwrap();
    assert!(
        detail.contains("operations[1]") && detail.contains("fly"),
        "{detail}"
    );
    assert_eq!(east.row(&id(1)).await, None);
}

#[tokio::test]
async fn a_branch_can_be_looked_at_and_branches_come_in_pages() {
    let east = Service::start().await;
    east.get(&format!("/v1/branches/{}", id(1)))
        .await
        .is_problem(404, "unknown-branch");
    east.get("/v1/branches/x")
        .await
        .is_problem(400, "invalid-request");
    for number in 1..=5 {
        east.prepare(&id(number), note("a")).await.is_vote("yes");
    }
    east.commit(&id(2)).await.is_state("committed");
    east.abort(&id(9)).await.is_state("aborted");
    let seen = east.get(&format!("/v1/branches/{}", id(2))).await;
    seen.is_state("committed");
    assert!(seen.body["since"].as_str().unwrap().ends_with('Z'));

    let mut found = Vec::new();
    let mut next = String::new();
    loop {
        let page = east
            .get(&format!("/v1/branches?state=prepared&limit=2{next}"))
            .await;
        for branch in page.body["branches"].as_array().unwrap() {
            assert_eq!(branch["state"], "prepared");
            found.push(branch["transaction"].as_str().unwrap().to_owned());
        }
        let Some(after) = page.body["next"].as_str() else {
            break;
        };
        next = format!("&after={after}");
    }
    assert_eq!(found, [id(1), id(3), id(4), id(5)]);
    let all = east.get("/v1/branches").await;
    assert_eq!(all.body["branches"].as_array().unwrap().len(), 6);
    let after = east
        .get(&format!("/v1/branches?after={}&unknown=1", id(5)))
        .await;
    assert_eq!(after.body["branches"][0]["state"], "aborted");
    for query in ["limit=0", "limit=1001", "state=lost", "after=1"] {
        let answer = east.get(&format!("/v1/branches?{query}")).await;
        answer.is_problem(400, "invalid-request");
    }
    let describe = east.get("/v1/describe").await;
    assert_eq!(
        describe.body,
        json!({"participant": "east", "protocol": 1, "features": ["batch"]})
    );
}

#[tokio::test]
async fn what_is_said_of_a_bad_operation_is_short_however_long_it_is() {
    let east = Service::start().await;
    let long = json!([{"kind": "x".repeat(100_000)}]);
    let answer = east.prepare(&id(1), long).await;
    answer.is_problem(400, "invalid-request");
    assert!(answer.body.to_string().len() < 8_000);
}

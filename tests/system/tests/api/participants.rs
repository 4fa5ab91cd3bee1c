//! `/admin/v1/participants`

use reqwest::Method;
use serde_json::{Value, json};
use unanimous_lab::wait::until;

use crate::support::{Answer, Coordinator, Does, On, SOON, Stub, branch, on_both_logs};

const LIST: &str = "/admin/v1/participants";

fn path(name: &str) -> String {
    format!("{LIST}/{name}")
}

async fn put(coordinator: &Coordinator, name: &str, url: &str) -> Answer {
    let request = coordinator.admin(Method::PUT, &path(name));
    Answer::of(request.json(&json!({"url": url}))).await
}

async fn get(coordinator: &Coordinator, path: &str) -> Answer {
    Answer::of(coordinator.admin(Method::GET, path)).await
}

async fn delete(coordinator: &Coordinator, name: &str) -> Answer {
    Answer::of(coordinator.admin(Method::DELETE, &path(name))).await
}

fn commits_at(participant: &str) -> Value {
    json!({"branches": [branch(participant)], "commit": true})
}

on_both_logs! {
    a_participant_is_registered_replaced_and_removed_while_the_coordinator_runs
    a_participant_is_not_removed_while_an_unfinished_transaction_names_it
    what_was_given_at_start_wins_and_is_not_changed_here
    what_is_unfinished_of_a_name_that_is_gone_waits_visibly_until_it_is_put_again
}

async fn a_participant_is_registered_replaced_and_removed_while_the_coordinator_runs(on: On) {
    let (one, other) = (Stub::start("east").await, Stub::start("east").await);
    let mut coordinator = Coordinator::start_on(on, &[]).await;
    let none = get(&coordinator, LIST).await.is(200);
    assert_eq!(none.body, json!({"participants": []}));
    let refused = coordinator.begin(&commits_at("east")).await;
    refused.problem(400, "unknown-participant");

    let created = put(&coordinator, "east", &one.url()).await.is(201);
    let east = json!({"name": "east", "url": one.url()});
    assert_eq!(created.body, east);
    assert_eq!(created.header("location"), path("east"));
    assert_eq!(get(&coordinator, &path("east")).await.is(200).body, east);
    coordinator.begin(&commits_at("east")).await.is(200);
    assert_eq!(one.seen_of("prepare").len(), 1);

    let replaced = put(&coordinator, "east", &other.url()).await.is(200);
    assert_eq!(replaced.body["url"], other.url());
    coordinator.begin(&commits_at("east")).await.is(200);
    assert_eq!(other.seen_of("prepare").len(), 1);

    put(&coordinator, "a-first", "https://a.example/")
        .await
        .is(201);
    coordinator.kill_and_restart().await;
    let listed = get(&coordinator, LIST).await.is(200);
    let both = json!({"participants": [
        {"name": "a-first", "url": "https://a.example"},
        {"name": "east", "url": other.url()},
    ]});
    assert_eq!(listed.body, both, "kept in the log, by name");
    coordinator.begin(&commits_at("east")).await.is(200);

    until("east is free", SOON, async || {
        let removed = delete(&coordinator, "east").await;
        if removed.status == 204 {
            Ok(())
        } else {
            Err(removed.problem(409, "participant-in-use").text)
        }
    })
    .await
    .expect("nothing needs it any more");
    delete(&coordinator, "east")
        .await
        .problem(404, "unknown-participant");
    get(&coordinator, &path("east"))
        .await
        .problem(404, "unknown-participant");
    coordinator.kill_and_restart().await;
    get(&coordinator, &path("east"))
        .await
        .problem(404, "unknown-participant");
    let refused = coordinator.begin(&commits_at("east")).await;
    refused.problem(400, "unknown-participant");
}

async fn a_participant_is_not_removed_while_an_unfinished_transaction_names_it(on: On) {
    let east = Stub::start("east").await;
    let mut coordinator = Coordinator::start_on(on, &[]).await;
    put(&coordinator, "east", &east.url()).await.is(201);
    // Undecided, in memory only.
    let open = coordinator.open().await;
    coordinator
        .enlist(&open, &json!({"participant": "east"}))
        .await
        .is(201);
    let refused = delete(&coordinator, "east").await;
    refused.problem(409, "participant-in-use").names(&["east"]);
    coordinator.abort(&open).await.is(200);
    // Committed, and not everywhere, over a restart.
    east.always("commit", Does::Hang);
    let id = coordinator.begin(&commits_at("east")).await.is(200).id();
    for _ in 0..2 {
        let refused = delete(&coordinator, "east").await;
        refused.problem(409, "participant-in-use");
        coordinator.kill_and_restart().await;
    }
    // Another address is no removal, and the commit goes there.
    let elsewhere = Stub::start("east").await;
    put(&coordinator, "east", &elsewhere.url()).await.is(200);
    elsewhere.arrived("commit", 1).await;
    coordinator.reaches(&id, "committed").await;
}

async fn what_was_given_at_start_wins_and_is_not_changed_here(on: On) {
    let (kept, given) = (Stub::start("east").await, Stub::start("east").await);
    let mut coordinator = Coordinator::start_on(on, &[]).await;
    put(&coordinator, "east", &kept.url()).await.is(201);
    coordinator.process.kill();
    let program = crate::support::coordinator::serve(coordinator.log());
    let program = program.args(["--participant", &format!("east={}", given.url())]);
    coordinator.restart_as(program).await;
    let shown = get(&coordinator, &path("east")).await.is(200);
    assert_eq!(shown.body["url"], given.url());
    for refused in [
        put(&coordinator, "east", &kept.url()).await,
        delete(&coordinator, "east").await,
    ] {
        refused
            .problem(409, "participant-configured")
            .names(&["east"]);
    }
    coordinator.begin(&commits_at("east")).await.is(200);
    assert_eq!(kept.seen_of("prepare").len(), 0);
}

async fn what_is_unfinished_of_a_name_that_is_gone_waits_visibly_until_it_is_put_again(on: On) {
    let east = Stub::start("east").await;
    let mut coordinator = Coordinator::start_on(on, &[&east]).await;
    east.always("commit", Does::Hang);
    let id = coordinator.begin(&commits_at("east")).await.is(200).id();
    coordinator.process.kill();
    let without = crate::support::coordinator::serve(coordinator.log());
    coordinator.restart_as(without).await;
    assert_eq!(
        get(&coordinator, LIST).await.is(200).body["participants"],
        json!([])
    );
    let in_doubt = coordinator
        .get("/v1/transactions?in_doubt=true")
        .await
        .is(200);
    let shown = &in_doubt.body["transactions"][0];
    assert_eq!(
        (&shown["id"], &shown["state"]),
        (&json!(id), &json!("committing"))
    );
    east.always("commit", Does::Agree);
    put(&coordinator, "east", &east.url()).await.is(201);
    coordinator.reaches(&id, "committed").await;
}

#[tokio::test]
async fn a_wrong_request_says_what_is_wrong() {
    let coordinator = Coordinator::start(&[]).await;
    for (body, says) in [
        ("{}", "url"),
        (r#"{"url": null}"#, "url"),
        (r#"{"url": "http://h", "name": "east"}"#, "name"),
        (r#"{"url": "ftp://h"}"#, "scheme"),
        (r#"{"url": "http://me@h"}"#, "user"),
        (r#"{"url": "http://h?a"}"#, "query"),
        (r#"{"url": "east"}"#, "not a URL"),
        ("[]", "object"),
    ] {
        let request = coordinator.admin(Method::PUT, &path("east"));
        let request = request.header("content-type", "application/json");
        let refused = Answer::of(request.body(body)).await;
        refused.problem(400, "invalid-request").names(&[says]);
    }
    for name in ["East", "1", "a_b"] {
        put(&coordinator, name, "http://h")
            .await
            .problem(400, "invalid-request");
        get(&coordinator, &path(name))
            .await
            .problem(400, "invalid-request");
        delete(&coordinator, name)
            .await
            .problem(400, "invalid-request");
    }
    let query = get(&coordinator, &format!("{LIST}?limit=1")).await;
    query.problem(400, "invalid-request").names(&["limit"]);
    let post = Answer::of(coordinator.admin(Method::POST, &path("east"))).await;
    let post = post.problem(405, "method-not-allowed");
    assert_eq!(post.header("allow"), "GET, PUT, DELETE");
    // Not for clients.
    coordinator.get(LIST).await.is(404);
    assert_eq!(
        get(&coordinator, LIST).await.body["participants"],
        json!([])
    );
}

#[tokio::test]
async fn a_warning_tells_that_another_name_answers() {
    let west = Stub::start("west").await;
    let named = [("east", west.url())];
    let coordinator = Coordinator::start_with(&named, |program| program).await;
    west.arrived("describe", 1).await;
    put(&coordinator, "north", &west.url()).await.is(201);
    west.arrived("describe", 2).await;
    for name in ["east", "north"] {
        let said = format!("participant={name}");
        until("the log warns", SOON, async || {
            let text = coordinator
                .process
                .output()
                .expect("its output can be read");
            let is_warned =
                |line: &str| line.contains("ANOTHER PARTICIPANT") && line.contains(&said);
            if text.lines().any(is_warned) {
                Ok(())
            } else {
                Err(text)
            }
        })
        .await
        .expect("it warns");
    }
}

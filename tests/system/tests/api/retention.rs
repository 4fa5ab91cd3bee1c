//! Forgetting after the retention.

use serde_json::json;
use unanimous_lab::wait::until;

use crate::support::{Coordinator, Does, On, SOON, Stub, branch, on_both_logs};

const SHORT: [&str; 2] = ["--retention", "1s"];

async fn with_short_retention(on: On, participants: &[&Stub]) -> Coordinator {
    Coordinator::start_on_with(on, participants, |program| program.args(SHORT)).await
}

async fn is_forgotten(coordinator: &Coordinator, id: &str) {
    until(&format!("{id} is forgotten"), SOON, async || {
        let shown = coordinator.show(id).await;
        if shown.status == 410 {
            Ok(shown.problem(410, "forgotten"))
        } else {
            Err(shown.text)
        }
    })
    .await
    .expect("it is forgotten");
}

on_both_logs! {
    what_ended_is_forgotten_after_the_retention_and_its_key_is_free_again
    what_is_unfinished_is_never_forgotten
    a_record_answers_until_its_retention_is_over
}

async fn what_ended_is_forgotten_after_the_retention_and_its_key_is_free_again(on: On) {
    let east = Stub::start("east").await;
    let mut coordinator = with_short_retention(on, &[&east]).await;
    let body = json!({"branches": [branch("east")], "commit": true});
    let committed = coordinator.begin_keyed("k", &body).await.is(200).id();
    let aborted = coordinator.open().await;
    coordinator.abort(&aborted).await.is(200);
    for id in [&committed, &aborted] {
        is_forgotten(&coordinator, id).await;
        for route in ["commit", "abort", "branches"] {
            let path = format!("/v1/transactions/{id}/{route}");
            let body = if route == "branches" {
                json!({"participant": "east"})
            } else {
                json!({})
            };
            coordinator
                .post(&path, &body)
                .await
                .problem(410, "forgotten");
        }
        // It acknowledged, or was never committed.
        let told = coordinator.outcome(id, "east").await.is(200);
        assert_eq!(told.body["outcome"], "aborted");
    }
    let next = coordinator.begin_keyed("k", &body).await.is(200).id();
    assert_ne!(next, committed);
    // A later life says the same.
    coordinator.kill_and_restart().await;
    for id in [&committed, &aborted] {
        coordinator.show(id).await.problem(410, "forgotten");
    }
}

async fn what_is_unfinished_is_never_forgotten(on: On) {
    let east = Stub::start("east").await;
    let west = Stub::start("west").await;
    let mut coordinator = with_short_retention(on, &[&east, &west]).await;
    east.always("commit", Does::Hang);
    let both = json!({"branches": [branch("east"), branch("west")], "commit": true});
    let unfinished = coordinator.begin_keyed("k", &both).await.is(200).id();
    // As old, and finished: when it is gone, so would the other be.
    let only_west = json!({"branches": [branch("west")], "commit": true});
    let finished = coordinator.begin(&only_west).await.is(200).id();
    is_forgotten(&coordinator, &finished).await;
    coordinator.kill_and_restart().await;
    let later = coordinator.begin(&only_west).await.is(200).id();
    is_forgotten(&coordinator, &later).await;
    let shown = coordinator.show(&unfinished).await.is(200);
    assert_eq!(shown.body["state"], "committing");
    let told = coordinator.outcome(&unfinished, "east").await.is(200);
    assert_eq!(told.body["outcome"], "committed");
    let again = coordinator.begin_keyed("k", &both).await.is(200).id();
    assert_eq!(again, unfinished);
    // Its retention begins with its finish.
    east.always("commit", Does::Agree);
    is_forgotten(&coordinator, &unfinished).await;
}

async fn a_record_answers_until_its_retention_is_over(on: On) {
    let east = Stub::start("east").await;
    let coordinator = Coordinator::start_on(on, &[&east]).await;
    let other = with_short_retention(on, &[&east]).await;
    let body = json!({"branches": [branch("east")], "commit": true});
    let kept = coordinator.begin_keyed("k", &body).await.is(200).id();
    let forgotten = other.begin(&body).await.is(200).id();
    is_forgotten(&other, &forgotten).await;
    assert_eq!(coordinator.show(&kept).await.is(200).id(), kept);
    assert_eq!(coordinator.begin_keyed("k", &body).await.is(200).id(), kept);
}

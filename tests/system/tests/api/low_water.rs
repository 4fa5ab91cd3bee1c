//! The low-water mark in a coordinator's calls (design rule 15).

use serde_json::{Value, json};
use unanimous_lab::wait::until;

use crate::support::{Coordinator, On, SOON, Stub, branch, on_both_logs};

on_both_logs! {
    a_mark_passes_no_unfinished_id_and_all_that_are_finished
    a_commit_that_a_branch_has_not_acknowledged_holds_the_mark_over_a_restart
}

/// The mark in the prepare of a transaction that is run to its end now, and its id.
async fn mark_in_the_next_prepare(coordinator: &Coordinator, east: &Stub) -> (Value, String) {
    let before = east.seen_of("prepare").len();
    let body = json!({"branches": [branch("east")], "commit": true});
    let id = coordinator.begin(&body).await.is(200).id();
    let prepare = east.arrived("prepare", before + 1).await;
    assert_eq!(prepare.transaction(), id);
    (prepare.json()["low_water"].clone(), id)
}

/// Transactions are run until one carries this mark, or with `None` its own id.
async fn the_mark_becomes(coordinator: &Coordinator, east: &Stub, wanted: Option<&str>) {
    until("the mark gets there", SOON, async || {
        let (mark, own) = mark_in_the_next_prepare(coordinator, east).await;
        if mark == wanted.unwrap_or(&own) {
            Ok(())
        } else {
            Err(mark.to_string())
        }
    })
    .await
    .expect("it gets there");
}

async fn a_mark_passes_no_unfinished_id_and_all_that_are_finished(on: On) {
    let east = Stub::start("east").await;
    let mut coordinator = Coordinator::start_on(on, &[&east]).await;
    let (mark, _) = mark_in_the_next_prepare(&coordinator, &east).await;
    assert_eq!(mark, Value::Null, "nothing was written yet");
    the_mark_becomes(&coordinator, &east, None).await;
    let open = coordinator.open().await;
    the_mark_becomes(&coordinator, &east, Some(&open)).await;
    let (mark, _) = mark_in_the_next_prepare(&coordinator, &east).await;
    assert_eq!(mark, open, "it stays as long as one may still commit");
    coordinator.abort(&open).await.is(200);
    the_mark_becomes(&coordinator, &east, None).await;
    coordinator.kill_and_restart().await;
    the_mark_becomes(&coordinator, &east, None).await;
}

async fn a_commit_that_a_branch_has_not_acknowledged_holds_the_mark_over_a_restart(on: On) {
    let (east, west) = (Stub::start("east").await, Stub::start("west").await);
    let mut coordinator = Coordinator::start_on(on, &[&east, &west]).await;
    west.hold("commit");
    let body = json!({"branches": [branch("west")], "commit": true});
    let owed = coordinator.begin(&body).await.is(200).id();
    the_mark_becomes(&coordinator, &east, Some(&owed)).await;
    coordinator.kill_and_restart().await;
    the_mark_becomes(&coordinator, &east, Some(&owed)).await;
    west.release("commit");
    coordinator.reaches(&owed, "committed").await;
    the_mark_becomes(&coordinator, &east, None).await;
}

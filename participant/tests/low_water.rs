//! The low-water mark (design rule 15): what has ended is dropped, and what comes late begins nothing all the same.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use unanimous_participant::Builder;

use crate::service::{
    NOWHERE, Service, branch_body, connect, east as east_builder, id, note, post, prepare_body,
};

/// Rounds follow each other at once.
fn eager(builder: Builder) -> Builder {
    builder
        .coordinator(NOWHERE)
        .prune_every(Duration::from_millis(1))
}

fn with_mark(mut body: Value, low_water: &str) -> Value {
    body["low_water"] = low_water.into();
    body
}

async fn rows(east: &Service) -> Vec<String> {
    let query = "SELECT transaction::text FROM unanimous.branches ORDER BY transaction";
    let rows = east.sql.query(query, &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

const ONE_ROW: &str = "SELECT count(*) = 1 FROM unanimous.branches";

/// One branch of each end, 1 to 4, and a fifth in doubt; then a mark above 5 is heard, with an abort of 9.
async fn pruned() -> Service {
    let east = Service::start_with(eager).await;
    for number in [1, 2, 5] {
        east.prepare(&id(number), note("a")).await.is_vote("yes");
    }
    east.commit(&id(1)).await.is_state("committed");
    east.abort(&id(2)).await.is_state("aborted");
    east.prepare(&id(3), json!([{"kind": "refuse", "reason": "no"}]))
        .await
        .is_no("refused");
    east.abort(&id(4)).await.is_state("aborted");
    let told = with_mark(branch_body(&id(9)), &id(6));
    east.post("/v1/abort", &told).await.is_state("aborted");
    east.until("SELECT count(*) <= 2 FROM unanimous.branches")
        .await;
    east
}

#[tokio::test]
async fn what_has_an_outcome_below_the_mark_is_dropped_and_what_is_in_doubt_stays() {
    let east = pruned().await;
    assert_eq!(rows(&east).await, [id(5), id(9)]);
    assert_eq!(east.row(&id(5)).await.as_deref(), Some("prepared"));
    let mark =
        "SELECT mark::text = '00000001-0001-8000-8000-100000000006' FROM unanimous.low_water";
    east.until(mark).await;
    // Told at last, it goes with a later mark: not every round looks back so far.
    east.abort(&id(5)).await.is_state("aborted");
    for number in 7..=127 {
        let told = with_mark(branch_body(&id(200)), &id(number));
        east.post("/v1/abort", &told).await.is_state("aborted");
        let mark = id(number);
        east.until(&format!("SELECT mark = '{mark}' FROM unanimous.low_water"))
            .await;
    }
    assert_eq!(rows(&east).await, [id(200)]);
    assert_eq!(east.journal(&id(5)).await, ["prepared a", "aborted a"]);
}

#[tokio::test]
async fn below_the_mark_nothing_begins_and_nothing_is_stored() {
    let east = pruned().await;
    let east = east.restart(eager).await;
    for number in [1, 2, 3, 4] {
        let one = id(number);
        let journal = east.journal(&one).await;
        let late = east.prepare(&one, note("late")).await;
        late.is_no("below-low-water");
        assert_eq!(late.body["low_water"], id(6).as_str());
        east.commit(&one).await.is_problem(409, "vote-lost");
        east.abort(&one).await.is_state("aborted");
        assert_eq!(
            east.journal(&one).await,
            journal,
            "done once, and never again"
        );
    }
    assert_eq!(rows(&east).await, [id(5), id(9)], "no tombstones either");
    // At the mark and above nothing has changed.
    east.prepare(&id(6), note("b")).await.is_vote("yes");
}

#[tokio::test]
async fn a_row_that_is_there_answers_whatever_the_mark_is() {
    let east = pruned().await;
    east.prepare(&id(5), note("a")).await.is_vote("yes");
    east.commit(&id(5)).await.is_state("committed");
    assert_eq!(east.journal(&id(5)).await, ["prepared a", "committed a"]);
}

#[tokio::test]
async fn a_late_prepare_that_waits_for_its_row_to_be_dropped_finds_the_mark() {
    let east = Service::start().await;
    east.prepare(&id(1), note("a")).await.is_vote("yes");
    east.commit(&id(1)).await.is_state("committed");
    // Another process of this service, in the middle of a round.
    let pruner = connect(&east.database).await;
    pruner
        .batch_execute(
            "BEGIN;
             INSERT INTO unanimous.low_water (prefix, mark)
                 VALUES (x'000000010001'::bigint, '00000001-0001-8000-8000-100000000002');
             DELETE FROM unanimous.branches",
        )
        .await
        .unwrap();
    let participant = east.participant.clone();
    let late = tokio::spawn(async move {
        post(
            &participant,
            "/v1/prepare",
            &prepare_body(&id(1), note("a")),
        )
        .await
    });
    east.until("SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()")
        .await;
    pruner.batch_execute("COMMIT").await.unwrap();
    late.await.unwrap().is_no("below-low-water");
    assert_eq!(east.journal(&id(1)).await, ["prepared a", "committed a"]);
}

#[tokio::test]
async fn a_mark_speaks_of_its_own_prefix_only() {
    let east = Service::start_with(eager).await;
    let other_log = "00000002-0001-8000-8000-1000000000ff";
    let other_node = "00000001-0002-8000-8000-1000000000ff";
    east.abort(&id(1)).await.is_state("aborted");
    for stranger in [other_log, other_node] {
        let told = with_mark(branch_body(&id(2)), stranger);
        east.post("/v1/abort", &told).await.is_state("aborted");
        // Heard with a call of its own prefix it holds there, and leaves ours alone.
        let told = with_mark(branch_body(stranger), stranger);
        east.post("/v1/abort", &told).await.is_state("aborted");
    }
    east.until("SELECT count(*) = 2 FROM unanimous.low_water")
        .await;
    let ours = "SELECT count(*) FROM unanimous.low_water WHERE prefix = x'000000010001'::bigint";
    assert_eq!(east.count(ours).await, 0);
    assert_eq!(
        rows(&east).await,
        [id(1), id(2), other_node.to_owned(), other_log.to_owned()]
    );
    east.prepare(&id(3), note("a")).await.is_vote("yes");
}

#[tokio::test]
async fn a_mark_never_falls() {
    let east = pruned().await;
    // Another process of this service has heard less.
    let other = eager(east_builder(&east.database)).start().await.unwrap();
    east.abort(&id(10)).await.is_state("aborted");
    let told = with_mark(branch_body(&id(11)), &id(3));
    post(&other, "/v1/abort", &told).await.is_state("aborted");
    let told = with_mark(branch_body(&id(12)), &id(11));
    post(&other, "/v1/abort", &told).await.is_state("aborted");
    east.until(
        "SELECT mark::text = '00000001-0001-8000-8000-10000000000b' FROM unanimous.low_water",
    )
    .await;
    east.prepare(&id(4), note("late"))
        .await
        .is_no("below-low-water");
}

#[tokio::test]
async fn what_is_kept_of_a_thousand_transactions_is_what_is_not_finished() {
    let east = Service::start_with(eager).await;
    for number in 1..=1_000 {
        let (one, low_water) = (id(number), id(number));
        let prepare = with_mark(prepare_body(&one, note("a")), &low_water);
        east.post("/v1/prepare", &prepare).await.is_vote("yes");
        let told = with_mark(branch_body(&one), &low_water);
        east.post("/v1/commit", &told).await.is_state("committed");
    }
    east.until(ONE_ROW).await;
    assert_eq!(rows(&east).await, [id(1_000)]);
    let committed = "SELECT count(*) FROM journal WHERE what = 'committed'";
    assert_eq!(east.count(committed).await, 1_000);
}

#[tokio::test]
async fn whoever_comes_too_late_costs_those_beside_it_one_more_run() {
    let east = pruned().await;
    east.until("SELECT count(*) = 1 FROM unanimous.low_water")
        .await;
    for first in [20, 120] {
        for count in [3, 12] {
            let numbers = [3].into_iter().chain(first + count..first + 2 * count);
            let answers = join_all(numbers.map(|number| {
                let east = &east;
                async move { (number, east.prepare(&id(number), note("a")).await) }
            }));
            for (number, answer) in answers.await {
                if number == 3 {
                    answer.is_no("below-low-water");
                } else {
                    answer.is_vote("yes");
                }
            }
            let (from, to) = (id(first + count), id(first + 2 * count));
            let written_by = "SELECT count(DISTINCT xmin::text) FROM unanimous.branches";
            let beside = format!("transaction >= '{from}' AND transaction < '{to}'");
            let together = east.count(&format!("{written_by} WHERE {beside}")).await;
            assert_eq!(together, 1, "{count} from {from} on");
        }
    }
}

//! A key is held exclusively from its branch's prepare until its outcome.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};

use unanimous_participant::{Participant, tokio_postgres::Config};

use crate::service::{
    Answer, Journal, NOWHERE, Service, branch_body, id, pool, post, prepare_body,
};

fn hold(key: &str) -> Value {
    json!([{"kind": "hold", "key": key, "text": "k"}])
}

async fn prepare(east: &Service, number: u32, begun_at_ms: i64, operations: Value) -> Answer {
    let mut body = prepare_body(&id(number), operations);
    body["begun_at_ms"] = json!(begun_at_ms);
    east.post("/v1/prepare", &body).await
}

#[tokio::test]
async fn the_younger_is_refused_soon_and_the_older_asked_to_come_back_later() {
    let east = Service::start().await;
    prepare(&east, 5, 50, hold("a")).await.is_vote("yes");
    let begun = Instant::now();
    prepare(&east, 6, 60, hold("a")).await.is_no("conflict");
    let took = begun.elapsed();
    assert!(
        took >= Duration::from_millis(95) && took < Duration::from_millis(600),
        "{took:?}"
    );
    // The same moment: the id decides.
    prepare(&east, 7, 50, hold("a")).await.is_no("conflict");
    let begun = Instant::now();
    prepare(&east, 4, 50, hold("a"))
        .await
        .is_problem(503, "key-busy");
    let took = begun.elapsed();
    assert!(
        took >= Duration::from_millis(950) && took < Duration::from_millis(1_800),
        "{took:?}"
    );
    assert_eq!(east.row(&id(4)).await, None, "unknown leaves nothing");
    assert_eq!(east.row(&id(6)).await.as_deref(), Some("refused"));
    prepare(&east, 8, 80, hold("b")).await.is_vote("yes");
}

#[tokio::test]
async fn a_key_is_free_after_either_outcome_a_no_and_over_a_restart_only_then() {
    let east = Service::start().await;
    prepare(&east, 1, 1, hold("a")).await.is_vote("yes");
    let east = east.restart(|builder| builder.coordinator(NOWHERE)).await;
    prepare(&east, 2, 2, hold("a")).await.is_no("conflict");
    east.commit(&id(1)).await.is_state("committed");
    prepare(&east, 3, 3, hold("a")).await.is_vote("yes");
    east.abort(&id(3)).await.is_state("aborted");
    let refused =
        json!([{"kind": "hold", "key": "a", "text": "k"}, {"kind": "refuse", "reason": "no"}]);
    prepare(&east, 4, 4, refused).await.is_no("refused");
    prepare(&east, 5, 5, hold("a")).await.is_vote("yes");
    assert_eq!(east.count("SELECT count(*) FROM unanimous.keys").await, 1);
}

#[tokio::test]
async fn whoever_waits_gets_the_key_as_soon_as_it_is_free_and_keeps_no_slot_meanwhile() {
    let east = Service::start().await;
    prepare(&east, 50, 50, hold("a")).await.is_vote("yes");
    let waiting: Vec<_> = (1..=10)
        .map(|number| {
            let participant = east.participant.clone();
            let body = prepare_body(&id(number), hold("a"));
            tokio::spawn(async move { post(&participant, "/v1/prepare", &body).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let begun = Instant::now();
    prepare(&east, 60, 60, hold("b")).await.is_vote("yes");
    assert!(
        begun.elapsed() < Duration::from_millis(300),
        "{:?}",
        begun.elapsed()
    );
    east.commit(&id(50)).await.is_state("committed");
    let answers = join_all(waiting).await;
    let got_it = answers
        .iter()
        .filter(|answer| answer.as_ref().unwrap().body["vote"] == "yes");
    assert_eq!(got_it.count(), 1);
}

#[tokio::test]
async fn a_seventeenth_waiter_gives_up_at_once() {
    let east = Service::start().await;
    prepare(&east, 500, 500, hold("a")).await.is_vote("yes");
    let waiting: Vec<_> = (1..=16)
        .map(|number| {
            let participant = east.participant.clone();
            let body = prepare_body(&id(number), hold("a"));
            tokio::spawn(async move { post(&participant, "/v1/prepare", &body).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let begun = Instant::now();
    prepare(&east, 17, 1, hold("a"))
        .await
        .is_problem(503, "key-busy");
    // An older one that waits takes a second.
    assert!(
        begun.elapsed() < Duration::from_millis(900),
        "{:?}",
        begun.elapsed()
    );
    join_all(waiting).await;
}

#[tokio::test]
async fn a_repeat_of_a_waiting_prepare_joins_it() {
    let east = Service::start().await;
    prepare(&east, 50, 50, hold("a")).await.is_vote("yes");
    let repeats = (0..40).map(|_| prepare(&east, 1, 1, hold("a")));
    let release = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        east.commit(&id(50)).await.is_state("committed");
    };
    let (answers, ()) = tokio::join!(join_all(repeats), release);
    for answer in answers {
        answer.is_vote("yes");
    }
    assert_eq!(east.journal(&id(1)).await, ["prepared k"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn branches_that_want_the_same_keys_in_any_order_all_come_to_an_end() {
    let east = Service::start().await;
    let all = (1..=30_u32).map(|number| {
        let east = &east;
        async move {
            let (first, second) = if number % 2 == 0 {
                ("a", "b")
            } else {
                ("b", "a")
            };
            let both = json!([{"kind": "hold", "key": first, "text": "k"},
                              {"kind": "hold", "key": second, "text": "k"}]);
            loop {
                let answer = prepare(east, number, i64::from(number), both.clone()).await;
                if answer.status == 503 {
                    continue;
                }
                if answer.body["vote"] == "yes" {
                    east.commit(&id(number)).await.is_state("committed");
                } else {
                    answer.is_no("conflict");
                }
                return;
            }
        }
    });
    join_all(all).await;
    assert_eq!(east.count("SELECT count(*) FROM unanimous.keys").await, 0);
    assert!(
        east.count("SELECT count(*) FROM journal WHERE what = 'committed'")
            .await
            >= 2
    );
}

#[tokio::test]
async fn what_can_be_no_key_is_the_services_failure() {
    let east = Service::start().await;
    let long = "k".repeat(256);
    for key in [long.as_str(), "a\u{0}b"] {
        let answer = prepare(&east, 1, 1, hold(key)).await;
        answer.is_problem(503, "service-failed");
    }
    prepare(&east, 1, 1, hold(&long[1..])).await.is_vote("yes");
}

/// A process of the same service under the name it has from now on.
async fn renamed(database: &Config) -> Participant {
    Participant::builder("orient", Journal)
        .pool(pool(database, 5))
        .coordinator(NOWHERE)
        .formerly("east")
        // Said twice by mistake, and its own name: each counts once.
        .formerly("east")
        .formerly("orient")
        .start()
        .await
        .unwrap()
}

async fn prepare_renamed(orient: &Participant, number: u32, key: &str) -> Answer {
    let mut body = prepare_body(&id(number), hold(key));
    body["participant"] = json!("orient");
    body["begun_at_ms"] = json!(number);
    post(orient, "/v1/prepare", &body).await
}

#[tokio::test]
async fn during_a_rolling_rename_a_key_is_held_once_under_either_name_and_let_go_by_either_process()
{
    let east = Service::start().await;
    prepare(&east, 1, 1, hold("a")).await.is_vote("yes");
    let orient = renamed(&east.database).await;
    // Held under the former name, and let go by the process that still has it.
    prepare_renamed(&orient, 2, "a").await.is_no("conflict");
    east.commit(&id(1)).await.is_state("committed");
    assert_eq!(east.count("SELECT count(*) FROM unanimous.keys").await, 0);
    // Held under the new name.
    prepare_renamed(&orient, 3, "a").await.is_vote("yes");
    prepare(&east, 4, 4, hold("a")).await.is_no("conflict");
    prepare(&east, 5, 5, hold("b")).await.is_vote("yes");
    drop(orient);
    let orient = renamed(&east.database).await;
    prepare_renamed(&orient, 6, "a").await.is_no("conflict");
    prepare_renamed(&orient, 7, "b").await.is_no("conflict");
    let mut third = branch_body(&id(3));
    third["participant"] = json!("orient");
    post(&orient, "/v1/abort", &third).await.is_state("aborted");
    // The former name's branch, ended by the new process.
    let fifth = branch_body(&id(5));
    post(&orient, "/v1/commit", &fifth)
        .await
        .is_state("committed");
    assert_eq!(east.count("SELECT count(*) FROM unanimous.keys").await, 0);
    prepare(&east, 8, 8, hold("a")).await.is_vote("yes");
}

#[tokio::test]
async fn a_branch_whose_keys_somebody_deleted_does_not_end_in_silence() {
    let east = Service::start().await;
    let two = json!([{"kind": "hold", "key": "a", "text": "k"}, {"kind": "hold", "key": "b", "text": "k"}]);
    prepare(&east, 1, 1, two).await.is_vote("yes");
    let delete = "DELETE FROM unanimous.keys WHERE key = 'a'";
    east.sql.batch_execute(delete).await.unwrap();
    east.commit(&id(1))
        .await
        .is_problem(503, "branch-unreadable");
    assert_eq!(east.row(&id(1)).await.as_deref(), Some("prepared"));
    assert_eq!(east.journal(&id(1)).await.len(), 2, "nothing was applied");
    // Somebody looked.
    let looked = "UPDATE unanimous.branches SET keys_held = 1";
    east.sql.batch_execute(looked).await.unwrap();
    east.commit(&id(1)).await.is_state("committed");
    assert_eq!(east.count("SELECT count(*) FROM unanimous.keys").await, 0);
}

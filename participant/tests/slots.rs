//! Phase two never waits behind phase one, and a repeat joins what runs.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::json;

use crate::service::{NOWHERE, Service, id, note, pool, post, prepare_body};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_fifty_prepares_of_one_branch_at_once_one_does_the_work() {
    let east = Service::start().await;
    let slow = json!([{"kind": "slow", "ms": 50}]);
    for number in 1..=3 {
        let one = id(number);
        for answer in join_all((0..50).map(|_| east.prepare(&one, slow.clone()))).await {
            answer.is_vote("yes");
        }
        assert_eq!(east.journal(&one).await, ["prepared slow"]);
        for answer in join_all((0..50).map(|_| east.commit(&one))).await {
            answer.is_state("committed");
        }
        assert_eq!(east.journal(&one).await.len(), 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_prepares_in_several_processes_one_does_the_work() {
    let east = Service::start().await;
    let builder = crate::service::east(&east.database).coordinator(NOWHERE);
    let other = builder.start().await.unwrap();
    for number in 1..=20 {
        let body = prepare_body(&id(number), note("a"));
        let (here, there) = tokio::join!(
            post(&east.participant, "/v1/prepare", &body),
            post(&other, "/v1/prepare", &body)
        );
        here.is_vote("yes");
        there.is_vote("yes");
        assert_eq!(east.journal(&id(number)).await, ["prepared a"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_goes_at_once_while_prepares_hang_in_every_slot() {
    let east = Service::start_with(|builder| builder.coordinator(NOWHERE)).await;
    east.prepare(&id(1), note("a")).await.is_vote("yes");
    east.prepare(&id(2), note("a")).await.is_vote("yes");
    let hanging: Vec<_> = (10..30)
        .map(|number| {
            let participant = east.participant.clone();
            let body = prepare_body(&id(number), json!([{"kind": "hang_in_sql"}]));
            tokio::spawn(async move { post(&participant, "/v1/prepare", &body).await })
        })
        .collect();
    east.until("SELECT count(*) = 2 FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600)%' AND datname = current_database() AND pid <> pg_backend_pid()")
        .await;
    let begun = Instant::now();
    east.commit(&id(1)).await.is_state("committed");
    east.abort(&id(2)).await.is_state("aborted");
    east.abort(&id(3)).await.is_state("aborted");
    assert!(
        begun.elapsed() < Duration::from_secs(1),
        "{:?}",
        begun.elapsed()
    );
    for prepare in hanging {
        prepare.abort();
    }
}

/// On one thread, so that the prepare is surely there before its abort.
#[tokio::test]
async fn an_abort_does_not_wait_behind_its_prepare_that_waits_for_a_slot() {
    let east = Service::start().await;
    let hanging: Vec<_> = (10..13)
        .map(|number| {
            let participant = east.participant.clone();
            let body = prepare_body(&id(number), json!([{"kind": "hang_in_sql"}]));
            tokio::spawn(async move { post(&participant, "/v1/prepare", &body).await })
        })
        .collect();
    east.until("SELECT count(*) = 2 FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600)%' AND datname = current_database() AND pid <> pg_backend_pid()")
        .await;
    let one = id(1);
    let begun = Instant::now();
    let (prepared, aborted) = tokio::join!(east.prepare(&one, note("a")), east.abort(&one));
    aborted.is_state("aborted");
    prepared.is_problem(503, "branch-busy");
    assert!(
        begun.elapsed() < Duration::from_secs(1),
        "{:?}",
        begun.elapsed()
    );
    for prepare in hanging {
        prepare.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prepare_and_its_abort_at_once_never_end_in_doubt() {
    let east = Service::start().await;
    for number in 1..=100 {
        let one = id(number);
        let (prepared, aborted) = tokio::join!(east.prepare(&one, note("a")), east.abort(&one));
        aborted.is_state("aborted");
        assert!(matches!(prepared.status, 200 | 503), "{prepared:?}");
        assert_ne!(east.row(&one).await.as_deref(), Some("prepared"));
        assert!(matches!(east.journal(&one).await.len(), 0 | 2));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_branches_at_once_share_a_small_pool() {
    let east = Service::start_with(|builder| builder.coordinator(NOWHERE)).await;
    let small = crate::service::east(&east.database).pool(pool(&east.database, 3));
    let small = small.coordinator(NOWHERE).start().await.unwrap();
    let all = (1..=200).map(|number| {
        let small = small.clone();
        async move {
            let body = prepare_body(&id(number), note("a"));
            post(&small, "/v1/prepare", &body).await.is_vote("yes");
            let body = crate::service::branch_body(&id(number));
            post(&small, "/v1/commit", &body)
                .await
                .is_state("committed");
        }
    });
    join_all(all).await;
    assert_eq!(east.count("SELECT count(*) FROM journal").await, 400);
}

//! `GET /v1/transactions`

use std::collections::BTreeSet;

use serde_json::{Value, json};
use unanimous_lab::wait::until;

use crate::support::{Answer, Coordinator, Does, On, SOON, Stub, branch, on_both_logs};

async fn list(coordinator: &Coordinator, query: &str) -> Answer {
    coordinator.get(&format!("/v1/transactions?{query}")).await
}

#[track_caller]
fn ids(page: &Answer) -> Vec<String> {
    let transactions = page.body["transactions"].as_array();
    let transactions = transactions.expect("a list").iter();
    transactions
        .map(|shown| shown["id"].as_str().expect("an id").to_owned())
        .collect()
}

async fn listed(coordinator: &Coordinator, query: &str) -> BTreeSet<String> {
    let page = list(coordinator, query).await.is(200);
    assert_eq!(page.body["next"], Value::Null);
    ids(&page).into_iter().collect()
}

fn set<const N: usize>(ids: [&String; N]) -> BTreeSet<String> {
    ids.into_iter().cloned().collect()
}

on_both_logs! {
    paging_while_others_begin_shows_each_transaction_once
    each_filter_finds_what_is_in_memory_and_what_is_in_the_log
}

async fn paging_while_others_begin_shows_each_transaction_once(on: On) {
    let east = Stub::start("east").await;
    let mut coordinator = Coordinator::start_on(on, &[&east]).await;
    let body = json!({"branches": [branch("east")], "commit": true});
    let mut there = BTreeSet::new();
    for number in 0..250 {
        // Committed, aborted, and some in memory only.
        let id = match number % 5 {
            0 => coordinator.open().await,
            1 => {
                let id = coordinator.open().await;
                coordinator.abort(&id).await.is(200).id()
            }
            _ => coordinator.begin(&body).await.is(200).id(),
        };
        there.insert(id);
    }
    for limit in [1000, 100, 7] {
        let mut seen = Vec::new();
        let mut query = format!("limit={limit}");
        loop {
            let page = list(&coordinator, &query).await.is(200);
            let times: Vec<_> = page.body["transactions"]
                .as_array()
                .expect("a list")
                .iter()
                .map(|shown| shown["created_at"].as_str().expect("a time").to_owned())
                .collect();
            assert!(
                times.is_sorted_by(|newer, older| newer >= older),
                "{times:?}"
            );
            assert!(times.len() <= limit);
            seen.extend(ids(&page));
            coordinator.begin(&body).await.is(200);
            match page.body["next"].as_str() {
                Some(next) => query = format!("limit={limit}&after={next}"),
                None => break,
            }
        }
        let once: BTreeSet<_> = seen.iter().cloned().collect();
        assert_eq!(once.len(), seen.len(), "nothing twice");
        assert!(once.is_superset(&there), "nothing missed");
        let next = list(&coordinator, "").await.is(200);
        there.extend(ids(&next));
    }
    // What was undecided is gone with its life; what had ended is there.
    let by_east = |page: &Answer| page.body["next"].clone();
    coordinator.kill_and_restart().await;
    let page = list(&coordinator, "participant=east&limit=150")
        .await
        .is(200);
    assert_eq!(ids(&page).len(), 150);
    assert_ne!(by_east(&page), Value::Null);
}

async fn each_filter_finds_what_is_in_memory_and_what_is_in_the_log(on: On) {
    let (east, west) = (Stub::start("east").await, Stub::start("west").await);
    let mut coordinator = Coordinator::start_on(on, &[&east, &west]).await;
    let labelled = |participant: &str, order: &str, commit: bool| {
        json!({"branches": [branch(participant)], "commit": commit,
               "labels": {"order": order, "kind": "a:b"}})
    };
    let open = coordinator
        .begin(&labelled("east", "1", false))
        .await
        .is(201)
        .id();
    let committed = coordinator
        .begin_keyed("k 1", &labelled("east", "2", true))
        .await
        .is(200)
        .id();
    west.once(
        "prepare",
        Does::Refuse {
            code: None,
            reason: "no",
        },
    );
    let aborted = coordinator
        .begin(&labelled("west", "3", true))
        .await
        .aborted("refused")
        .id();
    west.always("commit", Does::Hang);
    let committing = coordinator
        .begin(&labelled("west", "1", true))
        .await
        .is(200)
        .id();
    coordinator.reaches(&committed, "committed").await;
    coordinator.reaches(&aborted, "aborted").await;

    let all = || set([&open, &committed, &aborted, &committing]);
    let cases = |open: BTreeSet<String>| {
        let with_open = |ids: BTreeSet<String>| ids.union(&open).cloned().collect();
        [
            ("state=active", open.clone()),
            ("state=committing", set([&committing])),
            ("state=committed", set([&committed])),
            ("state=aborted", set([&aborted])),
            ("state=preparing", set([])),
            ("outcome=committed", set([&committed, &committing])),
            ("outcome=aborted", set([&aborted])),
            ("outcome=aborted&state=committed", set([])),
            ("participant=east", with_open(set([&committed]))),
            ("participant=west&outcome=committed", set([&committing])),
            ("participant=north", set([])),
            ("idempotency_key=k%201", set([&committed])),
            ("idempotency_key=k", set([])),
            ("label=order:1", with_open(set([&committing]))),
            ("label=order:2&label=kind:a:b", set([&committed])),
            ("label=order:2&label=order:1", set([])),
            ("label=order:1&participant=west", set([&committing])),
            ("in_doubt=true", set([&committing])),
            ("in_doubt=true&participant=east", set([])),
        ]
    };
    for (query, expected) in cases(set([&open])) {
        assert_eq!(listed(&coordinator, query).await, expected, "{query}");
    }
    assert_eq!(listed(&coordinator, "").await, all());
    let shown = list(&coordinator, "idempotency_key=k%201").await.is(200);
    let itself = coordinator.show(&committed).await.is(200);
    assert_eq!(
        shown.body["transactions"][0], itself.body,
        "as GET shows it"
    );
    // The same from the log alone, but for what was in memory only.
    coordinator.kill_and_restart().await;
    for (query, expected) in cases(set([])) {
        assert_eq!(listed(&coordinator, query).await, expected, "{query}");
    }
}

#[tokio::test]
async fn in_doubt_is_what_voted_yes_and_has_not_acknowledged_an_abort_included() {
    let (east, west) = (Stub::start("east").await, Stub::start("west").await);
    let coordinator = Coordinator::start(&[&east, &west]).await;
    west.hold("prepare");
    east.always("abort", Does::Hang);
    let body =
        json!({"branches": [branch("east"), branch("west")], "commit": true, "wait": "none"});
    let id = coordinator.begin(&body).await.is(202).id();
    let in_doubt = async |query: &str| {
        until("east is in doubt", SOON, async || {
            let found = listed(&coordinator, query).await;
            if found == set([&id]) {
                Ok(())
            } else {
                Err(format!("{found:?}"))
            }
        })
        .await
        .expect("it is listed");
    };
    in_doubt("in_doubt=true&state=preparing").await;
    coordinator.abort(&id).await.is(200);
    in_doubt("in_doubt=true&state=aborting").await;
    assert_eq!(listed(&coordinator, "in_doubt=false").await, set([]));
}

#[tokio::test]
async fn a_wrong_query_names_the_member() {
    let coordinator = Coordinator::start(&[]).await;
    for (query, names) in [
        ("state=done", "state"),
        ("outcome=pending", "outcome"),
        ("participant=East", "participant"),
        ("idempotency_key=", "idempotency_key"),
        ("label=order", "label"),
        ("in_doubt=yes", "in_doubt"),
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=-1", "limit"),
        ("after=1", "after"),
        ("after=", "after"),
        ("state=active&state=active", "state"),
        ("offset=1", "offset"),
    ] {
        let refused = list(&coordinator, query).await;
        refused.problem(400, "invalid-request").names(&[names]);
    }
    let many = vec!["label=a:b"; 17].join("&");
    list(&coordinator, &many)
        .await
        .problem(400, "invalid-request")
        .names(&["label"]);
    let empty = list(&coordinator, "limit=1000").await.is(200);
    assert_eq!(empty.body, json!({"transactions": [], "next": null}));
}

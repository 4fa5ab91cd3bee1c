//! The log's server goes away in the middle of a load, and comes back.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::json;
use unanimous_lab::wait::until;
use unanimous_lab::{Cluster, Options};

use crate::support::{Answer, Clients, Coordinator, Log, SOON, Stub, branch};

/// How the server goes away.
#[derive(Clone, Copy, Debug)]
enum Outage {
    /// Its connections break, and nobody answers at its port.
    Killed,
    /// Its connections stay, and nobody answers on them.
    StandsStill,
}

/// By then a request is refused rather than left to wait; the rest is for a machine that is busy with other tests.
const REFUSED_WITHIN: Duration = Duration::from_secs(2);
const SLACK: Duration = Duration::from_secs(2);

async fn a_load_survives(outage: Outage) {
    let mut server = Cluster::start(&Options::default().name("log"))
        .await
        .expect("a server starts");
    let log = server.create_database("log").await;
    let log = std::sync::Arc::new(Log::Postgres(log.expect("a database can be made")));
    let (east, west) = (Stub::start("east").await, Stub::start("west").await);
    let participants = [&east, &west];
    let north = Stub::start("north").await;
    let all = [&east, &west, &north];
    let coordinator = Coordinator::start_beside(&log, &all, |program| program).await;
    let clients = Clients::start(8, coordinator.url());
    clients.told_more(40).await;

    // One that runs, and whose decision comes when there is no log.
    north.hold("prepare");
    let body = json!({"branches": [branch("north")], "commit": true, "wait": "none"});
    let running = coordinator.begin(&body).await.is(202).id();
    north.arrived("prepare", 1).await;
    let gone = Instant::now();
    match outage {
        Outage::Killed => server.kill(),
        Outage::StandsStill => server.pause(),
    }
    until("what is new is refused", SOON, async || {
        let asked = Instant::now();
        let answers = [
            coordinator
                .begin_keyed(&format!("{asked:?}"), &json!({}))
                .await,
            coordinator.begin(&json!({})).await,
        ];
        let took = asked.elapsed();
        assert!(took < REFUSED_WITHIN + SLACK, "an answer after {took:?}");
        answers.iter().all(|answer| answer.status == 503)
    })
    .await
    .expect("it is refused");
    let took = gone.elapsed();
    assert!(
        took < 2 * REFUSED_WITHIN + SLACK,
        "it was taken for {took:?}"
    );
    let refused = coordinator.begin(&json!({})).await;
    let refused = refused.problem(503, "log-unavailable");
    assert!(refused.header("retry-after").parse::<u64>().is_ok());
    let ready = Answer::of(coordinator.admin(Method::GET, "/readyz")).await;
    ready.problem(503, "log-unavailable");

    north.release("prepare");
    until("the decision waits for the log", SOON, async || {
        let shown = coordinator.show(&running).await.is(200);
        assert_eq!(shown.body["outcome"], serde_json::Value::Null);
        if shown.body["state"] == "deciding" {
            Ok(())
        } else {
            Err(shown.text)
        }
    })
    .await
    .expect("it waits");
    let told = coordinator.outcome(&running, "north").await.is(200);
    assert_eq!(told.body["outcome"], "pending");
    assert!(north.seen_of("commit").is_empty(), "logged before told");

    match outage {
        Outage::Killed => server.restart().await.expect("the server starts again"),
        Outage::StandsStill => server.resume(),
    }
    // By itself, and it is the same transaction.
    coordinator.commit(&running).await.is(200);
    assert_eq!(north.arrived("commit", 1).await.transaction(), running);
    clients.told_more(40).await;
    until("it is ready again", SOON, async || {
        let ready = Answer::of(coordinator.admin(Method::GET, "/readyz")).await;
        ready.status == 200
    })
    .await
    .expect("without a restart");
    clients.end_and_audit(coordinator.url(), participants).await;
    assert_eq!(north.seen_of("prepare").len(), 1);
}

#[tokio::test]
async fn while_the_log_s_server_is_dead_nothing_new_begins_and_what_runs_is_decided_after_it() {
    a_load_survives(Outage::Killed).await;
}

#[tokio::test]
async fn while_the_log_s_server_stands_still_nothing_new_begins_and_what_runs_is_decided_after_it()
{
    a_load_survives(Outage::StandsStill).await;
}

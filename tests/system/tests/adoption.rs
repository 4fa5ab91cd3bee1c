//! A coordinator that adopts the node of another one on its log (design section 4).

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::json;
use unanimous_lab::Program;
use unanimous_lab::wait::until;
use unanimous_protocol::id::{Node, TransactionId};

use crate::support::metrics::Scrape;
use crate::support::{Answer, Clients, Coordinator, On, SOON, Stub, branch};

/// The exit code of a fenced coordinator.
const FENCED: i32 = 3;

/// Marks come so often that a busy machine does not make a living node look dead.
pub(crate) fn in_test_time(program: Program) -> Program {
    program.args(["--mark-every", "100ms", "--unseen-for", "3s"])
}

pub(crate) fn adopts_node_1(program: Program) -> Program {
    in_test_time(program).args(["--node", "2", "--adopt-node", "1"])
}

pub(crate) async fn says(coordinator: &Coordinator, words: &str) {
    until(&format!("it says {words:?}"), SOON, async || {
        let output = coordinator.process.output().expect("its output");
        if output.contains(words) {
            Ok(())
        } else {
            Err(output)
        }
    })
    .await
    .expect("it says so");
}

#[tokio::test]
async fn who_adopts_a_killed_node_delivers_its_commits_and_only_then_calls_the_undecided_aborted() {
    let (east, west) = (Stub::start("east").await, Stub::start("west").await);
    let participants = [&east, &west];
    let mut owner = Coordinator::start_on_with(On::Postgres, &participants, in_test_time).await;
    let adopter = Coordinator::start_beside(owner.log(), &participants, adopts_node_1).await;
    east.hold("commit");
    west.hold("commit");
    let mut body = json!({"branches": [branch("east"), branch("west")], "commit": true});
    let committed = owner.begin(&body).await.is(200).id();
    east.arrived("commit", 1).await;
    west.arrived("commit", 1).await;
    west.hold("prepare");
    body["wait"] = "none".into();
    let undecided = owner.begin(&body).await.is(202).id();
    east.arrived("prepare", 2).await;

    // As long as its owner lives.
    says(&adopter, "the node is not adopted now").await;
    let told = adopter.outcome(&undecided, "east").await.is(200);
    assert_eq!(told.body["outcome"], "pending");
    let shown = adopter.show(&undecided).await.problem(404, "other-node");
    assert_eq!(shown.body["node"], 1);
    let shown = adopter.show(&committed).await.is(200);
    assert_eq!(shown.body["state"], "committing");
    owner.process.kill();
    let killed = Instant::now();
    until("the undecided one is aborted", SOON, async || {
        let told = adopter.outcome(&undecided, "east").await.is(200);
        match told.body["outcome"].as_str() {
            Some("aborted") => Ok(()),
            Some("pending") => Err("pending"),
            _ => panic!("{}", told.text),
        }
    })
    .await
    .expect("the node is adopted");
    let took = killed.elapsed();
    assert!(took > Duration::from_secs(1), "adopted after {took:?}");

    // Both are told by the adopter what was told to neither.
    for stub in participants {
        stub.release("commit");
        assert_eq!(stub.arrived("commit", 2).await.transaction(), committed);
    }
    adopter.reaches(&committed, "committed").await;
    west.release("prepare");
    adopter
        .commit(&undecided)
        .await
        .aborted("coordinator-restarted");
    // It runs the node, and issues no ids of it.
    let own: TransactionId = adopter.open().await.parse().expect("an id");
    assert_eq!(own.node(), Node(2));
    let in_doubt = adopter.get("/v1/transactions?in_doubt=true").await.is(200);
    assert_eq!(in_doubt.body["transactions"], json!([]));
    for stub in participants {
        let others = stub.seen_of("commit").into_iter();
        let others = others.filter(|seen| seen.transaction() != committed);
        assert_eq!(others.count(), 0, "{} was told a commit", stub.name);
    }
}

#[tokio::test]
async fn a_node_adopted_by_force_is_left_to_its_owner_when_that_comes_back() {
    let east = Stub::start("east").await;
    let mut owner = Coordinator::start_on_with(On::Postgres, &[&east], in_test_time).await;
    let open = owner.open().await;
    east.hold("commit");
    let body = json!({"branches": [branch("east")], "commit": true});
    let owed = owner.begin(&body).await.is(200).id();
    let by_force = |program| adopts_node_1(program).arg("--force");
    let mut adopter = Coordinator::start_beside(owner.log(), &[&east], by_force).await;
    let status = owner.process.wait_exit(SOON).await.expect("it ends");
    assert_eq!(status.code(), Some(FENCED), "{status}");
    adopter.commit(&open).await.aborted("coordinator-restarted");
    let driven = r#"unanimous_transactions{state="committing"}"#;
    let drives = |count| move |scrape: &Scrape| scrape.value(driven) == count;
    adopter.scraped("the adopter delivers", drives(1.0)).await;

    owner.kill_and_restart().await;
    says(&adopter, "somebody else runs the adopted node now").await;
    // Two who deliver would not agree on what is finished: the owner's mark passes it, and its branches forget it.
    adopter.scraped("the adopter lets go", drives(0.0)).await;
    owner.scraped("the owner delivers", drives(1.0)).await;
    assert_eq!(
        adopter.show(&owed).await.is(200).body["state"],
        "committing"
    );
    east.release("commit");
    owner.reaches(&owed, "committed").await;
    adopter.reaches(&owed, "committed").await;
    // By the usual rule: force was for the start.
    says(&adopter, "the node is not adopted now").await;
    for coordinator in [&owner, &adopter] {
        let body = json!({"branches": [branch("east")], "commit": true, "wait": "applied"});
        let id = coordinator.begin(&body).await.is(200).id();
        let ready = Answer::of(coordinator.admin(Method::GET, "/readyz")).await;
        ready.is(200);
        let shown = owner.show(&id).await.is(200);
        assert_eq!(shown.body["outcome"], "committed");
    }
    let back: TransactionId = owner.open().await.parse().expect("an id");
    assert_eq!((back.node(), back.epoch().number()), (Node(1), 3));
    let told = adopter.outcome(&back.to_string(), "east").await.is(200);
    assert_eq!(told.body["outcome"], "pending", "its owner knows");
    assert!(owner.process.is_running() && adopter.process.is_running());
}

#[tokio::test]
async fn every_client_is_told_what_the_log_holds_when_a_node_is_killed_and_adopted_under_load() {
    let (east, west) = (Stub::start("east").await, Stub::start("west").await);
    let participants = [&east, &west];
    let mut owner = Coordinator::start_on_with(On::Postgres, &participants, in_test_time).await;
    let adopter = Coordinator::start_beside(owner.log(), &participants, adopts_node_1).await;
    let clients = Clients::start(8, owner.url());
    clients.told_more(40).await;
    owner.process.kill();
    clients.turn_to(adopter.url());
    clients.told_more(40).await;
    says(&adopter, "the node is adopted").await;
    clients.end_and_audit(adopter.url(), participants).await;
}

#[tokio::test]
async fn what_a_node_left_that_nobody_runs_is_shown_loudly_and_in_the_list() {
    let east = Stub::start("east").await;
    let mut owner = Coordinator::start_on_with(On::Postgres, &[&east], in_test_time).await;
    east.hold("commit");
    let body = json!({"branches": [branch("east")], "commit": true});
    let left = owner.begin(&body).await.is(200).id();
    owner.process.kill();
    let neighbour = |program| in_test_time(program).args(["--node", "2"]);
    let neighbour = Coordinator::start_beside(owner.log(), &[&east], neighbour).await;
    says(&neighbour, "NOBODY RUNS this node").await;
    let listed = neighbour.get("/v1/transactions?in_doubt=true").await;
    let listed = listed.is(200);
    let shown = &listed.body["transactions"][0];
    assert_eq!(
        (&shown["id"], &shown["state"]),
        (&json!(left), &json!("committing"))
    );
    east.release("commit");
}

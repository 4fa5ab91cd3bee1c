//! Points that no transfer between banks comes to: each in a situation of its own, on both kinds of log where there are
//! two.

use std::os::unix::process::ExitStatusExt as _;

use reqwest::Method;
use serde_json::json;
use unanimous_lab::wait::until;
use unanimous_lab::{Process, Program};

use super::ABORTED;
use crate::adoption::{adopts_node_1, in_test_time, says};
use crate::process::new_identity;
use crate::support::{Answer, Coordinator, On, SOON, Stub, branch, on_both_logs};

fn dying_at(program: &Program, point: &str) -> Program {
    program.clone().env("FAILPOINTS", format!("{point}=return"))
}

async fn has_died(process: &mut Process, point: &str) {
    let ended = process.wait_exit(SOON).await.expect("it dies");
    assert_eq!(ended.signal(), Some(ABORTED), "{point}: {ended}");
}

/// Starts it again so that it dies there, at once or once `then` is done; returns what that returned.
async fn dies_at<T>(
    coordinator: &mut Coordinator,
    point: &str,
    then: impl AsyncFn(&Coordinator) -> T,
) -> T {
    let unarmed = coordinator.process.program().clone();
    coordinator.restart_as(dying_at(&unarmed, point)).await;
    let done = then(coordinator).await;
    has_died(&mut coordinator.process, point).await;
    coordinator.restart_as(unarmed).await;
    done
}

on_both_logs! {
    a_participant_put_or_removed_by_a_coordinator_that_is_killed_is_there_or_not
    a_coordinator_killed_as_it_forgets_forgets_the_next_time
    a_client_whose_abort_was_not_answered_is_told_when_it_asks_again
    a_new_identity_that_was_killed_is_drawn_again
    once_it_is_remembered_that_a_log_went_back_no_life_begins_on_it
}

async fn a_participant_put_or_removed_by_a_coordinator_that_is_killed_is_there_or_not(on: On) {
    const NORTH: &str = "/admin/v1/participants/north";
    let mut coordinator = Coordinator::start_on(on, &[]).await;
    let url = json!({"url": "http://127.0.0.1:9/unanimous"});
    for (point, is_there) in [
        ("put-participant-before", false),
        ("put-participant-after", true),
        ("remove-participant-before", true),
        ("remove-participant-after", false),
    ] {
        dies_at(&mut coordinator, point, async |coordinator| {
            let request = if point.starts_with("put") {
                coordinator.admin(Method::PUT, NORTH).json(&url)
            } else {
                coordinator.admin(Method::DELETE, NORTH)
            };
            let answered = Answer::try_of(request).await;
            answered.expect_err("nobody is told anything");
        })
        .await;
        let shown = Answer::of(coordinator.admin(Method::GET, NORTH)).await;
        assert_eq!(shown.status == 200, is_there, "{point}: {}", shown.text);
    }
}

async fn a_coordinator_killed_as_it_forgets_forgets_the_next_time(on: On) {
    let east = Stub::start("east").await;
    let mut coordinator =
        Coordinator::start_on_with(on, &[&east], |program| program.args(["--retention", "1s"]))
            .await;
    let body = json!({"branches": [branch("east")], "commit": true, "wait": "applied"});
    for point in ["forget-before", "forget-after"] {
        let committed = coordinator.begin(&body).await.is(200).id();
        dies_at(&mut coordinator, point, async |_| {}).await;
        until("it is forgotten", SOON, async || {
            let shown = coordinator.show(&committed).await;
            // While it is there it is committed, whatever was begun.
            match shown.status.as_u16() {
                410 => Ok(()),
                200 if shown.body["state"] == "committed" => Err("not yet".to_owned()),
                _ => panic!("{point}: {}", shown.text),
            }
        })
        .await
        .expect("it is forgotten");
        let told = coordinator.outcome(&committed, "east").await.is(200);
        assert_eq!(told.body["outcome"], "aborted", "east acknowledged before");
    }
}

async fn a_client_whose_abort_was_not_answered_is_told_when_it_asks_again(on: On) {
    const POINT: &str = "client-abort-answer";
    let mut coordinator = Coordinator::start_on(on, &[]).await;
    let asked = dies_at(&mut coordinator, POINT, async |coordinator| {
        let open = coordinator.open().await;
        let path = format!("/v1/transactions/{open}/abort");
        let request = coordinator.request(Method::POST, &path).json(&json!({}));
        let answered = Answer::try_of(request).await;
        answered.expect_err("nobody is told anything");
        open
    })
    .await;
    let shown = coordinator.show(&asked).await.is(200);
    assert_eq!(shown.body["outcome"], "aborted");
    let again = coordinator.abort(&asked).await.is(200);
    assert_eq!(again.body["outcome"], "aborted");
}

async fn a_new_identity_that_was_killed_is_drawn_again(on: On) {
    let mut coordinator = Coordinator::start_on(on, &[]).await;
    let of_before = coordinator.open().await;
    coordinator.process.kill();
    for point in ["new-identity-before", "new-identity-after"] {
        let drawn = dying_at(&new_identity(coordinator.log()), point).start();
        has_died(&mut drawn.expect("it starts"), point).await;
    }
    let drawn = new_identity(coordinator.log()).start();
    let ended = drawn.expect("it starts").wait_exit(SOON).await;
    assert!(ended.expect("it ends").success());
    coordinator.kill_and_restart().await;
    // What was open belongs to a life of a former identity, which may have committed it.
    let shown = coordinator.show(&of_before).await;
    shown.problem(503, "outcome-unknown");
    let next = coordinator.open().await;
    assert_ne!(next[..8], of_before[..8], "the identity is another one");
}

/// Killed before, it is not remembered, and nothing in the log tells the next life: `docs/adr/0003`.
async fn once_it_is_remembered_that_a_log_went_back_no_life_begins_on_it(on: On) {
    for (point, is_remembered) in [("went-back-before", false), ("went-back-after", true)] {
        let east = Stub::start("east").await;
        let mut coordinator = Coordinator::start_on(on, &[&east]).await;
        let unarmed = coordinator.process.program().clone();
        coordinator.restart_as(dying_at(&unarmed, point)).await;
        let body = json!({"branches": [branch("east")], "commit": true});
        coordinator.begin(&body).await.is(200);
        let log = coordinator.log();
        log.change("UPDATE epoch SET decisions = 0").await;
        has_died(&mut coordinator.process, point).await;
        coordinator.process.restart_as(unarmed).expect("it starts");
        let ready = coordinator.process.wait_for_line("ready ", SOON).await;
        assert_eq!(ready.is_err(), is_remembered, "{point}: {ready:?}");
        if is_remembered {
            let output = coordinator.process.output_of_this_life();
            let output = output.expect("its output");
            assert!(output.contains("new-identity"), "{output}");
        }
    }
}

/// In a file a start takes all nodes, one after the other.
#[tokio::test]
async fn a_start_killed_between_the_nodes_of_a_file_takes_them_all_the_next_time() {
    let east = Stub::start("east").await;
    let mut coordinator = Coordinator::start(&[&east]).await;
    east.hold("commit");
    let body = json!({"branches": [branch("east")], "commit": true});
    let left = coordinator.begin(&body).await.is(200).id();
    east.arrived("commit", 1).await;
    let of_node_1 = coordinator.process.program().clone();
    let of_node_2 = of_node_1.clone().args(["--node", "2"]);
    for point in ["other-epoch-before", "other-epoch-after"] {
        let armed = dying_at(&of_node_2, point);
        coordinator.process.restart_as(armed).expect("it starts");
        has_died(&mut coordinator.process, point).await;
    }
    coordinator.restart_as(of_node_2).await;
    east.release("commit");
    coordinator.reaches(&left, "committed").await;
}

#[tokio::test]
async fn an_adopter_killed_at_the_adoption_adopts_the_next_time() {
    let east = Stub::start("east").await;
    let mut owner = Coordinator::start_on_with(On::Postgres, &[&east], in_test_time).await;
    east.hold("commit");
    let body = json!({"branches": [branch("east")], "commit": true});
    let left = owner.begin(&body).await.is(200).id();
    east.arrived("commit", 1).await;
    owner.process.kill();
    for point in ["adopt-before", "adopt-after"] {
        let armed = |program: Program| dying_at(&adopts_node_1(program), point);
        let mut adopter = Coordinator::start_beside(owner.log(), &[&east], armed).await;
        has_died(&mut adopter.process, point).await;
    }
    let adopter = Coordinator::start_beside(owner.log(), &[&east], adopts_node_1).await;
    says(&adopter, "the node is adopted").await;
    east.release("commit");
    adopter.reaches(&left, "committed").await;
}

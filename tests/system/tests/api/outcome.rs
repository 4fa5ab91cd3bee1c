//! `GET …/outcome`, and what may be said of an id without a record.

use reqwest::Method;
use serde_json::{Value, json};
use unanimous_protocol::id::{Epoch, LogIdentity, Node, Prefix, Sequence, TransactionId};

use crate::support::{Answer, Coordinator, Does, On, Stub, branch, on_both_logs};

#[track_caller]
fn is_informed(answer: &Answer, id: &str, participant: &str, outcome: &str) {
    let expected = json!({"transaction": id, "participant": participant, "outcome": outcome});
    assert_eq!(answer.body, expected, "{}", answer.text);
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("cache-control"), "no-store");
}

/// The id with other parts.
struct Parts {
    identity: u32,
    node: u16,
    epoch: u32,
    sequence: u64,
}

impl Parts {
    fn of(id: &str) -> Self {
        let id: TransactionId = id.parse().unwrap();
        Self {
            identity: id.identity().0,
            node: id.node().0,
            epoch: id.epoch().number(),
            sequence: id.sequence().number(),
        }
    }

    fn id(&self) -> String {
        let prefix = Prefix {
            identity: LogIdentity(self.identity),
            node: Node(self.node),
        };
        let (epoch, sequence) = (Epoch::new(self.epoch), Sequence::new(self.sequence));
        TransactionId::new(prefix, epoch.unwrap(), sequence.unwrap()).to_string()
    }
}

/// What GET, commit, abort and enlist answer of the id: clients are told the same everywhere.
async fn told_to_clients(coordinator: &Coordinator, id: &str) -> Vec<Answer> {
    let mut answers = Vec::new();
    for (route, method) in [
        ("", Method::GET),
        ("/commit", Method::POST),
        ("/abort", Method::POST),
        ("/branches", Method::POST),
    ] {
        let path = format!("/v1/transactions/{id}{route}");
        let mut request = coordinator.request(method, &path);
        if route == "/branches" {
            request = request.json(&json!({"participant": "east"}));
        }
        answers.push(Answer::of(request).await);
    }
    answers
}

on_both_logs! {
    an_inquiry_is_told_pending_until_the_decision_and_then_the_decision
    a_read_only_branch_is_told_aborted_and_a_name_that_is_no_branch_pending
    another_log_s_id_is_404_for_everybody
    an_id_of_this_life_that_was_not_issued_is_404_for_clients_and_pending_for_participants
    an_id_that_the_log_can_not_know_is_503_for_clients_and_pending_for_participants
    an_id_of_a_former_life_without_a_record_is_aborted
    the_next_life_finishes_what_was_committed
}

async fn an_inquiry_is_told_pending_until_the_decision_and_then_the_decision(on: On) {
    let (east, west) = (Stub::start("east").await, Stub::start("west").await);
    let coordinator = Coordinator::start_on(on, &[&east, &west]).await;
    let body = json!({"branches": [branch("east"), branch("west")]});
    let id = coordinator.begin(&body).await.id();
    let asked = coordinator.outcome(&id, "east").await;
    is_informed(&asked, &id, "east", "pending");
    west.hold("prepare");
    let path = format!("/v1/transactions/{id}/commit");
    coordinator
        .post(&path, &json!({"wait": "none"}))
        .await
        .is(202);
    west.arrived("prepare", 1).await;
    let asked = coordinator.outcome(&id, "east").await;
    is_informed(&asked, &id, "east", "pending");
    east.hold("commit");
    west.release("prepare");
    for state in ["committing", "committed"] {
        coordinator.reaches(&id, state).await;
        for name in ["east", "west"] {
            let asked = coordinator.outcome(&id, name).await;
            is_informed(&asked, &id, name, "committed");
        }
        east.release("commit");
    }
}

#[tokio::test]
async fn an_aborted_transaction_is_aborted_for_every_name() {
    let (east, west) = (Stub::start("east").await, Stub::start("west").await);
    let coordinator = Coordinator::start(&[&east, &west]).await;
    let no = Does::Refuse {
        code: None,
        reason: "no",
    };
    west.always("prepare", no);
    east.hold("abort");
    let body = json!({"branches": [branch("east"), branch("west")], "commit": true});
    let id = coordinator.begin(&body).await.is(409).id();
    for state in ["aborting", "aborted"] {
        coordinator.reaches(&id, state).await;
        for name in ["east", "west", "never-named"] {
            let asked = coordinator.outcome(&id, name).await;
            is_informed(&asked, &id, name, "aborted");
        }
        east.release("abort");
    }
}

async fn a_read_only_branch_is_told_aborted_and_a_name_that_is_no_branch_pending(on: On) {
    let (east, west) = (Stub::start("east").await, Stub::start("west").await);
    let mut coordinator = Coordinator::start_on(on, &[&east, &west]).await;
    east.always("prepare", Does::Vote("read_only"));
    west.hold("commit");
    let body = json!({"branches": [branch("east"), branch("west")], "commit": true});
    let id = coordinator.begin(&body).await.is(200).id();
    for life in 0..2 {
        for (name, outcome) in [
            ("east", "aborted"),
            ("west", "committed"),
            ("north", "pending"),
        ] {
            let asked = coordinator.outcome(&id, name).await;
            is_informed(&asked, &id, name, outcome);
        }
        if life == 0 {
            coordinator.kill_and_restart().await;
        }
    }
    west.release("commit");
    coordinator.reaches(&id, "committed").await;
    for (name, outcome) in [
        ("east", "aborted"),
        ("west", "committed"),
        ("north", "pending"),
    ] {
        let asked = coordinator.outcome(&id, name).await;
        is_informed(&asked, &id, name, outcome);
    }
}

async fn another_log_s_id_is_404_for_everybody(on: On) {
    let east = Stub::start("east").await;
    let coordinator = Coordinator::start_on(on, &[&east]).await;
    let mut parts = Parts::of(&coordinator.open().await);
    parts.identity ^= 1;
    for answer in told_to_clients(&coordinator, &parts.id()).await {
        answer.problem(404, "foreign-transaction");
    }
    let asked = coordinator.outcome(&parts.id(), "east").await;
    asked.problem(404, "foreign-transaction");
}

async fn an_id_of_this_life_that_was_not_issued_is_404_for_clients_and_pending_for_participants(
    on: On,
) {
    let east = Stub::start("east").await;
    let coordinator = Coordinator::start_on(on, &[&east]).await;
    let issued = Parts::of(&coordinator.open().await).sequence;
    for sequence in [issued + 1, issued + 1000, issued.saturating_sub(1)] {
        let mut parts = Parts::of(&coordinator.open().await);
        // The ids between were issued meanwhile.
        parts.sequence = if sequence > issued {
            sequence + 10
        } else {
            sequence
        };
        let id = parts.id();
        for answer in told_to_clients(&coordinator, &id).await {
            answer.problem(404, "unknown-transaction");
        }
        let asked = coordinator.outcome(&id, "east").await;
        is_informed(&asked, &id, "east", "pending");
    }
}

async fn an_id_that_the_log_can_not_know_is_503_for_clients_and_pending_for_participants(on: On) {
    let east = Stub::start("east").await;
    let coordinator = Coordinator::start_on(on, &[&east]).await;
    let newer_epoch = Parts {
        epoch: 2,
        ..Parts::of(&coordinator.open().await)
    };
    let unknown_node = Parts {
        node: 77,
        ..Parts::of(&coordinator.open().await)
    };
    for (parts, operator) in [(newer_epoch, "new-identity"), (unknown_node, "operator")] {
        let id = parts.id();
        for answer in told_to_clients(&coordinator, &id).await {
            let answer = answer.problem(503, "outcome-unknown");
            assert_eq!(answer.header("retry-after"), "60");
            answer.names(&[&id, operator]);
        }
        let asked = coordinator.outcome(&id, "east").await;
        is_informed(&asked, &id, "east", "pending");
    }
    let ready = Answer::of(coordinator.admin(Method::GET, "/readyz")).await;
    ready.is(200);
}

#[tokio::test]
async fn an_id_of_another_node_of_this_log_is_404_with_the_node() {
    let east = Stub::start("east").await;
    let mut coordinator = Coordinator::start(&[&east]).await;
    let fenced = coordinator.open().await;
    // The next life is another node's; on a file of one process it fences the first one's too.
    let program = coordinator.process.program().clone();
    coordinator.restart_as(program.args(["--node", "2"])).await;
    let lives_there = Parts {
        epoch: 2,
        ..Parts::of(&fenced)
    };
    let id = lives_there.id();
    for answer in told_to_clients(&coordinator, &id).await {
        let answer = answer.problem(404, "other-node");
        assert_eq!(answer.body["node"], 1);
    }
    let asked = coordinator.outcome(&id, "east").await;
    is_informed(&asked, &id, "east", "pending");
    let asked = coordinator.outcome(&fenced, "east").await;
    is_informed(&asked, &fenced, "east", "aborted");
}

async fn an_id_of_a_former_life_without_a_record_is_aborted(on: On) {
    let east = Stub::start("east").await;
    let mut coordinator = Coordinator::start_on(on, &[&east]).await;
    east.hold("prepare");
    let open = coordinator.open().await;
    let body = json!({"branches": [branch("east")], "commit": true, "wait": "none"});
    let preparing = coordinator.begin(&body).await.is(202).id();
    let never_issued = Parts {
        sequence: 1 << 43,
        ..Parts::of(&open)
    };
    coordinator.kill_and_restart().await;
    for id in [open, preparing, never_issued.id()] {
        let told = told_to_clients(&coordinator, &id).await;
        let [shown, commit, abort, enlist]: [Answer; 4] = told.try_into().unwrap();
        let shown = shown.is(200).body;
        assert_eq!(shown["state"], "aborted");
        assert_eq!(shown["reason"], json!({"code": "coordinator-restarted"}));
        assert_eq!(shown["branches"], json!([]));
        for time in ["created_at", "deadline", "decided_at", "finished_at"] {
            assert_eq!(shown[time], Value::Null, "{time}");
        }
        commit.aborted("coordinator-restarted");
        abort.is(200);
        enlist.problem(409, "transaction-not-active");
        for name in ["east", "any-name"] {
            let asked = coordinator.outcome(&id, name).await;
            is_informed(&asked, &id, name, "aborted");
        }
    }
}

async fn the_next_life_finishes_what_was_committed(on: On) {
    let (east, west) = (Stub::start("east").await, Stub::start("west").await);
    let mut coordinator = Coordinator::start_on(on, &[&east, &west]).await;
    east.hold("commit");
    let body = json!({"branches": [branch("east"), branch("west")], "commit": true});
    let id = coordinator.begin(&body).await.is(200).id();
    east.arrived("commit", 1).await;
    west.arrived("commit", 1).await;
    coordinator.kill_and_restart().await;
    assert_eq!(coordinator.show(&id).await.body["outcome"], "committed");
    // It was not logged who had acknowledged, so both are told again.
    for stub in [&east, &west] {
        assert_eq!(stub.arrived("commit", 2).await.transaction(), id);
    }
    east.release("commit");
    coordinator.reaches(&id, "committed").await;
    assert_eq!(
        east.seen_of("prepare").len(),
        1,
        "nobody is asked for a vote again"
    );
}

//! What waits goes together, and nobody's fate is a neighbour's. Each test is on one thread: what it sends at once is there
//! before the first of it leaves.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::service::{Answer, NOWHERE, Service, connect, id, note};

/// Prepares 1 to 20 with these operations each, at once.
async fn prepare_all(east: &Service, operations: impl Fn(u32) -> Value) -> Vec<Answer> {
    prepare_to(20, east, operations).await
}

/// Their rows are written one by one where they are few, and set-wise where they are many.
const FEW_AND_MANY: [u32; 2] = [4, 20];

async fn prepare_to(count: u32, east: &Service, operations: impl Fn(u32) -> Value) -> Vec<Answer> {
    join_all((1..=count).map(|number| {
        let operations = operations(number);
        async move { east.prepare(&id(number), operations).await }
    }))
    .await
}

/// How many local transactions wrote the rows in this state.
async fn written_by(east: &Service, state: &str) -> i64 {
    east.count(&format!(
        "SELECT count(DISTINCT xmin::text) FROM unanimous.branches WHERE state = '{state}'"
    ))
    .await
}

#[tokio::test]
async fn what_waits_shares_one_local_transaction() {
    for count in FEW_AND_MANY {
        shares_one_local_transaction(count).await;
    }
}

async fn shares_one_local_transaction(count: u32) {
    let east = Service::start().await;
    for answer in prepare_to(count, &east, |_| note("a")).await {
        answer.is_vote("yes");
    }
    assert_eq!(written_by(&east, "prepared").await, 1);
    // Prepares and outcomes alike.
    let outcomes = join_all((1..=count).map(|number| {
        let east = &east;
        async move {
            if number % 2 == 0 {
                east.commit(&id(number)).await.is_state("committed");
            } else {
                east.abort(&id(number)).await.is_state("aborted");
            }
            east.prepare(&id(100 + number), note("b"))
                .await
                .is_vote("yes");
        }
    }));
    outcomes.await;
    assert_eq!(written_by(&east, "committed").await, 1);
    assert_eq!(written_by(&east, "aborted").await, 1);
    // These come when those have been answered, which need not be at one moment.
    assert!(written_by(&east, "prepared").await <= i64::from(count / 2));
    assert_eq!(east.journal(&id(2)).await, ["prepared a", "committed a"]);
    assert_eq!(east.journal(&id(3)).await, ["prepared a", "aborted a"]);
}

#[tokio::test]
async fn who_does_not_say_yes_gets_its_answer_alone_and_its_neighbours_theirs() {
    for (bad, status, word) in [
        (json!({"kind": "refuse", "reason": "no"}), 200, "no"),
        (json!({"kind": "look"}), 200, "read_only"),
        (json!({"kind": "fail"}), 503, "service-failed"),
        (
            json!({"kind": "stumble", "vote": "yes"}),
            503,
            "service-failed",
        ),
        (
            json!({"kind": "sql", "sql": "SELECT 1 / 0"}),
            503,
            "service-failed",
        ),
        (
            json!({"kind": "sql", "sql": "SELECT pg_terminate_backend(pg_backend_pid())"}),
            503,
            "service-failed",
        ),
        (
            json!({"kind": "note", "text": "fail at commit"}),
            503,
            "commit-unclear",
        ),
        (
            json!({"kind": "note", "text": "die at commit"}),
            503,
            "commit-unclear",
        ),
        (json!({"kind": "slow", "ms": 1_000}), 200, "yes"),
    ] {
        for count in FEW_AND_MANY {
            gets_its_answer_alone(count, &bad, status, word).await;
        }
    }
}

async fn gets_its_answer_alone(count: u32, bad: &Value, status: u16, word: &str) {
    let east = Service::start().await;
    let answers = prepare_to(count, &east, |number| {
        if number == 3 { json!([bad]) } else { note("a") }
    })
    .await;
    for (number, answer) in (1..).zip(&answers) {
        if number == 3 {
            let told = answer.body["vote"].as_str();
            let told = told.or(answer.body["code"].as_str()).unwrap();
            assert_eq!((answer.status, told), (status, word), "{bad}");
        } else {
            answer.is_vote("yes");
            assert_eq!(east.journal(&id(number)).await, ["prepared a"], "{bad}");
        }
    }
    if word != "yes" {
        assert!(east.journal(&id(3)).await.is_empty(), "{bad}");
    }
    if !word.starts_with("commit") && !bad.to_string().contains("terminate") {
        // Who was taken out was the only one that cost its neighbours a second run.
        let others = "SELECT count(DISTINCT xmin::text) FROM unanimous.branches \
                 WHERE transaction::text NOT LIKE '%03' AND state = 'prepared'";
        assert_eq!(east.count(others).await, 1, "{bad}");
    }
}

#[tokio::test]
async fn between_two_statements_of_one_branch_no_neighbour_runs() {
    let east = Service::start().await;
    for answer in prepare_all(&east, |_| json!([{"kind": "count"}])).await {
        answer.is_vote("yes");
    }
    assert_eq!(east.count("SELECT value FROM counter").await, 20);
    // They had turns of their own, as many as there may be in one local transaction; the others went alone.
    assert!(written_by(&east, "prepared").await <= 5);
    // So it is with several operations of one statement each.
    let both = json!([{"kind": "note", "text": "first"}, {"kind": "note", "text": "second"}]);
    let more = (21..=40).map(|number| {
        let east = &east;
        let both = both.clone();
        async move { east.prepare(&id(number), both).await }
    });
    for answer in join_all(more).await {
        answer.is_vote("yes");
    }
    let torn = east.count(
        "SELECT count(*) FROM journal AS first JOIN journal AS second USING (transaction) \
         WHERE first.text = 'first' AND second.text = 'second' AND second.at <> first.at + 1",
    );
    assert_eq!(torn.await, 0);
}

#[tokio::test]
async fn an_outcome_does_not_wait_for_a_prepare_that_hangs_beside_it() {
    for hang in ["hang", "hang_in_sql"] {
        let east = Service::start().await;
        for number in 1..=10 {
            east.prepare(&id(number), note("a")).await.is_vote("yes");
        }
        let begun = Instant::now();
        let hanging = async {
            let mut body = crate::service::prepare_body(&id(20), json!([{"kind": hang}]));
            body["remaining_ms"] = json!(3_000);
            east.post("/v1/prepare", &body).await.is_no("deadline");
        };
        let outcomes = async {
            let commits = (1..=10).map(|number| {
                let east = &east;
                async move { east.commit(&id(number)).await }
            });
            for answer in join_all(commits).await {
                answer.is_state("committed");
            }
            assert!(begun.elapsed() < Duration::from_secs(2), "{hang}");
        };
        tokio::join!(hanging, outcomes);
    }
}

#[tokio::test]
async fn a_lock_that_one_needs_holds_up_nobody_else() {
    let east = Service::start().await;
    let other = connect(&east.database).await;
    other
        .batch_execute("BEGIN; SELECT * FROM counter FOR UPDATE")
        .await
        .unwrap();
    let waiter = id(30);
    let blocked = east.prepare(
        &waiter,
        json!([{"kind": "sql", "sql": "UPDATE counter SET value = value + 1"}]),
    );
    let rest = async {
        let begun = Instant::now();
        for answer in prepare_all(&east, |_| note("a")).await {
            answer.is_vote("yes");
        }
        assert!(begun.elapsed() < Duration::from_secs(2));
        other.batch_execute("COMMIT").await.unwrap();
    };
    let (blocked, ()) = tokio::join!(blocked, rest);
    blocked.is_vote("yes");
    assert_eq!(east.count("SELECT value FROM counter").await, 1);
}

#[tokio::test]
async fn what_was_promised_before_a_restart_is_carried_out_together_too() {
    let east = Service::start().await;
    prepare_all(&east, |number| note(&format!("{number}"))).await;
    let east = east.restart(|builder| builder.coordinator(NOWHERE)).await;
    for answer in join_all((1..=20).map(|number| {
        let east = &east;
        async move { east.commit(&id(number)).await }
    }))
    .await
    {
        answer.is_state("committed");
    }
    assert_eq!(written_by(&east, "committed").await, 1);
    for number in 1..=20 {
        assert_eq!(
            east.journal(&id(number)).await,
            [format!("prepared {number}"), format!("committed {number}")]
        );
    }
}

#[tokio::test]
async fn only_the_operations_that_voted_yes_are_carried_out() {
    let east = Service::start().await;
    let answers = prepare_all(
        &east,
        |number| json!([{"kind": "note", "text": number.to_string()}, {"kind": "seen", "text": number.to_string()}]),
    );
    for answer in answers.await {
        answer.is_vote("yes");
    }
    // A look says that it changed nothing.
    let mixed = json!([{"kind": "look"}, {"kind": "note", "text": "b"}]);
    east.prepare(&id(30), mixed).await.is_vote("yes");
    east.commit(&id(30)).await.is_state("committed");
    let row = "SELECT count(*) FROM unanimous.branches WHERE voted_yes = '{1}'";
    assert_eq!(east.count(row).await, 1);
    assert_eq!(
        east.journal(&id(30)).await,
        ["prepared looked", "prepared b", "committed b"]
    );
}

#[tokio::test]
async fn repeats_and_tombstones_among_new_ones_are_answered_by_their_rows() {
    let east = Service::start().await;
    east.prepare(&id(1), note("a")).await.is_vote("yes");
    east.abort(&id(2)).await.is_state("aborted");
    east.prepare(&id(3), note("a")).await.is_vote("yes");
    east.commit(&id(3)).await.is_state("committed");
    east.prepare(&id(4), note("another")).await.is_vote("yes");
    let answers = prepare_all(&east, |_| note("a")).await;
    for (number, answer) in (1..).zip(answers) {
        match number {
            2 => answer.is_no("aborted"),
            4 => answer.is_problem(422, "prepare-changed"),
            _ => answer.is_vote("yes"),
        }
    }
    assert_eq!(east.journal(&id(1)).await, ["prepared a"]);
    assert_eq!(east.journal(&id(3)).await, ["prepared a", "committed a"]);
    assert_eq!(east.journal(&id(5)).await, ["prepared a"]);
    // Outcomes of what is not in doubt, among those of what is.
    let commits = (1..=20).map(|number| {
        let east = &east;
        async move { east.commit(&id(number)).await }
    });
    for (number, answer) in (1..).zip(join_all(commits).await) {
        match number {
            2 => answer.is_problem(409, "outcome-differs"),
            _ => answer.is_state("committed"),
        }
    }
    assert_eq!(east.journal(&id(3)).await, ["prepared a", "committed a"]);
    let lost = east.commit(&id(99)).await;
    lost.is_problem(409, "vote-lost");
}

/// Its statements travel behind a BEGIN that was not answered yet: were that one cancelled, they would be on their own.
#[tokio::test]
async fn outside_a_local_transaction_the_lanes_session_writes_nothing() {
    let east = Service::start().await;
    let note_setting = "INSERT INTO journal (transaction, what, text) \
         SELECT 'x', 'read only', current_setting('default_transaction_read_only')";
    let operations = json!([{"kind": "sql", "sql": note_setting}]);
    east.prepare(&id(1), operations).await.is_vote("yes");
    assert_eq!(east.journal("x").await, ["read only on"]);
}

#[tokio::test]
async fn what_one_sets_in_its_transaction_reaches_no_neighbour() {
    let east = Service::start().await;
    east.sql
        .batch_execute("CREATE SCHEMA other; CREATE TABLE other.journal (LIKE journal)")
        .await
        .unwrap();
    let setting = "SELECT set_config('search_path', 'other', true)";
    let answers = prepare_all(&east, |number| {
        if number == 7 {
            json!([{"kind": "sql", "sql": setting}])
        } else {
            json!([{"kind": "note", "text": "a"}, {"kind": "note", "text": "b"}])
        }
    });
    for answer in answers.await {
        answer.is_vote("yes");
    }
    assert_eq!(east.count("SELECT count(*) FROM other.journal").await, 0);
    assert_eq!(east.count("SELECT count(*) FROM journal").await, 38);
}

#[tokio::test]
async fn a_connection_that_was_to_become_a_line_never_serves_the_pool() {
    let database = crate::service::fresh_database().await;
    let pool = crate::service::pool(&database, 4);
    let participant = crate::service::east(&database)
        .pool(pool.clone())
        .coordinator(NOWHERE)
        .start()
        .await
        .unwrap();
    drop(participant);
    let mut all = Vec::new();
    for _ in 0..4 {
        all.push(pool.get().await.unwrap());
    }
    for connection in &all {
        let row = connection
            .query_one(
                "SELECT current_setting('default_transaction_read_only')",
                &[],
            )
            .await
            .unwrap();
        assert_eq!(row.get::<_, &str>(0), "off");
    }
}

#[tokio::test]
async fn a_line_that_is_cut_is_made_anew_and_meanwhile_all_go_alone() {
    let east = Service::start().await;
    east.sql
        .batch_execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
        .await
        .unwrap();
    for number in 1..=5 {
        east.prepare(&id(number), note("a")).await.is_vote("yes");
    }
    until_together(&east).await;
}

/// Prepares ten at once, until such ten share a local transaction.
async fn until_together(east: &Service) {
    let begun = Instant::now();
    for from in (100..).step_by(10) {
        let answers = join_all(
            (from..from + 10)
                .map(|number| async move { east.prepare(&id(number), note("b")).await }),
        );
        for answer in answers.await {
            answer.is_vote("yes");
        }
        let together = format!(
            "SELECT count(DISTINCT xmin::text) FROM unanimous.branches \
             WHERE transaction >= '{}' AND transaction < '{}'",
            id(from),
            id(from + 10)
        );
        if east.count(&together).await == 1 {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
}

#[tokio::test]
async fn a_panic_of_the_services_code_ends_its_own_message_and_no_lane() {
    let east = Service::start().await;
    let answers = prepare_all(&east, |number| {
        if number == 7 {
            json!([{"kind": "panic"}])
        } else {
            note("a")
        }
    });
    for (number, answer) in (1..).zip(answers.await) {
        if number == 7 {
            answer.is_problem(503, "branch-busy");
        } else {
            answer.is_vote("yes");
        }
    }
    until_together(&east).await;
}

#[tokio::test]
async fn the_services_statements_are_planned_as_ever() {
    let east = Service::start().await;
    for setting in [
        "plan_cache_mode",
        "enable_seqscan",
        "enable_hashjoin",
        "enable_mergejoin",
        "enable_bitmapscan",
    ] {
        let usual = east
            .sql
            .query_one("SELECT current_setting($1)", &[&setting])
            .await
            .unwrap();
        let note_setting = format!(
            "INSERT INTO journal (transaction, what, text) SELECT '{setting}', 'is', current_setting('{setting}')"
        );
        let operations = json!([{"kind": "sql", "sql": note_setting}]);
        let number = 1 + setting.len() as u32 * 7 + u32::from(setting.as_bytes()[7]);
        east.prepare(&id(number), operations).await.is_vote("yes");
        let is = format!("is {}", usual.get::<_, &str>(0));
        assert_eq!(east.journal(setting).await, [is]);
    }
}

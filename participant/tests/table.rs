//! The table of `docs/API.md` section 2, row by row, and what must hold of every answer in it.

use serde_json::json;

use crate::service::{Service, id, note};

#[tokio::test]
async fn without_a_row_a_prepare_does_the_work_and_a_commit_is_an_alarm() {
    let east = Service::start().await;
    let one = id(1);
    east.commit(&one).await.is_problem(409, "vote-lost");
    assert_eq!(east.row(&one).await, None, "an alarm leaves nothing behind");
    let answer = east.prepare(&one, note("a")).await;
    assert_eq!(
        answer.body,
        json!({"transaction": one, "participant": "east", "vote": "yes"})
    );
    assert_eq!(east.row(&one).await.as_deref(), Some("prepared"));
    assert_eq!(east.journal(&one).await, ["prepared a"]);
}

#[tokio::test]
async fn a_prepared_branch_repeats_its_yes_and_ends_as_told() {
    let east = Service::start().await;
    let (one, two) = (id(1), id(2));
    for id in [&one, &two] {
        east.prepare(id, note("a")).await.is_vote("yes");
        east.prepare(id, note("a")).await.is_vote("yes");
        assert_eq!(
            east.journal(id).await,
            ["prepared a"],
            "the work is done once"
        );
    }
    let committed = east.commit(&one).await;
    assert_eq!(
        committed.body,
        json!({"transaction": one, "participant": "east", "state": "committed"})
    );
    east.abort(&two).await.is_state("aborted");
    assert_eq!(east.journal(&one).await, ["prepared a", "committed a"]);
    assert_eq!(east.journal(&two).await, ["prepared a", "aborted a"]);
}

#[tokio::test]
async fn a_committed_branch_stays_committed_whatever_comes() {
    let east = Service::start().await;
    let one = id(1);
    east.prepare(&one, note("a")).await.is_vote("yes");
    for _ in 0..3 {
        east.commit(&one).await.is_state("committed");
    }
    east.prepare(&one, note("a")).await.is_vote("yes");
    east.abort(&one).await.is_problem(409, "outcome-differs");
    assert_eq!(east.journal(&one).await, ["prepared a", "committed a"]);
    assert_eq!(east.row(&one).await.as_deref(), Some("committed"));
}

#[tokio::test]
async fn an_aborted_branch_stays_aborted_whatever_comes() {
    let east = Service::start().await;
    let one = id(1);
    east.prepare(&one, note("a")).await.is_vote("yes");
    for _ in 0..3 {
        east.abort(&one).await.is_state("aborted");
    }
    east.prepare(&one, note("a")).await.is_no("aborted");
    east.commit(&one).await.is_problem(409, "outcome-differs");
    assert_eq!(east.journal(&one).await, ["prepared a", "aborted a"]);
}

#[tokio::test]
async fn a_refusal_is_repeated_to_the_letter_and_its_work_is_gone() {
    let east = Service::start().await;
    let one = id(1);
    let operations = json!([{"kind": "note", "text": "a"}, {"kind": "refuse", "reason": "häh\u{0}?"},
                            {"kind": "note", "text": "never"}]);
    let first = east.prepare(&one, operations.clone()).await;
    first.is_no("refused");
    assert_eq!(
        first.body["reason"], "häh?",
        "U+0000 can not be kept, and is not told"
    );
    assert_eq!(east.row(&one).await.as_deref(), Some("refused"));
    assert!(east.journal(&one).await.is_empty());
    assert_eq!(
        east.prepare(&one, operations.clone()).await.body,
        first.body
    );
    east.commit(&one).await.is_problem(409, "outcome-differs");
    east.abort(&one).await.is_state("aborted");
    assert_eq!(east.prepare(&one, operations).await.body, first.body);
    assert!(east.journal(&one).await.is_empty());
}

#[tokio::test]
async fn an_abort_of_the_unknown_leaves_a_tombstone_to_which_a_late_prepare_loses() {
    let east = Service::start().await;
    let one = id(1);
    let aborted = east.abort(&one).await;
    assert_eq!(
        aborted.body,
        json!({"transaction": one, "participant": "east", "state": "aborted"})
    );
    assert_eq!(east.row(&one).await.as_deref(), Some("tombstone"));
    east.prepare(&one, note("late")).await.is_no("aborted");
    east.commit(&one).await.is_problem(409, "outcome-differs");
    east.abort(&one).await.is_state("aborted");
    assert!(east.journal(&one).await.is_empty());
}

#[tokio::test]
async fn a_read_only_branch_leaves_nothing_not_even_what_it_wrote() {
    let east = Service::start().await;
    let one = id(1);
    let look = json!([{"kind": "look"}, {"kind": "look"}]);
    east.prepare(&one, look.clone()).await.is_vote("read_only");
    assert_eq!(east.row(&one).await, None);
    assert!(east.journal(&one).await.is_empty());
    east.commit(&one).await.is_problem(409, "vote-lost");
    east.prepare(&one, look).await.is_vote("read_only");
    east.abort(&one).await.is_state("aborted");
    east.prepare(&id(2), json!([])).await.is_vote("read_only");
}

#[tokio::test]
async fn only_operations_that_voted_yes_are_committed_and_each_sees_what_the_earlier_ones_wrote() {
    let east = Service::start().await;
    let operations = json!([{"kind": "note", "text": "a"}, {"kind": "look"}, {"kind": "seen", "text": "a"},
                            {"kind": "note", "text": "b"}]);
    east.prepare(&id(1), operations).await.is_vote("yes");
    east.commit(&id(1)).await.is_state("committed");
    let committed: Vec<_> = east.journal(&id(1)).await.split_off(3);
    assert_eq!(
        committed,
        [
            "committed a",
            "committed Seen { text: \"a\" }",
            "committed b"
        ]
    );
    let unseen = json!([{"kind": "seen", "text": "a"}, {"kind": "note", "text": "a"}]);
    east.prepare(&id(2), unseen).await.is_no("refused");
}

#[tokio::test]
async fn a_prepare_with_other_operations_is_refused_and_the_first_ones_stand() {
    let east = Service::start().await;
    let one = id(1);
    east.prepare(&one, note("a")).await.is_vote("yes");
    east.prepare(&one, note("b"))
        .await
        .is_problem(422, "prepare-changed");
    let reordered = json!([{"text": "a", "kind": "note"}]);
    east.prepare(&one, reordered).await.is_vote("yes");
    east.commit(&one).await.is_state("committed");
    east.prepare(&one, note("b"))
        .await
        .is_problem(422, "prepare-changed");
    assert_eq!(east.journal(&one).await, ["prepared a", "committed a"]);
    let refused = json!([{"kind": "refuse", "reason": "no"}]);
    east.prepare(&id(2), refused).await.is_no("refused");
    east.prepare(&id(2), note("a"))
        .await
        .is_problem(422, "prepare-changed");
}

#[tokio::test]
async fn operations_are_stored_as_the_text_received() {
    let east = Service::start().await;
    let text = r#"[ {"amount": 100000000000000000000.10,  "kind":"note", "text":"\u00e9\u0000"} ]"#;
    let text = text.replace("\\u0000", "");
    let body = format!(
        r#"{{"transaction":"{}","participant":"east","operations":{text},"remaining_ms":5000,"begun_at_ms":1}}"#,
        id(1)
    );
    let participant = &east.participant;
    let json = Some("application/json");
    let answer =
        crate::service::send(participant, "POST", "/v1/prepare", json, body.into_bytes()).await;
    answer.is_vote("yes");
    let stored = east
        .sql
        .query_one("SELECT operations FROM unanimous.branches", &[])
        .await
        .unwrap();
    assert_eq!(stored.get::<_, &str>(0), text.trim());
}

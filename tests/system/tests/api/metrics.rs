//! `GET /metrics`: that it counts what happens, exactly, and nothing that anybody makes up.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use reqwest::Method;
use serde_json::{Value, json};

use crate::process::new_identity;
use crate::support::metrics::Scrape;
use crate::support::{Answer, Coordinator, Does, SOON, Stub, branch};

const UNFORCED: &str = "unanimous_log_unforced_total";

fn in_doubt(participant: &str) -> String {
    format!("unanimous_in_doubt_branches{{participant=\"{participant}\"}}")
}

fn oldest(participant: &str) -> String {
    format!("unanimous_in_doubt_oldest_age_seconds{{participant=\"{participant}\"}}")
}

fn in_state(state: &str) -> String {
    format!("unanimous_transactions{{state=\"{state}\"}}")
}

fn decided(outcome: &str, reason: &str) -> String {
    format!("unanimous_decisions_total{{outcome=\"{outcome}\",reason=\"{reason}\"}}")
}

fn commits_at(participants: &[&str]) -> Value {
    let branches: Vec<Value> = participants.iter().map(|name| branch(name)).collect();
    json!({"branches": branches, "commit": true})
}

fn refusal() -> Does {
    Does::Refuse {
        code: None,
        reason: "no",
    }
}

/// One answered call of each of these kinds to each of these participants.
fn calls(participants: &[&str], kinds: &[&str]) -> BTreeMap<String, f64> {
    let mut calls = BTreeMap::new();
    for name in participants {
        for kind in kinds {
            let labels = format!("kind=\"{kind}\",participant=\"{name}\"");
            calls.insert(
                format!("unanimous_calls_total{{{labels},result=\"answered\"}}"),
                1.0,
            );
            calls.insert(
                format!("unanimous_call_duration_seconds_count{{{labels}}}"),
                1.0,
            );
        }
    }
    calls
}

fn once(series: &str) -> (String, f64) {
    (series.to_owned(), 1.0)
}

#[tokio::test]
async fn a_commit_raises_exactly_what_it_did() {
    let (east, west) = (Stub::start("east").await, Stub::start("west").await);
    let coordinator = Coordinator::start(&[&east, &west]).await;
    let before = Scrape::of(&coordinator).await;
    let id = coordinator.begin(&commits_at(&["east", "west"])).await;
    let id = id.is(200).id();
    coordinator.reaches(&id, "committed").await;
    coordinator
        .scraped("the finish is written", |scrape| {
            scrape.value(UNFORCED) > before.value(UNFORCED)
        })
        .await;
    // A page is not one moment: what was counted before the condition may be missing in the page that shows it.
    let after = Scrape::of(&coordinator).await;
    let mut expected = calls(&["east", "west"], &["prepare", "commit"]);
    expected.extend([
        once(&decided("committed", "")),
        once("unanimous_decision_duration_seconds_count{outcome=\"committed\"}"),
        once("unanimous_log_decisions_total"),
        once(UNFORCED),
        // The decision, and a write for the finish alone, for no decision came to ride with.
        once("unanimous_log_writes_total{kind=\"decide\"}"),
        once("unanimous_log_write_duration_seconds_count{kind=\"decide\"}"),
        once("unanimous_log_writes_total{kind=\"append\"}"),
        once("unanimous_log_write_duration_seconds_count{kind=\"append\"}"),
    ]);
    assert_eq!(after.counted_since(&before), expected);
    let posted =
        r#"unanimous_http_requests_total{method="POST",route="/v1/transactions",status="2xx"}"#;
    assert_eq!(after.value(posted) - before.value(posted), 1.0);
}

#[tokio::test]
async fn a_refusal_raises_exactly_what_it_did_with_its_reason() {
    let (east, west) = (Stub::start("east").await, Stub::start("west").await);
    let coordinator = Coordinator::start(&[&east, &west]).await;
    west.always("prepare", refusal());
    let before = Scrape::of(&coordinator).await;
    let id = coordinator.begin(&commits_at(&["west"])).await;
    let id = id.aborted("refused").id();
    coordinator.reaches(&id, "aborted").await;
    coordinator
        .scraped("the record is written", |scrape| {
            scrape.value(UNFORCED) > before.value(UNFORCED)
        })
        .await;
    // A page is not one moment: what was counted before the condition may be missing in the page that shows it.
    let after = Scrape::of(&coordinator).await;
    let mut expected = calls(&["west"], &["prepare", "abort"]);
    expected.extend([
        once(&decided("aborted", "refused")),
        once("unanimous_decision_duration_seconds_count{outcome=\"aborted\"}"),
        once(UNFORCED),
        once("unanimous_log_writes_total{kind=\"append\"}"),
        once("unanimous_log_write_duration_seconds_count{kind=\"append\"}"),
    ]);
    assert_eq!(after.counted_since(&before), expected);
}

#[tokio::test]
async fn each_reason_of_an_abort_is_counted_by_its_code() {
    let east = Stub::start("east").await;
    let down = Stub::start("down").await.stop().await;
    let named = [("east", east.url()), ("down", down.url())];
    let coordinator = Coordinator::start_with(&named, |program| program).await;
    let id = coordinator.open().await;
    coordinator.abort(&id).await.is(200);
    east.once(
        "prepare",
        Does::Refuse {
            code: Some("conflict"),
            reason: "held",
        },
    );
    let mut body = commits_at(&["east"]);
    coordinator.begin(&body).await.aborted("conflict");
    east.once("prepare", Does::Hang);
    body["timeout_ms"] = 200.into();
    coordinator.begin(&body).await.aborted("timeout");
    let mut body = commits_at(&["down"]);
    // Long enough to be refused once.
    body["timeout_ms"] = 2_000.into();
    coordinator.begin(&body).await.aborted("unreachable");
    let scrape = Scrape::of(&coordinator).await;
    for (code, count) in [
        ("requested", 1.0),
        ("conflict", 1.0),
        ("timeout", 1.0),
        ("unreachable", 1.0),
        ("refused", 0.0),
    ] {
        assert_eq!(scrape.value(&decided("aborted", code)), count, "{code}");
    }
    assert_eq!(scrape.value(&decided("committed", "")), 0.0);
    let refused = r#"unanimous_calls_total{kind="prepare",participant="down",result="refused"}"#;
    assert!(scrape.value(refused) >= 1.0);
    coordinator
        .scraped("the call that hung is unknown", |scrape| {
            let unknown =
                r#"unanimous_calls_total{kind="prepare",participant="east",result="unknown"}"#;
            scrape.value(unknown) == 1.0
        })
        .await;
}

#[tokio::test]
async fn a_branch_in_doubt_is_counted_and_its_age_grows_also_through_a_restart() {
    let (east, west) = (Stub::start("east").await, Stub::start("west").await);
    let mut coordinator = Coordinator::start(&[&east, &west]).await;
    east.hold("commit");
    west.hold("prepare");
    let mut body = commits_at(&["east", "west"]);
    body["wait"] = "none".into();
    let id = coordinator.begin(&body).await.is(202).id();
    // East has promised, and nothing is decided.
    let preparing = coordinator
        .scraped("east has voted", |scrape| {
            scrape.value(&in_doubt("east")) == 1.0
        })
        .await;
    assert_eq!(preparing.value(&in_doubt("west")), 0.0);
    assert_eq!(preparing.value(&oldest("west")), 0.0);
    assert_eq!(preparing.value(&in_state("preparing")), 1.0);
    west.release("prepare");
    let committing = coordinator
        .scraped("west has acknowledged", |scrape| {
            scrape.value(&in_state("committing")) == 1.0 && scrape.value(&in_doubt("west")) == 0.0
        })
        .await;
    assert_eq!(committing.value(&in_doubt("east")), 1.0);
    assert_eq!(committing.value("unanimous_in_doubt_transactions"), 1.0);
    let age = committing.value(&oldest("east"));
    assert!(age >= preparing.value(&oldest("east")));
    let older = coordinator
        .scraped("its age grows", |scrape| {
            scrape.value(&oldest("east")) > age + 1.0
        })
        .await;
    assert_eq!(older.value(&oldest("west")), 0.0);
    coordinator.kill_and_restart().await;
    let recovered = Scrape::of(&coordinator).await;
    assert_eq!(recovered.value(&in_doubt("east")), 1.0);
    // From the record: at least as long ago as the decision was seen to be made.
    assert!(recovered.value(&oldest("east")) > 1.0);
    assert_eq!(
        recovered.value(&decided("committed", "")),
        0.0,
        "an earlier life decided it"
    );
    east.release("commit");
    coordinator.reaches(&id, "committed").await;
    let done = Scrape::of(&coordinator).await;
    for series in [
        in_doubt("east"),
        oldest("east"),
        "unanimous_in_doubt_transactions".to_owned(),
    ] {
        assert_eq!(done.value(&series), 0.0, "{series}");
    }
}

#[tokio::test]
async fn a_branch_in_doubt_of_a_name_that_is_not_registered_any_more_is_counted_without_it() {
    let east = Stub::start("east").await;
    let mut coordinator = Coordinator::start(&[&east]).await;
    east.hold("commit");
    coordinator.begin(&commits_at(&["east"])).await.is(200);
    coordinator.process.kill();
    let program = crate::support::coordinator::serve(coordinator.log());
    coordinator.restart_as(program).await;
    let scrape = Scrape::of(&coordinator).await;
    assert_eq!(scrape.value(&in_doubt("(unregistered)")), 1.0);
    let names = scrape.names();
    let named: Vec<_> = names.iter().filter(|name| name.contains("east")).collect();
    assert_eq!(named, Vec::<&String>::new());
}

#[tokio::test]
async fn nothing_that_a_client_makes_up_makes_a_series() {
    let east = Stub::start("east").await;
    let coordinator = Coordinator::start(&[&east]).await;
    let id = coordinator.open().await;
    let before = Scrape::of(&coordinator).await.names();
    let made_up = ["atlantis", "/etc/passwd", "'; --"];
    let refused = coordinator.begin(&commits_at(&["atlantis"])).await;
    refused.problem(400, "unknown-participant");
    coordinator.outcome(&id, "atlantis").await.is(200);
    coordinator.outcome("atlantis", "atlantis").await.is(400);
    let refused = coordinator.enlist(&id, &branch("atlantis")).await;
    refused.problem(400, "unknown-participant");
    coordinator.get("/v1/transactions/atlantis").await.is(400);
    coordinator.get("/atlantis").await.is(404);
    let refused = Answer::of(coordinator.admin(Method::GET, "/admin/v1/participants/atlantis"));
    refused.await.is(404);
    let method = Method::from_bytes(b"ATLANTIS").unwrap();
    let refused = Answer::of(coordinator.request(method, "/v1/transactions")).await;
    refused.is(405);
    for text in made_up {
        let body = json!({"labels": {"atlantis": text}});
        coordinator
            .begin_keyed(&format!("key {text}"), &body)
            .await
            .is(201);
    }
    let after = Scrape::of(&coordinator).await;
    assert_eq!(after.names(), before);
    let other = |route: &str, status: &str| {
        let series = format!(
            "unanimous_http_requests_total{{method=\"other\",route=\"{route}\",status=\"{status}\"}}"
        );
        after.value(&series)
    };
    assert_eq!(other("other", "4xx"), 1.0, "the path that is no route");
    assert_eq!(other("/v1/transactions", "4xx"), 1.0, "the made-up method");
    let by_route = |method: &str, route: &str, status: &str| {
        let labels = format!("method=\"{method}\",route=\"{route}\",status=\"{status}\"");
        after.value(&format!("unanimous_http_requests_total{{{labels}}}"))
    };
    assert_eq!(by_route("GET", "/v1/transactions/{id}", "4xx"), 1.0);
    assert_eq!(by_route("GET", "/v1/transactions/{id}/outcome", "2xx"), 1.0);
    assert_eq!(by_route("GET", "/v1/transactions/{id}/outcome", "4xx"), 1.0);
    assert_eq!(by_route("GET", "/admin/v1/participants/{name}", "4xx"), 1.0);
}

#[tokio::test]
async fn the_series_of_a_participant_go_with_its_registration() {
    let east = Stub::start("east").await;
    let coordinator = Coordinator::start(&[]).await;
    let before = Scrape::of(&coordinator).await.names();
    let path = "/admin/v1/participants/east";
    let put = coordinator.admin(Method::PUT, path);
    Answer::of(put.json(&json!({"url": east.url()})))
        .await
        .is(201);
    let id = coordinator.begin(&commits_at(&["east"])).await.is(200).id();
    coordinator.reaches(&id, "committed").await;
    let registered = coordinator
        .scraped("its finish is written", |scrape| {
            scrape.value("unanimous_transactions_live") == 0.0
        })
        .await;
    for (series, value) in calls(&["east"], &["prepare", "commit"]) {
        assert_eq!(registered.value(&series), value, "{series}");
    }
    Answer::of(coordinator.admin(Method::DELETE, path))
        .await
        .is(204);
    assert_eq!(Scrape::of(&coordinator).await.names(), before);
}

#[tokio::test]
async fn inquiries_are_counted_by_what_they_are_told() {
    let east = Stub::start("east").await;
    let mut coordinator = Coordinator::start(&[&east]).await;
    let committed = coordinator.begin(&commits_at(&["east"])).await.is(200).id();
    let open = coordinator.open().await;
    let aborted = coordinator.open().await;
    coordinator.abort(&aborted).await.is(200);
    let foreign = "00000001-0001-8000-8000-100000000001";
    let before = Scrape::of(&coordinator).await;
    for id in [&committed, &committed, &open, &aborted, &foreign.to_owned()] {
        coordinator.outcome(id, "east").await;
    }
    let after = Scrape::of(&coordinator).await;
    let told = |answer: &str, count: f64| {
        let series = format!("unanimous_inquiries_total{{answer=\"{answer}\"}}");
        (series, count)
    };
    let mut counted = after.counted_since(&before);
    counted.retain(|name, _| name.contains("inquiries"));
    let expected = [
        told("committed", 2.0),
        told("pending", 1.0),
        told("aborted", 1.0),
        told("foreign", 1.0),
    ];
    assert_eq!(counted, BTreeMap::from(expected));

    coordinator.process.kill();
    let mut renamed = new_identity(coordinator.log()).start().unwrap();
    assert!(renamed.wait_exit(SOON).await.unwrap().success());
    coordinator.kill_and_restart().await;
    // Without a record nobody knows what the lost part of the log did; with one, it answers.
    let asked = coordinator.outcome(&open, "east").await.is(200);
    assert_eq!(asked.body["outcome"], "pending");
    coordinator.outcome(&committed, "east").await.is(200);
    let scrape = Scrape::of(&coordinator).await;
    let former = scrape.value("unanimous_inquiries_former_identity_total");
    assert_eq!(former, 1.0);
    let output = coordinator.process.output().unwrap();
    assert!(output.contains(&open), "it is logged too: {output}");
}

#[tokio::test]
async fn open_transactions_are_counted_against_their_bounds() {
    let coordinator = Coordinator::start(&[]).await;
    let none = Scrape::of(&coordinator).await;
    for series in ["undecided", "live", "delivering_aborts"] {
        let now = format!("unanimous_transactions_{series}");
        assert_eq!(none.value(&now), 0.0, "{now}");
        assert!(none.value(&format!("{now}_max")) >= 10_000.0);
    }
    let ids = [coordinator.open().await, coordinator.open().await];
    let open = Scrape::of(&coordinator).await;
    assert_eq!(open.value(&in_state("active")), 2.0);
    assert_eq!(open.value("unanimous_transactions_undecided"), 2.0);
    assert_eq!(open.value("unanimous_transactions_live"), 2.0);
    for id in &ids {
        coordinator.abort(id).await.is(200);
    }
    coordinator
        .scraped("they leave memory", |scrape| {
            scrape.value("unanimous_transactions_live") == 0.0
                && scrape.value("unanimous_transactions_undecided") == 0.0
        })
        .await;
}

#[tokio::test]
async fn the_condition_says_that_the_log_went_back() {
    let east = Stub::start("east").await;
    let coordinator = Coordinator::start(&[&east]).await;
    let condition = |name: &str| format!("unanimous_condition{{condition=\"{name}\"}}");
    let ready = Scrape::of(&coordinator).await;
    assert_eq!(ready.value(&condition("ready")), 1.0);
    assert_eq!(ready.value(&condition("went_back")), 0.0);
    coordinator.begin(&commits_at(&["east"])).await.is(200);
    coordinator
        .log()
        .change("UPDATE epoch SET decisions = 0")
        .await;
    let back = coordinator
        .scraped("it notices", |scrape| {
            scrape.value(&condition("went_back")) == 1.0
        })
        .await;
    for name in ["ready", "log_unavailable", "fenced"] {
        assert_eq!(back.value(&condition(name)), 0.0, "{name}");
    }
}

#[tokio::test]
async fn an_alarm_is_counted_each_time_it_is_raised() {
    let east = Stub::start("east").await;
    let coordinator = Coordinator::start(&[&east]).await;
    east.once("commit", Does::problem(409, "vote-lost"));
    let id = coordinator.begin(&commits_at(&["east"])).await.is(200).id();
    let scrape = coordinator
        .scraped("the alarm is counted", |scrape| {
            scrape.value("unanimous_alarms_total{alarm=\"vote-lost\"}") == 1.0
        })
        .await;
    assert_eq!(
        scrape.value("unanimous_alarms_total{alarm=\"outcome-differs\"}"),
        0.0
    );
    assert_eq!(
        scrape.value(&in_doubt("east")),
        1.0,
        "it is no acknowledgement"
    );
    assert_eq!(coordinator.show(&id).await.body["state"], "committing");
}

#[tokio::test]
async fn the_page_for_operators_names_exactly_the_metrics_that_are_served() {
    let east = Stub::start("east").await;
    let coordinator = Coordinator::start(&[&east]).await;
    let scrape = Scrape::of(&coordinator).await;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/METRICS.md");
    let page = std::fs::read_to_string(path).unwrap();
    let (page, _) = page.split_once("## Worth an alert").unwrap();
    let mut documented = BTreeSet::new();
    for row in page
        .lines()
        .filter(|line| line.starts_with("| `unanimous_"))
    {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        let [_, name, kind, labels, ..] = cells[..] else {
            panic!("{row}")
        };
        let labels: BTreeSet<_> = labels
            .split(", ")
            .map(|label| label.trim_matches('`').to_owned())
            .filter(|label| !label.is_empty())
            .collect();
        documented.insert((name.trim_matches('`').to_owned(), kind.to_owned(), labels));
    }
    let mut served = BTreeSet::new();
    for (name, (kind, help)) in &scrape.families {
        assert!(help.len() > 10, "{name} says nothing: {help}");
        let of_family = |series: &&String| {
            let series = series.split('{').next().unwrap_or_default();
            let suffixed = series.strip_prefix(name.as_str());
            suffixed.is_some_and(|rest| ["", "_count"].contains(&rest))
        };
        let series = scrape.series.keys().find(of_family);
        let series = series.unwrap_or_else(|| panic!("{name} has no series"));
        let (_, labels) = series.split_once('{').unwrap_or_default();
        let labels = labels.split(',').filter_map(|pair| pair.split_once('='));
        let labels = labels.map(|(label, _)| label.to_owned()).collect();
        served.insert((name.clone(), kind.clone(), labels));
    }
    assert_eq!(documented, served);
}

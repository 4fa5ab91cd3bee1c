//! What a coordinator logs: in both formats the same fields, and every line about a transaction names it.

use serde_json::{Value, json};
use unanimous_lab::wait::until;

use crate::support::{Coordinator, Does, SOON, Stub, branch};

/// Everything that leaves a line about a transaction: a commit, a refusal, an alarm, a strange inquiry. The ids.
async fn eventful(coordinator: &Coordinator, east: &Stub, west: &Stub) -> [String; 3] {
    let of = |name: &str| json!({"branches": [branch(name)], "commit": true});
    let committed = coordinator.begin(&of("west")).await.is(200).id();
    let reason = "insufficient funds";
    west.once("prepare", Does::Refuse { code: None, reason });
    let refused = coordinator.begin(&of("west")).await.is(409).id();
    east.always("commit", Does::problem(409, "vote-lost"));
    let lost = coordinator.begin(&of("east")).await.is(200).id();
    coordinator.outcome(&lost, "west").await.is(200);
    [committed, refused, lost]
}

const ALARM: &str = "vote-lost";
const STRANGER: &str = "an inquiry names a branch that the committed transaction does not have";

#[tokio::test]
async fn json_lines_name_transaction_participant_and_trace_in_fields_of_fixed_names() {
    let (east, west) = (Stub::start("east").await, Stub::start("west").await);
    let named = [("east", east.url()), ("west", west.url())];
    let json = |program: unanimous_lab::Program| program.args(["--log-format", "json"]);
    let coordinator = Coordinator::start_with(&named, json).await;
    let [committed, refused, lost] = eventful(&coordinator, &east, &west).await;
    let lines = until("all of it is in the log", SOON, async || {
        let output = coordinator.process.output()?;
        let lines = output.lines().filter(|line| !line.starts_with("ready "));
        let lines: Result<Vec<Value>, _> = lines.map(serde_json::from_str).collect();
        let lines = lines.map_err(|error| anyhow::anyhow!("{error} in {output}"))?;
        for (message, id) in [
            ("decided", &committed),
            ("decided", &refused),
            ("decided", &lost),
            (ALARM, &lost),
            (STRANGER, &lost),
        ] {
            let found = lines.iter().any(|line| {
                line["message"]
                    .as_str()
                    .is_some_and(|m| m.contains(message))
                    && line["transaction"] == id.as_str()
            });
            anyhow::ensure!(found, "no {message:?} of {id} in {output}");
        }
        anyhow::Ok(lines)
    })
    .await
    .unwrap();
    for line in &lines {
        for member in ["timestamp", "level", "target", "message"] {
            assert!(line[member].is_string(), "no {member} in {line}");
        }
        let text = line.to_string();
        for id in [&committed, &refused, &lost] {
            if text.contains(id.as_str()) {
                assert_eq!(line["transaction"], id.as_str(), "{line}");
            }
        }
    }
    let of = |message: &str, id: &str| {
        let found = lines.iter().find(|line| {
            line["message"]
                .as_str()
                .is_some_and(|m| m.contains(message))
                && line["transaction"] == id
        });
        found.cloned().unwrap()
    };
    assert_eq!(of("decided", &committed)["outcome"], "committed");
    let decided = of("decided", &refused);
    for (member, value) in [
        ("outcome", "aborted"),
        ("participant", "west"),
        ("reason", "refused"),
        ("detail", "insufficient funds"),
    ] {
        assert_eq!(decided[member], value, "{decided}");
    }
    let alarm = of(ALARM, &lost);
    assert_eq!(
        (&alarm["participant"], &alarm["level"]),
        (&json!("east"), &json!("ERROR"))
    );
    assert_eq!(of(STRANGER, &lost)["participant"], "west");
    assert_eq!(alarm["trace_id"], of("decided", &lost)["trace_id"]);
    assert_eq!(alarm["trace_id"].as_str().map(str::len), Some(32));
}

#[tokio::test]
async fn lines_for_people_have_the_same_fields() {
    let (east, west) = (Stub::start("east").await, Stub::start("west").await);
    let coordinator = Coordinator::start(&[&east, &west]).await;
    let [committed, refused, lost] = eventful(&coordinator, &east, &west).await;
    for words in [
        [
            "decided",
            &format!("transaction={committed}"),
            "outcome=\"committed\"",
            "trace_id=",
        ],
        [
            "decided",
            &format!("transaction={refused}"),
            "participant=west",
            "reason=\"refused\"",
        ],
        [
            ALARM,
            &format!("transaction={lost}"),
            "participant=east",
            "trace_id=",
        ],
        [
            STRANGER,
            &format!("transaction={lost}"),
            "participant=west",
            "WARN",
        ],
    ] {
        until(&format!("a line has {words:?}"), SOON, async || {
            let output = coordinator.process.output()?;
            let found = output
                .lines()
                .any(|line| words.iter().all(|word| line.contains(word)));
            anyhow::ensure!(found, "{output}");
            anyhow::Ok(())
        })
        .await
        .unwrap();
    }
}

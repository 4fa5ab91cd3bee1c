//! Every JSON body of the wire is a file in `golden/`, named `<kind>.<case>.json`. Each one parses and prints back to
//! the letter, and what the contract says of every body (unknown, null and doubled members) is tried on all of them.

use std::{collections::BTreeMap, fmt::Debug, fs, path::Path};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use unanimous_protocol::{
    operations::BodyDigest,
    record::AbortReason,
    wire::{
        AbortRequest, BatchLine, BatchMessage, BatchRequest, BeginRequest, BranchList,
        BranchRequest, BranchStateAnswer, CommitRequest, Describe, EnlistAnswer, EnlistRequest,
        OutcomeAnswer, ParticipantList, ParticipantRequest, ParticipantView, PrepareRequest,
        Problem, TransactionList, TransactionView, VoteAnswer, parse_object, write_batch_line,
    },
};

/// Whose mistakes are refused, and whose are passed over.
#[derive(Clone, Copy, PartialEq)]
enum Reader {
    Coordinator,
    ParticipantOrClient,
}

/// One kind of body: who reads it, and how it is parsed and printed.
struct Kind {
    name: &'static str,
    reader: Reader,
    reprint: fn(&str) -> Result<String, String>,
}

fn reprint<T: DeserializeOwned + Serialize>(text: &str) -> Result<String, String> {
    let body: T = parse_object(text.as_bytes()).map_err(|error| error.to_string())?;
    serde_json::to_string_pretty(&body)
        .map(|printed| printed + "\n")
        .map_err(|error| error.to_string())
}

/// As [`reprint`], of a body that borrows from its text.
fn reprint_batch(text: &str) -> Result<String, String> {
    let body: BatchRequest<'_> =
        parse_object(text.as_bytes()).map_err(|error| error.to_string())?;
    serde_json::to_string_pretty(&body)
        .map(|printed| printed + "\n")
        .map_err(|error| error.to_string())
}

/// A line is one line.
fn reprint_batch_line(text: &str) -> Result<String, String> {
    let line: BatchLine<'_> = parse_object(text.as_bytes()).map_err(|error| error.to_string())?;
    let mut printed = Vec::new();
    write_batch_line(
        &mut printed,
        &line.transaction,
        &line.participant,
        line.status,
        line.answer().body,
    )
    .map_err(|error| error.to_string())?;
    String::from_utf8(printed).map_err(|error| error.to_string())
}

macro_rules! kind {
    ($name:literal, $reader:ident, $body:ty) => {
        Kind {
            name: $name,
            reader: Reader::$reader,
            reprint: reprint::<$body>,
        }
    };
}

const KINDS: &[Kind] = &[
    kind!("begin_request", Coordinator, BeginRequest),
    kind!("enlist_request", Coordinator, EnlistRequest),
    kind!("commit_request", Coordinator, CommitRequest),
    kind!("abort_request", Coordinator, AbortRequest),
    kind!("enlist_answer", ParticipantOrClient, EnlistAnswer),
    kind!("transaction", ParticipantOrClient, TransactionView),
    kind!("transaction_list", ParticipantOrClient, TransactionList),
    kind!("participant_request", Coordinator, ParticipantRequest),
    kind!("participant", ParticipantOrClient, ParticipantView),
    kind!("participant_list", ParticipantOrClient, ParticipantList),
    kind!("reason", ParticipantOrClient, AbortReason),
    kind!("outcome", ParticipantOrClient, OutcomeAnswer),
    kind!("problem", ParticipantOrClient, Problem),
    kind!("prepare_request", ParticipantOrClient, PrepareRequest),
    kind!("branch_request", ParticipantOrClient, BranchRequest),
    kind!("vote", ParticipantOrClient, VoteAnswer),
    kind!("branch_state", ParticipantOrClient, BranchStateAnswer),
    kind!("branch_list", ParticipantOrClient, BranchList),
    kind!("describe", ParticipantOrClient, Describe),
    kind!("batch_message", ParticipantOrClient, BatchMessage),
    Kind {
        name: "batch_request",
        reader: Reader::ParticipantOrClient,
        reprint: reprint_batch,
    },
    Kind {
        name: "batch_line",
        reader: Reader::ParticipantOrClient,
        reprint: reprint_batch_line,
    },
];

/// Every golden file: its name, its kind, its text.
fn files() -> Vec<(String, &'static Kind, String)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let kind = name.split('.').next().unwrap();
        let kind = KINDS.iter().find(|known| known.name == kind);
        let kind = kind.unwrap_or_else(|| panic!("{name} is of no known kind"));
        files.push((name, kind, fs::read_to_string(path).unwrap()));
    }
    files.sort_by(|one, other| one.0.cmp(&other.0));
    files
}

fn members(text: &str) -> Map<String, Value> {
    serde_json::from_str(text).unwrap()
}

fn print(members: &Map<String, Value>) -> String {
    serde_json::to_string(members).unwrap()
}

/// Members of a problem's own are kept as they came, whatever they are.
fn is_extension(kind: &Kind, member: &str) -> bool {
    kind.name == "problem" && !["type", "title", "status", "detail", "code"].contains(&member)
}

#[test]
fn every_example_parses_and_prints_back_to_the_letter() {
    let files = files();
    for (name, kind, text) in &files {
        assert_eq!((kind.reprint)(text).as_ref(), Ok(text), "{name}");
    }
    for kind in KINDS {
        let examples = files.iter().filter(|file| file.1.name == kind.name);
        assert!(examples.count() > 0, "{} has no example", kind.name);
    }
}

#[test]
fn the_coordinator_refuses_unknown_members_and_participants_and_clients_ignore_them() {
    for (name, kind, text) in files() {
        let mut with_surprise = members(&text);
        with_surprise.insert("surprise".to_owned(), Value::from(1));
        let with_surprise = (kind.reprint)(&print(&with_surprise));
        match kind.reader {
            Reader::Coordinator => {
                let error = with_surprise.unwrap_err();
                assert!(error.contains("surprise"), "{name} names it: {error}");
            }
            Reader::ParticipantOrClient if kind.name == "problem" => {
                assert!(with_surprise.is_ok(), "{name}");
            }
            Reader::ParticipantOrClient => {
                // Through the same printer once more, so that only the surprise could make a difference.
                let plain = (kind.reprint)(&print(&members(&text)));
                assert_eq!(with_surprise, plain, "{name}");
            }
        }
    }
    let nested = r#"{"branches":[{"participant":"east","priority":1}]}"#;
    let error = serde_json::from_str::<BeginRequest>(nested).unwrap_err();
    assert!(error.to_string().contains("priority"), "{error}");
}

#[test]
fn a_null_member_is_the_same_as_an_absent_one() {
    let files = files();
    let mut known = BTreeMap::<&str, Map<String, Value>>::new();
    for (_, kind, text) in &files {
        known.entry(kind.name).or_default().extend(members(text));
    }
    for (name, kind, text) in &files {
        for member in known[kind.name].keys().filter(|it| !is_extension(kind, it)) {
            let mut absent = members(text);
            absent.remove(member);
            let mut null = absent.clone();
            null.insert(member.clone(), Value::Null);
            let (absent, null) = (
                (kind.reprint)(&print(&absent)),
                (kind.reprint)(&print(&null)),
            );
            assert_eq!(null.ok(), absent.ok(), "{member} of {name}");
        }
    }
    let begin = |text: &str| serde_json::from_str::<BeginRequest>(text).unwrap();
    assert_eq!(
        begin(r#"{"branches":[{"participant":"east","operations":null}],"labels":{"a":null}}"#),
        begin(r#"{"branches":[{"participant":"east"}],"labels":{}}"#),
    );
}

#[test]
fn a_doubled_member_is_refused() {
    for (name, kind, text) in files() {
        for (member, value) in members(&text) {
            if is_extension(kind, &member) {
                continue;
            }
            let rest = print(&members(&text));
            let doubled = format!("{{\"{member}\":{value},{}", &rest[1..]);
            assert!(
                (kind.reprint)(&doubled).is_err(),
                "{member} twice in {name}"
            );
        }
    }
    refused::<BeginRequest>(r#"{"labels":{"a":"1","a":"2"}}"#);
    refused::<BeginRequest>(r#"{"branches":[{"participant":"east","participant":"west"}]}"#);
}

#[test]
fn a_body_that_is_no_object_is_refused() {
    for kind in KINDS {
        for text in ["", "[]", "null", "1", "\"\"", "true", "{} {}"] {
            assert!((kind.reprint)(text).is_err(), "{text} as {}", kind.name);
        }
    }
    // A sequence in the order of the members is not the body either.
    refused::<VoteAnswer>(r#"["5eed0001-0001-8000-8000-100000000001","east","yes"]"#);
}

fn refused<T: DeserializeOwned + Debug>(text: &str) {
    assert!(parse_object::<T>(text.as_bytes()).is_err(), "{text}");
}

#[test]
fn an_id_in_any_other_spelling_is_refused_wherever_it_is_read_as_an_id() {
    const ID: &str = "5eed0001-0001-8000-8000-100000000001";
    let otherwise = [
        ID.to_uppercase(),
        ID.replace('-', ""),
        ID.replace("-8000-8", "-4000-8"),
        format!("{{{ID}}}"),
        format!("{ID} "),
        String::new(),
    ];
    let id_members = [
        ("transaction.active.json", "id"),
        ("reason.duplicate.json", "winner"),
        ("prepare_request.interactive.json", "transaction"),
        ("prepare_request.interactive.json", "low_water"),
        ("batch_message.prepare.json", "transaction"),
        ("batch_message.prepare.json", "low_water"),
        ("branch_request.low_water.json", "transaction"),
        ("branch_request.low_water.json", "low_water"),
        ("vote.no_below_low_water.json", "low_water"),
    ];
    let files = files();
    for (file, member) in id_members {
        let (_, kind, text) = files.iter().find(|(name, ..)| name == file).unwrap();
        for spelling in &otherwise {
            let mut body = members(text);
            body.insert(member.to_owned(), Value::from(spelling.as_str()));
            assert!(
                (kind.reprint)(&print(&body)).is_err(),
                "{spelling:?} as {member} of {file}"
            );
        }
    }
}

#[test]
fn what_the_coordinator_bounds_is_refused_past_the_bound() {
    let labels = |count: usize| {
        let labels: Vec<_> = (0..count).map(|at| format!("\"l{at}\":\"\"")).collect();
        format!("{{\"labels\":{{{}}}}}", labels.join(","))
    };
    assert!(serde_json::from_str::<BeginRequest>(&labels(16)).is_ok());
    refused::<BeginRequest>(&labels(17));
    let value = |text: &str| format!("{{\"labels\":{{\"a\":\"{text}\"}}}}");
    assert!(serde_json::from_str::<BeginRequest>(&value(&"ä".repeat(256))).is_ok());
    refused::<BeginRequest>(&value(&"ä".repeat(257)));
    refused::<BeginRequest>(&value("\\u0000"));
    let key = |text: &str| format!("{{\"labels\":{{\"{text}\":\"\"}}}}");
    assert!(serde_json::from_str::<BeginRequest>(&key(&"a".repeat(63))).is_ok());
    for text in ["", "A", "a b", "ä", "a\\u0000", &"a".repeat(64)] {
        refused::<BeginRequest>(&key(text));
    }
    let session = |text: &str| format!("{{\"participant\":\"east\",\"session\":\"{text}\"}}");
    assert!(serde_json::from_str::<EnlistRequest>(&session(&"s".repeat(255))).is_ok());
    for text in ["", "ä", "\\n", "\\u0000", &"s".repeat(256)] {
        refused::<EnlistRequest>(&session(text));
    }
    refused::<EnlistRequest>(r#"{"participant":"East"}"#);
    refused::<EnlistRequest>(r#"{"participant":"east","operations":{}}"#);
    refused::<CommitRequest>(r#"{"wait":"forever"}"#);
    refused::<CommitRequest>(r#"{"wait_ms":-1}"#);
    refused::<CommitRequest>(r#"{"wait_ms":1.5}"#);
}

fn digest(text: &str) -> BodyDigest {
    let begin: BeginRequest = serde_json::from_str(text).unwrap();
    begin.digest().unwrap()
}

#[test]
fn a_repeat_of_a_begin_is_the_same_body_apart_from_what_says_how_to_answer() {
    let first = r#"{"timeout_ms":30000,"commit":true,"labels":{"a":"1","b":"2"},
        "branches":[{"participant":"east","operations":[{"a":1,"b":[2,null]}]}]}"#;
    let same = [
        // White space, and the order of members at every depth.
        r#"{"branches":[{"operations":[ {"b": [2, null], "a": 1} ],"participant":"east"}],
            "labels":{"b":"2","a":"1"},"commit":true,"timeout_ms":30000}"#,
        // `wait`, `wait_ms`, and null members.
        r#"{"timeout_ms":30000,"commit":true,"labels":{"a":"1","b":"2","c":null},"wait":"applied","wait_ms":1,
            "branches":[{"participant":"east","operations":[{"a":1,"b":[2,null]}]}]}"#,
    ];
    for text in same {
        assert_eq!(digest(text), digest(first), "{text}");
    }
    let other = [
        first.replace("30000", "30001"),
        first.replace("true", "false"),
        first.replace("\"commit\":true,", ""),
        first.replace("\"2\"}", "\"3\"}"),
        first.replace("\"east\"", "\"west\""),
        first.replace("\"a\":1,", "\"a\":1.0,"),
        first.replace("\"a\":1,", ""),
        // Inside operations null is a value.
        first.replace("[2,null]", "[2]"),
    ];
    for text in other {
        assert_ne!(digest(&text), digest(first), "{text}");
    }
    let branches = |order: &str| format!("{{\"branches\":[{order}]}}");
    assert_ne!(
        digest(&branches(
            r#"{"participant":"east"},{"participant":"west"}"#
        )),
        digest(&branches(
            r#"{"participant":"west"},{"participant":"east"}"#
        )),
    );
}

#[test]
fn operations_travel_as_the_text_received() {
    let (_, _, text) = files()
        .into_iter()
        .find(|(name, ..)| name == "begin_request.money.json")
        .unwrap();
    let begin: BeginRequest = serde_json::from_str(&text).unwrap();
    let operations = begin.branches.unwrap().remove(0).operations.unwrap();
    let received = r#"[{"amount": 100000000000000000000.10, "note": null}]"#;
    assert_eq!(operations.text(), received);
}

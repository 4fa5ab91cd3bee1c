//! What must hold of every parser for every input: not only that it does not panic.
//!
//! Also compiled into the tests of the protocol crate, which run the kept inputs (`fuzz/corpus`) through all of them.

use std::{fmt::Debug, str::FromStr};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, DeserializeOwned},
};
use serde_json::{Value, value::RawValue};
use unanimous_protocol::{
    id::{BranchId, ParticipantName, TransactionId},
    message::{Delivery, Inform, REASON_MAX, Reply, RequestKind, Session, Vote},
    operations::{BodyDigest, Operations},
    record::IdempotencyKey,
    trace::TraceContext,
    wire::{
        AbortRequest, BeginRequest, BranchList, BranchRequest, BranchStateAnswer, CommitRequest,
        Describe, EnlistAnswer, EnlistRequest, HttpAnswer, InquiryAnswer, Object, OutcomeAnswer,
        ParticipantRequest, PrepareRequest, Problem, Timestamp, TransactionView, VoteAnswer,
        parse_object, read_inquiry, read_reply,
    },
};

/// A target takes any bytes, and panics where something does not hold.
type Target = fn(&[u8]);

/// Every target, by name.
pub(crate) const TARGETS: [(&str, Target); 11] = [
    ("begin", begin),
    ("enlist", enlist),
    ("settle", settle),
    ("participant_bodies", participant_bodies),
    ("answers", answers),
    ("operations", operations),
    ("reply", reply),
    ("inquiry", inquiry),
    ("ids", ids),
    ("trace", trace),
    ("timestamp", timestamp),
];

const ID: &str = "5eed000a-0001-8000-8000-10000000000b";

fn branch() -> BranchId {
    BranchId {
        transaction: ID.parse().expect("an id"),
        participant: "east".parse().expect("a name"),
    }
}

/// What parses prints back, and what was printed parses to the same. The body, if it is one.
fn body<T>(data: &[u8]) -> Option<T>
where
    T: DeserializeOwned + Serialize + PartialEq + Debug,
{
    let body: T = parse_object(data).ok()?;
    let printed = serde_json::to_string(&body).expect("what was parsed can be printed");
    let again: T = parse_object(printed.as_bytes()).expect("what was printed can be parsed");
    assert_eq!(again, body, "{printed}");
    let once_more = serde_json::to_string(&again).expect("it can be printed again");
    assert_eq!(once_more, printed, "the same body is the same text");
    Some(body)
}

/// As [`body`]; and both ways in which bodies are read take the same ones.
fn request<T>(data: &[u8]) -> Option<T>
where
    T: DeserializeOwned + Serialize + PartialEq + Debug,
{
    let body = body::<T>(data);
    if let Ok(text) = std::str::from_utf8(data) {
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let object = Object::<T>::deserialize(&mut deserializer);
        let object = object.and_then(|object| deserializer.end().map(|()| object));
        assert_eq!(object.ok().map(|Object(object)| object), body);
    } else {
        assert!(body.is_none(), "a body that is not UTF-8");
    }
    body
}

fn begin(data: &[u8]) {
    let Some(body) = request::<BeginRequest>(data) else {
        return;
    };
    let digest = body
        .digest()
        .expect("what was parsed is nested no deeper than it may be");
    let respelled = respelled(data);
    let same: BeginRequest = parse_object(respelled.as_bytes()).expect("the same body");
    assert_eq!(same.digest(), Ok(digest), "{respelled}");
    // How to be answered is no part of what to do.
    let patient = BeginRequest {
        wait_ms: Some(1),
        ..body.clone()
    };
    assert_eq!(patient.digest(), Ok(digest));
    let other = BeginRequest {
        timeout_ms: Some(body.timeout_ms.map_or(1, |ms| ms ^ 1)),
        ..body
    };
    assert_ne!(other.digest(), Ok(digest));
}

fn enlist(data: &[u8]) {
    if let Some(EnlistRequest {
        operations: Some(operations),
        ..
    }) = request(data)
    {
        check_operations(&operations);
    }
}

fn settle(data: &[u8]) {
    request::<CommitRequest>(data);
    request::<AbortRequest>(data);
    request::<ParticipantRequest>(data);
}

fn participant_bodies(data: &[u8]) {
    if let Some(prepare) = body::<PrepareRequest>(data) {
        check_operations(&prepare.operations);
        // A prepare has all that an outcome has.
        let outcome = body::<BranchRequest>(data).expect("members it does not know are ignored");
        assert_eq!(outcome.transaction, prepare.transaction);
    }
    body::<BranchRequest>(data);
}

/// What participants and clients are sent.
fn answers(data: &[u8]) {
    body::<VoteAnswer>(data);
    body::<BranchStateAnswer>(data);
    body::<BranchList>(data);
    body::<Describe>(data);
    body::<OutcomeAnswer>(data);
    body::<Problem>(data);
    body::<EnlistAnswer>(data);
    body::<TransactionView>(data);
}

fn operations(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(operations) = Operations::parse(text) {
        assert_eq!(
            operations.text(),
            text.trim_matches([' ', '\t', '\n', '\r'])
        );
        check_operations(&operations);
    }
}

fn check_operations(operations: &Operations) {
    let printed = serde_json::to_string(operations).expect("operations are JSON");
    assert_eq!(printed, operations.text(), "forwarded to the letter");
    let respelled = respelled(operations.text().as_bytes());
    let same = Operations::parse(&respelled).expect("the same operations");
    assert_eq!(same.digest(), operations.digest(), "{respelled}");
    let of_text = BodyDigest::of_json(operations.text());
    assert_eq!(of_text, Ok(operations.digest()));
}

/// Statuses, media types and kinds by the first byte; the rest is the body.
fn answer(data: &[u8]) -> (u8, HttpAnswer<'_>) {
    const STATUSES: [u16; 8] = [200, 400, 404, 409, 413, 415, 422, 503];
    const MEDIA: [Option<&str>; 4] = [
        Some("application/problem+json"),
        Some("application/json"),
        Some("Application/Problem+JSON; charset=utf-8"),
        None,
    ];
    let (first, body) = data
        .split_first()
        .map_or((0, data), |(first, body)| (*first, body));
    let answer = HttpAnswer {
        status: STATUSES[usize::from(first & 7)],
        content_type: MEDIA[usize::from(first >> 3 & 3)],
        body,
    };
    (first >> 5, answer)
}

/// Whether the body, read in another way, echoes both names and has this word.
fn says(answer: &HttpAnswer<'_>, member: &str, word: &str) -> bool {
    let value: Value = serde_json::from_slice(answer.body).unwrap_or_default();
    value["transaction"] == ID && value["participant"] == "east" && value[member] == word
}

fn is_bounded(reason: &str) {
    assert!(reason.chars().count() <= REASON_MAX && !reason.contains('\0'));
}

fn reply(data: &[u8]) {
    let (kind, answer) = answer(data);
    let kind = [
        RequestKind::Prepare,
        RequestKind::Commit,
        RequestKind::Abort,
    ][usize::from(kind % 3)];
    let ok = answer.status == 200;
    match read_reply(kind, &branch(), &answer) {
        Delivery::Answered(Reply::Vote(Vote::Yes)) => {
            assert!(kind == RequestKind::Prepare && ok && says(&answer, "vote", "yes"));
        }
        Delivery::Answered(Reply::Vote(Vote::ReadOnly)) => {
            assert!(kind == RequestKind::Prepare && ok && says(&answer, "vote", "read_only"));
        }
        Delivery::Answered(Reply::Vote(Vote::No(refusal))) => {
            assert_eq!(kind, RequestKind::Prepare);
            assert_eq!(ok, says(&answer, "vote", "no"), "{answer:?}");
            is_bounded(&refusal.reason);
        }
        Delivery::Answered(Reply::Committed) => {
            assert!(kind == RequestKind::Commit && ok && says(&answer, "state", "committed"));
        }
        Delivery::Answered(Reply::Aborted) => {
            assert!(kind == RequestKind::Abort && ok && says(&answer, "state", "aborted"));
        }
        Delivery::Answered(Reply::VoteLost | Reply::OutcomeDiffers) => {
            assert!(kind != RequestKind::Prepare && answer.status == 409);
        }
        Delivery::Refused(_) => panic!("whoever answered was reached"),
        Delivery::Unknown(reason) => {
            assert!(!reason.is_empty());
            is_bounded(&reason);
        }
    }
}

fn inquiry(data: &[u8]) {
    let (_, answer) = answer(data);
    match read_inquiry(&branch(), &answer) {
        InquiryAnswer::Informed(inform) => {
            let word = match inform {
                Inform::Committed => "committed",
                Inform::Aborted => "aborted",
                Inform::Pending => "pending",
            };
            assert!(answer.status == 200 && says(&answer, "outcome", word));
        }
        InquiryAnswer::AskAgain(reason) => is_bounded(&reason),
        InquiryAnswer::Alarm(reason) => {
            assert_eq!(answer.status, 404);
            is_bounded(&reason);
        }
    }
}

/// What is taken prints back to the letter, from text and from JSON, and nothing else has that text.
fn name<T>(text: &str, print: fn(&T) -> String)
where
    T: FromStr + DeserializeOwned + Serialize + PartialEq + Debug,
{
    let quoted = serde_json::to_string(text).expect("text is JSON");
    let from_json = serde_json::from_str::<T>(&quoted).ok();
    let from_text = text.parse::<T>().ok();
    assert_eq!(from_text, from_json, "{text:?}");
    if let Some(name) = from_text {
        assert_eq!(print(&name), text);
        let printed = serde_json::to_string(&name).expect("a name is JSON");
        assert_eq!(printed, quoted);
    }
}

fn ids(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        name::<TransactionId>(text, ToString::to_string);
        name::<ParticipantName>(text, ToString::to_string);
        name::<Session>(text, |session| session.as_str().to_owned());
        if let Ok(key) = text.parse::<IdempotencyKey>() {
            assert_eq!(key.to_string(), text);
        }
        if let Ok(id) = text.parse::<TransactionId>() {
            check_id(id);
        }
    }
    let ids: Vec<TransactionId> = data
        .chunks_exact(16)
        .filter_map(|bytes| TransactionId::from_bytes(bytes.try_into().ok()?).ok())
        .collect();
    ids.iter().copied().for_each(check_id);
    // The order of the bytes is the order of what they hold.
    let parts = |id: &TransactionId| (id.prefix(), id.epoch(), id.sequence());
    for pair in ids.windows(2) {
        assert_eq!(pair[0].cmp(&pair[1]), parts(&pair[0]).cmp(&parts(&pair[1])));
        assert_eq!(
            pair[0].cmp(&pair[1]),
            pair[0].to_bytes().cmp(&pair[1].to_bytes())
        );
    }
}

fn check_id(id: TransactionId) {
    assert_eq!(TransactionId::from_bytes(id.to_bytes()), Ok(id));
    assert_eq!(id.to_string().parse(), Ok(id));
    assert_eq!(
        TransactionId::new(id.prefix(), id.epoch(), id.sequence()),
        id
    );
}

fn trace(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let (parent, state) = text.split_once('\n').unwrap_or((text, ""));
    if let Some(trace) = TraceContext::received(parent, Some(state)) {
        for random in [0, 1, u64::MAX] {
            let passed_on = trace.traceparent(random);
            let received = TraceContext::received(&passed_on, trace.tracestate());
            assert_eq!(received, Some(trace.clone()), "{passed_on}");
            assert!(parent.contains(&trace.to_string()));
        }
    }
}

fn timestamp(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(timestamp) = text.parse::<Timestamp>()
    {
        assert_eq!(
            timestamp.to_string().parse::<Timestamp>().ok(),
            Some(timestamp)
        );
    }
}

/// The same JSON in other words: members in another order, white space everywhere, every letter of a string escaped.
fn respelled(json: &[u8]) -> String {
    let raw: &RawValue = serde_json::from_slice(json).expect("it was parsed before");
    let mut out = String::new();
    respell(raw, &mut out);
    out
}

fn respell(raw: &RawValue, out: &mut String) {
    let text = raw.get();
    out.push_str(" \n");
    match text.as_bytes().first() {
        Some(b'{') => {
            let Members(mut members) = serde_json::from_str(text).expect("an object");
            // Stable: those of one name stay in their order.
            members.sort_by(|(one, _), (other, _)| other.cmp(one));
            out.push('{');
            for (at, (name, value)) in members.iter().enumerate() {
                out.push_str(if at == 0 { "\t" } else { " ,\r" });
                respell_string(name, out);
                out.push_str(" :");
                respell(value, out);
            }
            out.push('}');
        }
        Some(b'[') => {
            let elements: Vec<&RawValue> = serde_json::from_str(text).expect("an array");
            out.push('[');
            for (at, element) in elements.iter().enumerate() {
                out.push_str(if at == 0 { "" } else { "\t," });
                respell(element, out);
            }
            out.push_str(" ]");
        }
        Some(b'"') => {
            let string: String = serde_json::from_str(text).expect("a string");
            respell_string(&string, out);
        }
        _ => out.push_str(text),
    }
    out.push(' ');
}

fn respell_string(string: &str, out: &mut String) {
    out.push('"');
    for unit in string.encode_utf16() {
        out.push_str(&format!("\\u{unit:04X}"));
    }
    out.push('"');
}

/// An object's members in their order, those of one name included.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Members<'de>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

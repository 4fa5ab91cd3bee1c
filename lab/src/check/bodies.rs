//! Requests that are not as they should be: malformed, large, slow, cut. And those that only look so.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use unanimous_protocol::message::RequestKind;
use unanimous_protocol::operations::Operations;
use unanimous_protocol::wire::BranchState;

use super::case::{Answer, Case, Checked, Said, failed, not_applicable, text, value};
use super::exchange::Typed;
use super::{Check, Source};

/// What a coordinator may send, with room for what is around the operations.
const LARGE: usize = 240 * 1024;
/// What nobody sends.
const HUGE: usize = 8 * 1024 * 1024;
/// A body takes this long to come, or longer.
const SLOW: Duration = Duration::from_secs(1);
/// Others are answered meanwhile.
const PROMPT: Duration = Duration::from_secs(5);
/// Whatever becomes of a broken request has become of it by then.
const ANSWERED: Duration = Duration::from_secs(15);

const IDS: &str = "A transaction id is a UUID version 8 in lower-case hyphenated text; \
    anything else in its place is 400 on every route.";

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "malformed-bodies",
        source: Source::Api("400 `invalid-request`"),
        without_it: "a mistake in a client of the protocol passes for a vote or an acknowledgement",
        run: |case| Box::pin(malformed_bodies(case)),
    },
    Check {
        id: "malformed-ids",
        source: Source::Api(IDS),
        without_it: "two spellings of one id are two branches: one is committed, the other is in doubt for ever",
        run: |case| Box::pin(malformed_ids(case)),
    },
    Check {
        id: "unknown-members",
        source: Source::Api("participants and clients ignore members they do not know"),
        without_it: "the next version of the coordinator can not be installed before every service is changed",
        run: |case| Box::pin(unknown_members(case)),
    },
    Check {
        id: "content-type",
        source: Source::Api("415 only when there is a body"),
        without_it: "a charset behind the media type, as many proxies write it, stops all transactions",
        run: |case| Box::pin(content_type(case)),
    },
    Check {
        id: "large-body",
        source: Source::Api("413 `payload-too-large` (256 KiB)"),
        without_it: "a transaction that the coordinator has accepted can never be prepared",
        run: |case| Box::pin(large_body(case)),
    },
    Check {
        id: "huge-body",
        source: Source::Rule(20, "Queues, branches per transaction (32), body sizes"),
        without_it: "one request takes all the memory, and with it every transaction that is under way",
        run: |case| Box::pin(huge_body(case)),
    },
    Check {
        id: "slow-body",
        source: Source::Rule(
            17,
            "Nobody waits behind a dead participant, and phase two never waits behind phase one.",
        ),
        without_it: "one peer that hangs in the middle of a request holds up the outcomes of all transactions",
        run: |case| Box::pin(slow_body(case)),
    },
    Check {
        id: "cut-body",
        source: Source::Http(
            "a request of which fewer octets have come than its Content-Length says is incomplete",
        ),
        without_it: "the first half of a request is acted on: an outcome that nobody has sent to its end",
        run: |case| Box::pin(cut_body(case)),
    },
];

async fn malformed_bodies(case: &Case<'_>) -> Checked {
    let id = case.id();
    let prepare = value(&case.prepare_request(id));
    let outcome = value(&case.branch_request(id));
    let without = |body: &Value, member: &str| {
        let mut body = body.clone();
        if let Some(members) = body.as_object_mut() {
            members.remove(member);
        }
        body.to_string()
    };
    let with = |body: &Value, member: &str, other: Value| {
        let mut body = body.clone();
        body[member] = other;
        body.to_string()
    };
    let mut bodies: Vec<(RequestKind, String)> = Vec::new();
    for kind in [
        RequestKind::Prepare,
        RequestKind::Commit,
        RequestKind::Abort,
    ] {
        for body in ["{", "[]", "null", "\"x\"", "", "{\"transaction\": "] {
            bodies.push((kind, body.to_owned()));
        }
        let body = if kind == RequestKind::Prepare {
            &prepare
        } else {
            &outcome
        };
        bodies.push((kind, without(body, "transaction")));
        bodies.push((kind, without(body, "participant")));
        bodies.push((kind, with(body, "participant", json!(7))));
        bodies.push((kind, with(body, "transaction", json!(["x"]))));
    }
    bodies.push((RequestKind::Prepare, without(&prepare, "operations")));
    bodies.push((
        RequestKind::Prepare,
        with(&prepare, "operations", json!({})),
    ));
    bodies.push((
        RequestKind::Prepare,
        with(&prepare, "operations", json!("x")),
    ));
    for (kind, body) in bodies {
        refused(case, kind, &body).await?;
    }
    match case.state(id).await? {
        None => Ok(()),
        Some(_) => failed(format!("a malformed request made a branch of {id}")),
    }
}

/// Such a request is the problem 400 `invalid-request`.
async fn refused(case: &Case<'_>, kind: RequestKind, body: &str) -> Checked {
    let path = format!("/v1/{}", kind.as_str());
    let answer = case.post(&path, Some("application/json"), body).await;
    let answer =
        answer.or_else(|why| failed(format!("{} with the body {body:?}: {why}", kind.as_str())))?;
    let code = answer.problem().map(|problem| problem.code);
    if answer.status == 400 && code.as_deref() == Some("invalid-request") {
        return Ok(());
    }
    failed(format!(
        "{} with the body {body:?} has to be the problem 400 `invalid-request`, and the answer was {}",
        kind.as_str(),
        answer.text()
    ))
}

async fn malformed_ids(case: &Case<'_>) -> Checked {
    let id = case.id().to_string();
    let mut version_4 = id.clone();
    version_4.replace_range(14..15, "4");
    let spellings = [
        id.to_uppercase(),
        id.replace('-', ""),
        format!("{{{id}}}"),
        format!("urn:uuid:{id}"),
        format!(" {id}"),
        version_4,
        "x".to_owned(),
        String::new(),
    ];
    // Digits have no upper case.
    for spelling in spellings.into_iter().filter(|spelling| *spelling != id) {
        let mut prepare = value(&case.prepare_request(case.id()));
        prepare["transaction"] = json!(spelling);
        refused(case, RequestKind::Prepare, &prepare.to_string()).await?;
        let outcome = json!({"transaction": spelling, "participant": case.kit.name});
        for kind in [RequestKind::Commit, RequestKind::Abort] {
            refused(case, kind, &outcome.to_string()).await?;
        }
    }
    let path = "/v1/branches/x";
    let answer = case.look_up(path).await?;
    if answer.status == 400 {
        Ok(())
    } else {
        failed(format!(
            "GET {path} has to be 400, and was {}",
            answer.text()
        ))
    }
}

async fn unknown_members(case: &Case<'_>) -> Checked {
    let id = case.id();
    let mut prepare = value(&case.prepare_request(id));
    let mut outcome = value(&case.branch_request(id));
    for body in [&mut prepare, &mut outcome] {
        body["of_a_later_version"] = json!({"some": ["thing", 1, null]});
        body["session"] = Value::Null;
        body["low_water"] = Value::Null;
    }
    // Operations go as the text they are: through a value, numbers would be rounded here.
    let operations = case.kit.options.operations.text();
    prepare["operations"] = json!("$operations");
    let prepare = prepare.to_string().replace("\"$operations\"", operations);
    case.call(RequestKind::Prepare, id, &prepare)
        .await
        .is_yes()?;
    let heard = case
        .call(RequestKind::Commit, id, &outcome.to_string())
        .await;
    heard.is_committed()
}

async fn content_type(case: &Case<'_>) -> Checked {
    let id = case.id();
    let body = text(&case.prepare_request(id));
    let with_charset = "application/json; charset=utf-8";
    let answer = case.post("/v1/prepare", Some(with_charset), &body).await;
    let answer = answer.or_else(failed)?;
    if answer.status != 200 {
        return failed(format!("{with_charset}: {}", answer.text()));
    }
    case.prepare(id).await.is_yes()?;
    // Whether it minds another media type is its own affair; where it does, it says so as the contract has it.
    let other = case.id();
    let body = text(&case.branch_request(other));
    let answer = case.post("/v1/abort", Some("text/plain"), &body).await;
    let answer = answer.or_else(failed)?;
    if answer.status != 200 && (answer.status != 415 || answer.problem().is_none()) {
        return failed(format!(
            "text/plain is taken as JSON, or refused by the problem 415, and the answer was {}",
            answer.text()
        ));
    }
    // And without a body there is no media type to mind.
    let answer = case.post("/v1/commit", None, "").await.or_else(failed)?;
    if answer.status != 400 {
        return failed(format!(
            "an empty body reads as {{}}, which is 400 for want of its members, and the answer was {}",
            answer.text()
        ));
    }
    case.commit(id).await.is_committed()
}

/// The same operations with so much white space inside.
fn padded(operations: &Operations, bytes: usize) -> Option<Operations> {
    let inner = operations.text().strip_prefix('[')?;
    Operations::parse(&format!("[{}{inner}", " ".repeat(bytes))).ok()
}

async fn large_body(case: &Case<'_>) -> Checked {
    let Some(operations) = padded(&case.kit.options.operations, LARGE) else {
        return not_applicable("the operations are no array");
    };
    let id = case.id();
    case.prepare_operations(id, &operations).await.is_yes()?;
    case.commit(id).await.is_committed()
}

async fn huge_body(case: &Case<'_>) -> Checked {
    let Some(operations) = padded(&case.kit.options.operations, HUGE) else {
        return not_applicable("the operations are no array");
    };
    let id = case.id();
    let mut request = case.prepare_request(id);
    request.operations = operations;
    // Refused, or broken off: the sender is told no vote.
    let heard = case
        .call_once(RequestKind::Prepare, id, &text(&request))
        .await;
    match &heard.said {
        Said::Refused(413, _) | Said::Unknown(_) => {}
        Said::Refused(..)
        | Said::Yes
        | Said::ReadOnly
        | Said::No(_)
        | Said::Committed
        | Said::Aborted
        | Said::VoteLost
        | Said::OutcomeDiffers => return heard.not("413 `payload-too-large`, or no answer"),
    }
    let later = case.id();
    case.prepare(later).await.is_yes()?;
    case.commit(later).await.is_committed()
}

/// A request by hand, on a connection of its own.
struct Raw<'a> {
    case: &'a Case<'a>,
    stream: TcpStream,
    head: String,
    url: String,
}

impl<'a> Raw<'a> {
    /// `POST` of a body that is said to have this length.
    async fn begin(case: &'a Case<'a>, path: &str, content_length: usize) -> Checked<Self> {
        let url = case.kit.url(path);
        let Ok(parsed) = reqwest::Url::parse(&url) else {
            return not_applicable("its URL is none");
        };
        let (Some(host), Some(port), "http") = (
            parsed.host_str(),
            parsed.port_or_known_default(),
            parsed.scheme(),
        ) else {
            return not_applicable("it is not reached over plain http");
        };
        let stream = TcpStream::connect((host.trim_matches(['[', ']']), port)).await;
        let stream = stream.or_else(|error| failed(format!("no connection to {url}: {error}")))?;
        let head = format!(
            "POST {} HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-type: application/json\r\n\
             content-length: {content_length}\r\nconnection: close\r\n\r\n",
            parsed.path()
        );
        Ok(Self {
            case,
            stream,
            head,
            url,
        })
    }

    /// What comes back until the connection ends; nothing is an answer, too.
    async fn answer(mut self, body: &str, remark: &str) -> Option<Answer> {
        let mut bytes = Vec::new();
        let reading = timeout(ANSWERED, read_answer(&mut self.stream, &mut bytes)).await;
        let text = String::from_utf8_lossy(&bytes);
        let (head, rest) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        let answered = match (status, reading) {
            (Some(status), _) => {
                let content_type = head.lines().filter_map(|line| line.split_once(':'));
                let content_type = content_type
                    .filter(|(name, _)| name.eq_ignore_ascii_case("content-type"))
                    .map(|(_, value)| value.trim().to_owned())
                    .next();
                Ok(Answer {
                    status,
                    content_type,
                    body: rest.as_bytes().to_vec(),
                })
            }
            (None, Ok(_)) => Err("the connection was closed without an answer".to_owned()),
            (None, Err(_elapsed)) => Err(format!("nothing within {ANSWERED:?}")),
        };
        let typed = Typed {
            method: "POST",
            url: &self.url,
            content_type: Some("application/json"),
            body: Some(body),
            remark,
        };
        self.case.record(typed, &answered);
        answered.ok()
    }
}

/// Reads an answer to its end, or to the connection's: not every server closes one that it was asked to close.
async fn read_answer(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> std::io::Result<()> {
    while stream.read_buf(bytes).await? > 0 {
        let text = String::from_utf8_lossy(bytes).to_ascii_lowercase();
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let mut headers = head.lines().filter_map(|line| line.split_once(':'));
        let length = headers.find(|(name, _)| *name == "content-length");
        let length = length.and_then(|(_, value)| value.trim().parse::<usize>().ok());
        if length.is_some_and(|length| body.len() >= length) {
            break;
        }
    }
    Ok(())
}

async fn slow_body(case: &Case<'_>) -> Checked {
    let id = case.id();
    let body = text(&case.prepare_request(id));
    let (first, rest) = body.split_at(body.len() / 2);
    let mut slow = Vec::new();
    // Several, for a server may have more than one worker.
    for _ in 0..8 {
        let mut raw = Raw::begin(case, "/v1/prepare", body.len()).await?;
        let head = raw.head.clone();
        let written = raw
            .stream
            .write_all(format!("{head}{first}").as_bytes())
            .await;
        written.or_else(|error| failed(format!("a slow request was broken off: {error}")))?;
        slow.push(raw);
    }
    let begun = Instant::now();
    let other = case.id();
    for kind in [RequestKind::Prepare, RequestKind::Commit] {
        let asked = match kind {
            RequestKind::Prepare => timeout(PROMPT, case.prepare(other)).await,
            RequestKind::Commit | RequestKind::Abort => timeout(PROMPT, case.commit(other)).await,
        };
        let Ok(heard) = asked else {
            return failed(format!(
                "while 8 requests are slow to come, {} of {other} was not answered within {PROMPT:?}",
                kind.as_str()
            ));
        };
        match kind {
            RequestKind::Prepare => heard.is_yes()?,
            RequestKind::Commit | RequestKind::Abort => heard.is_committed()?,
        }
    }
    sleep(SLOW.saturating_sub(begun.elapsed())).await;
    for mut raw in slow {
        // One that has been given up is closed; that is fair.
        raw.stream.write_all(rest.as_bytes()).await.ok();
        let answer = raw
            .answer(&body, "the second half of the body came a second later")
            .await;
        let fair = answer.is_none_or(|answer| matches!(answer.status, 200 | 408 | 503));
        if !fair {
            return failed("a body that came slowly is answered like any other, or given up (408)");
        }
    }
    case.prepare(id).await.is_yes()?;
    case.abort(id).await.is_aborted()
}

async fn cut_body(case: &Case<'_>) -> Checked {
    // What has come is whole JSON: only the length says that there was to be more.
    let id = case.id();
    case.prepare(id).await.is_yes()?;
    let fresh = case.id();
    for (kind, body) in [
        (RequestKind::Commit, text(&case.branch_request(id))),
        (RequestKind::Abort, text(&case.branch_request(id))),
        (RequestKind::Prepare, text(&case.prepare_request(fresh))),
    ] {
        let path = format!("/v1/{}", kind.as_str());
        let mut raw = Raw::begin(case, &path, body.len() + 10).await?;
        let head = raw.head.clone();
        let written = raw
            .stream
            .write_all(format!("{head}{body}").as_bytes())
            .await;
        written.or_else(|error| failed(format!("a request was broken off: {error}")))?;
        raw.stream.shutdown().await.ok();
        let answer = raw
            .answer(&body, "Content-Length 10 higher, and the connection ended")
            .await;
        if let Some(answer) = answer.filter(|answer| answer.status == 200) {
            return failed(format!(
                "{} with a body that was cut is answered {}",
                kind.as_str(),
                answer.text()
            ));
        }
        case.stands(id, BranchState::Prepared).await?;
    }
    if case.state(fresh).await?.is_some() {
        return failed(format!(
            "a prepare whose body was cut made a branch of {fresh}"
        ));
    }
    case.commit(id).await.is_committed()
}

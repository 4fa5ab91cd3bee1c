//! Batches, for a participant that announces them: many messages in one request, each as if it had come alone.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use unanimous_protocol::id::TransactionId;
use unanimous_protocol::message::RequestKind;
use unanimous_protocol::wire::{
    BATCH_BYTES_MAX, BATCH_MESSAGES_MAX, BatchLine, BranchState, NDJSON, PrepareRequest,
};

use super::case::{Answer, Case, Checked, Heard, Said, failed, not_applicable, text};
use super::exchange::Typed;
use super::{Check, Source};

/// What was answered *unknown* is asked again, in another batch, but not for ever.
const ASKED_AGAIN_FOR: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(50);
/// Messages in a batch of an ordinary check.
const SOME: usize = 20;
/// Whoever waits longer than this waits for somebody.
const WAITS: Duration = Duration::from_millis(500);
/// On a busy machine a line may be late for another reason.
const TRIES: u32 = 3;

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "batch-lines",
        source: Source::Api("Every line names its branch, as it was sent"),
        without_it: "a line that can not be told from another branch's is no answer: all that leaves in batches is asked \
                     again and again, and under load nothing commits",
        run: |case| Box::pin(lines(case)),
    },
    Check {
        id: "batch-mixed-kinds",
        source: Source::Api(
            "each is handled as if it had come alone at the same moment. There is no order among them",
        ),
        without_it: "a commit and an abort that leave together are taken for the same thing: one of two transactions \
                     ends differently here than everywhere else",
        run: |case| Box::pin(mixed_kinds(case)),
    },
    Check {
        id: "batch-twice-at-once",
        source: Source::Rule(8, "A stored row always answers first"),
        without_it: "a batch whose answer was lost is sent again while the first one still runs, and what both hold is \
                     refused, or done twice",
        run: |case| Box::pin(twice_at_once(case)),
    },
    Check {
        id: "batch-refusal",
        source: Source::Rule(23, "**A batch is many, not one.**"),
        without_it: "one client whose account is empty aborts the transactions of all who happen to leave with his",
        run: |case| Box::pin(refusal(case)),
    },
    Check {
        id: "batch-malformed-message",
        source: Source::Api(
            "A message that can not be read, or lacks a member, is a line of its own: 400 `invalid-request`.",
        ),
        without_it: "one message that this version can not read stops all that leave with it",
        run: |case| Box::pin(malformed_message(case)),
    },
    Check {
        id: "batch-waiting-prepare",
        source: Source::Api(
            "one line for each message, in the order in which they are ready, and sent as they are ready.",
        ),
        without_it: "one prepare that waits for what another transaction holds keeps the answers of all that left with \
                     it waiting",
        run: |case| Box::pin(waiting_prepare(case)),
    },
    Check {
        id: "batch-bounds",
        source: Source::Api(
            "`POST /v1/batch`, `{\"messages\": […]}`: 1 to 64 messages in at most 256 KiB.",
        ),
        without_it: "a batch that the contract allows is refused, and every call of it sent twice; or one of any size \
                     takes all the memory",
        run: |case| Box::pin(bounds(case)),
    },
    Check {
        id: "batch-killed-after-its-yes",
        source: Source::Api(
            "*yes* and *committed* are answered once they are durable; *no*, *aborted* and a tombstone need no forced \
             write.",
        ),
        without_it: "a crash takes the promises of a whole batch with it, on which others have committed",
        run: |case| Box::pin(killed_after_its_yes(case)),
    },
];

/// Nobody has to take batches.
async fn announced(case: &Case<'_>) -> Checked {
    match case.kit.describe().await {
        Ok(described) if described.takes_batches() => Ok(()),
        Ok(_) => not_applicable("it does not announce `batch`"),
        Err(error) => failed(format!("{error:#}")),
    }
}

/// A message as it is sent.
#[derive(Clone, Debug)]
struct Message {
    kind: RequestKind,
    id: TransactionId,
    text: String,
}

impl Message {
    /// The body of a single request with its kind in front.
    fn of(kind: RequestKind, id: TransactionId, body: &str) -> Self {
        let rest = body.trim_start().trim_start_matches('{');
        let text = format!("{{\"kind\": \"{}\", {rest}", kind.as_str());
        Self { kind, id, text }
    }
}

fn prepare(case: &Case<'_>, id: TransactionId) -> Message {
    prepare_with(case, id, |_| {})
}

fn prepare_with(
    case: &Case<'_>,
    id: TransactionId,
    change: impl FnOnce(&mut PrepareRequest),
) -> Message {
    let mut request = case.prepare_request(id);
    change(&mut request);
    Message::of(RequestKind::Prepare, id, &text(&request))
}

fn commit(case: &Case<'_>, id: TransactionId) -> Message {
    Message::of(RequestKind::Commit, id, &text(&case.branch_request(id)))
}

fn abort(case: &Case<'_>, id: TransactionId) -> Message {
    Message::of(RequestKind::Abort, id, &text(&case.branch_request(id)))
}

fn body(messages: &[Message]) -> String {
    let texts: Vec<&str> = messages
        .iter()
        .map(|message| message.text.as_str())
        .collect();
    format!("{{\"messages\": [{}]}}", texts.join(", "))
}

/// What was said to a message, and how long after the batch was sent.
type Told = BTreeMap<TransactionId, (Heard, Duration)>;

/// Sends a batch once. `None` when it was not answered now; a line that is not what the contract says is a failure.
async fn send(case: &Case<'_>, messages: &[Message]) -> Checked<Option<Told>> {
    for message in messages {
        case.asks(message.kind, message.id);
    }
    let (url, body) = (case.kit.url("/v1/batch"), body(messages));
    let begun = Instant::now();
    let request = case.kit.http.post(&url).body(body.clone());
    let mut pieces = Vec::new();
    let answered = async {
        let request = request.header("content-type", "application/json");
        let mut response = request.send().await?;
        let status = response.status().as_u16();
        let content_type = response.headers().get("content-type");
        let content_type = content_type.and_then(|value| value.to_str().ok());
        let content_type = content_type.map(str::to_owned);
        while let Some(piece) = response.chunk().await? {
            pieces.push((begun.elapsed(), piece));
        }
        reqwest::Result::Ok((status, content_type))
    };
    let answered = answered.await;
    let answered = answered.map_err(|error| format!("no answer: {:#}", anyhow::Error::new(error)));
    let answered = answered.map(|(status, content_type)| Answer {
        status,
        content_type,
        body: pieces
            .iter()
            .flat_map(|(_, piece)| piece.to_vec())
            .collect(),
    });
    let typed = Typed {
        method: "POST",
        url: &url,
        content_type: Some("application/json"),
        body: Some(&body),
        remark: "",
    };
    case.record(typed, &answered);
    let Ok(answer) = answered.as_ref() else {
        return Ok(None);
    };
    if answer.is_passing() {
        return Ok(None);
    }
    if answer.status != 200 || answer.media_type() != Some(NDJSON) {
        let media_type = answer.media_type().unwrap_or("no content-type");
        return failed(format!(
            "a batch is answered by 200 with {NDJSON}, and the answer was {} with {media_type}",
            answer.status
        ));
    }
    read(case, messages, &pieces).map(Some)
}

fn read(
    case: &Case<'_>,
    messages: &[Message],
    pieces: &[(Duration, impl AsRef<[u8]>)],
) -> Checked<Told> {
    let (mut told, mut begun) = (Told::new(), Vec::new());
    let mut take = |line: &[u8], at: Duration| {
        let shown = String::from_utf8_lossy(line).into_owned();
        let Some(line) = BatchLine::read(line) else {
            return failed(format!("this is no line of a batch's answer: {shown}"));
        };
        let named = messages.iter().find(|message| {
            line.transaction == message.id.to_string() && line.participant == case.kit.name.as_str()
        });
        let Some(message) = named else {
            return failed(format!("a line names no branch of the batch: {shown}"));
        };
        let said = line.answer();
        let answer = Answer {
            status: said.status,
            content_type: said.content_type.map(str::to_owned),
            body: said.body.to_vec(),
        };
        let heard = case.heard(message.kind, message.id, answer);
        match told.insert(message.id, (heard, at)) {
            None => Ok(()),
            Some(_) => failed(format!("a branch has two lines, the second one: {shown}")),
        }
    };
    for (at, piece) in pieces {
        for byte in piece.as_ref() {
            if *byte == b'\n' {
                take(&begun, *at)?;
                begun.clear();
            } else {
                begun.push(*byte);
            }
        }
    }
    if begun.is_empty() {
        Ok(told)
    } else {
        failed(format!(
            "the answer ends in the middle of a line: {}",
            String::from_utf8_lossy(&begun)
        ))
    }
}

/// Sends a batch, and what was not answered again in the next one; what was said to each message, in their order.
async fn batch(case: &Case<'_>, messages: &[Message]) -> Checked<Vec<Heard>> {
    let until = Instant::now() + ASKED_AGAIN_FOR;
    let mut heard = Told::new();
    let mut open = messages.to_vec();
    loop {
        if let Some(told) = send(case, &open).await? {
            heard.extend(told);
        }
        open.retain(|message| {
            let said = heard.get(&message.id);
            said.is_none_or(|(heard, _)| heard.is_passing())
        });
        if open.is_empty() || Instant::now() >= until {
            break;
        }
        sleep(PAUSE).await;
    }
    let answers = messages
        .iter()
        .map(|message| match heard.remove(&message.id) {
            Some((heard, _)) => Ok(heard),
            None => failed(format!(
                "{} of {}: its batch was answered without a line for it, again and again",
                message.kind.as_str(),
                message.id
            )),
        });
    answers.collect()
}

async fn lines(case: &Case<'_>) -> Checked {
    announced(case).await?;
    let ids = case.ids(SOME);
    let prepares: Vec<_> = ids.iter().map(|id| prepare(case, *id)).collect();
    for heard in batch(case, &prepares).await? {
        heard.is_yes()?;
    }
    case.stands(ids[SOME - 1], BranchState::Prepared).await?;
    // A batch of one is one, too.
    let commit_one = [commit(case, ids[0])];
    for heard in batch(case, &commit_one).await? {
        heard.is_committed()?;
    }
    let aborts: Vec<_> = ids[1..].iter().map(|id| abort(case, *id)).collect();
    for heard in batch(case, &aborts).await? {
        heard.is_aborted()?;
    }
    case.stands(ids[0], BranchState::Committed).await?;
    case.stands(ids[1], BranchState::Aborted).await
}

async fn mixed_kinds(case: &Case<'_>) -> Checked {
    announced(case).await?;
    let (committed, aborted, repeated) = (case.id(), case.id(), case.id());
    for id in [committed, aborted, repeated] {
        case.prepare(id).await.is_yes()?;
    }
    let (new, unknown, unheard) = (case.id(), case.id(), case.id());
    let messages = [
        commit(case, committed),
        abort(case, aborted),
        prepare(case, repeated),
        prepare(case, new),
        commit(case, unknown),
        abort(case, unheard),
    ];
    let heard = batch(case, &messages).await?;
    heard[0].is_committed()?;
    heard[1].is_aborted()?;
    heard[2].is_yes()?;
    heard[3].is_yes()?;
    heard[4].is_vote_lost()?;
    heard[5].is_aborted()?;
    case.stands(committed, BranchState::Committed).await?;
    case.stands(aborted, BranchState::Aborted).await?;
    case.stands(new, BranchState::Prepared).await?;
    // A tombstone it is, in a batch as elsewhere.
    case.prepare(unheard).await.is_no(&["aborted"]).map(drop)
}

async fn twice_at_once(case: &Case<'_>) -> Checked {
    announced(case).await?;
    let ids = case.ids(SOME);
    let before = match &case.kit.options.look {
        Some(_) => Some(case.look().await?),
        None => None,
    };
    let prepares: Vec<_> = ids.iter().map(|id| prepare(case, *id)).collect();
    let (one, other) = tokio::join!(batch(case, &prepares), batch(case, &prepares));
    for heard in one?.into_iter().chain(other?) {
        heard.is_yes()?;
    }
    let aborts: Vec<_> = ids.iter().map(|id| abort(case, *id)).collect();
    let (one, other) = tokio::join!(batch(case, &aborts), batch(case, &aborts));
    for heard in one?.into_iter().chain(other?) {
        heard.is_aborted()?;
    }
    match before {
        Some(before) => {
            let after = case.look().await?;
            if before == after {
                Ok(())
            } else {
                failed(format!(
                    "all was aborted, and --look showed {before} before and {after} behind it"
                ))
            }
        }
        None => Ok(()),
    }
}

async fn refusal(case: &Case<'_>) -> Checked {
    announced(case).await?;
    let Some(refused) = &case.kit.options.refused else {
        return not_applicable("no --refused FILE was given");
    };
    let (ids, no) = (case.ids(SOME), case.id());
    let mut messages: Vec<_> = ids.iter().map(|id| prepare(case, *id)).collect();
    let refusal = prepare_with(case, no, |request| request.operations = refused.clone());
    messages.insert(SOME / 2, refusal);
    for heard in batch(case, &messages).await? {
        if heard.id != no {
            heard.is_yes()?;
        } else if !matches!(heard.said, Said::No(_)) {
            return heard.not("*no*: these are operations that it refuses");
        }
    }
    for id in [ids[0], ids[SOME - 1]] {
        case.stands(id, BranchState::Prepared).await?;
        case.commit(id).await.is_committed()?;
    }
    Ok(())
}

async fn malformed_message(case: &Case<'_>) -> Checked {
    announced(case).await?;
    let (good, bad) = (case.ids(2), case.ids(3));
    let without_kind = Message {
        text: text(&case.prepare_request(bad[0])),
        ..prepare(case, bad[0])
    };
    let unknown_kind = Message {
        text: prepare(case, bad[1])
            .text
            .replacen("\"prepare\"", "\"vote\"", 1),
        ..prepare(case, bad[1])
    };
    let without_operations = Message::of(
        RequestKind::Prepare,
        bad[2],
        &text(&case.branch_request(bad[2])),
    );
    let messages = [
        without_kind,
        prepare(case, good[0]),
        unknown_kind,
        without_operations,
        prepare(case, good[1]),
    ];
    for heard in batch(case, &messages).await? {
        if good.contains(&heard.id) {
            heard.is_yes()?;
        } else {
            heard.is(&Said::Refused(400, "invalid-request".to_owned()))?;
        }
    }
    for id in bad {
        if case.state(id).await?.is_some() {
            return failed(format!("a message that it refused made a branch of {id}"));
        }
    }
    Ok(())
}

async fn waiting_prepare(case: &Case<'_>) -> Checked {
    announced(case).await?;
    let exclusive = case.exclusive()?;
    let mut late = String::new();
    for _ in 0..TRIES {
        let (waits, holder) = (case.id(), case.id());
        case.prepare_operations(holder, exclusive).await.is_yes()?;
        let others = case.ids(3);
        // Older than the holder, so that a participant that lets the older ones wait does so.
        let mut messages = vec![prepare_with(case, waits, |request| {
            request.operations = exclusive.clone();
            request.begun_at_ms -= 60_000;
        })];
        messages.extend(others.iter().map(|id| prepare(case, *id)));
        let told = send(case, &messages).await?.unwrap_or_default();
        for id in [waits, holder].iter().chain(&others) {
            case.abort(*id).await.is_aborted()?;
        }
        let took = |id: &TransactionId| told.get(id).map(|(_, at)| *at);
        let (Some(waited), Some(others)) = (
            took(&waits),
            others.iter().map(took).collect::<Option<Vec<_>>>(),
        ) else {
            "not every message had a line".clone_into(&mut late);
            continue;
        };
        let last = others.into_iter().max().unwrap_or_default();
        if last < WAITS || waited < WAITS {
            return Ok(());
        }
        late =
            format!("a prepare waited for {waited:?}, and the others' lines came after {last:?}");
    }
    failed(late)
}

async fn bounds(case: &Case<'_>) -> Checked {
    announced(case).await?;
    let ids = case.ids(BATCH_MESSAGES_MAX + 1);
    let aborts: Vec<_> = ids.iter().map(|id| abort(case, *id)).collect();
    for heard in batch(case, &aborts[..BATCH_MESSAGES_MAX]).await? {
        heard.is_aborted()?;
    }
    // As long as may be: the padding is white space.
    let mut longest = body(&aborts[..2]);
    let padding = " ".repeat(BATCH_BYTES_MAX - longest.len());
    longest.insert_str(1, &padding);
    let json = Some("application/json");
    let taken = case.post("/v1/batch", json, &longest).await;
    if !taken
        .as_ref()
        .is_ok_and(|answer| answer.status == 200 || answer.is_passing())
    {
        let said = taken.map_or_else(|why| why, |answer| answer.text());
        return failed(format!("a batch of 256 KiB was answered {said}"));
    }
    let refused = [
        (body(&aborts), 413, "65 messages"),
        (body(&[]), 400, "no message"),
        ("{}".to_owned(), 400, "no messages"),
    ];
    for (body, status, what) in refused {
        let answer = case.post("/v1/batch", json, &body).await;
        let said = answer.map_or_else(|why| (0, why), |answer| (answer.status, answer.text()));
        if said.0 != status {
            return failed(format!(
                "a batch with {what} has to be answered {status}, and was answered {}",
                said.1
            ));
        }
    }
    match case.state(ids[BATCH_MESSAGES_MAX]).await? {
        None => Ok(()),
        Some(_) => failed("a batch that it refused as a whole made a branch"),
    }
}

async fn killed_after_its_yes(case: &Case<'_>) -> Checked {
    case.needs_restart()?;
    announced(case).await?;
    let ids = case.ids(SOME);
    let prepares: Vec<_> = ids.iter().map(|id| prepare(case, *id)).collect();
    for heard in batch(case, &prepares).await? {
        heard.is_yes()?;
    }
    case.restart().await?;
    let (to_commit, to_abort) = ids.split_at(SOME / 2);
    let commits = to_commit.iter().map(|id| commit(case, *id));
    let aborts = to_abort.iter().map(|id| abort(case, *id));
    let outcomes: Vec<_> = commits.chain(aborts).collect();
    for heard in batch(case, &outcomes).await? {
        if to_commit.contains(&heard.id) {
            heard.is_committed()?;
        } else {
            heard.is_aborted()?;
        }
    }
    Ok(())
}

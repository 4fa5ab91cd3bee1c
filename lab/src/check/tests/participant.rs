//! A participant in memory that can be broken in one way for each check. Without a [`Fault`] it keeps the contract, in a
//! design of its own: it stores read-only votes, forces nothing, and looks at its mark with every call.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use unanimous_protocol::id::{BranchId, Prefix, TransactionId};
use unanimous_protocol::message::Inform;
use unanimous_protocol::operations::BodyDigest;
use unanimous_protocol::wire::{
    BATCH_MESSAGES_MAX, BatchRequest, BranchRequest, HttpAnswer, InquiryAnswer, NDJSON,
    PrepareRequest, Problem, parse_object, read_inquiry, write_batch_line,
};

use super::super::Life;
use super::super::server::{Reply, Request, Serving, serve};

/// One mistake. What each does is where it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    EchoesInUpperCase,
    AcknowledgesBeforeItApplies,
    AbortsInWordsOnly,
    NotFoundIsSuccess,
    AbortOfTheUnknownIsAnError,
    NoTombstone,
    CommitOfTheUnknownIsStored,
    CommitsTheAborted,
    AbortsTheCommitted,
    RefusesAnew,
    CommitsTheReadOnly,
    IgnoresTheDeadline,
    IgnoresTheSession,
    RefusesARepeat,
    LooksBeforeItPrepares,
    RefusesARepeatedCommit,
    LooksBeforeItCommits,
    AppliesAgain,
    AppliesAtPrepare,
    BeginsAgain,
    IgnoresAChange,
    ComparesBytes,
    ComparesNumbers,
    AbortsBesideAPrepare,
    PromisesTwice,
    ReservesAgain,
    RefusesAndKeeps,
    OutcomesWait,
    DescribesAnother,
    NoSince,
    ListsTwice,
    TakesAnything,
    TakesAnySpelling,
    RefusesUnknownMembers,
    RefusesACharset,
    TakesLittle,
    TakesAll,
    DiesOfAHugeBody,
    OneByOne,
    ActsOnWhatCame,
    NeverAsks,
    TakesNoAbort,
    PendingIsAborted,
    SilenceIsAborted,
    AnyEcho,
    AnyStatus,
    NotFoundIsAborted,
    FollowsRedirects,
    Floods,
    IgnoresTheMark,
    OneMarkForAll,
    PrunesWhatIsInDoubt,
    PrunesBeforeItMarks,
    ForgetsItsYes,
    ForgetsItsCommit,
    ForgetsItsAborts,
    AsksOnlyOnce,
    AsksOnlyAboutThisLife,
    AsksByItsPresentName,
    ForgetsItsMark,
    KeepsFiveHundred,
    EchoesTheFirst,
    OneKindForAll,
    OneNoForAll,
    ReadsAllOrNone,
    AnswersWithTheSlowest,
    TakesLongBatches,
}

use Fault::*;

const NAME: &str = "east";
const SINCE: &str = "2026-11-21T13:30:20.123Z";
const BODY_MAX: usize = 256 * 1024;
/// Between a look and what follows from it others come in, or so many moments pass.
const RACE: u32 = 30;
const MOMENT: Duration = Duration::from_millis(10);
/// A prepare of [`OutcomesWait`] waits for the seat as long as this.
const PATIENCE: Duration = Duration::from_secs(7);
/// A prepare of [`AnswersWithTheSlowest`] waits for the seat as long as this.
const SLOWLY: Duration = Duration::from_millis(800);
/// Behind the rows of [`PrunesBeforeItMarks`] the mark comes so much later: too late for any check.
const LATER: Duration = Duration::from_secs(600);

/// What it takes.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
enum Operation {
    Add {
        amount: i64,
    },
    Refuse,
    Look,
    /// The only one there is.
    Seat,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Prepared,
    Committed,
    ReadOnly,
    Refused(&'static str, String),
    Aborted,
}

#[derive(Clone, Debug)]
struct Row {
    participant: String,
    text: String,
    digest: BodyDigest,
    amount: i64,
    seats: u32,
    state: State,
    life: u32,
    next_inquiry: Instant,
    inquiries: u32,
    asking: bool,
}

/// What survives a restart: all of it, unless a fault says otherwise.
#[derive(Default)]
struct Database {
    rows: BTreeMap<TransactionId, Row>,
    marks: HashMap<Prefix, TransactionId>,
    balance: i64,
    seats_taken: u32,
    refusals: u32,
    life: u32,
}

struct Shared {
    faults: Vec<Fault>,
    database: Mutex<Database>,
    /// Until it is started again.
    dead: AtomicBool,
    /// How many have looked and not acted yet, for the faults that leave time between the two.
    looking: Mutex<HashMap<TransactionId, u32>>,
    /// Prepares that wait for the seat, for the fault in which outcomes wait for them.
    waiting: AtomicU32,
}

/// The participant, and how to kill it.
pub(super) struct Participant {
    shared: Arc<Shared>,
    address: SocketAddr,
    running: tokio::sync::Mutex<Vec<JoinHandle<()>>>,
}

impl Drop for Participant {
    fn drop(&mut self) {
        self.running.get_mut().iter().for_each(JoinHandle::abort);
    }
}

impl Participant {
    pub(super) async fn new(faults: &[Fault]) -> Arc<Self> {
        // The port is its own while it is dead, too: nobody else here takes one of these.
        let port = crate::ports::free().expect("a port");
        Arc::new(Self {
            shared: Arc::new(Shared {
                faults: faults.to_vec(),
                database: Mutex::default(),
                dead: AtomicBool::new(false),
                looking: Mutex::default(),
                waiting: AtomicU32::new(0),
            }),
            address: SocketAddr::from(([127, 0, 0, 1], port)),
            running: tokio::sync::Mutex::default(),
        })
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(super) fn balance(&self) -> i64 {
        self.shared.database().balance
    }

    /// Kills it, and starts it again.
    pub(super) async fn restart(&self, life: Life) -> anyhow::Result<String> {
        let mut running = self.running.lock().await;
        for task in running.drain(..) {
            task.abort();
            // Cancelled, and its listener closed.
            task.await.ok();
        }
        self.shared.crash();
        let listener = TcpListener::bind(self.address).await?;
        let serving = Serving {
            body_max: match () {
                () if self.shared.has(TakesLittle) => 64 * 1024,
                () if self.shared.has(TakesAll) => usize::MAX,
                () => BODY_MAX,
            },
            one_by_one: self.shared.has(OneByOne),
        };
        let name = life
            .name
            .map_or_else(|| NAME.to_owned(), |name| name.to_string());
        let inquiring = Arc::clone(&self.shared).inquire(life.coordinator, name.clone());
        running.push(tokio::spawn(inquiring));
        let shared = Arc::clone(&self.shared);
        running.push(tokio::spawn(serve(listener, serving, move |request| {
            let (shared, name) = (Arc::clone(&shared), name.clone());
            async move { shared.answer(&request, &name, serving.body_max).await }
        })));
        Ok("restarted".to_owned())
    }
}

fn problem(status: u16, code: &str) -> Reply {
    Reply::Answer {
        status,
        content_type: "application/problem+json",
        location: None,
        body: serde_json::to_string(&Problem::new(status, code, "as it is")).unwrap(),
    }
}

fn vote(request: &PrepareRequest, vote: &str) -> Reply {
    let (transaction, participant) = (request.transaction, &request.participant);
    Reply::json(
        200,
        json!({"transaction": transaction, "participant": participant, "vote": vote}),
    )
}

fn no(request: &PrepareRequest, code: &str, reason: &str) -> Reply {
    let (transaction, participant) = (request.transaction, &request.participant);
    Reply::json(
        200,
        json!({"transaction": transaction, "participant": participant, "vote": "no", "code": code,
               "reason": reason}),
    )
}

fn state(request: &BranchRequest, state: &str) -> Reply {
    let (transaction, participant) = (request.transaction, &request.participant);
    Reply::json(
        200,
        json!({"transaction": transaction, "participant": participant, "state": state}),
    )
}

impl Shared {
    fn has(&self, fault: Fault) -> bool {
        self.faults.contains(&fault)
    }

    fn database(&self) -> MutexGuard<'_, Database> {
        self.database.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until somebody else is here for the same transaction, if anybody comes.
    async fn meet(&self, id: TransactionId) {
        let looking = || self.looking.lock().unwrap_or_else(PoisonError::into_inner);
        *looking().entry(id).or_default() += 1;
        for _ in 0..RACE {
            if looking().get(&id).is_some_and(|count| *count > 1) {
                break;
            }
            sleep(MOMENT).await;
        }
    }

    fn crash(&self) {
        let mut database = self.database();
        database.life += 1;
        self.dead.store(false, Ordering::Relaxed);
        database
            .rows
            .values_mut()
            .for_each(|row| row.asking = false);
        if self.has(ForgetsItsYes) {
            database.rows.retain(|_, row| row.state != State::Prepared);
        }
        if self.has(ForgetsItsAborts) {
            database.rows.retain(|_, row| row.state != State::Aborted);
        }
        if self.has(ForgetsItsCommit) {
            let committed = database
                .rows
                .values_mut()
                .filter(|row| row.state == State::Committed);
            committed.for_each(|row| row.state = State::Prepared);
        }
        if self.has(ForgetsItsMark) {
            database.marks.clear();
        }
    }

    async fn answer(self: Arc<Self>, request: &Request, name: &str, body_max: usize) -> Reply {
        let huge = request.body.len() >= body_max && request.content_length > body_max;
        let mut dead = self.dead.load(Ordering::Relaxed);
        if huge && self.has(DiesOfAHugeBody) {
            self.dead.store(true, Ordering::Relaxed);
            dead = true;
        }
        if dead {
            return problem(500, "out-of-memory");
        }
        if huge {
            return problem(413, "payload-too-large");
        }
        if !request.is_whole() && !self.has(ActsOnWhatCame) {
            return problem(400, "invalid-request");
        }
        if self.has(RefusesACharset) && request.head.contains("charset") {
            return problem(415, "unsupported-media-type");
        }
        let segments: Vec<&str> = request.path.trim_matches('/').split('/').collect();
        match (request.method.as_str(), segments.as_slice()) {
            ("GET", ["v1", "describe"]) => {
                let name = if self.has(DescribesAnother) {
                    "west"
                } else {
                    name
                };
                Reply::json(
                    200,
                    json!({"participant": name, "protocol": 1, "features": ["batch"]}),
                )
            }
            ("GET", ["v1", "branches"]) => self.list(&request.query),
            ("GET", ["v1", "branches", id]) => self.look(id),
            ("POST", ["v1", "batch"]) => self.batch(&request.body).await,
            ("POST", ["v1", kind]) => {
                let mut body = String::from_utf8_lossy(&request.body).into_owned();
                if self.has(TakesAnySpelling) {
                    body = body.to_lowercase();
                }
                let unknown = body.contains("of_a_later_version");
                if body.is_empty() || (self.has(RefusesUnknownMembers) && unknown) {
                    return problem(400, "invalid-request");
                }
                self.called(kind, &body).await
            }
            _ => problem(404, "not-found"),
        }
    }

    async fn batch(self: Arc<Self>, body: &[u8]) -> Reply {
        let Ok(batch) = parse_object::<BatchRequest<'_>>(body) else {
            return problem(400, "invalid-request");
        };
        let messages = batch.messages;
        if messages.is_empty() {
            return problem(400, "invalid-request");
        }
        if messages.len() > BATCH_MESSAGES_MAX && !self.has(TakesLongBatches) {
            return problem(413, "payload-too-large");
        }
        let read = |message: &&RawValue| {
            let message: Value = serde_json::from_str(message.get()).unwrap_or_default();
            let text = |member: &str| message[member].as_str().unwrap_or_default().to_owned();
            ["kind", "transaction", "participant"].map(text)
        };
        let named: Vec<[String; 3]> = messages.iter().map(read).collect();
        let is_known = |kind: &str| matches!(kind, "prepare" | "commit" | "abort");
        if self.has(ReadsAllOrNone) && !named.iter().all(|[kind, ..]| is_known(kind)) {
            return problem(400, "invalid-request");
        }
        let answering = messages
            .iter()
            .zip(&named)
            .map(async |(message, [kind, ..])| {
                let kind = if self.has(OneKindForAll) {
                    &named[0][0]
                } else {
                    kind
                };
                let waits = message.get().contains("seat") && self.database().seats_taken > 0;
                if self.has(AnswersWithTheSlowest) && waits {
                    sleep(SLOWLY).await;
                }
                if is_known(kind) {
                    Arc::clone(&self).called(kind, message.get()).await
                } else {
                    problem(400, "invalid-request")
                }
            });
        let mut answers = join_all(answering).await;
        let is_no = |answer: &Reply| match answer {
            Reply::Answer { body, .. } => body.contains(r#""vote":"no""#),
            Reply::Silence => false,
        };
        if self.has(OneNoForAll)
            && let Some(at) = answers.iter().position(is_no)
        {
            // All of them were one local transaction.
            for ([_, transaction, participant], answer) in named.iter().zip(&mut answers) {
                self.database()
                    .rows
                    .retain(|id, _| id.to_string() != *transaction);
                *answer = Reply::json(
                    200,
                    json!({"transaction": transaction, "participant": participant, "vote": "no",
                           "code": "refused", "reason": format!("message {at} was refused")}),
                );
            }
        }
        let mut lines = Vec::new();
        for ([_, transaction, participant], answer) in named.iter().zip(answers) {
            let transaction = match self.has(EchoesTheFirst) {
                true => &named[0][1],
                false => transaction,
            };
            let Reply::Answer { status, body, .. } = answer else {
                continue;
            };
            write_batch_line(
                &mut lines,
                transaction,
                participant,
                status,
                body.as_bytes(),
            )
            .unwrap();
        }
        Reply::Answer {
            status: 200,
            content_type: NDJSON,
            location: None,
            body: String::from_utf8(lines).unwrap(),
        }
    }

    async fn called(self: Arc<Self>, kind: &str, body: &str) -> Reply {
        let refused = || match self.has(TakesAnything) {
            true => Reply::json(200, json!({})),
            false => problem(400, "invalid-request"),
        };
        if kind == "prepare" {
            return match parse_object::<PrepareRequest>(body.as_bytes()) {
                Ok(request) => self.prepare(&request).await,
                Err(_) => refused(),
            };
        }
        let Ok(request) = parse_object::<BranchRequest>(body.as_bytes()) else {
            return refused();
        };
        self.hear(request.transaction, request.low_water);
        while self.has(OutcomesWait) && self.waiting.load(Ordering::Relaxed) > 0 {
            sleep(MOMENT).await;
        }
        match kind {
            "commit" => self.commit(&request).await,
            "abort" => self.abort(&request).await,
            _ => problem(404, "not-found"),
        }
    }

    /// Drops what has ended below the mark, and keeps the mark, in one step.
    fn hear(self: &Arc<Self>, heard_with: TransactionId, mark: Option<TransactionId>) {
        let Some(mark) = mark else { return };
        if self.has(IgnoresTheMark) || mark.prefix() != heard_with.prefix() {
            return;
        }
        let mut database = self.database();
        let keeps_doubt = !self.has(PrunesWhatIsInDoubt);
        database.rows.retain(|id, row| {
            let below = id.prefix() == mark.prefix() && *id < mark;
            !below || (keeps_doubt && row.state == State::Prepared)
        });
        let set = move |database: &mut Database| {
            let old = database.marks.entry(mark.prefix()).or_insert(mark);
            *old = mark.max(*old);
        };
        if self.has(PrunesBeforeItMarks) {
            let shared = Arc::clone(self);
            tokio::spawn(async move {
                sleep(LATER).await;
                set(&mut shared.database());
            });
        } else {
            set(&mut database);
        }
    }

    /// The mark that this id without a row is below.
    fn below(&self, database: &Database, id: TransactionId) -> Option<TransactionId> {
        if self.has(OneMarkForAll) {
            let highest = database.marks.values().max().copied();
            return highest.filter(|mark| id < *mark);
        }
        let mark = database.marks.get(&id.prefix()).copied();
        mark.filter(|mark| id < *mark)
    }

    fn is_the_same(&self, row: &Row, request: &PrepareRequest) -> bool {
        let text = request.operations.text();
        if self.has(IgnoresAChange) {
            true
        } else if self.has(ComparesBytes) {
            row.text == text
        } else if self.has(ComparesNumbers) {
            let value = |text| serde_json::from_str::<Value>(text).map(|value| rounded(&value));
            value(&row.text).ok() == value(text).ok()
        } else {
            row.digest == request.operations.digest()
        }
    }

    async fn prepare(self: Arc<Self>, request: &PrepareRequest) -> Reply {
        let id = request.transaction;
        self.hear(id, request.low_water);
        let wants_the_seat = request.operations.text().contains("seat");
        if self.has(OutcomesWait) && wants_the_seat {
            self.waiting.fetch_add(1, Ordering::Relaxed);
            let begun = Instant::now();
            while self.database().seats_taken > 0 && begun.elapsed() < PATIENCE {
                sleep(MOMENT).await;
            }
            self.waiting.fetch_sub(1, Ordering::Relaxed);
        }
        if self.has(LooksBeforeItPrepares) {
            let absent = !self.database().rows.contains_key(&id);
            self.meet(id).await;
            if absent && self.database().rows.contains_key(&id) {
                return no(
                    request,
                    "refused",
                    "duplicate key value violates unique constraint",
                );
            }
        }
        if self.has(AbortsBesideAPrepare) {
            // It works, sees no row, and then stores its own over whatever came meanwhile.
            let absent = !self.database().rows.contains_key(&id);
            for _ in 0..RACE {
                if !absent || self.database().rows.contains_key(&id) {
                    break;
                }
                sleep(MOMENT).await;
            }
            if absent {
                self.database().rows.remove(&id);
            }
        }
        self.prepare_now(request)
    }

    fn prepare_now(&self, request: &PrepareRequest) -> Reply {
        let id = request.transaction;
        let mut database = self.database();
        let database = &mut *database;
        if let Some(row) = database.rows.get_mut(&id) {
            let again = self.has(BeginsAgain) && row.state == State::Committed;
            if self.has(RefusesARepeat) {
                return no(request, "refused", "there is such a branch");
            }
            if again {
                row.state = State::Prepared;
            }
            if !self.is_the_same(row, request) && !matches!(row.state, State::Aborted) {
                return problem(422, "prepare-changed");
            }
            if self.has(ReservesAgain) {
                database.seats_taken += 1;
            }
            return match &row.state {
                State::Prepared | State::Committed => vote(request, "yes"),
                State::ReadOnly => vote(request, "read_only"),
                State::Aborted => no(request, "aborted", "an abort came first"),
                State::Refused(code, reason) => {
                    database.refusals += 1;
                    let anew = format!("refusal {}", database.refusals);
                    no(
                        request,
                        code,
                        if self.has(RefusesAnew) { &anew } else { reason },
                    )
                }
            };
        }
        if let Some(mark) = self.below(database, id) {
            return Reply::json(
                200,
                json!({"transaction": id, "participant": request.participant, "vote": "no",
                       "code": "below-low-water", "reason": "it has ended", "low_water": mark}),
            );
        }
        let operations: Vec<Operation> = match serde_json::from_str(request.operations.text()) {
            Ok(operations) => operations,
            Err(_) => return problem(400, "invalid-request"),
        };
        let mut row = Row {
            participant: request.participant.to_string(),
            text: request.operations.text().to_owned(),
            digest: request.operations.digest(),
            amount: 0,
            seats: 0,
            state: State::Prepared,
            life: database.life,
            next_inquiry: Instant::now() + Duration::from_millis(20),
            inquiries: 0,
            asking: false,
        };
        let mut refusal = None;
        if request.session.is_some() && !self.has(IgnoresTheSession) {
            refusal = Some(("work-lost", "no such session"));
        } else if request.remaining_ms == 0 && !self.has(IgnoresTheDeadline) {
            refusal = Some(("deadline", "no time is left"));
        } else {
            for operation in &operations {
                match operation {
                    Operation::Add { amount } => row.amount += amount,
                    Operation::Look => {}
                    Operation::Refuse => refusal = Some(("refused", "as it is told")),
                    Operation::Seat => {
                        if database.seats_taken + row.seats > 0 && !self.has(PromisesTwice) {
                            refusal = Some(("conflict", "somebody sits there"));
                        } else {
                            row.seats += 1;
                        }
                    }
                }
            }
        }
        let reply = match refusal {
            Some((code, reason)) => {
                if self.has(RefusesAndKeeps) {
                    database.seats_taken += row.seats;
                }
                row.seats = 0;
                row.state = State::Refused(code, reason.to_owned());
                no(request, code, reason)
            }
            None if operations
                .iter()
                .all(|operation| matches!(operation, Operation::Look)) =>
            {
                row.state = State::ReadOnly;
                vote(request, "read_only")
            }
            None => {
                database.seats_taken += row.seats;
                if self.has(AppliesAtPrepare) {
                    database.balance += row.amount;
                }
                vote(request, "yes")
            }
        };
        database.rows.insert(id, row);
        if self.has(KeepsFiveHundred) && database.rows.len() > 500 {
            database.rows.pop_first();
        }
        if self.has(EchoesInUpperCase)
            && let Reply::Answer {
                status,
                content_type,
                location,
                body,
            } = reply
        {
            let body = body.replace(&id.to_string(), &id.to_string().to_uppercase());
            return Reply::Answer {
                status,
                content_type,
                location,
                body,
            };
        }
        reply
    }

    async fn commit(&self, request: &BranchRequest) -> Reply {
        let id = request.transaction;
        if self.has(LooksBeforeItCommits) {
            let before = self.database().rows.get(&id).map(|row| row.state.clone());
            self.meet(id).await;
            let now = self.database().rows.get(&id).map(|row| row.state.clone());
            if before != now {
                return problem(409, "vote-lost");
            }
        }
        let mut database = self.database();
        let database = &mut *database;
        let Some(row) = database.rows.get_mut(&id) else {
            if self.has(CommitOfTheUnknownIsStored) {
                database.rows.insert(id, self.tombstone(request));
            }
            return match self.has(NotFoundIsSuccess) {
                true => state(request, "committed"),
                false => problem(409, "vote-lost"),
            };
        };
        match row.state {
            State::Prepared => {
                if !self.has(AcknowledgesBeforeItApplies) {
                    row.state = State::Committed;
                }
                database.seats_taken -= row.seats;
                database.balance += row.amount;
                state(request, "committed")
            }
            State::Committed if self.has(RefusesARepeatedCommit) => problem(409, "outcome-differs"),
            State::Committed => {
                if self.has(AppliesAgain) {
                    database.balance += row.amount;
                }
                state(request, "committed")
            }
            State::ReadOnly if self.has(CommitsTheReadOnly) => state(request, "committed"),
            State::ReadOnly => problem(409, "vote-lost"),
            State::Aborted if self.has(CommitsTheAborted) => state(request, "committed"),
            State::Refused(..) | State::Aborted => problem(409, "outcome-differs"),
        }
    }

    fn tombstone(&self, request: &BranchRequest) -> Row {
        Row {
            participant: request.participant.to_string(),
            text: String::new(),
            digest: BodyDigest([0; 32]),
            amount: 0,
            seats: 0,
            state: State::Aborted,
            life: 0,
            next_inquiry: Instant::now(),
            inquiries: 0,
            asking: false,
        }
    }

    async fn abort(&self, request: &BranchRequest) -> Reply {
        let id = request.transaction;
        let mut database = self.database();
        let database = &mut *database;
        let Some(row) = database.rows.get_mut(&id) else {
            if self.has(AbortOfTheUnknownIsAnError) {
                return problem(404, "unknown-branch");
            }
            if !self.has(NoTombstone) && self.below(database, id).is_none() {
                database.rows.insert(id, self.tombstone(request));
            }
            return state(request, "aborted");
        };
        match row.state {
            State::Prepared if self.has(AbortsInWordsOnly) => {}
            State::Prepared => {
                row.state = State::Aborted;
                database.seats_taken -= row.seats;
            }
            State::Committed if self.has(AbortsTheCommitted) => {}
            State::Committed => return problem(409, "outcome-differs"),
            State::ReadOnly | State::Refused(..) | State::Aborted => {}
        }
        state(request, "aborted")
    }

    fn view(&self, id: TransactionId, row: &Row) -> Value {
        let state = match row.state {
            State::Prepared => "prepared",
            State::Committed => "committed",
            State::ReadOnly => "read_only",
            State::Refused(..) | State::Aborted => "aborted",
        };
        let mut view = json!({"transaction": id, "participant": row.participant, "state": state});
        if !self.has(NoSince) {
            view["since"] = json!(SINCE);
        }
        view
    }

    fn look(&self, id: &str) -> Reply {
        let Ok(id) = id.parse::<TransactionId>() else {
            return problem(400, "invalid-request");
        };
        let database = self.database();
        match database.rows.get(&id) {
            Some(row) => Reply::json(200, self.view(id, row)),
            None => problem(404, "unknown-branch"),
        }
    }

    fn list(&self, query: &str) -> Reply {
        let member = |name: &str| {
            let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs
                .filter(|(found, _)| *found == name)
                .map(|(_, value)| value.to_owned())
                .next()
        };
        let limit = member("limit")
            .and_then(|limit| limit.parse().ok())
            .unwrap_or(100);
        let after: Option<TransactionId> = member("after").and_then(|after| after.parse().ok());
        let begins = |id: TransactionId| match after {
            Some(after) if self.has(ListsTwice) => id >= after,
            Some(after) => id > after,
            None => true,
        };
        let database = self.database();
        let found = database.rows.iter().filter(|(id, _)| begins(**id));
        let wanted = member("state");
        let mut branches: Vec<Value> = found
            .map(|(id, row)| self.view(*id, row))
            .filter(|view| {
                wanted
                    .as_deref()
                    .is_none_or(|wanted| view["state"] == wanted)
            })
            .take(limit + 1)
            .collect();
        let more = branches.len() > limit;
        branches.truncate(limit);
        let next = branches
            .last()
            .filter(|_| more)
            .map(|last| last["transaction"].clone());
        Reply::json(200, json!({"branches": branches, "next": next}))
    }

    // ------ inquiries

    async fn inquire(self: Arc<Self>, coordinator: String, name: String) {
        // An error says that there is a provider already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let redirects = if self.has(FollowsRedirects) {
            reqwest::redirect::Policy::limited(3)
        } else {
            reqwest::redirect::Policy::none()
        };
        let http = reqwest::Client::builder().no_proxy().redirect(redirects);
        let http = http.timeout(Duration::from_secs(1)).build().unwrap();
        let mut asking = tokio::task::JoinSet::new();
        loop {
            let due = self.due();
            for (id, participant) in due {
                let asked = if self.has(AsksByItsPresentName) {
                    &name
                } else {
                    &participant
                };
                let url = format!("{coordinator}/v1/transactions/{id}/outcome?participant={asked}");
                let (shared, request) = (Arc::clone(&self), http.get(url));
                asking.spawn(async move { shared.ask(id, &participant, request).await });
            }
            while asking.try_join_next().is_some() {}
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// The branches whose turn it is; their next one comes later.
    fn due(&self) -> Vec<(TransactionId, String)> {
        if self.has(NeverAsks) {
            return Vec::new();
        }
        let mut database = self.database();
        let life = database.life;
        let mut due = Vec::new();
        for (id, row) in &mut database.rows {
            let forgotten = self.has(AsksOnlyAboutThisLife) && row.life != life;
            let over = self.has(AsksOnlyOnce) && row.inquiries > 0;
            let now = Instant::now();
            if row.state != State::Prepared
                || row.next_inquiry > now
                || row.asking
                || forgotten
                || over
            {
                continue;
            }
            row.inquiries += 1;
            let pause = Duration::from_millis(50 << row.inquiries.min(3));
            row.asking = !self.has(Floods);
            row.next_inquiry = if self.has(Floods) { now } else { now + pause };
            let copies = if self.has(Floods) { 4 } else { 1 };
            due.extend(vec![(*id, row.participant.clone()); copies]);
        }
        due
    }

    async fn ask(&self, id: TransactionId, participant: &str, request: reqwest::RequestBuilder) {
        let answered = async {
            let response = request.send().await?;
            let status = response.status().as_u16();
            reqwest::Result::Ok((status, response.bytes().await?))
        };
        let told = match answered.await {
            Ok((status, body)) => self.read(id, participant, status, &body),
            Err(_) if self.has(SilenceIsAborted) => Some(Inform::Aborted),
            Err(_) => None,
        };
        let mut database = self.database();
        let database = &mut *database;
        let Some(row) = database.rows.get_mut(&id) else {
            return;
        };
        row.asking = false;
        if row.state != State::Prepared {
            return;
        }
        match told {
            Some(Inform::Committed) => {
                row.state = State::Committed;
                database.balance += row.amount;
                database.seats_taken -= row.seats;
            }
            Some(Inform::Aborted) if !self.has(TakesNoAbort) => {
                row.state = State::Aborted;
                database.seats_taken -= row.seats;
            }
            Some(Inform::Aborted | Inform::Pending) | None => {}
        }
    }

    fn read(
        &self,
        id: TransactionId,
        participant: &str,
        status: u16,
        body: &[u8],
    ) -> Option<Inform> {
        let outcome = || {
            let body: Value = serde_json::from_slice(body).ok()?;
            serde_json::from_value(body["outcome"].clone()).ok()
        };
        if self.has(AnyEcho) && status == 200 || self.has(AnyStatus) && status != 200 {
            return outcome();
        }
        if self.has(NotFoundIsAborted) && status == 404 {
            return Some(Inform::Aborted);
        }
        let branch = BranchId {
            transaction: id,
            participant: participant.parse().unwrap(),
        };
        let answer = HttpAnswer {
            status,
            content_type: None,
            body,
        };
        match read_inquiry(&branch, &answer) {
            InquiryAnswer::Informed(Inform::Pending) if self.has(PendingIsAborted) => {
                Some(Inform::Aborted)
            }
            InquiryAnswer::Informed(inform) => Some(inform),
            InquiryAnswer::AskAgain(_) | InquiryAnswer::Alarm(_) => None,
        }
    }
}

/// As somebody sees it for whom every number is a floating-point one.
fn rounded(value: &Value) -> Value {
    match value {
        Value::Number(number) => json!(number.as_f64()),
        Value::Array(list) => list.iter().map(rounded).collect(),
        Value::Object(members) => members
            .iter()
            .map(|(name, value)| (name.clone(), rounded(value)))
            .collect(),
        Value::Null | Value::Bool(_) | Value::String(_) => value.clone(),
    }
}

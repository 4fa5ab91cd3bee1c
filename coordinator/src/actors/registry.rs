//! One life of the coordinator: issues ids, finds transactions, looks keys up, and asks the life to judge what memory
//! does not hold. Also where the bounds on transactions are kept, for everybody reports here.

pub mod adoption;
mod forgetting;
pub mod listing;
pub mod measuring;
pub mod participants;

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use actix::{
    Actor, ActorFutureExt as _, Addr, AsyncContext as _, Context, Handler, Message,
    ResponseActFuture, WrapFuture as _,
};
use tokio::sync::{oneshot, watch};
use tracing::{error, info, warn};
use unanimous_protocol::{
    coordinator::{Alarm, Event},
    id::{BranchId, ParticipantName, TransactionId},
    keyring::{Claim, Holder, Keyring},
    life::{Head, Judgement, Known, Life, Question, Standing},
    message::Inform,
    operations::Operations,
    record::{Header, IdempotencyKey, KeyClaim, Record, WallMillis},
    trace::TraceContext,
    wire::BranchState,
};

use self::adoption::{Adoption, Neighbours};
use super::{
    broken,
    log_writer::{Flush, LogWriter},
    transaction::{
        Deliver, Inquire as InquireLive, Links, Progress, PublishedLowWater, TransactionActor,
        warn_of_unknown_branch,
    },
    wall_clock,
};
use crate::{
    courier::{Couriers, Http},
    crash,
    log::{DecisionLog, LogError, View},
    metrics::Metrics,
    telemetry::chain,
};

/// How often the life is held against the log (design rule 11). A read that has not returned by the next one counts as a
/// log that does not answer: a server that stands still keeps its connections, and returns no error.
const OBSERVE_EVERY: Duration = Duration::from_secs(1);

/// Longer than this nobody waits for what the log holds: 503, and the same request again, is better than a client that
/// gives up by itself.
const READ_MAX: Duration = Duration::from_secs(2);

/// Bounds on what a coordinator holds in memory (design rule 20).
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Transactions that are neither decided nor handed to the log. Past it a new one is refused as `overloaded`.
    pub undecided_max: usize,
    /// Transactions in memory, those included whose commit some branch has not acknowledged, and whose record is not
    /// durable yet. Past it a new one is refused too; nothing accepted is lost.
    pub live_max: usize,
    /// Aborted transactions whose branches are still being told. Past it the oldest are dropped: their branches ask.
    pub delivering_aborts_max: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            undecided_max: 100_000,
            live_max: 200_000,
            delivering_aborts_max: 20_000,
        }
    }
}

/// What the settings say.
#[derive(Clone, Debug)]
pub struct Given {
    /// What is held in memory, at most.
    pub bounds: Bounds,
    /// How long finished transactions are kept.
    pub retention: Duration,
    /// The participants given at start.
    pub configured: BTreeSet<ParticipantName>,
    /// Whom to adopt.
    pub adoption: Adoption,
}

/// Whether this coordinator can take new work, for `/readyz` and for those who run it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// The log answers.
    Ready,
    /// The log does not answer: new transactions are refused, running ones wait.
    LogUnavailable,
    /// The log went back: see `design` rule 11 and the standing's text.
    WentBack(String),
    /// This life is fenced. The process ends.
    Fenced(String),
}

/// The registry of one life.
pub struct Registry {
    life: Life,
    keyring: Keyring,
    log: Arc<dyn DecisionLog>,
    couriers: Couriers,
    http: Arc<Http>,
    metrics: Arc<Metrics>,
    /// Given at start: these win over what is kept in the log, and are not changed at run time.
    configured: BTreeSet<ParticipantName>,
    /// Held by whoever changes a participant.
    participants_turn: Arc<tokio::sync::Mutex<()>>,
    /// Whether a participant is being asked about an id of a newer epoch: one at a time.
    suspecting: bool,
    /// What all transactions are given; `None` until the registry has an address.
    links: Option<Arc<Links>>,
    bounds: Bounds,
    retention: Duration,
    /// Whether what is due is being forgotten.
    forgetting: bool,
    adoption: Adoption,
    neighbours: Neighbours,
    transactions: HashMap<TransactionId, Live>,
    undecided: usize,
    low_water: PublishedLowWater,
    delivering_aborts: BTreeSet<TransactionId>,
    key_lookups: KeyLookups,
    condition: watch::Sender<Condition>,
    /// Whether the log answered the last read of its head.
    log_is_read: bool,
    /// Whether its head is being read.
    observing: bool,
    /// Whether it took the last write. A full disk takes none, and is read all the same.
    log_is_written: bool,
    accepting: bool,
    /// Whether the transactions were told that the log went back.
    frozen: bool,
    drained: Vec<oneshot::Sender<()>>,
}

struct Live {
    /// Also what keeps it alive: what is still to be reported to it is owed by weak addresses.
    actor: Addr<TransactionActor>,
    created_at: WallMillis,
    progress: Progress,
    key: Option<IdempotencyKey>,
}

/// Requests whose keys this life has not seen. All that wait while a read is under way share the next one.
#[derive(Default)]
struct KeyLookups {
    next: Vec<IdempotencyKey>,
    under_way: bool,
    waiting: HashMap<IdempotencyKey, Vec<(Begin, oneshot::Sender<BeginOutcome>)>>,
}

impl Registry {
    /// The registry of `life`; `condition` tells the rest of the process how it fares.
    #[must_use]
    pub fn new(
        life: Life,
        log: Arc<dyn DecisionLog>,
        couriers: Couriers,
        http: Arc<Http>,
        given: Given,
        condition: watch::Sender<Condition>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let Given {
            bounds,
            retention,
            configured,
            adoption,
        } = given;
        Self {
            life,
            keyring: Keyring::default(),
            log,
            couriers,
            http,
            metrics,
            configured,
            participants_turn: Arc::default(),
            suspecting: false,
            links: None,
            bounds,
            retention,
            forgetting: false,
            adoption,
            neighbours: Neighbours::unknown(),
            transactions: HashMap::new(),
            undecided: 0,
            low_water: PublishedLowWater::default(),
            delivering_aborts: BTreeSet::new(),
            key_lookups: KeyLookups::default(),
            condition,
            log_is_read: true,
            observing: false,
            log_is_written: true,
            accepting: true,
            frozen: false,
            drained: Vec::new(),
        }
    }

    fn publish_low_water(&self) {
        self.low_water.publish(self.life.low_water());
    }

    /// Whether it is undecided and to stay so: nothing may be said of it, for all that was said could turn out otherwise.
    fn is_frozen(&self, live: &Live) -> bool {
        live.progress.undecided && *self.life.standing() != Standing::Serving
    }

    fn log_answers(&self) -> bool {
        self.log_is_read && self.log_is_written
    }

    /// Begins a transaction under a new id, with all that the request asked for.
    fn begin(&mut self, begin: Begin) -> BeginOutcome {
        let unknown = begin
            .branches
            .iter()
            .position(|(name, _)| !self.couriers.is_registered(name));
        if let Some(at) = unknown {
            let name = begin.branches[at].0.clone();
            return BeginOutcome::UnknownParticipant(at, name);
        }
        if !self.accepting {
            return BeginOutcome::ShuttingDown;
        }
        match self.life.standing() {
            Standing::WentBack(_) => return BeginOutcome::LogWentBack,
            Standing::Fenced(_) => return BeginOutcome::LogUnavailable,
            Standing::Serving if !self.log_answers() => return BeginOutcome::LogUnavailable,
            Standing::Serving => {}
        }
        if self.undecided >= self.bounds.undecided_max
            || self.transactions.len() >= self.bounds.live_max
        {
            return BeginOutcome::Overloaded;
        }
        let (Some(links), Some(id)) = (self.links.clone(), self.life.issue()) else {
            return BeginOutcome::LogUnavailable;
        };
        let created_at = wall_clock();
        let timeout_ms = i64::try_from(begin.timeout.as_millis()).unwrap_or(i64::MAX);
        let header = Arc::new(Header {
            id,
            key: begin.key.clone(),
            labels: begin.labels,
            created_at,
            deadline: WallMillis(created_at.0.saturating_add(timeout_ms)),
        });
        if let Some(KeyClaim { key, request }) = &begin.key {
            self.keyring.hold(
                key,
                Holder {
                    transaction: id,
                    request: *request,
                },
            );
        }
        let transaction =
            TransactionActor::begin(header, begin.timeout, begin.trace, links).start();
        for (participant, operations) in begin.branches {
            let enlist = Event::Enlist {
                participant,
                operations,
                session: None,
            };
            transaction.do_send(Deliver(enlist));
        }
        if begin.commit {
            transaction.do_send(Deliver(Event::CommitRequested));
        }
        self.undecided += 1;
        // Registered before anybody can see the id.
        let progress = Progress {
            undecided: true,
            holds_low_water: true,
            ..Progress::default()
        };
        let key = begin.key.map(|claim| claim.key);
        self.transactions.insert(
            id,
            Live {
                actor: transaction.clone(),
                created_at,
                progress,
                key,
            },
        );
        BeginOutcome::Live { id, transaction }
    }

    fn claim(
        &mut self,
        begin: Begin,
        reply: oneshot::Sender<BeginOutcome>,
        ctx: &mut Context<Self>,
    ) {
        let Some(KeyClaim { key, request }) = begin.key.clone() else {
            reply.send(self.begin(begin)).ok();
            return;
        };
        match self.keyring.claim(&key, request) {
            Claim::Same(id) => {
                let outcome = match self.transactions.get(&id) {
                    Some(live) if self.is_frozen(live) => BeginOutcome::LogWentBack,
                    Some(live) => BeginOutcome::Live {
                        id,
                        transaction: live.actor.clone(),
                    },
                    None => BeginOutcome::LogUnavailable,
                };
                reply.send(outcome).ok();
            }
            Claim::Reused => {
                reply.send(BeginOutcome::KeyReused).ok();
            }
            // A log that is not read is not asked: whoever waits for it would be refused after a while.
            Claim::LookUp if !self.log_is_read => {
                self.keyring.release(&key);
                reply.send(BeginOutcome::LogUnavailable).ok();
            }
            Claim::LookUp => {
                self.key_lookups
                    .waiting
                    .insert(key.clone(), vec![(begin, reply)]);
                self.key_lookups.next.push(key);
                self.look_keys_up(ctx);
            }
            Claim::Wait => {
                self.key_lookups
                    .waiting
                    .entry(key)
                    .or_default()
                    .push((begin, reply));
            }
        }
    }

    fn look_keys_up(&mut self, ctx: &mut Context<Self>) {
        if self.key_lookups.under_way || self.key_lookups.next.is_empty() {
            return;
        }
        self.key_lookups.under_way = true;
        let keys = std::mem::take(&mut self.key_lookups.next);
        let log = Arc::clone(&self.log);
        let read = async move {
            let found = within(READ_MAX, log.by_key(&keys)).await;
            (keys, found)
        };
        ctx.spawn(
            read.into_actor(self)
                .map(|(mut keys, found), registry, ctx| {
                    registry.key_lookups.under_way = false;
                    if found.is_err() {
                        // Whoever came meanwhile need not wait as long again to be told the same.
                        keys.append(&mut registry.key_lookups.next);
                    }
                    registry.keys_looked_up(keys, found, ctx);
                    registry.look_keys_up(ctx);
                }),
        );
    }

    fn keys_looked_up(
        &mut self,
        keys: Vec<IdempotencyKey>,
        found: Result<Vec<Option<Record>>, LogError>,
        ctx: &mut Context<Self>,
    ) {
        let found = found.map_err(|error| {
            unread(&error, None);
        });
        for (at, key) in keys.iter().enumerate() {
            let waiting = self.key_lookups.waiting.remove(key).unwrap_or_default();
            self.keyring.release(key);
            for (begin, reply) in waiting {
                match found
                    .as_ref()
                    .map(|records| records.get(at).cloned().flatten())
                {
                    // The first of them begins the transaction, the others find it in the ring.
                    Ok(None) => self.claim_absent(begin, reply, ctx),
                    Ok(Some(record)) => {
                        reply.send(held_by_record(&begin, record)).ok();
                    }
                    Err(()) => {
                        reply.send(BeginOutcome::LogUnavailable).ok();
                    }
                }
            }
        }
    }

    /// A key that the log does not have.
    fn claim_absent(
        &mut self,
        begin: Begin,
        reply: oneshot::Sender<BeginOutcome>,
        ctx: &mut Context<Self>,
    ) {
        let Some(KeyClaim { key, request }) = begin.key.clone() else {
            return;
        };
        match self.keyring.claim(&key, request) {
            Claim::LookUp => {
                let outcome = self.begin(begin);
                // Nothing was begun, so the key is not consumed.
                self.keyring.release(&key);
                reply.send(outcome).ok();
            }
            Claim::Same(_) | Claim::Reused | Claim::Wait => self.claim(begin, reply, ctx),
        }
    }

    /// Reads what the log says of this life. What life knows is taken before the read: a write that returns during it
    /// may have raised the counter.
    fn observe(&mut self, ctx: &mut Context<Self>) {
        if self.observing {
            return;
        }
        self.observing = true;
        let log = Arc::clone(&self.log);
        let (node, known) = (self.life.writer().node, self.life.known());
        let read = async move {
            let head = within(OBSERVE_EVERY, log.head(node)).await?;
            Ok((known, head))
        };
        ctx.spawn(read.into_actor(self).map(|read, registry, ctx| {
            registry.observing = false;
            match read {
                Ok((known, head)) => {
                    registry.observed(&known, &head);
                    registry.report_condition(ctx);
                }
                Err(LogError::Unavailable(cause)) => {
                    warn!(error = %cause, "the decision log does not answer");
                    registry.log_is_read = false;
                    registry.log_was_silent();
                    registry.report_condition(ctx);
                }
                Err(LogError::Broken(cause)) => broken(&*cause),
            }
        }));
    }

    fn observed(&mut self, known: &Known, head: &Head) {
        self.log_is_read = true;
        self.life.observe(known, head);
    }

    /// Freezes what is undecided, and remembers why before anybody is told: a restart on the same log would raise its
    /// epoch, and come to call aborted what the lost part had committed.
    fn freeze(&mut self, why: String, ctx: &mut Context<Self>) {
        self.frozen = true;
        for live in self.transactions.values() {
            live.actor.do_send(Deliver(Event::LogWentBack));
        }
        let log = Arc::clone(&self.log);
        let remember = async move {
            crash::point("went-back-before");
            let remembered = log.remember_that_it_went_back(&why).await;
            crash::point("went-back-after");
            remembered
        };
        ctx.spawn(remember.into_actor(self).map(|remembered, registry, ctx| {
            if let Err(error) = remembered {
                error!(
                    error = %chain(&error),
                    "that the log went back could not be remembered: do not start a coordinator on it before \
                     `unanimous log new-identity`"
                );
            }
            registry.report_condition(ctx);
        }));
    }

    fn report_condition(&mut self, ctx: &mut Context<Self>) {
        self.publish_low_water();
        if let Standing::WentBack(why) = self.life.standing()
            && !self.frozen
        {
            return self.freeze(why.clone(), ctx);
        }
        let condition = match self.life.standing() {
            Standing::Fenced(why) => Condition::Fenced(why.clone()),
            Standing::WentBack(why) => Condition::WentBack(why.clone()),
            Standing::Serving if self.log_answers() => Condition::Ready,
            Standing::Serving => Condition::LogUnavailable,
        };
        self.condition.send_if_modified(|present| {
            let changed = *present != condition;
            if changed {
                match &condition {
                    Condition::Ready => info!("the decision log answers"),
                    Condition::LogUnavailable => warn!("new transactions are refused until the log answers"),
                    Condition::WentBack(why) => error!(
                        %why,
                        "the decision log went back: nothing is decided until an operator runs `unanimous log \
                         new-identity`"
                    ),
                    Condition::Fenced(why) => error!(%why, "this life of the coordinator is fenced"),
                }
                *present = condition;
            }
            changed
        });
    }

    fn tell_if_drained(&mut self) {
        if self.undecided == 0 {
            for waiting in self.drained.drain(..) {
                // What rides unforced would be lost with the process, and with it what clients were told of times and
                // reasons.
                match &self.links {
                    Some(links) => links.log_writer.do_send(Flush(waiting)),
                    None => drop(waiting.send(())),
                }
            }
        }
    }
}

/// What a read of the log comes to, if it comes in time. To give a read up harms nothing.
async fn within<T>(
    limit: Duration,
    read: impl Future<Output = Result<T, LogError>>,
) -> Result<T, LogError> {
    let silent = || LogError::Unavailable(format!("no answer within {limit:?}").into());
    tokio::time::timeout(limit, read)
        .await
        .unwrap_or_else(|_| Err(silent()))
}

/// Something could not be read from the log: what became of a transaction, or who holds some keys.
fn unread(error: &LogError, transaction: Option<TransactionId>) {
    match error {
        LogError::Unavailable(cause) => warn!(
            transaction = transaction.map(tracing::field::display), error = %chain(&**cause),
            "the decision log does not answer"
        ),
        LogError::Broken(cause) => broken(&**cause),
    }
}

fn held_by_record(begin: &Begin, record: Record) -> BeginOutcome {
    let same = match (&begin.key, &record.header.key) {
        (Some(asked), Some(stored)) => asked.request == stored.request,
        (Some(_) | None, None) | (None, Some(_)) => false,
    };
    if same {
        BeginOutcome::Recorded(Box::new(record))
    } else {
        BeginOutcome::KeyReused
    }
}

impl Actor for Registry {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.set_mailbox_capacity(0);
        let writer = self.life.writer();
        let log_writer = LogWriter::new(
            Arc::clone(&self.log),
            writer,
            ctx.address(),
            Arc::clone(&self.metrics),
        );
        self.links = Some(Arc::new(Links {
            registry: ctx.address(),
            log_writer: log_writer.start(),
            couriers: self.couriers.clone(),
            metrics: Arc::clone(&self.metrics),
            low_water: self.low_water.clone(),
        }));
        ctx.run_interval(OBSERVE_EVERY, |registry, ctx| registry.observe(ctx));
        self.forget_in_time(ctx);
        self.look_after_nodes(ctx);
        self.describe_all();
    }
}

/// Begin a transaction, or find the one that the key names.
#[derive(Clone, Message)]
#[rtype(result = "BeginOutcome")]
pub struct Begin {
    /// Until the deadline.
    pub timeout: Duration,
    /// Branches to enlist at once.
    pub branches: Vec<(ParticipantName, Operations)>,
    /// Whether to run it at once.
    pub commit: bool,
    /// The client's labels.
    pub labels: std::collections::BTreeMap<String, String>,
    /// The client's key.
    pub key: Option<KeyClaim>,
    /// The trace that all its calls belong to.
    pub trace: TraceContext,
}

/// What became of a [`Begin`].
pub enum BeginOutcome {
    /// The transaction lives here.
    Live {
        /// Its id.
        id: TransactionId,
        /// Its actor.
        transaction: Addr<TransactionActor>,
    },
    /// The key's transaction has ended, and this is its record.
    Recorded(Box<Record>),
    /// The key was used with another request.
    KeyReused,
    /// A branch names a participant that nobody registered: its place in the request, and the name.
    UnknownParticipant(usize, ParticipantName),
    /// As many undecided transactions as there may be.
    Overloaded,
    /// The process is ending.
    ShuttingDown,
    /// The log does not answer, or this life is fenced.
    LogUnavailable,
    /// The log went back, and nothing is decided any more.
    LogWentBack,
}

impl Handler<Begin> for Registry {
    type Result = ResponseActFuture<Self, BeginOutcome>;

    fn handle(&mut self, begin: Begin, ctx: &mut Context<Self>) -> Self::Result {
        let (reply, outcome) = oneshot::channel();
        self.claim(begin, reply, ctx);
        let outcome = async move { outcome.await.unwrap_or(BeginOutcome::LogUnavailable) };
        Box::pin(outcome.into_actor(self))
    }
}

/// Find a transaction.
#[derive(Message)]
#[rtype(result = "Found")]
pub struct Find(pub TransactionId);

/// Where a transaction was found.
pub enum Found {
    /// In memory.
    Live(Addr<TransactionActor>),
    /// In the log.
    Recorded(Box<Record>),
    /// Nowhere; this may be said of it.
    Judged(Judgement),
    /// Not in memory, and the log does not answer: nothing may be said.
    LogUnavailable,
    /// Undecided, and to stay so: the log went back.
    Frozen,
}

impl Handler<Find> for Registry {
    type Result = ResponseActFuture<Self, Found>;

    fn handle(&mut self, Find(id): Find, _: &mut Context<Self>) -> Self::Result {
        // Memory first, then the log (design rule 3): what leaves memory has a durable record.
        if let Some(live) = self.transactions.get(&id) {
            let frozen = self.is_frozen(live);
            let found = if frozen {
                Found::Frozen
            } else {
                Found::Live(live.actor.clone())
            };
            return Box::pin(async move { found }.into_actor(self));
        }
        let (question, log) = (self.life.ask(id), Arc::clone(&self.log));
        let read = async move { within(READ_MAX, log.look_up(id)).await };
        Box::pin(
            read.into_actor(self)
                .map(move |read, registry, _| match read {
                    Ok(view) => registry.judge(question, view),
                    Err(error) => {
                        unread(&error, Some(id));
                        Found::LogUnavailable
                    }
                }),
        )
    }
}

impl Registry {
    fn judge(&self, question: Question, view: View) -> Found {
        let (record, snapshot) = view.split();
        match (self.life.judge(question, &snapshot), record) {
            (Judgement::Recorded, Some(record)) => Found::Recorded(Box::new(record)),
            (judgement, _) => Found::Judged(judgement),
        }
    }
}

/// A participant in doubt asks what became of its branch.
#[derive(Message)]
#[rtype(result = "Inquired")]
pub struct Inquire {
    /// The transaction.
    pub transaction: TransactionId,
    /// The name in the branch's row.
    pub participant: ParticipantName,
}

/// The answer to an inquiry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inquired {
    /// This may be told.
    Inform(Inform),
    /// Another log's id.
    Foreign,
    /// Nothing may be told now.
    LogUnavailable,
}

impl Handler<Inquire> for Registry {
    type Result = ResponseActFuture<Self, Inquired>;

    fn handle(&mut self, inquire: Inquire, ctx: &mut Context<Self>) -> Self::Result {
        let Inquire {
            transaction,
            participant,
        } = inquire;
        let (registry, metrics) = (ctx.address(), Arc::clone(&self.metrics));
        let answer = async move {
            match registry.send(Find(transaction)).await {
                Ok(Found::Live(live)) => match live.send(InquireLive(participant)).await {
                    Ok(inform) => Inquired::Inform(inform),
                    // It ended in between: its record answers the next time.
                    Err(_) => Inquired::Inform(Inform::Pending),
                },
                Ok(Found::Recorded(record)) => {
                    let inform = record.decision.inform(&participant);
                    if inform == Inform::Pending {
                        warn_of_unknown_branch(transaction, &participant);
                    }
                    Inquired::Inform(inform)
                }
                Ok(Found::Judged(judgement)) => {
                    metrics.inquired_without_record(judgement);
                    if Life::is_suspicious(judgement) {
                        let participant = participant.clone();
                        registry.do_send(Suspect(BranchId {
                            transaction,
                            participant,
                        }));
                    }
                    inform_by_judgement(transaction, &participant, judgement)
                }
                Ok(Found::Frozen) => Inquired::Inform(Inform::Pending),
                Ok(Found::LogUnavailable) | Err(_) => Inquired::LogUnavailable,
            }
        };
        Box::pin(answer.into_actor(self).map(|inquired, registry, _| {
            match inquired {
                Inquired::Inform(inform) => registry.metrics.inquiry_told(inform),
                Inquired::Foreign => registry.metrics.inquiry_was_foreign(),
                Inquired::LogUnavailable => registry.metrics.inquiry_failed(),
            }
            inquired
        }))
    }
}

fn inform_by_judgement(
    transaction: TransactionId,
    participant: &ParticipantName,
    judgement: Judgement,
) -> Inquired {
    match (judgement.inform(), judgement) {
        (Some(inform), Judgement::Unknown(why)) => {
            warn!(
                %transaction, %participant, ?why,
                "an inquiry names a transaction whose outcome is unknown: it is told pending until an operator resolves it"
            );
            Inquired::Inform(inform)
        }
        (Some(inform), _) => {
            info!(%transaction, %participant, ?inform, ?judgement, "an inquiry without a record");
            Inquired::Inform(inform)
        }
        (None, Judgement::Foreign) => Inquired::Foreign,
        (None, _) => Inquired::LogUnavailable,
    }
}

/// Somebody inquires about an id that no log of ours can have lost without having gone back: ask the registered participant whether it really
/// holds that branch.
#[derive(Message)]
#[rtype(result = "()")]
struct Suspect(BranchId);

impl Handler<Suspect> for Registry {
    type Result = ();

    fn handle(&mut self, Suspect(branch): Suspect, ctx: &mut Context<Self>) {
        let endpoint = self.couriers.endpoint(&branch.participant);
        let Some(endpoint) = endpoint.filter(|_| !self.suspecting) else {
            return;
        };
        self.suspecting = true;
        let http = Arc::clone(&self.http);
        let ask = async move {
            let answer = http.branch_state(&endpoint, &branch).await;
            (branch, answer)
        };
        ctx.spawn(ask.into_actor(self).map(|(branch, answer), registry, ctx| {
            registry.suspecting = false;
            match answer {
                Ok(Some(told)) if told.state == BranchState::Prepared => {
                    let BranchId {
                        transaction,
                        participant,
                    } = branch;
                    registry
                        .life
                        .prepared_without_a_trace(transaction, &participant);
                    registry.report_condition(ctx);
                }
                Ok(_) => {}
                Err(error) => warn!(
                    transaction = %branch.transaction, participant = %branch.participant, error,
                    "a branch of a newer epoch could not be looked at"
                ),
            }
        }));
    }
}

/// An unfinished transaction of the log, to be driven by this life.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Recover(pub Vec<Record>);

impl Handler<Recover> for Registry {
    type Result = ();

    fn handle(&mut self, Recover(records): Recover, _: &mut Context<Self>) {
        let unfinished = records.iter().map(|record| record.header.id);
        self.life.recovered(unfinished);
        self.recover(records);
    }
}

impl Registry {
    fn recover(&mut self, records: Vec<Record>) {
        let Some(links) = self.links.clone() else {
            return;
        };
        for record in records {
            let (id, created_at) = (record.header.id, record.header.created_at);
            // Of a node that was adopted before: it is driven already.
            if self.transactions.contains_key(&id) {
                continue;
            }
            let transaction = TransactionActor::recover(record, links.clone()).start();
            let progress = Progress {
                holds_low_water: true,
                key_released: true,
                ..Progress::default()
            };
            self.transactions.insert(
                id,
                Live {
                    actor: transaction,
                    created_at,
                    progress,
                    key: None,
                },
            );
        }
    }
}

/// A transaction has come further.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Progressed {
    /// Which.
    pub id: TransactionId,
    /// How far.
    pub progress: Progress,
}

impl Handler<Progressed> for Registry {
    type Result = ();

    fn handle(&mut self, Progressed { id, progress }: Progressed, _: &mut Context<Self>) {
        let Some(live) = self.transactions.get_mut(&id) else {
            return;
        };
        if live.progress.undecided && !progress.undecided {
            self.undecided -= 1;
        }
        if progress.key_released
            && let Some(key) = live.key.take()
        {
            self.keyring.forget(&key, id);
        }
        if live.progress.holds_low_water && !progress.holds_low_water {
            self.life.finished(id);
        }
        live.progress = progress;
        if progress.delivering_aborts {
            self.delivering_aborts.insert(id);
        } else {
            self.delivering_aborts.remove(&id);
        }
        self.publish_low_water();
        if self.delivering_aborts.len() > self.bounds.delivering_aborts_max
            && let Some(oldest) = self.delivering_aborts.pop_first()
            && let Some(live) = self.transactions.get(&oldest)
        {
            live.actor.do_send(Deliver(Event::AbortsDropped));
            self.couriers.forget(oldest);
        }
        self.tell_if_drained();
    }
}

/// A transaction is over and its record durable: the log answers for it from now on.
#[derive(Message)]
#[rtype(result = "()")]
pub struct LeftMemory(pub TransactionId);

impl Handler<LeftMemory> for Registry {
    type Result = ();

    fn handle(&mut self, LeftMemory(id): LeftMemory, _: &mut Context<Self>) {
        self.left_memory(id);
    }
}

impl Registry {
    fn left_memory(&mut self, id: TransactionId) {
        let Some(live) = self.transactions.remove(&id) else {
            return;
        };
        if live.progress.undecided {
            self.undecided -= 1;
        }
        self.delivering_aborts.remove(&id);
        if let Some(key) = live.key {
            self.keyring.forget(&key, id);
        }
        self.life.finished(id);
        self.publish_low_water();
        self.tell_if_drained();
    }
}

/// A machine raised an alarm.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Noticed(pub Alarm);

impl Handler<Noticed> for Registry {
    type Result = ();

    fn handle(&mut self, Noticed(alarm): Noticed, ctx: &mut Context<Self>) {
        self.life.alarmed(&alarm, self.couriers.registered());
        if self.life.is_accused() {
            self.observe(ctx);
        }
        self.report_condition(ctx);
    }
}

/// The log answers a write again, or does not.
#[derive(Message)]
#[rtype(result = "()")]
pub struct LogAnswers(pub bool);

impl Handler<LogAnswers> for Registry {
    type Result = ();

    fn handle(&mut self, LogAnswers(answers): LogAnswers, ctx: &mut Context<Self>) {
        self.log_is_written = answers;
        self.report_condition(ctx);
    }
}

/// A decision write returned clearly, with this counter.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Decided(pub u64);

impl Handler<Decided> for Registry {
    type Result = ();

    fn handle(&mut self, Decided(decisions): Decided, _: &mut Context<Self>) {
        self.life.decided(decisions);
        self.publish_low_water();
    }
}

/// The log takes no write of this life: find out why at once.
#[derive(Message)]
#[rtype(result = "()")]
pub struct LogRefused;

impl Handler<LogRefused> for Registry {
    type Result = ();

    fn handle(&mut self, _: LogRefused, ctx: &mut Context<Self>) {
        self.observe(ctx);
    }
}

/// Begin nothing new, and tell when nothing is undecided any more.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Drain(pub oneshot::Sender<()>);

impl Handler<Drain> for Registry {
    type Result = ();

    fn handle(&mut self, Drain(reply): Drain, _: &mut Context<Self>) {
        self.accepting = false;
        self.drained.push(reply);
        self.tell_if_drained();
    }
}

//! One live global transaction.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use actix::{Actor, Addr, AsyncContext as _, Context, Handler, Message, WeakAddr};
use tokio::{sync::oneshot, time::Instant};
use tracing::{error, info, warn};
use unanimous_protocol::{
    coordinator::{Alarm, Effect, EnlistRefused, Enlisted, Event, Transaction},
    id::{BranchId, ParticipantName, TransactionId},
    low_water,
    message::{Inform, RequestKind, Session},
    operations::Operations,
    record::{Decision, Header, Record},
    trace::TraceContext,
    wire::{EnlistAnswer, Milestones, TransactionView},
};

use super::{
    log_writer::{Append, Finish, LogWriter, Propose},
    registry::{LeftMemory, Noticed, Progressed, Registry},
    wall_clock,
};
use crate::{
    courier::{Call, Couriers},
    metrics::{
        Metrics,
        present::{Doubts, Sighting},
    },
};

/// What the transactions' actors need of the others. They share one.
pub struct Links {
    /// Told when the transaction moves on.
    pub registry: Addr<Registry>,
    /// Writes its decision.
    pub log_writer: Addr<LogWriter>,
    /// Carry its calls.
    pub couriers: Couriers,
    /// Count its decision.
    pub metrics: Arc<Metrics>,
    /// Goes with its calls.
    pub low_water: PublishedLowWater,
}

/// The low-water mark as of now, from the registry to every call (design rule 15).
#[derive(Clone, Debug, Default)]
pub struct PublishedLowWater(Arc<Mutex<Option<TransactionId>>>);

impl PublishedLowWater {
    /// Calls that are made from now on carry this one.
    pub fn publish(&self, low_water: Option<TransactionId>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = low_water;
    }

    /// What a call about `id` carries.
    fn for_call_about(&self, id: TransactionId) -> Option<TransactionId> {
        let low_water = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        low_water::about(id, low_water)
    }
}

/// How far a transaction has come, as the registry's bounds see it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Neither decided nor handed to the log.
    pub undecided: bool,
    /// The low-water mark may not pass it.
    pub holds_low_water: bool,
    /// Delivering aborts, which may be dropped at a bound.
    pub delivering_aborts: bool,
    /// Lost its idempotency key to another transaction, or will leave memory.
    pub key_released: bool,
}

/// Until when a client waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// The outcome may be told.
    Decided,
    /// The outcome may be told and, for a commit, every updating branch acknowledged.
    Applied,
}

/// The shell around one [`Transaction`].
pub struct TransactionActor {
    header: Arc<Header>,
    machine: Transaction,
    /// What `recover` or `begin` owes, carried out when the actor starts.
    owed: Vec<Effect>,
    links: Arc<Links>,
    /// By the monotonic clock; `None` for a recovered one, which has nothing left to miss.
    deadline: Option<Instant>,
    /// `None` for a recovered one: it began in another life.
    begun: Option<Instant>,
    doubts: Doubts,
    milestones: Milestones,
    progress: Progress,
    waiters: Vec<(Until, oneshot::Sender<TransactionView>)>,
    enlist_answer: Option<Result<Enlisted, EnlistRefused>>,
    trace: TraceContext,
    decision_logged: bool,
}

impl TransactionActor {
    /// A transaction that begins now.
    #[must_use]
    pub fn begin(
        header: Arc<Header>,
        timeout: Duration,
        trace: TraceContext,
        links: Arc<Links>,
    ) -> Self {
        let mut owed = Vec::new();
        let machine = Transaction::begin(header.id, header.key.is_some(), &mut owed);
        let progress = Progress {
            undecided: true,
            holds_low_water: true,
            ..Progress::default()
        };
        Self::new(
            header,
            machine,
            owed,
            links,
            Some(Instant::now() + timeout),
            progress,
            trace,
        )
    }

    /// A transaction of an unfinished record. The record does not say which trace it belonged to: it goes on in a new one.
    #[must_use]
    pub fn recover(record: Record, links: Arc<Links>) -> Self {
        let mut owed = Vec::new();
        let machine = Transaction::recover(record.header.id, record.decision, &mut owed);
        let progress = Progress {
            holds_low_water: true,
            key_released: true,
            ..Progress::default()
        };
        let trace = TraceContext::begun(rand::random());
        let mut actor = Self::new(record.header, machine, owed, links, None, progress, trace);
        actor.milestones.decided_at = Some(record.decided_at);
        // By an earlier life; its branches are told again.
        actor.decision_logged = true;
        actor
    }

    fn new(
        header: Arc<Header>,
        machine: Transaction,
        owed: Vec<Effect>,
        links: Arc<Links>,
        deadline: Option<Instant>,
        progress: Progress,
        trace: TraceContext,
    ) -> Self {
        Self {
            header,
            machine,
            owed,
            links,
            begun: deadline.map(|_| Instant::now()),
            deadline,
            doubts: Doubts::default(),
            milestones: Milestones::default(),
            progress,
            waiters: Vec::new(),
            enlist_answer: None,
            trace,
            decision_logged: false,
        }
    }

    fn id(&self) -> TransactionId {
        self.header.id
    }

    fn take(&mut self, event: Event, ctx: &mut Context<Self>) {
        let mut effects = Vec::new();
        let asked_for_a_vote = if let Event::Delivered {
            participant,
            kind: RequestKind::Prepare,
            ..
        } = &event
        {
            Some(participant.clone())
        } else {
            None
        };
        self.machine.step(event, &mut effects);
        if let Some(participant) = asked_for_a_vote {
            self.doubts.voted(participant, &self.machine, wall_clock());
        }
        self.carry_out_all(effects, ctx);
    }

    fn carry_out_all(&mut self, effects: Vec<Effect>, ctx: &mut Context<Self>) {
        if !effects.is_empty() {
            let me = ctx.address().downgrade();
            for effect in effects {
                self.carry_out(effect, me.clone(), ctx);
            }
        }
        // First: who is answered may come back with the key that this transaction has just lost.
        self.report_progress(ctx);
        self.serve_waiters();
    }

    fn carry_out(&mut self, effect: Effect, me: WeakAddr<Self>, ctx: &mut Context<Self>) {
        match effect {
            Effect::Send {
                participant,
                request,
                attempt,
                pace,
            } => {
                let kind = request.kind();
                let branch = BranchId {
                    transaction: self.id(),
                    participant: participant.clone(),
                };
                let on_done = Box::new(move |delivery| {
                    let delivered = Event::Delivered {
                        participant,
                        kind,
                        delivery,
                    };
                    report(&me, delivered);
                });
                self.links.couriers.send(Call {
                    branch,
                    request,
                    attempt,
                    pace,
                    deadline: self.deadline.filter(|_| kind == RequestKind::Prepare),
                    begun_at_ms: self.header.created_at.0,
                    low_water: self.links.low_water.for_call_about(self.id()),
                    is_awaited: self.somebody_waits_for_all(),
                    trace: self.trace.clone(),
                    on_done,
                });
            }
            Effect::Force(decision) => {
                let record = self.record(decision, Arc::clone(&self.header));
                let on_durable = Box::new(move |standing| report(&me, Event::Forced(standing)));
                self.links
                    .log_writer
                    .do_send(Propose { record, on_durable });
            }
            Effect::Append(decision) => {
                // The log's only keyed records are forced ones.
                let header = Arc::new(Header {
                    key: None,
                    ..Header::clone(&self.header)
                });
                let record = self.record(decision, header);
                let on_durable = Box::new(move || report(&me, Event::Appended));
                self.links.log_writer.do_send(Append { record, on_durable });
            }
            Effect::Finish => {
                let (id, finished_at) = (self.id(), wall_clock());
                self.milestones.finished_at = Some(finished_at);
                let on_durable = Box::new(move || report(&me, Event::Appended));
                self.links.log_writer.do_send(Finish {
                    id,
                    finished_at,
                    on_durable,
                });
            }
            Effect::StartDeadline => {
                if let Some(deadline) = self.deadline {
                    let remaining = deadline.saturating_duration_since(Instant::now());
                    // The event is made when it is due: kept, it takes as much room as the largest one.
                    ctx.run_later(remaining, |transaction, ctx| {
                        transaction.take(Event::DeadlinePassed, ctx);
                    });
                }
            }
            Effect::Answer(answer) => self.enlist_answer = Some(answer),
            Effect::Alarm(alarm) => self.raise(alarm),
        }
    }

    fn record(&mut self, decision: Decision, header: Arc<Header>) -> Record {
        let decided_at = wall_clock();
        self.milestones.decided_at = Some(decided_at);
        let finished_at = decision.is_finished_at_once().then_some(decided_at);
        if finished_at.is_some() {
            self.milestones.finished_at = finished_at;
        }
        Record {
            header,
            decision,
            decided_at,
            finished_at,
        }
    }

    fn raise(&self, alarm: Alarm) {
        let (transaction, trace_id) = (self.id(), &self.trace);
        match &alarm {
            Alarm::VoteLost(participant) => error!(
                %transaction, %participant, %trace_id,
                "a branch of a committed transaction answers vote-lost: its database may have lost a promise; the \
                 transaction stays committing until an operator resolves it"
            ),
            Alarm::OutcomeDiffers(participant) => error!(
                %transaction, %participant, %trace_id,
                "a branch answers outcome-differs: it ended the other way; the transaction stays unfinished until an \
                 operator resolves it"
            ),
            Alarm::VoteChanged(participant) => error!(
                %transaction, %participant, %trace_id,
                "a branch took back its yes: its database may have lost a promise"
            ),
            Alarm::BelowLowWater(participant) => error!(
                %transaction, %participant, %trace_id,
                "a participant refused a live prepare as below its low-water mark: the log may have gone back"
            ),
            Alarm::DecisionContradicted => error!(
                %transaction, %trace_id,
                "the log holds a commit of a transaction that this coordinator aborted: its branches need an operator"
            ),
        }
        self.links.metrics.alarmed(&alarm);
        self.links.registry.do_send(Noticed(alarm));
    }

    fn view(&self) -> TransactionView {
        TransactionView::of_live(&self.header, &self.machine, self.milestones)
    }

    fn has_reached(&self, until: Until) -> bool {
        match until {
            Until::Decided => self.machine.told().is_some(),
            Until::Applied => self.machine.is_applied(),
        }
    }

    fn somebody_waits_for_all(&self) -> bool {
        let mut waiters = self.waiters.iter();
        waiters.any(|(until, waiter)| *until == Until::Applied && !waiter.is_closed())
    }

    fn serve_waiters(&mut self) {
        if self.waiters.is_empty() || !self.has_reached(Until::Decided) {
            return;
        }
        let view = self.view();
        for (until, waiter) in std::mem::take(&mut self.waiters) {
            if self.has_reached(until) {
                // A client that went away needs no answer.
                waiter.send(view.clone()).ok();
            } else if !waiter.is_closed() {
                self.waiters.push((until, waiter));
            }
        }
    }

    fn report_progress(&mut self, ctx: &mut Context<Self>) {
        let progress = Progress {
            undecided: self.machine.is_undecided(),
            holds_low_water: self.machine.holds_low_water(),
            delivering_aborts: self.machine.is_delivering_aborts(),
            key_released: self.progress.key_released || self.machine.lost_its_key(),
        };
        if progress != self.progress {
            self.progress = progress;
            self.links.registry.do_send(Progressed {
                id: self.id(),
                progress,
            });
        }
        if !self.decision_logged && self.machine.told().is_some() {
            self.decision_logged = true;
            self.log_decision();
        }
        if self.machine.is_over() {
            self.links.registry.do_send(LeftMemory(self.id()));
            actix::ActorContext::stop(ctx);
        }
    }

    fn log_decision(&self) {
        let Some(decision) = self.machine.told() else {
            return;
        };
        let since_begin = self.begun.map(|begun| begun.elapsed());
        self.links.metrics.decided(&decision.verdict, since_begin);
        let (transaction, trace_id) = (self.id(), &self.trace);
        let outcome = decision.verdict.outcome().as_str();
        let reason = decision.verdict.reason();
        let participant = reason.and_then(|reason| reason.participant.as_ref());
        info!(
            %transaction, %trace_id, outcome,
            participant = participant.map(tracing::field::display),
            reason = reason.map(|reason| reason.code.as_str()),
            detail = reason.and_then(|reason| reason.detail.as_deref()),
            "decided"
        );
    }
}

/// How a completion comes back. It is owed by an address that keeps nobody alive, for the registry does that until the
/// transaction owes nothing; an [`Addr`] would be two allocations for each call that waits.
fn report(to: &WeakAddr<TransactionActor>, event: Event) {
    // Whoever was let go of is told nothing.
    if let Some(transaction) = to.upgrade() {
        transaction.do_send(Deliver(event));
    }
}

impl Actor for TransactionActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        let owed = std::mem::take(&mut self.owed);
        self.carry_out_all(owed, ctx);
    }
}

/// An event for the machine.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Deliver(pub Event);

impl Handler<Deliver> for TransactionActor {
    type Result = ();

    fn handle(&mut self, Deliver(event): Deliver, ctx: &mut Context<Self>) {
        self.take(event, ctx);
    }
}

/// Show the transaction as it stands.
#[derive(Message)]
#[rtype(result = "TransactionView")]
pub struct Show;

impl Handler<Show> for TransactionActor {
    type Result = actix::MessageResult<Show>;

    fn handle(&mut self, _: Show, _: &mut Context<Self>) -> Self::Result {
        actix::MessageResult(self.view())
    }
}

/// Show the transaction once it has come so far. The reply is dropped unanswered when the actor ends before.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Watch {
    /// How far.
    pub until: Until,
    /// Who waits.
    pub reply: oneshot::Sender<TransactionView>,
}

impl Handler<Watch> for TransactionActor {
    type Result = ();

    fn handle(&mut self, Watch { until, reply }: Watch, _: &mut Context<Self>) {
        if self.has_reached(until) {
            reply.send(self.view()).ok();
        } else {
            // Whoever gave up waiting makes room for the next.
            self.waiters.retain(|(_, waiter)| !waiter.is_closed());
            self.waiters.push((until, reply));
        }
    }
}

/// A participant in doubt asks for its branch.
#[derive(Message)]
#[rtype(result = "Inform")]
pub struct Inquire(pub ParticipantName);

impl Handler<Inquire> for TransactionActor {
    type Result = actix::MessageResult<Inquire>;

    fn handle(&mut self, Inquire(participant): Inquire, _: &mut Context<Self>) -> Self::Result {
        let inform = self.machine.inform(&participant);
        if inform == Inform::Pending && !self.machine.is_undecided() {
            warn_of_unknown_branch(self.id(), &participant);
        }
        actix::MessageResult(inform)
    }
}

/// Somebody in doubt names a branch that a committed transaction does not have (design rule 16).
pub(super) fn warn_of_unknown_branch(transaction: TransactionId, participant: &ParticipantName) {
    warn!(
        %transaction, %participant,
        "an inquiry names a branch that the committed transaction does not have: it is told pending; was the \
         participant renamed?"
    );
}

/// Somebody else drives the transaction from now on. Its record is durable, and answers for it here too.
#[derive(Message)]
#[rtype(result = "()")]
pub struct LetGo;

impl Handler<LetGo> for TransactionActor {
    type Result = ();

    fn handle(&mut self, _: LetGo, ctx: &mut Context<Self>) {
        actix::ActorContext::stop(ctx);
    }
}

/// Show the transaction as it stands, and whether a branch of it is in doubt.
#[derive(Message)]
#[rtype(result = "(TransactionView, bool)")]
pub struct ShowInList;

impl Handler<ShowInList> for TransactionActor {
    type Result = actix::MessageResult<ShowInList>;

    fn handle(&mut self, _: ShowInList, _: &mut Context<Self>) -> Self::Result {
        actix::MessageResult((self.view(), self.machine.is_in_doubt()))
    }
}

/// Look where the transaction stands, for a scrape.
#[derive(Message)]
#[rtype(result = "Sighting")]
pub struct Sight;

impl Handler<Sight> for TransactionActor {
    type Result = actix::MessageResult<Sight>;

    fn handle(&mut self, _: Sight, _: &mut Context<Self>) -> Self::Result {
        let decided_at = self.milestones.decided_at;
        let otherwise = decided_at.unwrap_or(self.header.created_at);
        actix::MessageResult(Sighting::of(&self.machine, &self.doubts, otherwise))
    }
}

/// Whether the transaction is unfinished and has a branch of this participant.
#[derive(Message)]
#[rtype(result = "bool")]
pub struct IsInUse(pub ParticipantName);

impl Handler<IsInUse> for TransactionActor {
    type Result = bool;

    fn handle(&mut self, IsInUse(name): IsInUse, _: &mut Context<Self>) -> Self::Result {
        let mut branches = self.machine.branches();
        self.machine.is_unfinished() && branches.any(|branch| *branch.participant == name)
    }
}

/// A client or a participant enlists a branch.
#[derive(Message)]
#[rtype(result = "EnlistOutcome")]
pub struct Enlist {
    /// Whose branch.
    pub participant: ParticipantName,
    /// What it is to do.
    pub operations: Operations,
    /// Set by a participant that enlists itself.
    pub session: Option<Session>,
}

/// What became of an [`Enlist`].
pub enum EnlistOutcome {
    /// It is enlisted.
    Enlisted {
        /// Now, or before.
        how: Enlisted,
        /// The branch, and what is left until the deadline.
        answer: EnlistAnswer,
    },
    /// It is not.
    Refused(EnlistRefused),
    /// Nobody registered that name.
    UnknownParticipant,
}

impl Handler<Enlist> for TransactionActor {
    type Result = actix::MessageResult<Enlist>;

    fn handle(&mut self, enlist: Enlist, ctx: &mut Context<Self>) -> Self::Result {
        let Enlist {
            participant,
            operations,
            session,
        } = enlist;
        if !self.links.couriers.is_registered(&participant) {
            return actix::MessageResult(EnlistOutcome::UnknownParticipant);
        }
        self.take(
            Event::Enlist {
                participant: participant.clone(),
                operations,
                session,
            },
            ctx,
        );
        let view = self.view();
        let branch = view
            .branches
            .iter()
            .find(|branch| branch.participant == participant)
            .cloned();
        let answer = match (self.enlist_answer.take(), branch) {
            (Some(Ok(how)), Some(branch)) => EnlistOutcome::Enlisted {
                how,
                answer: EnlistAnswer {
                    branch,
                    remaining_ms: self.remaining_ms(),
                },
            },
            (Some(Err(refused)), _) => EnlistOutcome::Refused(refused),
            (Some(Ok(_)) | None, _) => EnlistOutcome::Refused(EnlistRefused::NotActive),
        };
        actix::MessageResult(answer)
    }
}

/// What is left until the deadline; nothing for a transaction that a restart recovered.
#[derive(Message)]
#[rtype(result = "Duration")]
pub struct Remaining;

impl Handler<Remaining> for TransactionActor {
    type Result = actix::MessageResult<Remaining>;

    fn handle(&mut self, _: Remaining, _: &mut Context<Self>) -> Self::Result {
        let left = self
            .deadline
            .map(|at| at.saturating_duration_since(Instant::now()));
        actix::MessageResult(left.unwrap_or_default())
    }
}

impl TransactionActor {
    fn remaining_ms(&self) -> u64 {
        let remaining = self
            .deadline
            .map(|at| at.saturating_duration_since(Instant::now()));
        remaining.map_or(0, |left| {
            u64::try_from(left.as_millis()).unwrap_or(u64::MAX)
        })
    }
}

//! Group commit: all decisions that wait while a write is under way go into the next one, without a timer, so that an
//! idle coordinator adds no delay and a busy one shares its forced writes.
//!
//! What need not be forced rides along with the next decision write, or is written alone after [`APPEND_DELAY`].
//!
//! An unclear write is repeated, the same batch, until it is clear; nothing else is written before it (design rule 10).
//! Whoever proposed it waits: a decision that is not durable has no consequences. A write that the log refuses because
//! this life is over is not answered at all: see [`super::registry`].

mod batches;

use std::{sync::Arc, time::Duration};

use actix::{
    Actor, ActorFutureExt as _, Addr, AsyncContext as _, Context, Handler, Message, SpawnHandle,
    WrapFuture as _,
};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::{error, warn};
use unanimous_protocol::{
    id::TransactionId,
    life::Writer,
    record::{Record, Standing, WallMillis},
};

pub use self::batches::BATCH_MAX;
use self::batches::{Batches, Unforced};
use super::{
    broken,
    registry::{LogAnswers, LogRefused, Registry},
};
use crate::{
    crash,
    log::{Batch, Decided, DecisionLog, WriteError},
    metrics::Metrics,
    telemetry::chain,
};

/// How long an unforced record waits for a decision write to ride with.
pub const APPEND_DELAY: Duration = Duration::from_millis(100);
/// How often a write is put off while each turn of the other actors brings more decisions. It bounds what one decision
/// waits for others that never stop coming: some passes over the run queue, and no time when that is empty.
const GATHERING_TURNS_MAX: u32 = 16;

/// A write that has not returned by then counts as a log that does not answer: a disk that hangs returns no error.
const SILENCE_MAX: Duration = Duration::from_secs(2);
const RETRY_FIRST: Duration = Duration::from_millis(20);
const RETRY_LONGEST: Duration = Duration::from_secs(1);

/// A decision to force.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Propose {
    /// The record.
    pub record: Record,
    /// Called once it is durable which decision stands.
    pub on_durable: Box<dyn FnOnce(Standing) + Send>,
}

/// A record that is not forced.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Append {
    /// The record.
    pub record: Record,
    /// Called once it has become durable.
    pub on_durable: Box<dyn FnOnce() + Send>,
}

/// A finish, which is not forced either.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Finish {
    /// The transaction whose last updating branch acknowledged.
    pub id: TransactionId,
    /// When.
    pub finished_at: WallMillis,
    /// Called once it has become durable.
    pub on_durable: Box<dyn FnOnce() + Send>,
}

/// Write all that waits, and tell: nothing more is coming.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Flush(pub oneshot::Sender<()>);

/// Write what waits, though no decision came to ride with.
#[derive(Message)]
#[rtype(result = "()")]
struct AppendDue;

/// The write under way takes longer than [`SILENCE_MAX`].
#[derive(Message)]
#[rtype(result = "()")]
struct StillWriting;

/// A write ended.
struct Written {
    batch: Batch,
    result: Result<Option<Decided>, WriteError>,
    took: Duration,
}

/// The only writer of this life's decisions.
pub struct LogWriter {
    log: Arc<dyn DecisionLog>,
    writer: Writer,
    registry: Addr<Registry>,
    metrics: Arc<Metrics>,
    batches: Batches,
    append_timer: bool,
    failures: u32,
    /// Goes off when the write under way takes too long.
    watchdog: Option<SpawnHandle>,
    /// Whether the others are having a turn before the next write.
    gathering: bool,
    /// What the registry was told last.
    log_answers: bool,
}

impl LogWriter {
    /// The writer of the life that `writer` names.
    #[must_use]
    pub fn new(
        log: Arc<dyn DecisionLog>,
        writer: Writer,
        registry: Addr<Registry>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            log,
            writer,
            registry,
            metrics,
            batches: Batches::new(BATCH_MAX),
            append_timer: false,
            failures: 0,
            watchdog: None,
            gathering: false,
            log_answers: true,
        }
    }

    /// Writes once the other actors of this thread have had a turn, and again as long as each turn brings more: what is
    /// ready now shares the write, and no time is waited for.
    fn write_soon(&mut self, ctx: &mut Context<Self>) {
        if !self.batches.is_writing() && !self.gathering {
            self.gathering = true;
            self.give_a_turn(GATHERING_TURNS_MAX, ctx);
        }
    }

    fn give_a_turn(&mut self, turns_left: u32, ctx: &mut Context<Self>) {
        let waited = self.batches.waiting();
        // Not `notify`: this actor would handle the message before it returns to the scheduler.
        let turn = tokio::task::yield_now().into_actor(self);
        ctx.spawn(turn.map(move |(), actor, ctx| {
            // A turn for other threads as well, which bring what the actors have a turn for; nothing where none is ready.
            std::thread::yield_now();
            let waiting = actor.batches.waiting();
            if waiting > waited && waiting < BATCH_MAX && turns_left > 0 {
                actor.give_a_turn(turns_left - 1, ctx);
            } else {
                actor.gathering = false;
                actor.write_if_idle(ctx);
            }
        }));
    }

    fn write_if_idle(&mut self, ctx: &mut Context<Self>) {
        if let Some(batch) = self.batches.next() {
            self.write(batch, Duration::ZERO, ctx);
        }
    }

    fn write(&mut self, batch: Batch, after: Duration, ctx: &mut Context<Self>) {
        let (log, writer) = (Arc::clone(&self.log), self.writer);
        let write = async move {
            if !after.is_zero() {
                tokio::time::sleep(after).await;
            }
            let began = Instant::now();
            let result = if batch.proposals.is_empty() {
                crash::point("append-before");
                let appended = log.append(&writer, &batch.appends).await;
                crash::point("append-after");
                appended.map(|()| None)
            } else {
                crash::point("decision-before");
                let decided = log.decide(&writer, &batch).await;
                crash::point("decision-after");
                decided.map(Some)
            };
            Written {
                batch,
                result,
                took: began.elapsed(),
            }
        };
        self.watchdog = Some(ctx.notify_later(StillWriting, after + SILENCE_MAX));
        ctx.spawn(
            write
                .into_actor(self)
                .map(|written, actor, ctx| actor.written(written, ctx)),
        );
    }

    fn written(&mut self, written: Written, ctx: &mut Context<Self>) {
        let Written {
            batch,
            result,
            took,
        } = written;
        if let Some(watchdog) = self.watchdog.take() {
            ctx.cancel_future(watchdog);
        }
        match result {
            Ok(decided) => {
                self.failures = 0;
                let unforced = batch.appends.records.len() + batch.appends.finishes.len();
                let log = &self.metrics.log;
                log.written(batch.proposals.len(), unforced, took);
                self.answers(true);
                self.answer(decided);
                self.write_soon(ctx);
            }
            Err(WriteError::Unavailable(cause)) => {
                self.metrics.log.unclear();
                if self.failures == 0 {
                    warn!(
                        error = %chain(&*cause), decisions = batch.proposals.len(),
                        "the decision log does not answer: the write is repeated until it does"
                    );
                }
                self.answers(false);
                let after = RETRY_LONGEST.min(RETRY_FIRST * 2_u32.pow(self.failures.min(10)));
                self.failures = self.failures.saturating_add(1);
                self.write(batch, after, ctx);
            }
            Err(refused @ (WriteError::Fenced(_) | WriteError::WentBack(_))) => {
                // This life decides nothing more. What was proposed stays undecided here, whatever the log holds.
                self.registry.do_send(LogRefused);
                warn!(
                    error = %chain(&refused),
                    "the log takes no decision of this life"
                );
            }
            Err(WriteError::Broken(cause)) => {
                // After a failed fsync pages may look written and never be: only a new process may read the log.
                broken(&*cause);
            }
        }
    }

    /// Tells the registry when the log begins or ceases to take writes.
    fn answers(&mut self, answers: bool) {
        if self.log_answers != answers {
            self.log_answers = answers;
            self.registry.do_send(LogAnswers(answers));
        }
    }

    fn answer(&mut self, decided: Option<Decided>) {
        let standings = decided.map_or_else(Vec::new, |decided| {
            self.writer.decisions_at_least = decided.decisions;
            self.registry
                .do_send(super::registry::Decided(decided.decisions));
            let standings = decided.standings.into_iter();
            let standings = standings.map(|standing| {
                standing.unwrap_or_else(|refused| {
                    error!(
                        transaction = %refused.transaction, error = %chain(&refused),
                        "a decision could not be stored"
                    );
                    Standing::Refused(refused.to_string())
                })
            });
            standings.collect()
        });
        self.batches.durable(standings);
    }

    fn append_due_soon(&mut self, ctx: &mut Context<Self>) {
        if !self.append_timer {
            self.append_timer = true;
            ctx.notify_later(AppendDue, APPEND_DELAY);
        }
    }
}

impl Actor for LogWriter {
    type Context = Context<Self>;
}

impl Handler<Propose> for LogWriter {
    type Result = ();

    fn handle(&mut self, Propose { record, on_durable }: Propose, ctx: &mut Context<Self>) {
        self.batches.propose(record, on_durable);
        self.write_soon(ctx);
    }
}

impl Handler<Append> for LogWriter {
    type Result = ();

    fn handle(&mut self, Append { record, on_durable }: Append, ctx: &mut Context<Self>) {
        self.batches.append(Unforced::Record(record), on_durable);
        self.append_due_soon(ctx);
    }
}

impl Handler<Finish> for LogWriter {
    type Result = ();

    fn handle(
        &mut self,
        Finish {
            id,
            finished_at,
            on_durable,
        }: Finish,
        ctx: &mut Context<Self>,
    ) {
        self.batches
            .append(Unforced::Finish(id, finished_at), on_durable);
        self.append_due_soon(ctx);
    }
}

impl Handler<Flush> for LogWriter {
    type Result = ();

    fn handle(&mut self, Flush(flushed): Flush, ctx: &mut Context<Self>) {
        self.batches.flush(flushed);
        self.write_if_idle(ctx);
    }
}

impl Handler<StillWriting> for LogWriter {
    type Result = ();

    fn handle(&mut self, _: StillWriting, _: &mut Context<Self>) {
        warn!("the decision log has not answered a write for {SILENCE_MAX:?}: it is waited for");
        self.answers(false);
    }
}

impl Handler<AppendDue> for LogWriter {
    type Result = ();

    fn handle(&mut self, _: AppendDue, ctx: &mut Context<Self>) {
        self.append_timer = false;
        if self.batches.append_due() {
            self.write_if_idle(ctx);
        }
    }
}

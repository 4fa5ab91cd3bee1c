//! One run of a batch: the rows, the service's code, and whether all came as was hoped.

use std::{
    collections::HashSet,
    future::Future as _,
    future::poll_fn,
    pin::pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::Duration,
};

use deadpool_postgres::ClientWrapper;
use futures_util::future::join_all;
use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};
use tracing::{Instrument as _, Span};
use unanimous_protocol::{
    branch::{Answer, Event, State},
    id::{BranchId, TransactionId},
    low_water,
    message::Vote,
    operations::BodyDigest,
    together::{Asks, Hope, any_forced},
};

use crate::{
    intent_log::{
        LogError,
        together::{Begun, Committed, Ending, Line, New, Promised},
    },
    lane::{Message, Waiting, promises::Promise},
    service::{Failed, Service, Voted, Work},
    tx::{Gate, Tx},
};

/// A commit that has not come back by then is unclear.
const COMMIT_MAX: Duration = Duration::from_secs(30);

/// A message that takes part in a batch.
pub(super) struct Going {
    pub(super) branch: BranchId,
    pub(super) message: Message,
    pub(super) answer: oneshot::Sender<Option<Answer>>,
    span: Span,
    /// For an outcome: what was promised, where this process knows.
    promise: Option<Arc<Promise>>,
    /// It gets a turn of its own: its code needs more than one statement.
    pub(super) in_turn: bool,
    /// Its code asked for more than one statement beside others.
    pub(super) wanted_more: bool,
    /// It was not done in time.
    pub(super) slow: bool,
    /// The places of the operations that voted yes.
    pub(super) voted: Vec<i32>,
}

impl Going {
    pub(super) fn new(waiting: Waiting, promise: Option<Arc<Promise>>, in_turn: bool) -> Self {
        let Waiting {
            branch,
            message,
            span,
            answer,
            ..
        } = waiting;
        let count = match &message {
            Message::Prepare { work, .. } => work.count(),
            Message::Outcome(_) => promise.as_ref().map_or(1, |promise| promise.work.count()),
        };
        Self {
            branch,
            message,
            answer,
            span,
            promise,
            in_turn: in_turn || count > 1,
            wanted_more: false,
            slow: false,
            voted: Vec::new(),
        }
    }
}

/// How a run ended.
pub(super) enum Ran {
    /// Committed; what became of each, in the batch's order.
    Committed(Vec<Ended>),
    /// To be rolled back, and run again without those at these places.
    Without(HashSet<usize>),
    /// The line is no good, or whether it was committed, nobody knows.
    Broken,
}

impl Ran {
    /// Where nobody knows whose fault it was.
    fn without_anybody(going: &[Going]) -> Self {
        Self::Without((0..going.len()).collect())
    }
}

/// What became of one message of a run that was committed.
pub(super) enum Ended {
    Answered(Option<Answer>),
    /// It found nothing to do and did nothing: it goes alone.
    Skipped,
}

/// What the service's code is to do for one branch, and what came of it.
struct Task<'a> {
    branch: &'a BranchId,
    asks: Asks,
    work: Arc<dyn Work>,
    voted_yes: Vec<i32>,
    span: &'a Span,
    gate: Gate,
    started: AtomicBool,
    end: OnceLock<Result<Voted, Failed>>,
}

impl Task<'_> {
    async fn run(&self, connection: &ClientWrapper) {
        self.started.store(true, Ordering::Relaxed);
        let mut tx = Tx::gated(connection, self.branch, &self.gate);
        let done = || Voted {
            vote: Vote::Yes,
            yes: Vec::new(),
        };
        let running: crate::service::Run<'_, Voted> = match self.asks {
            Asks::Work => self.work.prepare(&mut tx),
            Asks::Apply => {
                let running = self.work.commit(&self.voted_yes, &mut tx);
                Box::pin(async move { running.await.map(|()| done()) })
            }
            Asks::Undo => {
                let running = self.work.abort(&self.voted_yes, &mut tx);
                Box::pin(async move { running.await.map(|()| done()) })
            }
        };
        let mut running = pin!(running.instrument(self.span.clone()));
        let end = poll_fn(|context| match running.as_mut().poll(context) {
            Poll::Ready(end) => Poll::Ready(Some(end)),
            Poll::Pending if self.gate.wants_more() || self.gate.wants_its_own() => {
                Poll::Ready(None)
            }
            Poll::Pending => Poll::Pending,
        });
        if let Some(end) = end.await {
            // Set once: a task runs once.
            drop(self.end.set(end));
        }
    }
}

/// Runs all of them in one local transaction, up to `by`.
pub(super) async fn run(
    line: &Line,
    service: &dyn Service,
    going: &mut [Going],
    by: Instant,
) -> Ran {
    let neighbours = going.len() > 1;
    for going in going.iter_mut() {
        going.in_turn &= neighbours;
        going.slow = false;
        going.wanted_more = false;
    }
    let mut hopes = match hopes(going) {
        Ok(hopes) => hopes,
        Err(hopeless) => return Ran::Without(hopeless),
    };
    let early = known_tasks(going, &hopes);
    let begun = match begin(line, going, &hopes, &early, by).await {
        Ok(begun) => begun,
        Err(ran) => return ran,
    };
    let late = match found_tasks(service, going, &mut hopes, &begun) {
        Ok(late) => late,
        Err(out) => return Ran::Without(out),
    };
    let tasks = early.into_iter().zip(late);
    let tasks: Vec<Option<Task<'_>>> = tasks.map(|(early, late)| early.or(late)).collect();
    drop(timeout_at(by, run_the_rest(line, going, &tasks)).await);

    let judged = judge(&tasks, hopes);
    drop(tasks);
    for (at, going) in going.iter_mut().enumerate() {
        going.slow = judged.slow.contains(&at);
        going.wanted_more = judged.wanted_more.contains(&at);
        going.in_turn |= going.wanted_more;
    }
    match judged.good {
        Some(good) => {
            for (going, yes) in going.iter_mut().zip(&good.voted) {
                going.voted.clone_from(yes);
            }
            commit(line, &begun, going, good).await
        }
        None => {
            if judged.failed {
                // A statement prepared before a schema change may be what failed.
                line.forget_statements();
            }
            if judged.out.is_empty() && judged.wanted_more.is_empty() {
                return Ran::without_anybody(going);
            }
            Ran::Without(judged.out)
        }
    }
}

/// What is hoped of each; or those of whom there is no hope.
fn hopes(going: &[Going]) -> Result<Vec<Hope>, HashSet<usize>> {
    let hopes: Vec<Option<Hope>> = going.iter().map(hope).collect();
    let hopeless: HashSet<usize> = (0..hopes.len()).filter(|&at| hopes[at].is_none()).collect();
    if hopeless.is_empty() {
        Ok(hopes.into_iter().flatten().collect())
    } else {
        Err(hopeless)
    }
}

/// What the service's code is to do where that is known before the rows are.
fn known_tasks<'a>(going: &'a [Going], hopes: &[Hope]) -> Vec<Option<Task<'a>>> {
    let neighbours = going.len() > 1;
    let known = |(going, hope): (&'a Going, &Hope)| {
        let (work, voted_yes) = match (&going.message, &going.promise) {
            (Message::Prepare { work, .. }, _) => (Arc::clone(work), Vec::new()),
            (Message::Outcome(_), Some(promise)) => {
                (Arc::clone(&promise.work), promise.voted_yes.clone())
            }
            (Message::Outcome(_), None) => return None,
        };
        Some(task(going, hope.asks(), work, voted_yes, neighbours))
    };
    going.iter().zip(hopes).map(known).collect()
}

/// Begins and writes the rows; what is known already travels right behind them.
async fn begin(
    line: &Line,
    going: &[Going],
    hopes: &[Hope],
    tasks: &[Option<Task<'_>>],
    by: Instant,
) -> Result<Begun, Ran> {
    let (new, ending) = rows(going, hopes);
    let early = async {
        let beside = going
            .iter()
            .zip(tasks)
            .filter(|(going, _)| !going.in_turn)
            .filter_map(|(_, task)| task.as_ref());
        join_all(beside.map(|task| task.run(line.connection()))).await;
    };
    let began = line.begin(&new, &ending, async {
        // Who is late is found by what is missing.
        drop(timeout_at(by, early).await);
    });
    match timeout_at(by, began).await {
        Ok(Ok((begun, ()))) => Ok(begun),
        Ok(Err(LogError::Busy(error))) => {
            tracing::debug!(%error, "a batch met a lock; its messages go alone");
            Err(Ran::without_anybody(going))
        }
        Ok(Err(error)) => {
            tracing::debug!(%error, "a batch could not begin; its messages go alone");
            Err(Ran::Broken)
        }
        Err(_elapsed) => Err(Ran::without_anybody(going)),
    }
}

/// What there is to do where it had to be read; or those whose rows are not as was hoped.
fn found_tasks<'a>(
    service: &dyn Service,
    going: &'a [Going],
    hopes: &mut [Hope],
    begun: &Begun,
) -> Result<Vec<Option<Task<'a>>>, HashSet<usize>> {
    let neighbours = going.len() > 1;
    let mut out = HashSet::new();
    let mut tasks: Vec<Option<Task<'_>>> = going.iter().map(|_| None).collect();
    for (at, going) in going.iter().enumerate() {
        match as_hoped(service, going, &hopes[at], begun) {
            Found::AsHoped => {}
            Found::Read { work, promised } => {
                let event = event(&going.message);
                let row = State::Prepared {
                    digest: promised.digest,
                };
                let Some(hope) = Hope::of(row, event) else {
                    out.insert(at);
                    continue;
                };
                let voted_yes = promised.voted_yes.clone();
                tasks[at] = Some(task(going, hope.asks(), work, voted_yes, neighbours));
                hopes[at] = hope;
            }
            // Nothing of it has run.
            Found::Nothing => {}
            Found::Otherwise => {
                out.insert(at);
            }
        }
    }
    if out.is_empty() { Ok(tasks) } else { Err(out) }
}

/// What had to be read, side by side; then those that have a turn of their own.
async fn run_the_rest(line: &Line, going: &[Going], tasks: &[Option<Task<'_>>]) {
    let asked = || {
        let asked = going.iter().zip(tasks);
        asked.filter_map(|(going, task)| Some((going, task.as_ref()?)))
    };
    let unread = |(going, task): &(&Going, &Task<'_>)| {
        !going.in_turn && going.promise.is_none() && task.asks != Asks::Work
    };
    let beside = asked().filter(unread);
    join_all(beside.map(|(_, task)| task.run(line.connection()))).await;
    for (_, task) in asked().filter(|(going, _)| going.in_turn) {
        task.run(line.connection()).await;
    }
}

/// What became of all of them.
struct Judged {
    /// Where all ended as was hoped.
    good: Option<Good>,
    /// Who goes alone.
    out: HashSet<usize>,
    slow: HashSet<usize>,
    wanted_more: HashSet<usize>,
    /// Whether a statement failed.
    failed: bool,
}

/// What is committed, and then told; each in the batch's order.
struct Good {
    ended: Vec<Ended>,
    voted: Vec<Vec<i32>>,
    /// What is written, of those that are not skipped.
    states: Vec<State>,
    forced: bool,
}

fn judge(tasks: &[Option<Task<'_>>], hopes: Vec<Hope>) -> Judged {
    let failed = tasks.iter().flatten().any(|task| task.gate.has_failed());
    let mut judged = Judged {
        good: None,
        out: HashSet::new(),
        slow: HashSet::new(),
        wanted_more: HashSet::new(),
        failed,
    };
    let mut ends = Vec::with_capacity(hopes.len());
    let mut good = Good {
        ended: Vec::with_capacity(hopes.len()),
        voted: Vec::with_capacity(hopes.len()),
        states: Vec::with_capacity(hopes.len()),
        forced: false,
    };
    let mut dragged = false;
    for (at, (how, hope)) in ended(tasks, failed).into_iter().zip(hopes).enumerate() {
        match how {
            How::Done(event, yes) => {
                let state = hope.stores().clone();
                if let Some(end) = hope.ends(event) {
                    good.ended.push(Ended::Answered(end.answer.clone()));
                    good.states.push(state);
                    good.voted.push(yes);
                    ends.push(end);
                } else {
                    judged.out.insert(at);
                }
            }
            How::Skipped => {
                good.ended.push(Ended::Skipped);
                good.voted.push(Vec::new());
            }
            How::WantsMore => {
                judged.wanted_more.insert(at);
            }
            How::Late => {
                judged.slow.insert(at);
                judged.out.insert(at);
            }
            How::Failed => {
                judged.out.insert(at);
            }
            How::Dragged => dragged = true,
        }
    }
    good.forced = any_forced(&ends);
    if !dragged && judged.out.is_empty() && judged.wanted_more.is_empty() {
        judged.good = Some(good);
    }
    judged
}

async fn commit(line: &Line, begun: &Begun, going: &[Going], good: Good) -> Ran {
    let corrected: Vec<(&BranchId, &[i32])> = going
        .iter()
        .filter_map(|going| match &going.message {
            Message::Prepare { work, .. } if going.voted.len() != work.count() => {
                Some((&going.branch, going.voted.as_slice()))
            }
            Message::Prepare { .. } | Message::Outcome(_) => None,
        })
        .collect();
    let states: Vec<&State> = good.states.iter().collect();
    // Never cancelled and never hurried: from here on only the database knows (design rule 10).
    let committing = line.commit(begun, &corrected, &states, good.forced);
    match tokio::time::timeout(COMMIT_MAX, committing).await {
        Ok(Ok(Committed::All)) => Ran::Committed(good.ended),
        Ok(Ok(Committed::Nothing { marks })) => Ran::Without(below(&marks, going)),
        Ok(Err(error)) => {
            tracing::debug!(%error, "a batch was not committed, or nobody knows; its messages go alone");
            Ran::Broken
        }
        Err(_elapsed) => Ran::Broken,
    }
}

/// The prepares of which a mark says that they come too late. Where there is none, nobody knows why the commit was stopped.
fn below(marks: &[TransactionId], going: &[Going]) -> HashSet<usize> {
    let is_below = |going: &Going| {
        let id = going.branch.transaction;
        let is_prepare = matches!(going.message, Message::Prepare { .. });
        is_prepare
            && marks
                .iter()
                .any(|mark| low_water::above(id, Some(*mark)).is_some())
    };
    let below: HashSet<usize> = (0..going.len())
        .filter(|&at| is_below(&going[at]))
        .collect();
    if below.is_empty() {
        (0..going.len()).collect()
    } else {
        below
    }
}

/// The event that a message brings.
fn event(message: &Message) -> Event {
    match message {
        Message::Prepare { operations, .. } => Event::PrepareReceived {
            digest: operations.digest(),
            session: None,
            in_time: true,
        },
        Message::Outcome(event) => event.clone(),
    }
}

fn hope(going: &Going) -> Option<Hope> {
    let row = match &going.message {
        Message::Prepare { .. } => State::Absent,
        Message::Outcome(_) => State::Prepared {
            // Without a promise only the kind of end is looked at, until the row has been read.
            digest: going
                .promise
                .as_ref()
                .map_or(BodyDigest([0; 32]), |promise| promise.digest),
        },
    };
    Hope::of(row, event(&going.message))
}

fn task<'a>(
    going: &'a Going,
    asks: Asks,
    work: Arc<dyn Work>,
    voted_yes: Vec<i32>,
    neighbours: bool,
) -> Task<'a> {
    Task {
        branch: &going.branch,
        span: &going.span,
        asks,
        work,
        voted_yes,
        gate: if neighbours && !going.in_turn {
            Gate::beside_others()
        } else {
            Gate::default()
        },
        started: AtomicBool::new(false),
        end: OnceLock::new(),
    }
}

fn rows<'a>(going: &'a [Going], hopes: &'a [Hope]) -> (Vec<New<'a>>, Vec<Ending<'a>>) {
    let mut new = Vec::new();
    let mut ending = Vec::new();
    for (going, hope) in going.iter().zip(hopes) {
        match &going.message {
            Message::Prepare {
                operations, work, ..
            } => new.push(New {
                branch: &going.branch,
                operations,
                state: hope.stores(),
                count: work.count(),
            }),
            Message::Outcome(_) => ending.push(Ending {
                branch: &going.branch,
                state: hope.stores(),
                known: going.promise.is_some(),
            }),
        }
    }
    (new, ending)
}

enum Found {
    AsHoped,
    /// In doubt, and its operations had to be read.
    Read {
        work: Arc<dyn Work>,
        promised: Promised,
    },
    /// No row of it is in doubt, and its code has not run.
    Nothing,
    Otherwise,
}

fn as_hoped(service: &dyn Service, going: &Going, hope: &Hope, begun: &Begun) -> Found {
    match &going.message {
        Message::Prepare { .. } => {
            let transaction = going.branch.transaction;
            // Where a mark speaks of it, the commit fails.
            let row = State::without_row(transaction, None, None);
            if begun.inserted.contains(&going.branch) && hope.is_of(&row) {
                Found::AsHoped
            } else {
                Found::Otherwise
            }
        }
        Message::Outcome(_) => {
            let Some(promised) = begun.ended.get(&going.branch) else {
                return if going.promise.is_some() {
                    Found::Otherwise
                } else {
                    Found::Nothing
                };
            };
            if let Some(promise) = &going.promise {
                let row = State::Prepared {
                    digest: promised.digest,
                };
                let same = hope.is_of(&row)
                    && promised.added.is_none()
                    && promised.voted_yes == promise.voted_yes;
                return if same {
                    Found::AsHoped
                } else {
                    Found::Otherwise
                };
            }
            let operations = promised.operations.as_deref().unwrap_or("[]");
            let read = match &promised.added {
                Some(added) => service.read(&[operations, added]),
                None => service.read(&[operations]),
            };
            match read {
                Ok(work) => Found::Read {
                    work: Arc::from(work),
                    promised: promised.clone(),
                },
                Err(_) => Found::Otherwise,
            }
        }
    }
}

/// How the service's code ended for one branch.
enum How {
    /// What happened, and which operations voted yes.
    Done(Event, Vec<i32>),
    /// There was nothing to do.
    Skipped,
    WantsMore,
    Late,
    /// By itself.
    Failed,
    /// Not at all, because of somebody else.
    Dragged,
}

fn ended(tasks: &[Option<Task<'_>>], somebody_failed: bool) -> Vec<How> {
    let mut somebody_late = false;
    let mut end = |task: &Task<'_>| {
        // Also where its code went on and said yes.
        if task.gate.has_failed() || task.gate.wants_its_own() {
            return How::Failed;
        }
        if task.gate.wants_more() {
            return How::WantsMore;
        }
        match task.end.get() {
            // Statements are carried out one after the other: whoever was sent behind the late one is not late.
            None if somebody_failed || somebody_late || !task.started.load(Ordering::Relaxed) => {
                How::Dragged
            }
            None => {
                somebody_late = true;
                How::Late
            }
            Some(Err(_)) if somebody_failed => How::Dragged,
            Some(Err(_)) => How::Failed,
            Some(Ok(voted)) => {
                let event = match task.asks {
                    Asks::Work => Event::Worked(voted.vote.clone()),
                    Asks::Apply => Event::Applied,
                    Asks::Undo => Event::Undone,
                };
                How::Done(event, voted.yes.clone())
            }
        }
    };
    let ended = tasks
        .iter()
        .map(|task| task.as_ref().map_or(How::Skipped, &mut end));
    ended.collect()
}

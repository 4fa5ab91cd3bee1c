//! One run of a batch: the rows, the service's code, and whether all came as was hoped.

use std::{
    collections::HashSet,
    future::poll_fn,
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
use unanimous_protocol::{
    branch::{Answer, Branch, Effect, Event, State},
    id::BranchId,
    message::Vote,
    operations::BodyDigest,
};

use crate::{
    intent_log::together::{Begun, Ending, Line, New, Promised},
    lane::{Message, promises::Promise},
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
    pub(super) fn new(
        branch: BranchId,
        message: Message,
        answer: oneshot::Sender<Option<Answer>>,
        promise: Option<Arc<Promise>>,
        in_turn: bool,
    ) -> Self {
        let count = match &message {
            Message::Prepare { work, .. } => work.count(),
            Message::Outcome(_) => promise.as_ref().map_or(1, |promise| promise.work.count()),
        };
        Self {
            branch,
            message,
            answer,
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
    /// Committed; the answers, in the batch's order.
    Committed(Vec<Option<Answer>>),
    /// To be rolled back, and run again without those at these places.
    Without(HashSet<usize>),
    /// Whether it was committed, nobody knows.
    Unclear,
}

/// A branch's machine, one step into its message, and the end that is hoped for.
struct Hope {
    machine: Branch,
    asks: Asks,
    state: State,
}

/// What the machine wants done.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asks {
    Work,
    Apply,
    Undo,
}

impl Asks {
    /// The event of having done it, where nothing stands against it.
    fn done(self) -> Event {
        match self {
            Self::Work => Event::Worked(Vote::Yes),
            Self::Apply => Event::Applied,
            Self::Undo => Event::Undone,
        }
    }
}

impl Hope {
    /// `None` where the machine wants anything else than to have one thing done: that goes alone.
    fn of(row: State, event: Event) -> Option<Self> {
        let mut machine = Branch::from_row(row);
        let mut effects = Vec::new();
        machine.step(event, &mut effects);
        let asks = match effects.as_slice() {
            [Effect::Work] => Asks::Work,
            [Effect::Apply] => Asks::Apply,
            [Effect::Undo] => Asks::Undo,
            _ => return None,
        };
        let mut ahead = machine.clone();
        effects.clear();
        ahead.step(asks.done(), &mut effects);
        let state = effects.into_iter().find_map(|effect| match effect {
            Effect::Store(state) => Some(state),
            Effect::Work
            | Effect::Apply
            | Effect::Undo
            | Effect::RollBackWork
            | Effect::ReleaseKeys
            | Effect::Answer { .. } => None,
        })?;
        Some(Self {
            machine,
            asks,
            state,
        })
    }

    /// The answer, and whether its commit is to be forced; `None` where it is not the end that was hoped for.
    fn ends(mut self, event: Event) -> Option<(Option<Answer>, bool)> {
        let mut effects = Vec::new();
        self.machine.step(event, &mut effects);
        let mut stored = None;
        let mut answer = None;
        let mut is_forced = false;
        for effect in effects {
            match effect {
                Effect::Store(state) => stored = Some(state),
                Effect::Answer { reply, forced } => {
                    answer = Some(reply);
                    is_forced = forced;
                }
                // It holds none: those that do go alone.
                Effect::ReleaseKeys => {}
                Effect::Work | Effect::Apply | Effect::Undo | Effect::RollBackWork => return None,
            }
        }
        (stored.as_ref() == Some(&self.state)).then_some((answer, is_forced))
    }
}

/// What the service's code is to do for one branch, and what came of it.
struct Task<'a> {
    branch: &'a BranchId,
    asks: Asks,
    work: Arc<dyn Work>,
    voted_yes: Vec<i32>,
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
        let mut running: crate::service::Run<'_, Voted> = match self.asks {
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
        let end = poll_fn(|context| match running.as_mut().poll(context) {
            Poll::Ready(end) => Poll::Ready(Some(end)),
            Poll::Pending if self.gate.wants_more() => Poll::Ready(None),
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
    let everybody: HashSet<usize> = (0..going.len()).collect();
    let mut hopes = Vec::with_capacity(going.len());
    for going in going.iter() {
        hopes.push(hope(going));
    }
    let hopeless: HashSet<usize> = (0..going.len()).filter(|&at| hopes[at].is_none()).collect();
    if !hopeless.is_empty() {
        return Ran::Without(hopeless);
    }
    let mut hopes: Vec<Hope> = hopes.into_iter().flatten().collect();

    let neighbours = going.len() > 1;
    let tasks: Vec<Option<Task<'_>>> = going
        .iter()
        .zip(&hopes)
        .map(|(going, hope)| {
            let (work, voted_yes) = match (&going.message, &going.promise) {
                (Message::Prepare { work, .. }, _) => (Arc::clone(work), Vec::new()),
                (Message::Outcome(_), Some(promise)) => {
                    (Arc::clone(&promise.work), promise.voted_yes.clone())
                }
                (Message::Outcome(_), None) => return None,
            };
            Some(task(going, hope.asks, work, voted_yes, neighbours))
        })
        .collect();

    let (new, ending) = rows(going, &hopes);
    let connection = line.connection();
    // What is known already travels right behind the rows.
    let early = async {
        let beside = going
            .iter()
            .zip(&tasks)
            .filter(|(going, _)| !neighbours || !going.in_turn)
            .filter_map(|(_, task)| task.as_ref());
        join_all(beside.map(|task| task.run(connection))).await;
    };
    let began = line.begin(&new, &ending, async {
        // Who is late is found by what is missing.
        drop(timeout_at(by, early).await);
    });
    let begun = match timeout_at(by, began).await {
        Ok(Ok((begun, ()))) => begun,
        Ok(Err(error)) => {
            tracing::debug!(%error, "a batch could not begin; its messages go alone");
            line.forget_statements();
            return Ran::Without(everybody);
        }
        Err(_elapsed) => return Ran::Without(everybody),
    };

    drop((new, ending));
    let mut out = HashSet::new();
    let mut late: Vec<Option<Task<'_>>> = going.iter().map(|_| None).collect();
    for (at, going) in going.iter().enumerate() {
        match as_hoped(service, going, &begun) {
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
                late[at] = Some(task(going, hope.asks, work, voted_yes, neighbours));
                hopes[at] = hope;
            }
            Found::Otherwise => {
                out.insert(at);
            }
        }
    }
    if !out.is_empty() {
        return Ran::Without(out);
    }
    let tasks: Vec<Task<'_>> = tasks
        .into_iter()
        .zip(late)
        .filter_map(|(early, late)| early.or(late))
        .collect();
    let rest = async {
        let unread = |(going, task): &(&Going, &Task<'_>)| {
            !going.in_turn && going.promise.is_none() && task.asks != Asks::Work
        };
        let beside = going.iter().zip(&tasks).filter(unread);
        join_all(beside.map(|(_, task)| task.run(connection))).await;
        if neighbours {
            for (_, task) in going.iter().zip(&tasks).filter(|(going, _)| going.in_turn) {
                task.run(connection).await;
            }
        }
    };
    drop(timeout_at(by, rest).await);

    let somebody_failed = tasks.iter().any(|task| task.gate.has_failed());
    let ended = ended(&tasks, somebody_failed);
    let mut answers = Vec::with_capacity(going.len());
    let mut states = Vec::with_capacity(going.len());
    let mut forced = false;
    let mut voted: Vec<Vec<i32>> = Vec::with_capacity(going.len());
    let mut again = false;
    let mut slow = HashSet::new();
    let mut wanted_more = HashSet::new();
    for (at, (end, hope)) in ended.into_iter().zip(hopes).enumerate() {
        match end {
            End::Done(event, yes) => {
                let state = hope.state.clone();
                match hope.ends(event) {
                    Some((answer, is_forced)) => {
                        answers.push(answer);
                        states.push(state);
                        voted.push(yes);
                        forced |= is_forced;
                    }
                    None => {
                        out.insert(at);
                    }
                }
            }
            End::WantsMore => {
                wanted_more.insert(at);
            }
            End::Late => {
                slow.insert(at);
                out.insert(at);
            }
            End::Failed => {
                out.insert(at);
            }
            End::Dragged => again = true,
        }
    }
    drop(tasks);
    if again || !wanted_more.is_empty() || !out.is_empty() {
        if out.is_empty() && wanted_more.is_empty() {
            // Nobody knows whose fault it was.
            out = everybody;
        }
        for (at, going) in going.iter_mut().enumerate() {
            going.slow = slow.contains(&at);
            going.wanted_more = wanted_more.contains(&at);
            going.in_turn |= going.wanted_more;
        }
        if somebody_failed {
            line.forget_statements();
        }
        return Ran::Without(out);
    }
    for (going, yes) in going.iter_mut().zip(voted) {
        going.voted = yes;
    }
    commit(line, &begun, going, answers, &states, forced).await
}

async fn commit(
    line: &Line,
    begun: &Begun,
    going: &[Going],
    answers: Vec<Option<Answer>>,
    states: &[State],
    forced: bool,
) -> Ran {
    let corrected: Vec<(&BranchId, &[i32])> = going
        .iter()
        .filter_map(|going| match &going.message {
            Message::Prepare { work, .. } if going.voted.len() != work.count() => {
                Some((&going.branch, going.voted.as_slice()))
            }
            Message::Prepare { .. } | Message::Outcome(_) => None,
        })
        .collect();
    let states: Vec<&State> = states.iter().collect();
    // Never cancelled and never hurried: from here on only the database knows (design rule 10).
    let committing = line.commit(begun, &corrected, &states, forced);
    match tokio::time::timeout(COMMIT_MAX, committing).await {
        Ok(Ok(())) => Ran::Committed(answers),
        Ok(Err(error)) => {
            tracing::debug!(%error, "a batch was not committed, or nobody knows; its messages go alone");
            Ran::Unclear
        }
        Err(_elapsed) => Ran::Unclear,
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
                state: &hope.state,
                count: work.count(),
            }),
            Message::Outcome(_) => ending.push(Ending {
                branch: &going.branch,
                state: &hope.state,
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
    Otherwise,
}

fn as_hoped(service: &dyn Service, going: &Going, begun: &Begun) -> Found {
    match &going.message {
        Message::Prepare { .. } => {
            let transaction = going.branch.transaction;
            let row = State::without_row(transaction, None, begun.mark(transaction));
            if begun.inserted.contains(&going.branch) && row == State::Absent {
                Found::AsHoped
            } else {
                Found::Otherwise
            }
        }
        Message::Outcome(_) => {
            let Some(promised) = begun.ended.get(&going.branch) else {
                return Found::Otherwise;
            };
            if let Some(promise) = &going.promise {
                let same = promised.digest == promise.digest
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
enum End {
    /// What happened, and which operations voted yes.
    Done(Event, Vec<i32>),
    WantsMore,
    Late,
    /// By itself.
    Failed,
    /// Not at all, because of somebody else.
    Dragged,
}

fn ended(tasks: &[Task<'_>], somebody_failed: bool) -> Vec<End> {
    tasks
        .iter()
        .map(|task| match task.end.get() {
            // Also where its code went on and said yes.
            _ if task.gate.has_failed() => End::Failed,
            None if task.gate.wants_more() => End::WantsMore,
            None if somebody_failed || !task.started.load(Ordering::Relaxed) => End::Dragged,
            None => End::Late,
            Some(Err(_)) if somebody_failed => End::Dragged,
            Some(Err(_)) => End::Failed,
            Some(Ok(voted)) => {
                let event = match task.asks {
                    Asks::Work => Event::Worked(voted.vote.clone()),
                    Asks::Apply | Asks::Undo => task.asks.done(),
                };
                End::Done(event, voted.yes.clone())
            }
        })
        .collect()
}

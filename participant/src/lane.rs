//! The lane: what waits goes together, many branches' messages in one local transaction on one connection.
//!
//! Half of what a message costs is the beginning and ending of its local transaction, above all the wait for the disk. In the
//! lane all that wait share it, prepares and outcomes alike; what comes meanwhile goes with the next run, so there is no
//! timer, and one that comes alone leaves at once.
//!
//! What this module promises:
//! - **Nobody's fate is a neighbour's.** Whoever refuses, fails, is slow, meets a lock, or whose row is not as was hoped is
//!   taken out: all is rolled back, the others run again without it, and it runs alone ([`crate::calls`]), as if there were
//!   no lane. Alone is always right: the row answers, whatever became of an earlier attempt. A refusal is one that was
//!   given without neighbours.
//! - **Nobody sees a neighbour half done.** Beside others a branch runs one statement ([`Gate`]); whose code wants more gets
//!   a turn of its own within the transaction, from its first statement to its last.
//! - **Outcomes never wait behind prepares** (design rule 17). The work of a run is over within [`PATIENCE`], no lock is waited for
//!   longer than [`LOCK_MAX`](crate::intent_log::together::LOCK_MAX), outcomes leave first, and one that was not told
//!   within [`OUTCOME_TOLD_MAX`] goes alone, on another connection. A prepare that takes keys never goes this way.
//! - **The protocol decides** ([`unanimous_protocol::together`]). The lane asks each branch's machine what a good end would
//!   store, has that written at once, and commits only where the machine stored just that in the end.
//!
//! What it leaves out: interactive work, keys, tombstones, repeats. They go alone. A service's code that blocks its thread
//! holds up everybody in its run, as it holds up everybody on its thread.

mod batch;
mod detour;
mod promises;

use std::{
    collections::{HashSet, VecDeque},
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::oneshot, time::Instant};
use tracing::Span;
use unanimous_protocol::{
    branch::{Answer, Event},
    id::BranchId,
    operations::Operations,
};

use crate::{
    calls::chain,
    intent_log::{LogError, end_backend, together::Line},
    lane::{
        batch::{Ended, Going, Ran},
        detour::Detour,
        promises::{Promise, Promises},
    },
    participant::Shared,
    service::Work,
};

/// Messages of one run, at most.
const TOGETHER_MAX: usize = 128;
/// Messages that wait, at most; the others go alone.
const WAITING_MAX: usize = 4_096;
/// Of them with a turn of their own, at most: turns add up.
const IN_TURN_MAX: usize = 16;
/// The work of a run, at most: who is not done by then goes alone.
const PATIENCE: Duration = Duration::from_millis(100);
/// From its arrival until its answer an outcome stays in the lane for so long; then it goes alone.
const OUTCOME_TOLD_MAX: Duration = Duration::from_millis(200);
/// A prepare has more time: where very many wait, to send them alone would only make it worse.
const PREPARE_TOLD_MAX: Duration = Duration::from_secs(1);
/// Runs of one batch. Each but the last takes somebody out.
const RUNS_MAX: usize = 4;
/// So many in a row that did not fit are no accident.
const ACCIDENTS: u32 = 4;
/// Making one, at most.
const LINE_MAX: Duration = Duration::from_secs(10);
/// After a line could not be made, the next one is tried so much later.
const LINE_PAUSE: Duration = Duration::from_secs(1);
/// Ending what hangs on a line, at most.
const END_MAX: Duration = Duration::from_secs(6);

/// A message that may go together with others.
pub(crate) enum Message {
    /// Of a branch without keys and without interactive work.
    Prepare {
        operations: Operations,
        work: Arc<dyn Work>,
        /// Its deadline.
        until: Instant,
    },
    /// Told or found out.
    Outcome(Event),
}

impl Message {
    fn is_prepare(&self) -> bool {
        matches!(self, Self::Prepare { .. })
    }
}

/// What became of a message.
pub(crate) enum Together {
    /// Its branch's answer, behind the commit; `None` where it has nothing to say.
    Answered(Option<Answer>),
    /// Nothing, or nobody knows: it is to run alone.
    Alone,
    /// It was given up while it waited.
    Cancelled,
}

/// A message on its way.
struct Waiting {
    ticket: u64,
    branch: BranchId,
    message: Message,
    /// What the service's code logs belongs there.
    span: Span,
    /// Dropped: alone.
    answer: oneshot::Sender<Option<Answer>>,
}

#[derive(Default)]
pub(crate) struct Lane {
    desk: Mutex<Desk>,
    promises: Mutex<Promises>,
    line: Mutex<Place>,
}

/// Where the line is.
#[derive(Default)]
enum Place {
    /// There is none, and nobody makes one.
    #[default]
    Nowhere,
    /// It carries a batch, or is being made.
    Away,
    Here(Box<Line>),
}

#[derive(Default)]
struct Desk {
    outcomes_waiting: VecDeque<Waiting>,
    prepares_waiting: VecDeque<Waiting>,
    /// Somebody is running batches.
    led: bool,
    drawn: u64,
    prepares: Ways,
    outcomes: Ways,
}

/// How messages of a kind have fared.
#[derive(Default)]
struct Ways {
    /// Those that go alone at once.
    alone: Detour,
    /// Those that get a turn of their own at once.
    in_turn: Detour,
    /// In a row.
    misfits: u32,
}

impl Desk {
    fn is_empty(&self) -> bool {
        self.outcomes_waiting.is_empty() && self.prepares_waiting.is_empty()
    }

    fn waiting(&mut self, is_prepare: bool) -> &mut VecDeque<Waiting> {
        if is_prepare {
            &mut self.prepares_waiting
        } else {
            &mut self.outcomes_waiting
        }
    }

    fn ways(&mut self, is_prepare: bool) -> &mut Ways {
        if is_prepare {
            &mut self.prepares
        } else {
            &mut self.outcomes
        }
    }
}

/// The line on its way. Where it is not put back, also by a panic of the service's code, there is none, and the next batch
/// has one made.
struct Taken<'a> {
    place: &'a Mutex<Place>,
    line: Option<Box<Line>>,
}

impl Taken<'_> {
    fn put_back(mut self) {
        if let Some(line) = self.line.take() {
            *self.place.lock().unwrap_or_else(PoisonError::into_inner) = Place::Here(line);
        }
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*place, Place::Away) {
            *place = Place::Nowhere;
        }
    }
}

/// The right to run batches. Where it is dropped by a panic of the service's code, whoever comes next leads, and those of
/// the batch go alone.
struct Lead(Arc<Shared>);

impl Lead {
    /// Whether nobody waits any more. Then whoever comes next leads.
    fn ends(&self) -> bool {
        let mut desk = self.0.lane.desk();
        desk.led = !desk.is_empty();
        !desk.led
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.lane.desk().led = false;
        }
    }
}

impl Lane {
    fn desk(&self) -> MutexGuard<'_, Desk> {
        // Nothing panics while it holds the lock.
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn promises(&self) -> MutexGuard<'_, Promises> {
        self.promises.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn line(&self) -> MutexGuard<'_, Place> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first line, before anybody needs it.
    pub(crate) fn open(&self, line: Line) {
        *self.line() = Place::Here(Box::new(line));
    }

    /// `None`: alone.
    fn enter(
        &self,
        branch: &BranchId,
        message: Message,
    ) -> Option<(u64, oneshot::Receiver<Option<Answer>>)> {
        let mut desk = self.desk();
        let is_prepare = message.is_prepare();
        if desk.ways(is_prepare).alone.takes() || desk.waiting(is_prepare).len() >= WAITING_MAX {
            return None;
        }
        let (answer, told) = oneshot::channel();
        desk.drawn += 1;
        let ticket = desk.drawn;
        desk.waiting(is_prepare).push_back(Waiting {
            ticket,
            branch: branch.clone(),
            message,
            span: Span::current(),
            answer,
        });
        Some((ticket, told))
    }

    /// Whether the message had not left yet.
    fn withdraw(&self, ticket: u64, is_prepare: bool) -> bool {
        let mut desk = self.desk();
        let waiting = desk.waiting(is_prepare);
        let at = waiting.iter().position(|waiting| waiting.ticket == ticket);
        at.is_some_and(|at| waiting.remove(at).is_some())
    }

    /// The next batch, outcomes first: each branch once, and what is too late sent alone.
    fn collect(&self, now: Instant) -> Vec<Going> {
        let mut desk = self.desk();
        let mut branches = HashSet::new();
        let mut going = Vec::new();
        let mut in_turn_left = IN_TURN_MAX;
        for is_prepare in [false, true] {
            let mut later = VecDeque::new();
            while going.len() < TOGETHER_MAX
                && let Some(waiting) = desk.waiting(is_prepare).pop_front()
            {
                // Past its deadline it is refused, alone.
                if matches!(&waiting.message, Message::Prepare { until, .. } if *until <= now) {
                    continue;
                }
                if in_turn_left == 0 || !branches.insert(waiting.branch.clone()) {
                    later.push_back(waiting);
                    continue;
                }
                let in_turn = desk.ways(is_prepare).in_turn.takes();
                let promise = match &waiting.message {
                    Message::Prepare { .. } => None,
                    Message::Outcome(_) => self.promises().of(&waiting.branch),
                };
                let next = Going::new(waiting, promise, in_turn);
                in_turn_left -= usize::from(next.in_turn);
                going.push(next);
            }
            while let Some(waiting) = later.pop_back() {
                desk.waiting(is_prepare).push_front(waiting);
            }
        }
        going
    }
}

/// Those at the other places, and of those with a turn of their own so many as one run may have; the rest goes alone.
fn keep_all_but(going: &mut Vec<Going>, out: &HashSet<usize>) {
    let (mut at, mut in_turn_left) = (0, IN_TURN_MAX);
    going.retain(|going| {
        let stays = !out.contains(&at) && (!going.in_turn || in_turn_left > 0);
        at += 1;
        if stays && going.in_turn {
            in_turn_left -= 1;
        }
        stays
    });
}

impl Shared {
    /// Has the message go together with whatever else waits.
    pub(crate) async fn together(
        self: &Arc<Self>,
        branch: &BranchId,
        message: Message,
        cancelled: impl Future<Output = ()>,
    ) -> Together {
        if !self.connections.has_lane() {
            return Together::Alone;
        }
        let is_prepare = message.is_prepare();
        let Some((ticket, mut told)) = self.lane.enter(branch, message) else {
            return Together::Alone;
        };
        self.lead();
        let patience = Instant::now()
            + if is_prepare {
                PREPARE_TOLD_MAX
            } else {
                OUTCOME_TOLD_MAX
            };
        let told = tokio::select! {
            biased;
            told = tokio::time::timeout_at(patience, &mut told) => told,
            () = cancelled => {
                if self.lane.withdraw(ticket, is_prepare) {
                    return Together::Cancelled;
                }
                // It runs, and will soon be over.
                tokio::time::timeout_at(patience, told).await
            }
        };
        match told {
            Ok(Ok(answer)) => Together::Answered(answer),
            Ok(Err(_taken_out)) => Together::Alone,
            Err(_elapsed) => {
                // Where it has left already, its row tells the one from the other.
                self.lane.withdraw(ticket, is_prepare);
                Together::Alone
            }
        }
    }

    /// Has batches run, if anybody waits and nobody does.
    fn lead(self: &Arc<Self>) {
        {
            let mut desk = self.lane.desk();
            if desk.led || desk.is_empty() {
                return;
            }
            desk.led = true;
        }
        let lead = Lead(Arc::clone(self));
        self.runtime.spawn(async move {
            let shared = &lead.0;
            loop {
                // Whoever arrives at the same moment comes along.
                tokio::task::yield_now().await;
                let going = shared.lane.collect(Instant::now());
                if !going.is_empty() {
                    shared.run_batch(going).await;
                } else if lead.ends() {
                    return;
                }
            }
        });
    }

    async fn run_batch(self: &Arc<Self>, mut going: Vec<Going>) {
        let Some(taken) = self.take_line() else {
            // Everybody alone, until there is one.
            return;
        };
        let Some(line) = &taken.line else {
            return;
        };
        for _ in 0..RUNS_MAX {
            // Whoever went alone meanwhile would only meet itself.
            going.retain(|going| !going.answer.is_closed());
            if going.is_empty() {
                break;
            }
            match batch::run(line, &*self.service, &mut going, Instant::now() + PATIENCE).await {
                Ran::Committed(ended) => {
                    self.told(std::mem::take(&mut going), ended);
                }
                Ran::Without(out) => {
                    self.note(&going, &out);
                    if !line.roll_back().await {
                        return self.end_line(taken);
                    }
                    keep_all_but(&mut going, &out);
                }
                // Everybody asks the rows.
                Ran::Broken => return self.end_line(taken),
            }
        }
        taken.put_back();
        if !going.is_empty() {
            let everybody = (0..going.len()).collect();
            self.note(&going, &everybody);
        }
    }

    /// `None` where there is none: then one is made, and nobody waits for it.
    fn take_line(self: &Arc<Self>) -> Option<Taken<'_>> {
        let mut place = self.lane.line();
        match std::mem::replace(&mut *place, Place::Away) {
            Place::Here(line) => {
                return Some(Taken {
                    place: &self.lane.line,
                    line: Some(line),
                });
            }
            Place::Away => return None,
            Place::Nowhere => {}
        }
        drop(place);
        let shared = Arc::clone(self);
        self.runtime.spawn(async move {
            let line = async { Line::on(shared.connections.get().await?).await };
            let made = tokio::time::timeout(LINE_MAX, line).await;
            let made = made.unwrap_or(Err(LogError::NoAnswer));
            if let Err(error) = &made {
                tracing::warn!(participant = %shared.name, error = %chain(error),
                    "no connection for the lane; messages go alone, and it is tried again");
                tokio::time::sleep(LINE_PAUSE).await;
            }
            *shared.lane.line() = made.map_or(Place::Nowhere, |line| Place::Here(Box::new(line)));
        });
        None
    }

    /// Closes a line that something hangs on, and ends its server process: it may hold rows of many.
    fn end_line(self: &Arc<Self>, mut taken: Taken<'_>) {
        let Some(line) = taken.line.take() else {
            return;
        };
        let backend = line.backend();
        drop((line, taken));
        let shared = Arc::clone(self);
        self.runtime.spawn(async move {
            let ending = async { end_backend(&shared.connections.get().await?, backend).await };
            let ended = tokio::time::timeout(END_MAX, ending).await;
            if let Err(error) = ended.unwrap_or(Err(LogError::NoAnswer)) {
                // The server's own bounds end it a little later.
                tracing::warn!(%error, backend, "a hanging statement could not be ended");
            }
        });
    }

    fn told(&self, going: Vec<Going>, ended: Vec<Ended>) {
        self.fitted(&going, &ended);
        for (going, ended) in going.into_iter().zip(ended) {
            let Ended::Answered(answer) = ended else {
                continue;
            };
            let Going {
                branch,
                message,
                answer: to,
                voted,
                ..
            } = going;
            self.sessions.forget(branch.transaction);
            match message {
                Message::Prepare {
                    operations, work, ..
                } => {
                    let promise = Promise {
                        work,
                        digest: operations.digest(),
                        voted_yes: voted,
                    };
                    let length = operations.text().len();
                    self.lane.promises().remember(branch, promise, length);
                }
                Message::Outcome(_) => self.lane.promises().forget(&branch),
            }
            // Nobody listens any more where it went alone meanwhile.
            drop(to.send(answer));
        }
    }

    fn fitted(&self, going: &[Going], ended: &[Ended]) {
        let mut desk = self.lane.desk();
        for is_prepare in [true, false] {
            let of_kind = going
                .iter()
                .zip(ended)
                .filter(|(going, ended)| {
                    going.message.is_prepare() == is_prepare && matches!(ended, Ended::Answered(_))
                })
                .map(|(going, _)| going.in_turn);
            let (in_turn, beside): (Vec<_>, Vec<_>) = of_kind.partition(|in_turn| *in_turn);
            let all = (in_turn.len() + beside.len()) as u32;
            let ways = desk.ways(is_prepare);
            ways.alone.fits(all);
            ways.in_turn.fits(beside.len() as u32);
            if all > 0 {
                ways.misfits = 0;
            }
        }
    }

    /// Learns from who did not fit.
    fn note(&self, going: &[Going], out: &HashSet<usize>) {
        let mut desk = self.lane.desk();
        for is_prepare in [true, false] {
            let of_kind = || {
                let of_kind = |going: &&Going| going.message.is_prepare() == is_prepare;
                going
                    .iter()
                    .enumerate()
                    .filter(move |(_, going)| of_kind(going))
            };
            let misfits = of_kind().filter(|(at, _)| out.contains(at)).count();
            let ways = desk.ways(is_prepare);
            ways.misfits += misfits as u32;
            // A few refusals are a day's work. Where most do not fit, or somebody held up everybody, there is no use.
            let most = misfits > 1 && 2 * misfits > of_kind().count();
            if most || of_kind().any(|(_, going)| going.slow) || ways.misfits >= ACCIDENTS {
                ways.misfits = 0;
                if misfits > 0 {
                    ways.alone.misfit();
                }
            }
            if of_kind().any(|(_, going)| going.wanted_more) {
                ways.in_turn.misfit();
            }
        }
    }
}

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
//! - **Outcomes never wait behind prepares** (design rule 17). A run is over within [`PATIENCE`], no lock is waited for
//!   longer than [`LOCK_MAX`](together::LOCK_MAX), and prepares take part only where one of their slots is free. A prepare
//!   that takes keys never goes this way.
//! - **The protocol decides** ([`unanimous_protocol::branch`]). The lane asks each branch's machine what a good end would
//!   store, has that written at once, and commits only where the machine stored just that in the end.
//!
//! What it leaves out: interactive work, keys, tombstones, repeats. They go alone.

mod batch;
mod detour;
mod promises;

use std::{
    collections::{HashSet, VecDeque},
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};
use unanimous_protocol::{
    branch::{Answer, Event},
    id::BranchId,
    operations::Operations,
};

use crate::{
    intent_log::together::Line,
    lane::{
        batch::{Going, Ran},
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
/// The work of a run, at most: who is not done by then goes alone.
const PATIENCE: Duration = Duration::from_millis(200);
/// A line's connection is waited for so long: alone, everybody waits for one of his own.
const CONNECTION_PATIENCE: Duration = Duration::from_millis(100);
/// Runs of one batch. Each but the last takes somebody out.
const RUNS_MAX: usize = 4;

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
    /// Dropped: alone.
    answer: oneshot::Sender<Option<Answer>>,
}

#[derive(Default)]
pub(crate) struct Lane {
    desk: Mutex<Desk>,
    promises: Mutex<Promises>,
    /// Between two runs.
    line: Mutex<Option<Line>>,
    more: Notify,
}

#[derive(Default)]
struct Desk {
    waiting: VecDeque<Waiting>,
    /// Somebody is running a batch.
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
}

impl Desk {
    fn ways(&mut self, is_prepare: bool) -> &mut Ways {
        if is_prepare {
            &mut self.prepares
        } else {
            &mut self.outcomes
        }
    }
}

/// The right to run batches. Dropped, it passes on to whoever comes next.
struct Lead<'a>(&'a Lane);

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        let mut desk = self.0.desk();
        desk.led = false;
        if !desk.waiting.is_empty() {
            self.0.more.notify_one();
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

    fn line(&self) -> MutexGuard<'_, Option<Line>> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is anybody to lead, and nobody else does.
    fn lead(&self) -> Option<Lead<'_>> {
        let mut desk = self.desk();
        if desk.led || desk.waiting.is_empty() {
            return None;
        }
        desk.led = true;
        Some(Lead(self))
    }

    /// `None`: alone.
    fn enter(
        &self,
        branch: &BranchId,
        message: Message,
    ) -> Option<(u64, oneshot::Receiver<Option<Answer>>)> {
        let mut desk = self.desk();
        let way = &mut desk.ways(message.is_prepare()).alone;
        if way.takes() || desk.waiting.len() >= WAITING_MAX {
            return None;
        }
        let (answer, told) = oneshot::channel();
        desk.drawn += 1;
        let ticket = desk.drawn;
        desk.waiting.push_back(Waiting {
            ticket,
            branch: branch.clone(),
            message,
            answer,
        });
        Some((ticket, told))
    }

    /// Whether the message had not left yet.
    fn withdraw(&self, ticket: u64) -> bool {
        let waiting = &mut self.desk().waiting;
        let at = waiting.iter().position(|waiting| waiting.ticket == ticket);
        at.is_some_and(|at| waiting.remove(at).is_some())
    }

    /// The next batch: each branch once, and what may not go this way sent alone.
    fn collect(&self, prepares_may: bool, now: Instant) -> Vec<Going> {
        let mut desk = self.desk();
        let mut branches = HashSet::new();
        let mut later = VecDeque::new();
        let mut going = Vec::new();
        while going.len() < TOGETHER_MAX
            && let Some(waiting) = desk.waiting.pop_front()
        {
            let may = match &waiting.message {
                // Past its deadline it is refused, alone.
                Message::Prepare { until, .. } => prepares_may && now < *until,
                Message::Outcome(_) => true,
            };
            if !may {
                continue;
            }
            if !branches.insert(waiting.branch.clone()) {
                later.push_back(waiting);
                continue;
            }
            let in_turn = desk.ways(waiting.message.is_prepare()).in_turn.takes();
            let promise = match &waiting.message {
                Message::Prepare { .. } => None,
                Message::Outcome(_) => self.promises().of(&waiting.branch),
            };
            going.push(Going::new(
                waiting.branch,
                waiting.message,
                waiting.answer,
                promise,
                in_turn,
            ));
        }
        while let Some(waiting) = later.pop_back() {
            desk.waiting.push_front(waiting);
        }
        going
    }
}

impl Shared {
    /// Has the message go together with whatever else waits.
    pub(crate) async fn together(
        &self,
        branch: &BranchId,
        message: Message,
        cancelled: impl Future<Output = ()>,
    ) -> Together {
        let Some((ticket, mut told)) = self.lane.enter(branch, message) else {
            return Together::Alone;
        };
        if let Some(lead) = self.lane.lead() {
            // Whoever arrived at the same moment comes along.
            tokio::task::yield_now().await;
            self.run_batch().await;
            drop(lead);
        }
        let told = tokio::select! {
            biased;
            told = &mut told => told,
            () = cancelled => {
                if self.lane.withdraw(ticket) {
                    return Together::Cancelled;
                }
                // It runs, and will soon be over.
                told.await
            }
        };
        told.map_or(Together::Alone, Together::Answered)
    }

    async fn run_batch(&self) {
        // Held as long as the line carries prepares: they never have more connections than their slots.
        let slot = self.connections.free_prepare_slot();
        let mut going = self.lane.collect(slot.is_some(), Instant::now());
        let _slot = slot.filter(|_| going.iter().any(|going| going.message.is_prepare()));
        let mut line = self.lane.line().take();
        for _ in 0..RUNS_MAX {
            if going.is_empty() {
                break;
            }
            let Some(on) = self.line(line.take()).await else {
                return;
            };
            match batch::run(&on, &*self.service, &mut going, Instant::now() + PATIENCE).await {
                Ran::Committed(answers) => {
                    line = Some(on);
                    self.told(going, answers);
                    going = Vec::new();
                }
                Ran::Without(out) => {
                    self.note(&going, &out);
                    line = on.roll_back().await;
                    let mut at = 0;
                    going.retain(|_| {
                        at += 1;
                        !out.contains(&(at - 1))
                    });
                }
                // The connection goes, and everybody asks the rows.
                Ran::Unclear => return,
            }
        }
        *self.lane.line() = line;
    }

    /// This one, or a new one.
    async fn line(&self, line: Option<Line>) -> Option<Line> {
        if line.is_some() {
            return line;
        }
        let making = async { Line::on(self.connections.get().await?).await };
        match tokio::time::timeout(CONNECTION_PATIENCE, making).await {
            Ok(Ok(line)) => Some(line),
            Ok(Err(error)) => {
                tracing::debug!(participant = %self.name, %error, "no line; messages go alone");
                None
            }
            Err(_elapsed) => None,
        }
    }

    fn told(&self, going: Vec<Going>, answers: Vec<Option<Answer>>) {
        let mut desk = self.lane.desk();
        for is_prepare in [true, false] {
            let of_kind = going
                .iter()
                .filter(|going| going.message.is_prepare() == is_prepare);
            let (in_turn, beside): (Vec<_>, Vec<_>) = of_kind.partition(|going| going.in_turn);
            let ways = desk.ways(is_prepare);
            ways.alone.fits((in_turn.len() + beside.len()) as u32);
            ways.in_turn.fits(beside.len() as u32);
        }
        drop(desk);
        for (going, answer) in going.into_iter().zip(answers) {
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
            // Nobody listens any more where the caller's task died; the row answers whoever asks again.
            drop(to.send(answer));
        }
    }

    /// Learns from who did not fit.
    fn note(&self, going: &[Going], out: &HashSet<usize>) {
        let mut desk = self.lane.desk();
        for is_prepare in [true, false] {
            let mut all = 0;
            let mut misfits = 0;
            let mut in_turn = false;
            for (at, going) in going.iter().enumerate() {
                if going.message.is_prepare() == is_prepare {
                    all += 1;
                    misfits += usize::from(out.contains(&at));
                    in_turn |= going.wanted_more;
                }
            }
            let slow = going
                .iter()
                .any(|going| going.slow && going.message.is_prepare() == is_prepare);
            let ways = desk.ways(is_prepare);
            // A few refusals are a day's work. Where most do not fit, or somebody held up everybody, there is no use.
            if slow || 2 * misfits > all && all > 1 {
                ways.alone.misfit();
            }
            if in_turn {
                ways.in_turn.misfit();
            }
        }
    }
}

/// Leads whatever comes while a batch runs.
pub(crate) async fn run(shared: Arc<Shared>) {
    loop {
        shared.lane.more.notified().await;
        let leading = Arc::clone(&shared);
        let led = tokio::spawn(async move {
            while let Some(lead) = leading.lane.lead() {
                tokio::task::yield_now().await;
                leading.run_batch().await;
                drop(lead);
            }
        });
        if let Err(error) = led.await {
            // A panic of the service's code. Its batch goes alone, and one of them panics alone.
            tracing::error!(participant = %shared.name, %error, "the task of a batch died");
        }
    }
}

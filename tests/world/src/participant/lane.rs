//! The lane of a process, as the participant crate has one: messages that wait share a local transaction. What becomes
//! of one of these is in `together`; here is who goes with whom, and who goes alone.
//!
//! Between two runs, and before a message that was taken out runs alone, anything else may happen.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use unanimous_protocol::{
    branch::Event,
    id::TransactionId,
    message::{Delivery, Inform, Request},
    operations::BodyDigest,
};

use super::{
    Participant,
    ledger::Operation,
    message::{Preparing, call_ends},
    together::Ran,
};
use crate::surroundings::{
    Call, Crashed, Happening, Lines, Millis, ProcessNumber, ReplyTo, Surroundings, trace,
};

/// Messages of one run, at most: small, so that the bound is reached.
const TOGETHER_MAX: usize = 8;
/// Messages that wait, at most; the others go alone. Small, too.
const WAITING_MAX: usize = 32;
/// A batch that is full, or was rolled back, waits no longer than this.
const SOON: Millis = 20;
/// Runs of one batch. Each but the last takes somebody out.
const RUNS_MAX: u32 = 4;
/// What a generation of [`Promises`] holds, at most: small, as the other bounds.
const GENERATION_MAX: usize = 4;

/// A message that may share a local transaction.
#[derive(Clone, Debug)]
pub(super) struct Message {
    pub(super) id: TransactionId,
    pub(super) brings: Brings,
    since: Millis,
}

#[derive(Clone, Debug)]
pub(super) enum Brings {
    Prepare(Call),
    Outcome(Event, Option<ReplyTo>),
}

impl Message {
    /// What it brings to its branch, in time.
    pub(super) fn event(&self) -> Option<Event> {
        match &self.brings {
            Brings::Prepare(call) => match &call.request {
                Request::Prepare(prepare) => Some(Event::PrepareReceived {
                    digest: prepare.operations.digest(),
                    session: None,
                    in_time: true,
                }),
                Request::Commit | Request::Abort => None,
            },
            Brings::Outcome(event, _) => Some(event.clone()),
        }
    }

    pub(super) fn reply_to(&self) -> Option<ReplyTo> {
        match &self.brings {
            Brings::Prepare(call) => Some(call.reply_to()),
            Brings::Outcome(_, reply_to) => reply_to.clone(),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Lane {
    waiting: VecDeque<Message>,
    /// Those of a batch that was rolled back, and runs again without somebody.
    again: Vec<Message>,
    /// How often that batch has run.
    runs: u32,
    /// Those that are to run alone.
    alone: BTreeMap<u64, Message>,
    /// A run is due.
    is_due: bool,
    pub(super) promises: Promises,
}

impl Lane {
    pub(super) fn len(&self) -> usize {
        self.messages().count()
    }

    fn is_full(&self) -> bool {
        self.waiting.len() >= WAITING_MAX
    }

    pub(super) fn holds(&self, id: TransactionId) -> bool {
        self.messages().any(|message| message.id == id)
    }

    fn messages(&self) -> impl Iterator<Item = &Message> {
        let waiting = self.waiting.iter().chain(&self.again);
        waiting.chain(self.alone.values())
    }

    /// Prepares of a branch that do not run yet: an abort has come.
    fn withdraw(&mut self, id: TransactionId) -> Vec<Call> {
        let mut withdrawn = Vec::new();
        let mut stays = |message: &Message| match &message.brings {
            Brings::Prepare(call) if message.id == id => {
                withdrawn.push(call.clone());
                false
            }
            Brings::Prepare(_) | Brings::Outcome(..) => true,
        };
        self.waiting.retain(&mut stays);
        self.alone.retain(|_, message| stays(message));
        withdrawn
    }

    /// The next batch: each branch once. What is left waits for the one after it.
    fn collect(&mut self) -> Vec<Message> {
        let mut branches = BTreeSet::new();
        let mut going = Vec::new();
        let mut later = VecDeque::new();
        for message in std::mem::take(&mut self.waiting) {
            if going.len() < TOGETHER_MAX && branches.insert(message.id) {
                going.push(message);
            } else {
                later.push_back(message);
            }
        }
        self.waiting = later;
        going
    }
}

/// What a process remembers of branches that it has prepared: only a shortcut, for the row decides.
#[derive(Clone, Debug, Default)]
pub(super) struct Promises {
    young: BTreeMap<TransactionId, Promise>,
    old: BTreeMap<TransactionId, Promise>,
}

#[derive(Clone, Debug)]
pub(super) struct Promise {
    pub(super) digest: BodyDigest,
    /// Those that were found to have something to do.
    pub(super) operations: Vec<Operation>,
}

impl Promises {
    pub(super) fn remember(&mut self, id: TransactionId, promise: Promise) {
        if self.young.len() >= GENERATION_MAX {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(id, promise);
    }

    pub(super) fn of(&self, id: TransactionId) -> Option<&Promise> {
        self.young.get(&id).or_else(|| self.old.get(&id))
    }

    pub(super) fn forget(&mut self, id: TransactionId) {
        if self.young.remove(&id).is_none() {
            self.old.remove(&id);
        }
    }
}

impl Participant {
    /// Calls that travelled together come to one process, and each is answered by itself.
    pub(crate) fn called_together(
        &mut self,
        calls: Vec<Call>,
        s: &mut Surroundings,
    ) -> Result<(), Crashed> {
        let lines = Lines::of(&calls, s);
        let process = self.any_process(s);
        for mut call in calls {
            call.lines = Some(lines.clone());
            match process {
                Some(process) => self.called_at(process, call, s)?,
                None => {
                    let why = "connection refused".to_owned();
                    call_ends(&call, Delivery::Refused(why), s);
                }
            }
        }
        Ok(())
    }

    /// Whether a prepare may share: of a new branch without keys and without interactive work.
    pub(super) fn may_share(&self, number: ProcessNumber, call: &Call, s: &Surroundings) -> bool {
        let Request::Prepare(prepare) = &call.request else {
            return false;
        };
        let Some(process) = self.processes.get(&number) else {
            return false;
        };
        let operations = Operation::parse(prepare.operations.text());
        let keys = operations.iter().any(|operation| operation.key().is_some());
        s.batches.shared.contains(&self.name)
            && call.participant == self.name
            && prepare.session.is_none()
            && !process.sessions.contains_key(&call.id)
            && !process.waiters.contains_key(&call.id)
            && call.remaining > 0
            && !process.lane.is_full()
            && !keys
    }

    /// An outcome, told or found out: it shares a local transaction where it may.
    pub(super) fn outcome(
        &mut self,
        number: ProcessNumber,
        id: TransactionId,
        event: Event,
        reply_to: Option<ReplyTo>,
        s: &mut Surroundings,
    ) -> Result<(), Crashed> {
        let Some(process) = self.processes.get(&number) else {
            return Ok(());
        };
        let shares = s.batches.shared.contains(&self.name)
            && event != Event::Informed(Inform::Pending)
            && !process.sessions.contains_key(&id)
            && !process.lane.is_full();
        if shares {
            self.waits(number, id, Brings::Outcome(event, reply_to), s);
            return Ok(());
        }
        self.message(number, id, event, None, reply_to, s)
    }

    pub(super) fn waits(
        &mut self,
        number: ProcessNumber,
        id: TransactionId,
        brings: Brings,
        s: &mut Surroundings,
    ) {
        if let Some(process) = self.processes.get_mut(&number) {
            process.lane.waiting.push_back(Message {
                id,
                brings,
                since: s.now,
            });
            self.is_due(number, s);
        }
    }

    /// Sees to it that there is a run.
    fn is_due(&mut self, number: ProcessNumber, s: &mut Surroundings) {
        let Some(process) = self.processes.get_mut(&number) else {
            return;
        };
        if !process.lane.is_due {
            process.lane.is_due = true;
            let Lane { waiting, again, .. } = &process.lane;
            let delay = if again.is_empty() && waiting.len() < TOGETHER_MAX {
                s.company()
            } else {
                s.company().min(SOON)
            };
            s.after(
                delay,
                Happening::TogetherRun {
                    participant: self.name.clone(),
                    process: number,
                },
            );
        }
    }

    /// An abort ends the prepares of its branch that have not begun to run.
    pub(super) fn withdraw(
        &mut self,
        number: ProcessNumber,
        id: TransactionId,
        s: &mut Surroundings,
    ) {
        let Some(process) = self.processes.get_mut(&number) else {
            return;
        };
        for call in process.lane.withdraw(id) {
            let why = "an abort arrived while it waited".to_owned();
            call_ends(&call, Delivery::Unknown(why), s);
        }
    }

    /// What waits shares a local transaction.
    pub(crate) fn together_run(
        &mut self,
        number: ProcessNumber,
        s: &mut Surroundings,
    ) -> Result<(), Crashed> {
        self.acting = number;
        let Some(process) = self.processes.get_mut(&number) else {
            return Ok(());
        };
        let lane = &mut process.lane;
        lane.is_due = false;
        let mut going = std::mem::take(&mut lane.again);
        if going.is_empty() {
            lane.runs = 0;
            going = lane.collect();
        }
        lane.runs += 1;
        let is_last = lane.runs >= RUNS_MAX;
        // Past its deadline a prepare is refused, alone.
        let clock = process.clock;
        let late = |message: &Message| match &message.brings {
            Brings::Prepare(call) => call.remaining <= clock.counts(s.now - message.since),
            Brings::Outcome(..) => false,
        };
        let (late, going): (Vec<_>, Vec<_>) = going.into_iter().partition(late);
        for message in late {
            self.goes_alone(number, message, s);
        }
        if !going.is_empty() {
            match self.run_together(number, &going, s)? {
                Ran::Committed => {}
                Ran::Without(out) => {
                    if let [_, _, ..] = going[..] {
                        s.counters.add("batches rolled back");
                    }
                    trace!(s, "{}: rolls back", self.name);
                    for (at, message) in going.into_iter().enumerate() {
                        if is_last || out.contains(&at) {
                            s.counters.add("messages taken out of a batch");
                            self.goes_alone(number, message, s);
                        } else if let Some(process) = self.processes.get_mut(&number) {
                            process.lane.again.push(message);
                        }
                    }
                }
                Ran::Unclear => {
                    s.counters.add("batches that ended unclearly");
                    trace!(s, "{}: the commit is unclear", self.name);
                    for message in going {
                        self.goes_alone(number, message, s);
                    }
                }
            }
        }
        let lane = self.processes.get(&number).map(|process| &process.lane);
        if lane.is_some_and(|lane| !lane.again.is_empty() || !lane.waiting.is_empty()) {
            self.is_due(number, s);
        }
        Ok(())
    }

    fn goes_alone(&mut self, number: ProcessNumber, message: Message, s: &mut Surroundings) {
        let Some(process) = self.processes.get_mut(&number) else {
            return;
        };
        trace!(s, "{}: {} goes alone", self.name, message.id);
        self.numbers += 1;
        process.lane.alone.insert(self.numbers, message);
        let delay = s.company();
        s.after(
            delay,
            Happening::AloneRun {
                participant: self.name.clone(),
                process: number,
                message: self.numbers,
            },
        );
    }

    /// As if there were no lane: the row answers, whatever became of an earlier run.
    pub(crate) fn alone_run(
        &mut self,
        number: ProcessNumber,
        message: u64,
        s: &mut Surroundings,
    ) -> Result<(), Crashed> {
        self.acting = number;
        let Some(process) = self.processes.get_mut(&number) else {
            return Ok(());
        };
        let Some(message) = process.lane.alone.remove(&message) else {
            return Ok(());
        };
        match message.brings {
            Brings::Prepare(mut call) => {
                let waited = process.clock.counts(s.now - message.since);
                call.remaining = call.remaining.saturating_sub(waited);
                let preparing = Preparing { call, since: None };
                self.prepare(number, preparing, s)
            }
            Brings::Outcome(event, reply_to) => {
                self.message(number, message.id, event, None, reply_to, s)
            }
        }
    }
}

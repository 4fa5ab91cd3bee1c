//! One message, one local transaction: the row is read, the branch stepped, its effects carried out, the answer given.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use unanimous_protocol::{
    branch::{Answer, Branch, Effect, Event, State},
    id::{ParticipantName, TransactionId},
    keys::{Age, GiveUp, WAITERS_MAX},
    message::{Delivery, RefusalCode, Reply, Request},
};

use super::{
    Participant, ReplyTo, Waiter, WaitingAnswer,
    lane::Brings,
    ledger::Operation,
    local::{Cell, KeyHeld, Local, Row, Value, no, refused},
};
use crate::{
    surroundings::{Call, Crashed, Happening, Millis, ProcessNumber, Surroundings, trace},
    words,
};

/// How often a prepare that waits for a key looks again.
const LOOK_AGAIN: Millis = 50;

/// What a branch needs to know of a prepare beside its operations.
#[derive(Clone, Debug)]
pub(super) struct Preparing {
    pub(super) call: Call,
    /// Since when it waits for a key.
    pub(super) since: Option<Millis>,
}

impl Participant {
    pub(crate) fn called(&mut self, call: Call, s: &mut Surroundings) -> Result<(), Crashed> {
        let Some(process) = self.any_process(s) else {
            let why = "connection refused".to_owned();
            call_ends(&call, Delivery::Refused(why), s);
            return Ok(());
        };
        self.called_at(process, call, s)
    }

    pub(super) fn called_at(
        &mut self,
        process: ProcessNumber,
        call: Call,
        s: &mut Surroundings,
    ) -> Result<(), Crashed> {
        s.crash_point()?;
        // A round of pruning, now and then.
        if let Some(mark) = call.low_water
            && mark.prefix() == call.id.prefix()
            && s.director.is_none()
            && s.rng.chance(3_000)
        {
            self.prune(mark, s)?;
        }
        match call.request.clone() {
            Request::Prepare(_) if self.may_share(process, &call, s) => {
                self.waits(process, call.id, Brings::Prepare(call), s);
                Ok(())
            }
            Request::Prepare(_) => {
                let preparing = Preparing { call, since: None };
                self.prepare(process, preparing, s)
            }
            Request::Commit => {
                let reply_to = Some(call.reply_to());
                self.outcome(process, call.id, Event::CommitReceived, reply_to, s)
            }
            Request::Abort => {
                let waiting = self
                    .processes
                    .get_mut(&process)
                    .and_then(|process| process.waiters.remove(&call.id));
                if let Some(waiter) = waiting {
                    let why = "an abort arrived while it waited".to_owned();
                    call_ends(&waiter.call, Delivery::Unknown(why), s);
                }
                self.withdraw(process, call.id, s);
                let reply_to = Some(call.reply_to());
                self.outcome(process, call.id, Event::AbortReceived, reply_to, s)
            }
        }
    }

    pub(super) fn prepare(
        &mut self,
        number: ProcessNumber,
        preparing: Preparing,
        s: &mut Surroundings,
    ) -> Result<(), Crashed> {
        let call = &preparing.call;
        let (id, reply_to) = (call.id, call.reply_to());
        let Request::Prepare(prepare) = &call.request else {
            return Ok(());
        };
        let Some(process) = self.processes.get_mut(&number) else {
            return Ok(());
        };
        if preparing.since.is_none()
            && let Some(waiter) = process.waiters.get_mut(&id)
        {
            // A repeat joins the one that waits.
            waiter.call = preparing.call;
            return Ok(());
        }
        if let Some(held) = process.sessions.get_mut(&id) {
            held.sealed = true;
        }
        let waited = preparing.since.map_or(0, |since| s.now - since);
        let event = Event::PrepareReceived {
            digest: prepare.operations.digest(),
            session: prepare.session.clone(),
            in_time: call.remaining > process.clock.counts(waited),
        };
        self.message(number, id, event, Some(preparing), Some(reply_to), s)
    }

    /// A prepare that waits for a key looks again.
    pub(crate) fn look_again(
        &mut self,
        number: ProcessNumber,
        waiter: u64,
        s: &mut Surroundings,
    ) -> Result<(), Crashed> {
        self.acting = number;
        let Some(process) = self.processes.get_mut(&number) else {
            return Ok(());
        };
        let found = process
            .waiters
            .iter()
            .find(|(_, waiting)| waiting.number == waiter);
        let Some((&id, _)) = found else {
            return Ok(());
        };
        let Some(waiting) = process.waiters.remove(&id) else {
            return Ok(());
        };
        let preparing = Preparing {
            call: waiting.call,
            since: Some(waiting.since),
        };
        self.prepare(number, preparing, s)
    }

    /// One message, one local transaction.
    pub(super) fn message(
        &mut self,
        number: ProcessNumber,
        id: TransactionId,
        event: Event,
        preparing: Option<Preparing>,
        reply_to: Option<ReplyTo>,
        s: &mut Surroundings,
    ) -> Result<(), Crashed> {
        self.acting = number;
        let low_water = self.mark(id.prefix());
        let Some(process) = self.processes.get_mut(&number) else {
            return Ok(());
        };
        let stored = match self.disk.get(&Cell::Row(id)) {
            Some(Value::Row(row)) => Some(row.clone()),
            Some(Value::Account { .. } | Value::Applied(_) | Value::Holder(_) | Value::Mark(_))
            | None => None,
        };
        let held = process.sessions.get(&id);
        let state = match &stored {
            Some(row) => row.state.clone(),
            None => {
                let session = held.map(|held| held.session.clone());
                State::without_row(id, session, low_water)
            }
        };
        let operations = match preparing.as_ref().map(|preparing| &preparing.call.request) {
            Some(Request::Prepare(prepare)) => Operation::parse(prepare.operations.text()),
            Some(Request::Commit | Request::Abort) | None => Vec::new(),
        };
        let name = preparing
            .as_ref()
            .map_or(&self.name, |p| &p.call.participant);
        let mut row = stored.clone().unwrap_or(Row {
            name: name.clone(),
            state: State::Absent,
            operations,
            pieces: BTreeSet::new(),
        });
        if stored.is_none()
            && let Some(held) = held
        {
            row.operations.extend(held.operations.iter().copied());
            row.pieces.clone_from(&held.pieces);
        }
        let told = s.trace.is_some().then(|| {
            format!(
                "{}: {id} {} in {}",
                self.name,
                words::branch_event(&event),
                words::branch(&state)
            )
        });
        let mut branch = Branch::from_row(state);
        let mut local = Local {
            disk: &self.disk,
            writes: BTreeMap::new(),
        };
        let mut effects = Vec::new();
        let mut answers = Vec::new();
        let mut changed = None;
        let too_late = matches!(event, Event::PrepareReceived { in_time: false, .. });
        branch.step(event, &mut effects);
        if too_late && effects.contains(&Effect::Work) {
            let name = &self.name;
            s.checker
                .violated(format!("{name} does the work of {id} after its deadline"));
        }
        let mut effects = VecDeque::from(effects);
        while let Some(effect) = effects.pop_front() {
            s.crash_point()?;
            let mut more = Vec::new();
            match effect {
                Effect::Work | Effect::Apply | Effect::Undo
                    if s.chaos && s.rng.chance(s.temper.service_failure) =>
                {
                    // The service could not find out: rolled back, 503, asked again.
                    s.counters.add("service failures");
                    if let Some(to) = &reply_to {
                        let failed = Delivery::Unknown("503".to_owned());
                        s.reply(to, id, &row.name, failed);
                    }
                    return Ok(());
                }
                Effect::Work => {
                    let begun_at_ms = preparing.as_ref().map_or(0, |p| p.call.begun_at_ms);
                    let mine = Age {
                        begun_at_ms,
                        transaction: id,
                    };
                    let since = preparing.as_ref().and_then(|p| p.since);
                    let waited = since.map_or(0, |since| process.clock.counts(s.now - since));
                    let crowded = |key| {
                        let waiting = process.waiters.values();
                        waiting.filter(|waiter| waiter.key == key).count() >= WAITERS_MAX
                    };
                    let vote = match local.take_keys(&row, mine, waited, crowded) {
                        Ok(()) => local.prepare(&mut row.operations),
                        Err(KeyHeld::GiveUp(key, GiveUp::Conflict)) => {
                            s.counters.add("prepares refused for a key");
                            let reason = format!("another transaction holds the key {key}");
                            no(RefusalCode::Conflict, reason)
                        }
                        Err(KeyHeld::GiveUp(key, GiveUp::Busy)) => {
                            s.counters.add("prepares that gave up waiting for a key");
                            trace!(s, "{}: {id} waited for key {key} in vain", self.name);
                            if let Some(to) = &reply_to {
                                let busy = Delivery::Unknown("503 key-busy".to_owned());
                                s.reply(to, id, &row.name, busy);
                            }
                            return Ok(());
                        }
                        Err(KeyHeld::OlderRefused(key)) => {
                            let name = &self.name;
                            s.checker.violated(format!(
                                "{name}: {id} is older than who holds key {key}, and is to be refused"
                            ));
                            return Ok(());
                        }
                        Err(KeyHeld::Wait(key)) => {
                            if since.is_none() {
                                s.counters.add("prepares that wait for a key");
                                trace!(s, "{}: {id} waits for key {key}", self.name);
                            }
                            let Some(Preparing { call, since }) = preparing else {
                                return Ok(());
                            };
                            self.numbers += 1;
                            let waiter = Waiter {
                                call,
                                key,
                                since: since.unwrap_or(s.now),
                                number: self.numbers,
                            };
                            process.waiters.insert(id, waiter);
                            let happening = Happening::KeyWait {
                                participant: self.name.clone(),
                                process: number,
                                waiter: self.numbers,
                            };
                            s.after(process.clock.takes(LOOK_AGAIN), happening);
                            return Ok(());
                        }
                    };
                    branch.step(Event::Worked(vote), &mut more);
                }
                Effect::Apply => {
                    local.commit(id, &row.operations);
                    branch.step(Event::Applied, &mut more);
                }
                Effect::Undo => {
                    local.abort(&row.operations);
                    branch.step(Event::Undone, &mut more);
                }
                Effect::RollBackWork => local.writes.clear(),
                Effect::ReleaseKeys => local.release_keys(id, &row),
                Effect::Store(state) => {
                    row.state = state;
                    local
                        .writes
                        .insert(Cell::Row(id), Some(Value::Row(row.clone())));
                    changed = Some(row.state.clone());
                }
                Effect::Answer {
                    reply: Answer::Reply(reply),
                    forced,
                } => answers.push((reply, forced)),
                Effect::Answer {
                    reply: Answer::BelowLowWater { low_water },
                    ..
                } => {
                    s.counters.add("prepares below the low-water mark");
                    trace!(s, "{}: {id} is below {low_water}", self.name);
                    s.checker.refused_below_the_mark(id, &row.name);
                    if let Some(to) = &reply_to {
                        let ended = no(RefusalCode::BelowLowWater, "it has ended".to_owned());
                        s.reply(to, id, &row.name, Delivery::Answered(Reply::Vote(ended)));
                    }
                }
                Effect::Answer {
                    reply: Answer::PrepareChanged,
                    ..
                } => {
                    if s.director.is_none() {
                        s.checker
                            .violated(format!("{}: {id} was prepared otherwise", self.name));
                    }
                    trace!(s, "{}: {id} was prepared otherwise", self.name);
                    if let Some(to) = &reply_to {
                        let changed = Delivery::Answered(Reply::Vote(refused("prepare-changed")));
                        s.reply(to, id, &row.name, changed);
                    }
                }
            }
            for effect in more.into_iter().rev() {
                effects.push_front(effect);
            }
        }
        s.crash_point()?;
        let applied = local.applied(id);
        let writes: Vec<_> = local.writes.into_iter().collect();
        let wrote = !writes.is_empty();
        if wrote {
            self.disk.commit(writes);
        }
        let position = self.disk.position();
        if let Some(told) = told {
            let now = changed
                .as_ref()
                .map_or(String::new(), |state| format!("; {}", words::branch(state)));
            trace!(s, "{told}{now}");
        }
        if let Some(after) = &changed {
            if matches!(after, State::Prepared { .. }) && s.checker.said_read_only(id, &row.name) {
                s.counters.add("read-only votes that changed");
            }
            let before = stored.as_ref().map(|row| &row.state);
            s.checker
                .row_changed(id, &row.name, before, after, applied, &row.pieces);
        }
        let pruned = matches!(branch.state(), State::Pruned { .. });
        if stored.is_some() || changed.is_some() || pruned {
            // The row answers from now on. After a read-only vote there is none: a repeat must find the work.
            process.sessions.remove(&id);
        } else if process.sessions.contains_key(&id) && !answers.is_empty() {
            s.counters.add("interactive branches that voted read-only");
        }
        if matches!(changed, Some(State::Prepared { .. })) {
            for key in row.keys() {
                self.prepared_with_key(key, id, s);
            }
        }
        let any_forced = answers.iter().any(|(_, forced)| *forced);
        if wrote || any_forced {
            self.flush_soon(position, any_forced, s);
        }
        s.crash_point()?;
        for (reply, forced) in answers {
            if forced {
                if let Some(process) = self.processes.get_mut(&number) {
                    let to = reply_to.clone().map(|to| (to, row.name.clone()));
                    process.answers.push(WaitingAnswer {
                        position,
                        id,
                        reply,
                        to,
                    });
                }
            } else {
                let to = reply_to.clone().map(|to| (to, row.name.clone()));
                self.reply(id, reply, to, s);
            }
        }
        Ok(())
    }

    /// The database forces its log: at once, or some time.
    pub(super) fn flush_soon(&self, position: u64, forced: bool, s: &mut Surroundings) {
        let delay = if forced {
            // A slow disk, now and then: what is visible stays undurable for long.
            let slow = !s.temper.calm && s.rng.chance(2_000);
            s.rng.between(1, if slow { 1_000 } else { 10 })
        } else {
            s.rng.between(100, 1_500)
        };
        s.carry(
            delay,
            Happening::Flush {
                participant: self.name.clone(),
                incarnation: self.incarnation,
                position,
            },
        );
    }

    /// A key is held from a yes until the outcome, by one branch.
    pub(super) fn prepared_with_key(&mut self, key: u64, id: TransactionId, s: &mut Surroundings) {
        let before = self.prepared_with.insert(key, id);
        if let Some(other) = before.filter(|other| *other != id)
            && let Some(row) = self.row(other)
            && matches!(row.state, State::Prepared { .. })
        {
            s.checker.violated(format!(
                "{}: key {key} is held by {other}, and {id} has taken it",
                self.name
            ));
        }
    }

    pub(super) fn reply(
        &self,
        id: TransactionId,
        reply: Reply,
        to: Option<(ReplyTo, ParticipantName)>,
        s: &mut Surroundings,
    ) {
        let Some((to, name)) = to else {
            return;
        };
        let durable = match self.disk.durable(&Cell::Row(id)) {
            Some(Value::Row(row)) => Some(&row.state),
            Some(Value::Account { .. } | Value::Applied(_) | Value::Holder(_) | Value::Mark(_))
            | None => None,
        };
        let pruned = self
            .mark(id.prefix())
            .filter(|mark| id < *mark)
            .map(|low_water| State::Pruned { low_water });
        let row = self.row(id).map(|row| &row.state);
        let visible = row.or(pruned.as_ref());
        trace!(s, "{name} → {}: {id} {}", to.life, words::reply(&reply));
        s.checker
            .participant_says(id, &name, &reply, visible, durable);
        s.reply(&to, id, &name, Delivery::Answered(reply));
    }
}

pub(super) fn call_ends(call: &Call, delivery: Delivery<Reply>, s: &mut Surroundings) {
    s.reply(&call.reply_to(), call.id, &call.participant, delivery);
}

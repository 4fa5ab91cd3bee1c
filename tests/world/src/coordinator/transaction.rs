//! One transaction: an event in, the machine's step, its effects carried out, the calls to its branches.

use unanimous_protocol::{
    coordinator::{Alarm, Effect, EnlistRefused, Event, Pace, Transaction},
    id::{ParticipantName, TransactionId},
    life::Life,
    message::{Delivery, Reply, Request},
    record::{Decision, Record, WallMillis},
};

use super::{Coordinator, Live, asked::answer_outcome, watch::Before};
use crate::{
    surroundings::{Asker, Call, Crashed, Happening, Said, Surroundings, trace},
    words,
};

/// Undelivered aborts, at most: small, so that the bound is reached (rule 20).
const ABORTS_MAX: usize = 3;

/// Calls that travel together, at most: small, so that the bound is reached.
const BUNDLE_MAX: usize = 8;

impl Coordinator {
    pub(super) fn recover(&mut self, record: Record, s: &mut Surroundings) -> Result<(), Crashed> {
        let id = record.header.id;
        s.counters.add("recovered transactions");
        let mut effects = Vec::new();
        let machine = Transaction::recover(id, record.decision, &mut effects);
        s.checker.stands(id, machine.is_undecided());
        // Its key is found in the log.
        self.transactions.insert(
            id,
            Live {
                machine,
                header: record.header,
                deadline_at: 0,
                by_id: Vec::new(),
                by_key: Vec::new(),
            },
        );
        self.carry_out(id, effects, None, s)?;
        self.after_step(id, s)
    }

    /// One event for one transaction.
    pub(super) fn step(
        &mut self,
        id: TransactionId,
        event: Event,
        asker: Option<Asker>,
        s: &mut Surroundings,
    ) -> Result<(), Crashed> {
        let Some(live) = self.transactions.get_mut(&id) else {
            return Ok(());
        };
        let mut effects = Vec::new();
        let before = Before::of(&live.machine, &event);
        if s.trace.is_some() {
            let said = words::event(&event);
            let before = live.machine.state().clone();
            live.machine.step(event, &mut effects);
            let after = live.machine.state();
            let now = if before == *after {
                String::new()
            } else {
                format!("; {}", words::transaction(after))
            };
            trace!(s, "{}: {id} {said}{now}", self.number);
        } else {
            live.machine.step(event, &mut effects);
        }
        let asked = |name: &ParticipantName| s.checker.was_asked(id, name);
        if let Some(broken) =
            before.broken(&live.machine, &effects, asked, self.told_that_it_went_back)
        {
            s.checker.violated(broken);
        }
        s.checker.stands(id, live.machine.is_undecided());
        self.carry_out(id, effects, asker, s)?;
        self.after_step(id, s)
    }

    pub(super) fn carry_out(
        &mut self,
        id: TransactionId,
        effects: Vec<Effect>,
        mut asker: Option<Asker>,
        s: &mut Surroundings,
    ) -> Result<(), Crashed> {
        for effect in effects {
            s.crash_point()?;
            match effect {
                Effect::Send {
                    participant,
                    request,
                    attempt,
                    pace,
                } => {
                    let delay = match pace {
                        _ if attempt < 2 => None,
                        Pace::Longest => Some(10_000),
                        Pace::Backoff => {
                            let most = 20u64 << attempt.min(7);
                            Some(s.rng.between(most / 2, most))
                        }
                    };
                    match delay {
                        None => self.call(id, participant, request, s),
                        Some(delay) => s.after(
                            self.clock.takes(delay),
                            Happening::CallLater {
                                life: self.number,
                                id,
                                participant,
                                request,
                            },
                        ),
                    }
                }
                Effect::Force(decision) => {
                    let record = self.record(id, decision, s);
                    self.next_write.proposals.extend(record);
                    self.write(s);
                }
                Effect::Append(decision) => {
                    let record = self.record(id, decision, s);
                    self.next_write.appends.extend(record);
                    self.write_soon(s);
                }
                Effect::Finish => {
                    self.next_write.finishes.push(id);
                    self.write_soon(s);
                }
                Effect::StartDeadline => {
                    if let Some(live) = self.transactions.get(&id) {
                        let delay = live.deadline_at.saturating_sub(s.now);
                        s.after(
                            delay,
                            Happening::Deadline {
                                life: self.number,
                                id,
                            },
                        );
                    }
                }
                Effect::Answer(answer) => {
                    let deadline_at = self.transactions.get(&id).map_or(0, |l| l.deadline_at);
                    if let Some(asker) = asker.take() {
                        if answer == Err(EnlistRefused::WorkLost) {
                            s.counters.add("enlists with another session");
                        }
                        let remaining = self.clock.counts(deadline_at.saturating_sub(s.now));
                        self.say(asker, Said::Enlisted { answer, remaining }, s);
                    }
                }
                Effect::Alarm(alarm) => {
                    trace!(s, "{}: {id} ALARM {alarm:?}", self.number);
                    if matches!(alarm, Alarm::VoteLost(_)) {
                        s.counters.add("lost votes that raised an alarm");
                    }
                    if let Some(life) = &mut self.life {
                        life.alarmed(&alarm, s.participants);
                    }
                    if self.life.as_ref().is_some_and(Life::is_accused) {
                        self.look_at_head(s);
                    }
                    s.checker.alarm(id, &alarm);
                    self.stands(s)?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn record(
        &self,
        id: TransactionId,
        decision: Decision,
        s: &Surroundings,
    ) -> Option<Record> {
        let live = self.transactions.get(&id)?;
        Some(Record {
            header: live.header.clone(),
            decision,
            decided_at: WallMillis(self.clock.shows(s.now)),
            finished_at: None,
        })
    }

    /// What every step may have changed: who waits is answered, what is over leaves.
    pub(super) fn after_step(
        &mut self,
        id: TransactionId,
        s: &mut Surroundings,
    ) -> Result<(), Crashed> {
        let Some(live) = self.transactions.get_mut(&id) else {
            return Ok(());
        };
        let mut claim_again = Vec::new();
        if let Some(decision) = live.machine.told() {
            let decision = decision.clone();
            let key = live.header.key.as_ref().map(|claim| claim.key.clone());
            for asker in std::mem::take(&mut live.by_id) {
                s.crash_point()?;
                answer_outcome(self.number, asker, id, &decision, None, s);
            }
            let by_key = std::mem::take(&mut live.by_key);
            if live.machine.lost_its_key()
                && let Some(key) = key
            {
                // Whoever asks by the key is answered with the winner.
                self.keyring.forget(&key, id);
                claim_again = by_key;
            } else {
                for (asker, _) in by_key {
                    s.crash_point()?;
                    answer_outcome(self.number, asker, id, &decision, key.as_ref(), s);
                }
            }
        }
        if let Some(live) = self.transactions.get(&id)
            && !live.machine.holds_low_water()
            && let Some(life) = &mut self.life
        {
            life.finished(id);
        }
        if let Some(live) = self.transactions.get(&id)
            && live.machine.is_over()
        {
            if let Some(claim) = &live.header.key {
                self.keyring.forget(&claim.key, id);
            }
            self.transactions.remove(&id);
            self.calls.retain(|_, (of, ..)| *of != id);
        }
        for (asker, question) in claim_again {
            self.asked(asker, question, s)?;
        }
        let delivering: Vec<TransactionId> = self
            .transactions
            .iter()
            .filter(|(_, live)| live.machine.is_delivering_aborts())
            .map(|(id, _)| *id)
            .collect();
        if delivering.len() > ABORTS_MAX
            && let Some(&oldest) = delivering.first()
        {
            s.counters.add("aborts dropped at the bound");
            self.step(oldest, Event::AbortsDropped, None, s)?;
        }
        Ok(())
    }

    pub(super) fn call(
        &mut self,
        id: TransactionId,
        participant: ParticipantName,
        request: Request,
        s: &mut Surroundings,
    ) {
        if s.unregistered.contains(&participant) {
            trace!(
                s,
                "{}: {id} waits, {participant} is not registered", self.number
            );
            let later = Happening::CallLater {
                life: self.number,
                id,
                participant,
                request,
            };
            return s.after(1_000, later);
        }
        s.checker.coordinator_asks(id, &participant, request.kind());
        self.numbers += 1;
        let number = self.numbers;
        let live = self.transactions.get(&id);
        let deadline_at = live.map_or(0, |live| live.deadline_at);
        let begun_at_ms = live.map_or(0, |live| live.header.created_at.0);
        trace!(
            s,
            "{} → {participant}: {id} {}",
            self.number,
            words::request(&request)
        );
        let low_water = self.low_water();
        let call = Call {
            low_water: low_water.filter(|mark| mark.prefix() == id.prefix()),
            life: self.number,
            number,
            id,
            participant: participant.clone(),
            request: request.clone(),
            remaining: self.clock.counts(deadline_at.saturating_sub(s.now)),
            begun_at_ms,
            lines: None,
        };
        let silence = Happening::CallEnds {
            life: self.number,
            number,
            id,
            participant: participant.clone(),
            delivery: Delivery::Unknown("timeout".to_owned()),
        };
        self.calls
            .insert(number, (id, participant.clone(), request, false));
        if s.batches.bundled.contains(&participant) {
            self.call_together(participant, call, s);
        } else {
            s.transmit(Happening::CallArrives(call));
        }
        let timeout = s.rng.between(300, 2_000);
        s.after(timeout, silence);
    }

    /// Leaves with whatever else is for that participant then.
    fn call_together(&mut self, participant: ParticipantName, call: Call, s: &mut Surroundings) {
        let waiting = self.leaving.entry(participant.clone()).or_default();
        waiting.push(call);
        if waiting.len() == 1 {
            let delay = s.company();
            let leave = Happening::CallsLeave {
                life: self.number,
                participant,
            };
            s.after(delay, leave);
        }
    }

    pub(crate) fn calls_leave(&mut self, participant: &ParticipantName, s: &mut Surroundings) {
        let calls = self.leaving.remove(participant).unwrap_or_default();
        for calls in calls.chunks(BUNDLE_MAX) {
            if let [_, _, ..] = calls {
                s.counters
                    .raise("calls that travelled together", calls.len() as u64);
            }
            s.transmit(Happening::CallsArrive(calls.to_vec()));
        }
    }

    pub(crate) fn call_later(
        &mut self,
        id: TransactionId,
        participant: ParticipantName,
        request: Request,
        s: &mut Surroundings,
    ) {
        // An own one that is over may still ask, which is crueller than any courier. One that was let go of does not.
        if id.node() == self.node || self.transactions.contains_key(&id) {
            self.call(id, participant, request, s);
        }
    }

    pub(crate) fn call_ended(
        &mut self,
        number: u64,
        delivery: Delivery<Reply>,
        s: &mut Surroundings,
    ) -> Result<(), Crashed> {
        let timed_out = matches!(&delivery, Delivery::Unknown(error) if error == "timeout");
        let Some((id, participant, request, given_up)) = self.calls.remove(&number) else {
            return Ok(());
        };
        if timed_out {
            // The timer is not the call's answer: one that comes all the same is passed on, which is crueller than
            // any HTTP client. The machine must be able to bear it.
            if s.chaos && s.rng.chance(3_000) {
                let late = (id, participant.clone(), request.clone(), true);
                self.calls.insert(number, late);
            }
        } else if given_up {
            s.checker.hears_late(id, &participant);
        }
        s.crash_point()?;
        let kind = request.kind();
        let event = Event::Delivered {
            participant,
            kind,
            delivery,
        };
        self.step(id, event, None, s)
    }

    pub(crate) fn deadline(
        &mut self,
        id: TransactionId,
        s: &mut Surroundings,
    ) -> Result<(), Crashed> {
        s.counters.add("deadlines");
        self.step(id, Event::DeadlinePassed, None, s)
    }
}

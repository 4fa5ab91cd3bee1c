//! A coordinator's shell around [`protocol::coordinator`](unanimous_protocol::coordinator),
//! [`protocol::life`](unanimous_protocol::life) and [`protocol::keyring`](unanimous_protocol::keyring): it carries
//! effects out in order, reports their completions as events, and adds clock readings. It decides nothing.

use std::{collections::BTreeMap, sync::Arc};

use unanimous_protocol::{
    coordinator::{Alarm, Effect, EnlistRefused, Event, Pace, Transaction},
    id::{Node, ParticipantName, TransactionId},
    keyring::{Claim, Holder, Keyring},
    life::{self, Judgement, Known, Life, Shut, Standing as LifeStanding, Writer},
    message::{Delivery, Inform, Reply, Request},
    operations::{BodyDigest, Operations},
    record::{
        AbortCode, Decision, Header, IdempotencyKey, KeyClaim, Outcome, Record, Standing, Verdict,
        WallMillis,
    },
};

use crate::{
    log,
    surroundings::{
        Asker, Call, Clock, Crashed, Happening, LifeNumber, Millis, Question, Said, Surroundings,
        Wait, trace,
    },
    words,
};

/// Undelivered aborts, at most: small, so that the bound is reached (rule 20).
const ABORTS_MAX: usize = 3;

/// One transaction in memory.
#[derive(Debug)]
struct Live {
    machine: Transaction,
    header: Arc<Header>,
    deadline_at: Millis,
    /// Clients that wait for the outcome of the id.
    by_id: Vec<Asker>,
    /// Clients that wait for the outcome of the key; and what they asked, for the key may go to another one.
    by_key: Vec<(Asker, Question)>,
}

/// A question to the log that is under way.
#[derive(Debug)]
enum Pending {
    Open,
    Write(log::Write),
    /// With what this life knew when it asked.
    Head(Known),
    Remember,
    Judge(Asker, Question, TransactionId, life::Question),
    Key(IdempotencyKey, Asker, Question),
}

#[derive(Debug)]
pub(crate) struct Coordinator {
    number: LifeNumber,
    node: Node,
    clock: Clock,
    /// `None` until its epoch is open.
    life: Option<Life>,
    keyring: Keyring,
    transactions: BTreeMap<TransactionId, Live>,
    /// Calls to branches that have not ended.
    calls: BTreeMap<u64, (TransactionId, ParticipantName, Request)>,
    asked_of_log: BTreeMap<u64, Pending>,
    waiting_for_key: BTreeMap<IdempotencyKey, Vec<(Asker, Question)>>,
    /// What goes into the next write.
    next_write: log::Write,
    write_under_way: bool,
    lonely_append_set: bool,
    numbers: u64,
    /// A frozen process: whatever reaches it waits.
    pub(crate) frozen_until: Millis,
    ended: bool,
    /// Whether the transactions were told that the log went back.
    told_that_it_went_back: bool,
}

impl Coordinator {
    pub(crate) fn start(number: LifeNumber, node: Node, s: &mut Surroundings) -> Self {
        s.counters.add("coordinator lives");
        trace!(s, "{number}: starts for node {node}");
        let mut coordinator = Self {
            number,
            node,
            clock: s.clock(),
            life: None,
            keyring: Keyring::default(),
            transactions: BTreeMap::new(),
            calls: BTreeMap::new(),
            asked_of_log: BTreeMap::new(),
            waiting_for_key: BTreeMap::new(),
            next_write: log::Write::default(),
            write_under_way: false,
            lonely_append_set: false,
            numbers: 0,
            frozen_until: 0,
            ended: false,
            told_that_it_went_back: false,
        };
        coordinator.ask_log(Pending::Open, log::Request::OpenEpoch, s);
        coordinator
    }

    pub(crate) fn node(&self) -> Node {
        self.node
    }

    /// The mark that its calls carry.
    pub(crate) fn low_water(&self) -> Option<TransactionId> {
        self.life.as_ref().and_then(Life::low_water)
    }

    /// Whether its epoch is open.
    pub(crate) fn is_serving(&self) -> bool {
        self.life
            .as_ref()
            .is_some_and(|life| *life.standing() == LifeStanding::Serving)
    }

    /// In whose name it writes, once its epoch is open.
    pub(crate) fn writer(&self) -> Option<Writer> {
        self.life.as_ref().map(Life::writer)
    }

    /// What it holds besides transactions: after healing, nothing may be.
    pub(crate) fn leftovers(&self) -> Option<String> {
        let Self {
            keyring,
            transactions,
            waiting_for_key,
            next_write,
            ..
        } = self;
        let left = [
            // One that must not finish keeps its key.
            ("keys", keyring.len().saturating_sub(transactions.len())),
            ("requests that wait for a key", waiting_for_key.len()),
            ("proposals", next_write.proposals.len()),
            ("appends", next_write.appends.len()),
            ("finishes", next_write.finishes.len()),
        ];
        let mut left = left.iter().filter(|(_, count)| *count > 0);
        left.next().map(|(what, count)| format!("{count} {what}"))
    }

    /// Whether the process has ended itself: it is fenced.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }

    /// What is not over: after healing, nothing may be.
    pub(crate) fn unfinished(&self) -> Vec<TransactionId> {
        self.transactions.keys().copied().collect()
    }

    fn ask_log(&mut self, pending: Pending, request: log::Request, s: &mut Surroundings) {
        self.numbers += 1;
        let number = self.numbers;
        let fault = if s.chaos && s.rng.chance(s.temper.log_fault) {
            Some(match s.rng.below(3) {
                0 => log::Fault::Lost,
                1 => log::Fault::AnswerLost,
                _ => log::Fault::VisibleOnly,
            })
        } else if let (Some(director), log::Request::Write(_)) = (&mut s.director, &request) {
            director.log_fault.take()
        } else {
            None
        };
        if fault.is_some() && matches!(pending, Pending::Write(_)) {
            s.counters.add("unclear writes");
        }
        // Nothing is waited for without an end: silence is unclear.
        let patience = match fault {
            Some(_) => s.rng.between(20, 2_000),
            None => s.rng.between(2_000, 10_000),
        };
        s.after(
            patience,
            Happening::LogAnswered {
                life: self.number,
                number,
                answer: log::Answer::Unavailable,
            },
        );
        self.asked_of_log.insert(number, pending);
        if fault != Some(log::Fault::Lost) {
            let delay = s.latency();
            s.carry(
                delay,
                Happening::LogAsked {
                    life: self.number,
                    node: self.node,
                    number,
                    request,
                    fault,
                },
            );
        }
    }

    pub(crate) fn log_answered(
        &mut self,
        number: u64,
        answer: log::Answer,
        s: &mut Surroundings,
    ) -> Result<(), Crashed> {
        // One that was given up before has nobody waiting.
        let Some(pending) = self.asked_of_log.remove(&number) else {
            return Ok(());
        };
        s.crash_point()?;
        match (pending, answer) {
            (Pending::Open, log::Answer::Opened { writer, unfinished }) => {
                trace!(
                    s,
                    "{}: has begun {writer}, {} unfinished",
                    self.number,
                    unfinished.len()
                );
                let random = match s.director {
                    None => s.rng.next(),
                    // Another one for each life, all the same.
                    Some(_) => u64::from(self.number.0) << 24,
                };
                let mut life = Life::begin(writer, random);
                life.recovered(unfinished.iter().map(|record| record.header.id));
                self.life = Some(life);
                for record in unfinished {
                    self.recover(record, s)?;
                }
                s.after(self.clock.takes(1_000), Happening::Poll(self.number));
                Ok(())
            }
            (Pending::Open, _) => {
                s.after(200, Happening::OpenAgain(self.number));
                Ok(())
            }
            (
                Pending::Write(write),
                log::Answer::Written {
                    standings,
                    decisions,
                },
            ) => self.written(write, standings, decisions, s),
            (Pending::Write(_), log::Answer::Shut(Shut::Fenced(_))) => {
                trace!(s, "{}: is fenced, and ends", self.number);
                s.counters.add("lives ended by a fenced write");
                self.ended = true;
                Ok(())
            }
            (Pending::Write(_), log::Answer::Shut(Shut::WentBack(_))) => {
                // What was proposed stays undecided here, whatever the log holds. What goes on is seen at its head.
                self.look_at_head(s);
                Ok(())
            }
            (Pending::Write(write), _) => {
                // Unclear: repeated until it succeeds, together with what waits by now (rule 10).
                self.write_failed(write, s);
                Ok(())
            }
            (Pending::Head(known), log::Answer::Head(head)) => {
                if let Some(life) = &mut self.life {
                    life.observe(&known, &head);
                }
                self.stands(s)
            }
            (Pending::Remember, log::Answer::Remembered) => Ok(()),
            (Pending::Remember, _) => {
                self.ask_log(Pending::Remember, log::Request::Remember, s);
                Ok(())
            }
            (Pending::Head(_), _) => Ok(()),
            (
                Pending::Judge(asker, question, id, asked),
                log::Answer::Found { snapshot, record },
            ) => {
                let judgement = self.life.as_ref().map(|life| life.judge(asked, &snapshot));
                if let Some(judgement) = judgement {
                    self.judged(asker, question, id, judgement, record.as_ref(), s);
                }
                Ok(())
            }
            (Pending::Judge(asker, ..), _) => {
                self.say(asker, Said::Unavailable, s);
                Ok(())
            }
            (Pending::Key(key, asker, question), log::Answer::Key(found)) => {
                self.key_looked_up(&key, asker, question, found, s)
            }
            (Pending::Key(key, asker, _), _) => {
                self.keyring.release(&key);
                self.say(asker, Said::Unavailable, s);
                self.claim_again(&key, s)
            }
        }
    }

    pub(crate) fn open_again(&mut self, s: &mut Surroundings) {
        self.ask_log(Pending::Open, log::Request::OpenEpoch, s);
    }

    pub(crate) fn poll(&mut self, s: &mut Surroundings) {
        self.look_at_head(s);
        s.after(self.clock.takes(1_000), Happening::Poll(self.number));
    }

    fn look_at_head(&mut self, s: &mut Surroundings) {
        if let Some(known) = self.life.as_ref().map(Life::known) {
            self.ask_log(Pending::Head(known), log::Request::Head, s);
        }
    }

    /// What its standing says may have changed (rule 11).
    fn stands(&mut self, s: &mut Surroundings) -> Result<(), Crashed> {
        let standing = self.life.as_ref().map(|life| life.standing().clone());
        match standing {
            None | Some(LifeStanding::Serving) => {}
            Some(LifeStanding::Fenced(why)) => {
                trace!(s, "{}: ends: {why}", self.number);
                s.counters.add("lives ended by a look at the log's head");
                self.ended = true;
            }
            Some(LifeStanding::WentBack(why)) => {
                if self.told_that_it_went_back {
                    return Ok(());
                }
                trace!(s, "{}: decides nothing any more: {why}", self.number);
                s.counters.add("lives that found that the log went back");
                s.checker.found_that_it_went_back(&why);
                self.told_that_it_went_back = true;
                self.next_write.proposals.clear();
                self.ask_log(Pending::Remember, log::Request::Remember, s);
                let ids: Vec<TransactionId> = self.transactions.keys().copied().collect();
                for id in ids {
                    self.step(id, Event::LogWentBack, None, s)?;
                }
            }
        }
        Ok(())
    }

    fn recover(&mut self, record: Record, s: &mut Surroundings) -> Result<(), Crashed> {
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
    fn step(
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
        s.checker.stands(id, live.machine.is_undecided());
        self.carry_out(id, effects, asker, s)?;
        self.after_step(id, s)
    }

    fn carry_out(
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
                    s.checker.alarm(id, format!("{alarm:?}"));
                    self.stands(s)?;
                }
            }
        }
        Ok(())
    }

    fn record(&self, id: TransactionId, decision: Decision, s: &Surroundings) -> Option<Record> {
        let live = self.transactions.get(&id)?;
        Some(Record {
            header: live.header.clone(),
            decision,
            decided_at: WallMillis(self.clock.shows(s.now)),
            finished_at: None,
        })
    }

    /// What every step may have changed: who waits is answered, what is over leaves.
    fn after_step(&mut self, id: TransactionId, s: &mut Surroundings) -> Result<(), Crashed> {
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

    fn call(
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
        };
        let silence = Happening::CallEnds {
            life: self.number,
            number,
            id,
            participant: participant.clone(),
            delivery: Delivery::Unknown("timeout".to_owned()),
        };
        self.calls.insert(number, (id, participant, request));
        s.transmit(Happening::CallArrives(call));
        let timeout = s.rng.between(300, 2_000);
        s.after(timeout, silence);
    }

    pub(crate) fn call_later(
        &mut self,
        id: TransactionId,
        participant: ParticipantName,
        request: Request,
        s: &mut Surroundings,
    ) {
        self.call(id, participant, request, s);
    }

    pub(crate) fn call_ended(
        &mut self,
        number: u64,
        delivery: Delivery<Reply>,
        s: &mut Surroundings,
    ) -> Result<(), Crashed> {
        let timed_out = matches!(&delivery, Delivery::Unknown(error) if error == "timeout");
        let Some((id, participant, request)) = self.calls.get(&number).cloned() else {
            return Ok(());
        };
        if timed_out {
            // The timer is not the call's answer: one that comes all the same is passed on, which is crueller than
            // any HTTP client. The machine must be able to bear it.
            self.calls.remove(&number);
            if s.chaos && s.rng.chance(3_000) {
                self.calls
                    .insert(number, (id, participant.clone(), request.clone()));
            }
        } else {
            self.calls.remove(&number);
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

    // ---- the log's writer: all that waits goes into the next write ----

    fn write_soon(&mut self, s: &mut Surroundings) {
        if !self.lonely_append_set {
            self.lonely_append_set = true;
            s.after(100, Happening::LonelyAppend(self.number));
        }
    }

    pub(crate) fn lonely_append(&mut self, s: &mut Surroundings) {
        self.lonely_append_set = false;
        let next = &self.next_write;
        if !(next.proposals.is_empty() && next.appends.is_empty() && next.finishes.is_empty()) {
            if self.write_under_way && !self.next_write.proposals.is_empty() {
                return self.write_soon(s);
            }
            self.send_write(s);
        }
    }

    pub(crate) fn write(&mut self, s: &mut Surroundings) {
        if !self.write_under_way && !self.next_write.proposals.is_empty() {
            self.send_write(s);
        }
    }

    fn send_write(&mut self, s: &mut Surroundings) {
        let Some(life) = &self.life else {
            return;
        };
        let mut write = std::mem::take(&mut self.next_write);
        write.writer = Some(life.writer());
        if !write.proposals.is_empty() {
            self.write_under_way = true;
        }
        self.ask_log(Pending::Write(write.clone()), log::Request::Write(write), s);
    }

    fn write_failed(&mut self, write: log::Write, s: &mut Surroundings) {
        if !write.proposals.is_empty() {
            self.write_under_way = false;
        }
        let mut write = write;
        write.proposals.append(&mut self.next_write.proposals);
        write.appends.append(&mut self.next_write.appends);
        write.finishes.append(&mut self.next_write.finishes);
        self.next_write = write;
        let delay = s.rng.between(10, 300);
        s.after(delay, Happening::WriteAgain(self.number));
        self.write_soon(s);
    }

    fn written(
        &mut self,
        write: log::Write,
        standings: Vec<(TransactionId, Standing)>,
        decisions: u64,
        s: &mut Surroundings,
    ) -> Result<(), Crashed> {
        if !write.proposals.is_empty() {
            self.write_under_way = false;
            if let Some(life) = &mut self.life {
                life.decided(decisions);
            }
        }
        for (id, standing) in standings {
            s.crash_point()?;
            self.step(id, Event::Forced(standing), None, s)?;
        }
        let appended = write.appends.iter().map(|record| record.header.id);
        for id in appended.chain(write.finishes.iter().copied()) {
            self.step(id, Event::Appended, None, s)?;
        }
        self.write(s);
        Ok(())
    }

    // ---- what it is asked ----

    fn say(&self, asker: Asker, said: Said, s: &mut Surroundings) {
        tell(self.number, asker, said, s);
    }

    pub(crate) fn asked(
        &mut self,
        asker: Asker,
        question: Question,
        s: &mut Surroundings,
    ) -> Result<(), Crashed> {
        s.crash_point()?;
        if self.life.is_none() {
            self.say(asker, Said::Unavailable, s);
            return Ok(());
        }
        match question {
            Question::Begin {
                key: None,
                branches,
                commit,
                timeout,
                ..
            } => self.begin(None, branches, commit, timeout, asker, None, s),
            Question::Begin {
                key: Some(ref key),
                request,
                commit,
                ..
            } => match self.keyring.claim(key, request) {
                Claim::LookUp => {
                    let key = key.clone();
                    let request = log::Request::ByKey(key.clone());
                    self.ask_log(Pending::Key(key, asker, question), request, s);
                    Ok(())
                }
                Claim::Wait => {
                    s.counters.add("requests that wait for a key's look-up");
                    let waiting = self.waiting_for_key.entry(key.clone()).or_default();
                    waiting.push((asker, question));
                    Ok(())
                }
                Claim::Same(id) if self.is_frozen(id) => {
                    self.say(asker, Said::Unavailable, s);
                    Ok(())
                }
                Claim::Same(id) => {
                    s.counters.add("repeats found in memory");
                    if !commit {
                        self.say(asker, Said::Open(id), s);
                        return Ok(());
                    }
                    if let Some(live) = self.transactions.get_mut(&id) {
                        live.by_key.push((asker, question));
                    }
                    self.after_step(id, s)
                }
                Claim::Reused => {
                    s.counters.add("reused keys");
                    self.say(asker, Said::KeyReused, s);
                    Ok(())
                }
            },
            Question::Enlist {
                id,
                participant,
                session,
            } => {
                if !self.transactions.contains_key(&id) {
                    let question = Question::Enlist {
                        id,
                        participant,
                        session,
                    };
                    return self.look_up(id, asker, question, s);
                }
                let event = Event::Enlist {
                    participant,
                    operations: Operations::none(),
                    session: Some(session),
                };
                self.step(id, event, Some(asker), s)
            }
            Question::Commit(id, wait) => {
                self.about(id, wait, asker, question, Some(Event::CommitRequested), s)
            }
            Question::Abort(id, wait) => {
                let event = Event::AbortRequested { detail: None };
                self.about(id, wait, asker, question, Some(event), s)
            }
            Question::Get(id) => self.about(id, Wait::Decided, asker, question, None, s),
            Question::Outcome {
                id,
                ref participant,
            } => {
                if let Some(live) = self.transactions.get(&id) {
                    let inform = live.machine.inform(participant);
                    let participant = participant.clone();
                    self.inform(asker, id, participant, inform, s);
                    return Ok(());
                }
                self.look_up(id, asker, question, s)
            }
        }
    }

    /// Undecided, and to stay so.
    fn is_frozen(&self, id: TransactionId) -> bool {
        let live = self.transactions.get(&id);
        live.is_some_and(|live| live.machine.is_frozen() && live.machine.is_undecided())
    }

    fn about(
        &mut self,
        id: TransactionId,
        wait: Wait,
        asker: Asker,
        question: Question,
        event: Option<Event>,
        s: &mut Surroundings,
    ) -> Result<(), Crashed> {
        if self.is_frozen(id) {
            self.say(asker, Said::Unavailable, s);
            return Ok(());
        }
        let Some(live) = self.transactions.get_mut(&id) else {
            return self.look_up(id, asker, question, s);
        };
        let waits = wait == Wait::Decided;
        let told = live.machine.told().is_some();
        if waits || told {
            live.by_id.push(asker.clone());
        }
        match event {
            Some(event) => self.step(id, event, None, s)?,
            None => self.after_step(id, s)?,
        }
        if !waits && !told {
            self.say(asker, Said::Pending(id), s);
        }
        Ok(())
    }

    fn inform(
        &self,
        asker: Asker,
        id: TransactionId,
        participant: ParticipantName,
        inform: Inform,
        s: &mut Surroundings,
    ) {
        s.checker.told_branch(id, &participant, inform);
        self.say(asker, Said::Inform(id, participant, inform), s);
    }

    /// Memory does not hold it: the log, in one snapshot (rule 3).
    fn look_up(
        &mut self,
        id: TransactionId,
        asker: Asker,
        question: Question,
        s: &mut Surroundings,
    ) -> Result<(), Crashed> {
        let Some(life) = &self.life else {
            return Ok(());
        };
        let pending = Pending::Judge(asker, question, id, life.ask(id));
        self.ask_log(pending, log::Request::Outcome(id), s);
        Ok(())
    }

    fn judged(
        &self,
        asker: Asker,
        question: Question,
        id: TransactionId,
        judgement: Judgement,
        record: Option<&Record>,
        s: &mut Surroundings,
    ) {
        s.counters.add("judgements");
        trace!(
            s,
            "{}: without it in memory, {id} is {judgement:?}", self.number
        );
        if let Question::Outcome { participant, .. } = question {
            let inform = match (judgement, record) {
                (Judgement::Recorded, Some(record)) => Some(record.decision.inform(&participant)),
                _ => judgement.inform(),
            };
            match inform {
                Some(inform) => self.inform(asker, id, participant, inform, s),
                None => self.say(asker, Said::Unavailable, s),
            }
            return;
        }
        let enlists = matches!(question, Question::Enlist { .. });
        match (judgement, record) {
            (Judgement::Recorded, Some(record)) if !enlists => {
                answer_outcome(self.number, asker, id, &record.decision, None, s);
            }
            (Judgement::Aborted(code), _) if !enlists => {
                s.checker
                    .told_client(id, Outcome::Aborted, Some(code), None);
                self.say(asker, Said::Aborted(id, code), s);
            }
            (Judgement::Recorded | Judgement::Aborted(_), _) => self.say(asker, Said::NotThere, s),
            (Judgement::Forgotten, _) => self.say(asker, Said::Forgotten, s),
            (Judgement::NeverIssued | Judgement::Foreign, _) => {
                s.checker.judged_unknown(id, judgement);
                self.say(asker, Said::NotThere, s);
            }
            (Judgement::OtherNode(node), _) => self.say(asker, Said::OtherNode(node), s),
            (Judgement::Unknown(_) | Judgement::LogWentBack | Judgement::Silent, _) => {
                self.say(asker, Said::Unavailable, s);
            }
        }
    }

    fn key_looked_up(
        &mut self,
        key: &IdempotencyKey,
        asker: Asker,
        question: Question,
        found: Option<Record>,
        s: &mut Surroundings,
    ) -> Result<(), Crashed> {
        let Question::Begin {
            request,
            branches,
            commit,
            timeout,
            ..
        } = question.clone()
        else {
            return Ok(());
        };
        match found {
            Some(record) => {
                s.counters.add("repeats found in the log");
                self.keyring.release(key);
                self.answer_holder(key, request, &record, asker, s);
            }
            None => {
                let claim = KeyClaim {
                    key: key.clone(),
                    request,
                };
                self.begin(
                    Some(claim),
                    branches,
                    commit,
                    timeout,
                    asker,
                    Some(question),
                    s,
                )?;
                // Where nothing was begun, the key stays free.
                self.keyring.release(key);
            }
        }
        self.claim_again(key, s)
    }

    fn answer_holder(
        &self,
        key: &IdempotencyKey,
        request: BodyDigest,
        record: &Record,
        asker: Asker,
        s: &mut Surroundings,
    ) {
        let Some(claim) = &record.header.key else {
            return;
        };
        let holder = Holder {
            transaction: record.header.id,
            request: claim.request,
        };
        match holder.claim(request) {
            Claim::Same(id) => {
                answer_outcome(self.number, asker, id, &record.decision, Some(key), s);
            }
            Claim::Reused => {
                s.counters.add("reused keys");
                self.say(asker, Said::KeyReused, s);
            }
            Claim::LookUp | Claim::Wait => {}
        }
    }

    fn claim_again(&mut self, key: &IdempotencyKey, s: &mut Surroundings) -> Result<(), Crashed> {
        for (asker, question) in self.waiting_for_key.remove(key).unwrap_or_default() {
            self.asked(asker, question, s)?;
        }
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "the members of one request")]
    fn begin(
        &mut self,
        key: Option<KeyClaim>,
        branches: Vec<(ParticipantName, Operations)>,
        commit: bool,
        timeout: Millis,
        asker: Asker,
        by_key: Option<Question>,
        s: &mut Surroundings,
    ) -> Result<(), Crashed> {
        let Some(id) = self.life.as_mut().and_then(Life::issue) else {
            self.say(asker, Said::Unavailable, s);
            return Ok(());
        };
        s.counters.add("transactions");
        s.checker.begun(id, key.as_ref().map(|claim| &claim.key));
        s.name_it(id);
        trace!(
            s,
            "{}: begins {id}{}",
            self.number,
            key.as_ref()
                .map_or(String::new(), |claim| format!(" for key {}", claim.key))
        );
        if let Some(claim) = &key {
            let holder = Holder {
                transaction: id,
                request: claim.request,
            };
            self.keyring.hold(&claim.key, holder);
        }
        let mut effects = Vec::new();
        let machine = Transaction::begin(id, key.is_some(), &mut effects);
        let mut live = Live {
            machine,
            header: Arc::new(Header {
                id,
                key,
                labels: BTreeMap::new(),
                created_at: WallMillis(self.clock.shows(s.now)),
                deadline: WallMillis(self.clock.shows(s.now + timeout)),
            }),
            deadline_at: s.now + self.clock.takes(timeout),
            by_id: Vec::new(),
            by_key: Vec::new(),
        };
        if commit {
            match by_key {
                Some(question) => live.by_key.push((asker, question)),
                None => live.by_id.push(asker),
            }
            self.transactions.insert(id, live);
        } else {
            self.transactions.insert(id, live);
            self.say(asker, Said::Open(id), s);
        }
        self.carry_out(id, effects, None, s)?;
        for (participant, operations) in branches {
            let event = Event::Enlist {
                participant,
                operations,
                session: None,
            };
            self.step(id, event, None, s)?;
        }
        if commit {
            self.step(id, Event::CommitRequested, None, s)?;
        }
        Ok(())
    }
}

/// A client is told an outcome.
fn answer_outcome(
    life: LifeNumber,
    asker: Asker,
    id: TransactionId,
    decision: &Decision,
    key: Option<&IdempotencyKey>,
    s: &mut Surroundings,
) {
    let (code, said): (Option<AbortCode>, Said) = match &decision.verdict {
        Verdict::Commit => (None, Said::Committed(id)),
        Verdict::Abort(reason) => (Some(reason.code), Said::Aborted(id, reason.code)),
    };
    s.checker
        .told_client(id, decision.verdict.outcome(), code, key);
    tell(life, asker, said, s);
}

fn tell(life: LifeNumber, asker: Asker, said: Said, s: &mut Surroundings) {
    trace!(s, "{life} → {}: {}", words::who(&asker), words::said(&said));
    s.answer(life, asker, said);
}

//! What a coordinator is asked: by clients, by participants that enlist, and by those in doubt.

use std::{collections::BTreeMap, sync::Arc};

use unanimous_protocol::{
    coordinator::{Event, Transaction},
    id::{ParticipantName, TransactionId},
    keyring::{Claim, Holder},
    life::{Judgement, Life},
    message::Inform,
    operations::{BodyDigest, Operations},
    record::{
        AbortCode, Decision, Header, IdempotencyKey, KeyClaim, Outcome, Record, Verdict, WallMillis,
    },
};

use super::{Coordinator, Live, Pending};
use crate::{
    log,
    surroundings::{
        Asker, Crashed, Happening, LifeNumber, Millis, Question, Said, Surroundings, Wait, Who,
        trace,
    },
    words,
};

impl Coordinator {
    pub(super) fn say(&self, asker: Asker, said: Said, s: &mut Surroundings) {
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
                    s.checker.told_by_key(id, request);
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
    pub(super) fn is_frozen(&self, id: TransactionId) -> bool {
        let live = self.transactions.get(&id);
        live.is_some_and(|live| live.machine.is_frozen() && live.machine.is_undecided())
    }

    pub(super) fn about(
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

    pub(super) fn inform(
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

    /// A participant says whether it holds a prepared branch of a suspicious id.
    pub(crate) fn peeked(
        &mut self,
        id: TransactionId,
        participant: &ParticipantName,
        prepared: bool,
        s: &mut Surroundings,
    ) -> Result<(), Crashed> {
        if prepared && let Some(life) = &mut self.life {
            life.prepared_without_a_trace(id, participant);
        }
        self.stands(s)
    }

    /// Memory does not hold it: the log, in one snapshot (rule 3).
    pub(super) fn look_up(
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

    pub(super) fn judged(
        &mut self,
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
            if Life::is_suspicious(judgement) {
                // An inquiry alone says nothing, for anybody can make up an id: the participant itself is asked.
                s.counters.add("suspicious inquiries");
                s.transmit(Happening::Peek {
                    life: self.number,
                    participant: participant.clone(),
                    id,
                });
            }
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
            (Judgement::Forgotten, _) => {
                s.checker.told_forgotten(id);
                self.say(asker, Said::Forgotten, s);
            }
            (Judgement::NeverIssued | Judgement::Foreign, _) => {
                // Whoever makes up an id may make up the next one to be issued.
                if asker.who != Who::Stranger {
                    s.checker.judged_unknown(id, judgement);
                }
                self.say(asker, Said::NotThere, s);
            }
            (Judgement::OtherNode(node), _) => self.say(asker, Said::OtherNode(node), s),
            (Judgement::Unknown(_) | Judgement::LogWentBack | Judgement::Silent, _) => {
                self.say(asker, Said::Unavailable, s);
            }
        }
    }

    pub(super) fn key_looked_up(
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

    pub(super) fn answer_holder(
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
                s.checker.told_by_key(id, request);
                answer_outcome(self.number, asker, id, &record.decision, Some(key), s);
            }
            Claim::Reused => {
                s.counters.add("reused keys");
                self.say(asker, Said::KeyReused, s);
            }
            Claim::LookUp | Claim::Wait => {}
        }
    }

    pub(super) fn claim_again(
        &mut self,
        key: &IdempotencyKey,
        s: &mut Surroundings,
    ) -> Result<(), Crashed> {
        for (asker, question) in self.waiting_for_key.remove(key).unwrap_or_default() {
            self.asked(asker, question, s)?;
        }
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "the members of one request")]
    pub(super) fn begin(
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
        s.checker.begun(id, key.as_ref());
        s.remember(id);
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
pub(super) fn answer_outcome(
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

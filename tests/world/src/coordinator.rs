//! A coordinator's shell around [`protocol::coordinator`](unanimous_protocol::coordinator),
//! [`protocol::life`](unanimous_protocol::life) and [`protocol::keyring`](unanimous_protocol::keyring): it carries
//! effects out in order, reports their completions as events, and adds clock readings. It decides nothing.

mod adoption;
mod asked;
mod transaction;
mod watch;
mod writer;

use std::{collections::BTreeMap, sync::Arc};

use unanimous_protocol::{
    coordinator::{Event, Transaction},
    id::{Node, ParticipantName, TransactionId},
    keyring::Keyring,
    life::{self, Known, Life, Shut, Standing as LifeStanding, Writer},
    message::Request,
    record::{Header, IdempotencyKey},
};

use crate::{
    log,
    surroundings::{
        Asker, Call, Clock, Crashed, Happening, LifeNumber, Millis, Question, Said, Surroundings,
        trace,
    },
};

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
    Adopt(Node),
    Write(log::Write),
    /// With what this life knew when it asked.
    Head(Known),
    /// With the epoch that was opened to adopt the node.
    HeadOf(Writer),
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
    /// Under way, each with whether its time is over.
    calls: BTreeMap<u64, (TransactionId, ParticipantName, Request, bool)>,
    /// Calls that wait for others to the same participant.
    leaving: BTreeMap<ParticipantName, Vec<Call>>,
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
            leaving: BTreeMap::new(),
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
            leaving,
            ..
        } = self;
        let left = [
            // One that must not finish keeps its key.
            ("keys", keyring.len().saturating_sub(transactions.len())),
            ("requests that wait for a key", waiting_for_key.len()),
            ("proposals", next_write.proposals.len()),
            ("appends", next_write.appends.len()),
            ("finishes", next_write.finishes.len()),
            ("calls that wait for company", leaving.len()),
        ];
        let mut left = left.iter().filter(|(_, count)| *count > 0);
        left.next().map(|(what, count)| format!("{count} {what}"))
    }

    /// Whether it has the transaction in memory.
    pub(crate) fn holds(&self, id: TransactionId) -> bool {
        let calls = &mut self.calls.values();
        self.transactions.contains_key(&id) || calls.any(|(of, ..)| *of == id)
    }

    /// How many things it holds.
    pub(crate) fn in_memory(&self) -> usize {
        let waiting: usize = self.waiting_for_key.values().map(Vec::len).sum();
        self.transactions.len() + self.calls.len() + self.keyring.len() + waiting
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
                s.counters.add("lives ended by a fenced write");
                self.ends("a write was refused", s);
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
            (Pending::HeadOf(known), log::Answer::Head(head)) => {
                self.look_at_adopted(&known, &head, s)
            }
            (Pending::Adopt(node), log::Answer::Opened { writer, unfinished }) => {
                self.adopted(node, writer, unfinished, s)
            }
            // It is tried again with the next look.
            (Pending::Head(_) | Pending::HeadOf(_) | Pending::Adopt(_), _) => Ok(()),
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
        let adopted: Vec<Writer> = self.life.iter().flat_map(Life::adopted).collect();
        for writer in adopted {
            let request = log::Request::HeadOf(writer.node);
            self.ask_log(Pending::HeadOf(writer), request, s);
        }
        s.after(self.clock.takes(1_000), Happening::Poll(self.number));
    }

    fn look_at_head(&mut self, s: &mut Surroundings) {
        if let Some(known) = self.life.as_ref().map(Life::known) {
            self.ask_log(Pending::Head(known), log::Request::Head, s);
        }
    }

    /// The process ends itself: somebody newer rules.
    fn ends(&mut self, why: &str, s: &mut Surroundings) {
        trace!(s, "{}: is fenced, and ends: {why}", self.number);
        if let Some(writer) = self.writer() {
            s.checker.ends_as_fenced(&writer);
        }
        self.ended = true;
    }

    /// What its standing says may have changed (rule 11).
    fn stands(&mut self, s: &mut Surroundings) -> Result<(), Crashed> {
        let standing = self.life.as_ref().map(|life| life.standing().clone());
        match standing {
            None | Some(LifeStanding::Serving) => {}
            Some(LifeStanding::Fenced(why)) => {
                s.counters.add("lives ended by a look at the log's head");
                self.ends(&why, s);
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
}

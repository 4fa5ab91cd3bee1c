//! Clients of the API: they begin, work, commit and abort, repeat after any silence, ask again long after, and die.

use unanimous_protocol::{
    id::{Node, ParticipantName, TransactionId},
    operations::{BodyDigest, Operations},
    record::{AbortCode, IdempotencyKey},
};

use crate::{
    surroundings::{
        Asker, Happening, Millis, Question, Said, Surroundings, Wait, Who, Work, trace,
    },
    words,
};

/// What one client is to do.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) key: Option<IdempotencyKey>,
    pub(crate) request: BodyDigest,
    /// Named when the transaction begins.
    pub(crate) branches: Vec<(ParticipantName, Operations)>,
    /// Asked of the participants afterwards.
    pub(crate) work: Vec<(ParticipantName, String)>,
    pub(crate) timeout: Millis,
    /// Between beginning and going on.
    pub(crate) pause: Millis,
    pub(crate) end: End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Begin and commit in one request.
    AtOnce,
    Commit,
    Abort,
    /// Both, one after the other, without waiting.
    Race,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Beginning,
    Working(usize),
    /// `true` commits.
    Ending(bool),
    /// Has its answer.
    Done,
    /// Had its answer, and asks once more.
    AskingAgain,
    /// Dead, or it gave up: it does not ask any more.
    Gone,
}

#[derive(Debug)]
pub(crate) struct Client {
    index: usize,
    plan: Plan,
    stage: Stage,
    id: Option<TransactionId>,
    /// The number of its last question.
    question: u64,
    tries: u32,
    asks_again: u32,
    /// Its timer will go off.
    waits: bool,
    /// Where it was sent to.
    node: Option<Node>,
}

impl Client {
    pub(crate) fn new(index: usize, plan: Plan) -> Self {
        Self {
            index,
            plan,
            stage: Stage::Beginning,
            id: None,
            question: 0,
            tries: 0,
            asks_again: 3,
            waits: true,
            node: None,
        }
    }

    /// Whether it still wants an answer.
    pub(crate) fn is_asking(&self) -> bool {
        !matches!(self.stage, Stage::Done | Stage::Gone)
    }

    /// Of its transaction, once it knows one.
    pub(crate) fn id(&self) -> Option<TransactionId> {
        self.id
    }

    /// Nothing will come of it any more.
    pub(crate) fn has_ended(&self) -> bool {
        match self.stage {
            Stage::Gone => true,
            Stage::Done => !self.waits,
            Stage::Beginning | Stage::Working(_) | Stage::Ending(_) | Stage::AskingAgain => false,
        }
    }

    fn asker(&mut self) -> Asker {
        self.question += 1;
        Asker {
            who: Who::Client(self.index),
            question: self.question,
        }
    }

    /// The timer of `question`: nothing came since.
    pub(crate) fn acts(&mut self, question: u64, s: &mut Surroundings) {
        if question != self.question || self.stage == Stage::Gone {
            return;
        }
        if s.chaos && s.rng.chance(200) {
            s.counters.add("clients that die");
            trace!(s, "client {}: dies", self.index);
            self.stage = Stage::Gone;
            return;
        }
        if self.stage == Stage::Done {
            self.stage = Stage::AskingAgain;
            s.counters.add("clients that ask again");
        }
        if self.stage == Stage::Beginning && self.tries > 0 {
            s.counters.add("begins repeated after silence");
            // Without a key a repeat is another transaction; a careful client gives up.
            if self.plan.key.is_none() && s.rng.chance(8_000) {
                self.stage = Stage::Gone;
                return;
            }
        }
        self.tries += 1;
        self.send(s);
    }

    /// Whether it begins and commits in one request.
    fn commits(&self) -> bool {
        self.plan.end == End::AtOnce
    }

    fn begin(&self) -> Question {
        Question::Begin {
            key: self.plan.key.clone(),
            request: self.plan.request,
            branches: self.plan.branches.clone(),
            commit: self.commits(),
            timeout: self.plan.timeout,
        }
    }

    fn send(&mut self, s: &mut Surroundings) {
        let asker = self.asker();
        // Mostly the coordinator that it began at; any other one must answer truly, too.
        let node = self.id.map(TransactionId::node);
        let node = node.filter(|_| s.rng.chance(8_000)).or(self.node.take());
        // Where nobody runs it, a load balancer finds somebody else.
        let node = node.filter(|node| s.listening.iter().any(|(of, _)| of == node));
        match (self.stage, self.id) {
            (Stage::Beginning, _) => {
                let question = self.begin();
                s.ask(None, asker, question);
            }
            (Stage::Working(piece), Some(id)) => {
                if self.tries > 4 {
                    self.stage = Stage::Ending(false);
                    return self.send(s);
                }
                if let Some((participant, operations)) = self.plan.work.get(piece) {
                    let work = Work {
                        id,
                        participant: participant.clone(),
                        node: id.node(),
                        ordinal: piece as u32,
                        operations: operations.clone(),
                        asker,
                    };
                    s.transmit(Happening::WorkArrives(work));
                }
            }
            (Stage::Ending(commit), Some(id)) => {
                if commit && self.plan.end == End::Race && self.tries < 2 {
                    s.counters.add("aborts that race a commit");
                    s.ask(node, asker.clone(), Question::Abort(id, Wait::Decided));
                }
                let wait = if s.rng.chance(7_500) {
                    Wait::Decided
                } else {
                    Wait::None
                };
                let question = if commit {
                    Question::Commit(id, wait)
                } else {
                    Question::Abort(id, wait)
                };
                s.ask(node, asker, question);
            }
            (Stage::AskingAgain, id) => {
                // Where the key is free again, a begin that does not commit would leave something open.
                let question = match id.filter(|_| self.plan.key.is_none() || !self.commits()) {
                    None => self.begin(),
                    Some(id) => Question::Get(id),
                };
                s.ask(node, asker, question);
            }
            (Stage::Working(_) | Stage::Ending(_) | Stage::Done | Stage::Gone, _) => return,
        }
        let patience = if s.temper.calm {
            40_000
        } else {
            s.rng.between(500, 5_000)
        };
        self.again_after(patience, s);
    }

    fn again_after(&mut self, delay: Millis, s: &mut Surroundings) {
        s.after(
            delay,
            Happening::ClientActs {
                client: self.index,
                question: self.question,
            },
        );
    }

    pub(crate) fn work_done(&mut self, question: u64, done: bool, s: &mut Surroundings) {
        let Stage::Working(piece) = self.stage else {
            return;
        };
        if question != self.question {
            return;
        }
        self.tries = 0;
        if done && piece + 1 < self.plan.work.len() {
            self.stage = Stage::Working(piece + 1);
        } else {
            self.stage = Stage::Ending(done && self.plan.end != End::Abort);
        }
        self.send(s);
    }

    pub(crate) fn answered(&mut self, question: u64, said: &Said, s: &mut Surroundings) {
        if question != self.question || self.stage == Stage::Gone {
            return;
        }
        trace!(s, "client {}: hears that {}", self.index, words::said(said));
        match said {
            Said::Open(id) if self.stage == Stage::Beginning => {
                self.id = Some(*id);
                self.tries = 0;
                self.stage = if self.plan.work.is_empty() {
                    Stage::Ending(self.plan.end != End::Abort)
                } else {
                    Stage::Working(0)
                };
                match self.plan.pause {
                    0 => self.send(s),
                    pause => self.again_after(pause, s),
                }
            }
            Said::Committed(id) => {
                self.id = Some(*id);
                self.done(s);
            }
            Said::Aborted(id, code) => {
                if *code == AbortCode::Unrecorded {
                    s.counters.add("clients told of an abort without a record");
                }
                self.id = Some(*id);
                self.done(s);
            }
            Said::Open(_) | Said::KeyReused | Said::Forgotten | Said::NotThere => self.done(s),
            Said::Pending(id) => self.id = Some(*id),
            Said::OtherNode(node) => {
                self.node = Some(*node);
                self.send(s);
            }
            // Asked again by the timer.
            Said::Unavailable | Said::Enlisted { .. } | Said::Inform(..) => {}
        }
    }

    fn done(&mut self, s: &mut Surroundings) {
        self.stage = Stage::Done;
        self.waits = false;
        self.tries = 0;
        self.question += 1;
        if self.asks_again > 0 && (self.id.is_some() || (self.plan.key.is_some() && self.commits()))
        {
            self.asks_again -= 1;
            if s.rng.chance(4_000) {
                let delay = s.rng.between(500, 60_000);
                self.again_after(delay, s);
                self.waits = true;
            }
        }
    }
}

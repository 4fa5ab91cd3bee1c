//! Interactive work: it is held in a process's memory, under a session, until the prepare takes it.

use std::collections::BTreeSet;

use unanimous_protocol::{
    branch::Event,
    id::{ParticipantName, TransactionId},
    message::Session,
};

use super::{Held, Participant, ledger::Operation};
use crate::{
    surroundings::{
        Asker, Crashed, Happening, Millis, ProcessNumber, Question, Said, Surroundings, Who, Work,
        trace,
    },
    words,
};

impl Participant {
    /// The connection that held some session's work is gone.
    pub(crate) fn lose_a_session(&mut self, s: &mut Surroundings) {
        for process in self.processes.values_mut() {
            if let Some((id, _)) = process.sessions.pop_first() {
                s.counters.add("lost sessions");
                trace!(s, "{}: loses the session of {id}", self.name);
                return;
            }
        }
    }

    /// A client asks for interactive work: the branch is enlisted, with its session, before the first.
    pub(crate) fn work(&mut self, work: Work, s: &mut Surroundings) -> Result<(), Crashed> {
        let Some(number) = self.any_process(s) else {
            return Ok(());
        };
        s.crash_point()?;
        let known = self.row(work.id).is_some();
        let name = self.name.clone();
        let Some(process) = self.processes.get_mut(&number) else {
            return Ok(());
        };
        if known {
            done(work.asker, false, s);
            return Ok(());
        }
        if let Some(held) = process.sessions.get_mut(&work.id) {
            if held.sealed {
                done(work.asker, false, s);
                return Ok(());
            }
            held.waiting.push(work);
            if held.enlisted {
                carry_out_work(&name, held, s);
            }
            return Ok(());
        }
        self.numbers += 1;
        let text = format!("{name}-{}", self.numbers);
        let Ok(session) = text.parse::<Session>() else {
            return Ok(());
        };
        trace!(s, "{name}: {} enlists with session {text}", work.id);
        let id = work.id;
        let node = work.node;
        process.sessions.insert(
            id,
            Held {
                session: session.clone(),
                node,
                enlisted: false,
                sealed: false,
                operations: Vec::new(),
                pieces: BTreeSet::new(),
                waiting: vec![work],
            },
        );
        self.enlist(number, id, s);
        s.after(
            700,
            Happening::EnlistSilence {
                participant: name,
                process: number,
                id,
            },
        );
        Ok(())
    }

    pub(super) fn enlist(&self, number: ProcessNumber, id: TransactionId, s: &mut Surroundings) {
        let Some(held) = self
            .processes
            .get(&number)
            .and_then(|process| process.sessions.get(&id))
        else {
            return;
        };
        let asker = Asker {
            who: Who::Enlisting(self.name.clone(), number, id, held.session.clone()),
            question: 0,
        };
        let question = Question::Enlist {
            id,
            participant: self.name.clone(),
            session: held.session.clone(),
        };
        s.ask(Some(held.node), asker, question);
    }

    /// Nobody answered the enlisting: it is repeated, and given up with the work after a while.
    pub(crate) fn enlist_silence(
        &mut self,
        number: ProcessNumber,
        id: TransactionId,
        s: &mut Surroundings,
    ) {
        let Some(process) = self.processes.get_mut(&number) else {
            return;
        };
        if process.sessions.get(&id).is_none_or(|held| held.enlisted) {
            return;
        }
        if s.rng.chance(3_000) {
            if let Some(held) = process.sessions.remove(&id) {
                for work in held.waiting {
                    done(work.asker, false, s);
                }
            }
            return;
        }
        self.enlist(number, id, s);
        s.after(
            700,
            Happening::EnlistSilence {
                participant: self.name.clone(),
                process: number,
                id,
            },
        );
    }

    pub(crate) fn enlisted(
        &mut self,
        number: ProcessNumber,
        id: TransactionId,
        session: &Session,
        said: &Said,
        s: &mut Surroundings,
    ) {
        let Some(process) = self.processes.get_mut(&number) else {
            return;
        };
        let Some(held) = process.sessions.get_mut(&id) else {
            return;
        };
        if held.session != *session || held.enlisted {
            return;
        }
        match said {
            Said::Enlisted {
                answer: Ok(_),
                remaining,
            } => {
                held.enlisted = true;
                carry_out_work(&self.name, held, s);
                let remaining: Millis = *remaining;
                s.after(
                    process.clock.takes(remaining),
                    Happening::SessionDeadline {
                        participant: self.name.clone(),
                        process: number,
                        id,
                        session: session.clone(),
                    },
                );
            }
            // Asked again by the timer.
            Said::Unavailable | Said::OtherNode(_) => {}
            Said::Enlisted { answer: Err(_), .. }
            | Said::Open(_)
            | Said::Committed(_)
            | Said::Aborted(..)
            | Said::Pending(_)
            | Said::KeyReused
            | Said::Forgotten
            | Said::Inform(..)
            | Said::NotThere => {
                if let Some(held) = process.sessions.remove(&id) {
                    for work in held.waiting {
                        done(work.asker, false, s);
                    }
                }
            }
        }
    }

    /// The deadline that the coordinator told at enlisting.
    pub(crate) fn session_deadline(
        &mut self,
        number: ProcessNumber,
        id: TransactionId,
        session: &Session,
        s: &mut Surroundings,
    ) -> Result<(), Crashed> {
        let Some(process) = self.processes.get(&number) else {
            return Ok(());
        };
        let holds = process.sessions.get(&id);
        if holds.is_some_and(|held| held.session == *session) {
            s.counters.add("session deadlines");
        }
        // Also where it has voted since: the branch knows that no timer leaves `Prepared`.
        self.message(number, id, Event::DeadlinePassed, None, None, s)
    }
}

fn carry_out_work(name: &ParticipantName, held: &mut Held, s: &mut Surroundings) {
    for work in std::mem::take(&mut held.waiting) {
        if held.pieces.insert(work.ordinal) {
            held.operations.extend(Operation::parse(&work.operations));
        }
        s.counters.add("interactive pieces of work");
        trace!(s, "{name}: {} holds work {}", work.id, work.operations);
        s.checker.work_done(work.id, name, work.ordinal);
        done(work.asker, true, s);
    }
}

fn done(asker: Asker, done: bool, s: &mut Surroundings) {
    trace!(
        s,
        "work of {}: {}",
        words::who(&asker),
        if done { "done" } else { "not done" }
    );
    s.transmit_once(Happening::WorkDone { asker, done });
}

//! One run of a batch: the rows, the service's code, and whether all came as was hoped
//! ([`protocol::together`](unanimous_protocol::together)).

use std::collections::{BTreeMap, BTreeSet};

use unanimous_protocol::{
    branch::{Answer, Event, State},
    id::ParticipantName,
    message::{Request, Vote},
    together::{Asks, End, Hope, any_forced},
};

use super::{
    Participant, Process, WaitingAnswer,
    lane::{Brings, Message, Promise},
    ledger::Operation,
    local::{Cell, Local, Row, Value},
};
use crate::{
    surroundings::{Crashed, ProcessNumber, Surroundings, trace},
    words,
};

/// How a run ended.
pub(super) enum Ran {
    /// Durable or soon, and who asked is answered.
    Committed,
    /// Rolled back, to be run again without those at these places.
    Without(BTreeSet<usize>),
    /// Whether it was committed, nobody knows.
    Unclear,
}

/// A message's part of a run.
struct Part<'a> {
    message: &'a Message,
    /// What the row said.
    before: State,
    hope: Hope,
    /// As it is hoped to end.
    row: Row,
}

impl Participant {
    /// The part of a message, where the row is as was hoped. Operations that are remembered are not read again.
    fn part<'a>(
        &self,
        process: &Process,
        message: &'a Message,
        s: &mut Surroundings,
    ) -> Option<Part<'a>> {
        let id = message.id;
        let stored = self.row(id);
        let found = match stored {
            Some(row) => row.state.clone(),
            None => State::without_row(id, None, self.mark(id.prefix())),
        };
        match &message.brings {
            Brings::Prepare(call) => {
                let Request::Prepare(prepare) = &call.request else {
                    return None;
                };
                let hope = Hope::of(State::Absent, message.event()?)?;
                let row = Row {
                    name: call.participant.clone(),
                    state: hope.stores().clone(),
                    operations: Operation::parse(prepare.operations.text()),
                    pieces: BTreeSet::new(),
                };
                hope.is_of(&found).then_some(Part {
                    message,
                    before: found,
                    hope,
                    row,
                })
            }
            Brings::Outcome(event, _) => {
                let stored = stored?;
                if stored.keys().next().is_some() {
                    return None;
                }
                let mut row = stored.clone();
                let hope = match process.lane.promises.of(id) {
                    Some(promise) => {
                        s.counters.add("outcomes of remembered promises");
                        let digest = promise.digest;
                        row.operations.clone_from(&promise.operations);
                        Hope::of(State::Prepared { digest }, event.clone())?
                    }
                    None => Hope::of(found.clone(), event.clone())?,
                };
                if !hope.is_of(&found) || row.operations != stored.operations {
                    if matches!(found, State::Prepared { .. }) {
                        s.counters.add("promises that the row contradicts");
                    }
                    return None;
                }
                row.state = hope.stores().clone();
                Some(Part {
                    message,
                    before: found,
                    hope,
                    row,
                })
            }
        }
    }

    /// All of them in one local transaction, or none.
    pub(super) fn run_together(
        &mut self,
        number: ProcessNumber,
        going: &[Message],
        s: &mut Surroundings,
    ) -> Result<Ran, Crashed> {
        s.crash_point()?;
        let Some(process) = self.processes.get(&number) else {
            return Ok(Ran::Committed);
        };
        if let [_, _, ..] = going {
            s.counters.add("batches");
            let ids: Vec<String> = going.iter().map(|message| message.id.to_string()).collect();
            trace!(s, "{}: {} together", self.name, ids.join(", "));
        }
        let mut parts = match self.parts(process, going, s) {
            Ok(parts) => parts,
            Err(out) => return Ok(Ran::Without(out)),
        };
        let mut local = Local {
            disk: &self.disk,
            writes: BTreeMap::new(),
        };
        // Each as it is hoped to end.
        write_rows(&parts, &mut local);
        let ends = match run_all(&mut parts, &mut local, s)? {
            Ok(ends) => ends,
            Err(out) => return Ok(Ran::Without(out)),
        };
        // Of a prepare only what was found to have something to do.
        write_rows(&parts, &mut local);
        s.crash_point()?;
        let is_clear = self.commit_is_clear(s);
        if is_clear == Err(false) {
            return Ok(Ran::Unclear);
        }
        let writes: Vec<_> = local.writes.into_iter().collect();
        let position = self.disk.commit(writes);
        for part in &parts {
            self.committed(number, part, s);
        }
        let forced = any_forced(&ends);
        self.flush_soon(position, forced, s);
        s.crash_point()?;
        if is_clear.is_err() {
            return Ok(Ran::Unclear);
        }
        if let [_, _, ..] = going {
            s.counters.add("batches committed");
        }
        for (part, end) in parts.iter().zip(ends) {
            self.remember(number, part);
            let Some(answer) = part.answer(end, position) else {
                continue;
            };
            if forced {
                if let Some(process) = self.processes.get_mut(&number) {
                    process.answers.push(answer);
                }
            } else {
                s.crash_point()?;
                self.reply(answer.id, answer.reply, answer.to, s);
            }
        }
        Ok(Ran::Committed)
    }

    /// Everybody's part; or at which places the row is otherwise.
    fn parts<'a>(
        &self,
        process: &Process,
        going: &'a [Message],
        s: &mut Surroundings,
    ) -> Result<Vec<Part<'a>>, BTreeSet<usize>> {
        let mut out = BTreeSet::new();
        let mut parts = Vec::with_capacity(going.len());
        for (at, message) in going.iter().enumerate() {
            match self.part(process, message, s) {
                Some(part) => parts.push(part),
                None => {
                    out.insert(at);
                }
            }
        }
        if out.is_empty() { Ok(parts) } else { Err(out) }
    }

    /// Whether the commit comes back; with `Err`, whether it happened all the same.
    fn commit_is_clear(&self, s: &mut Surroundings) -> Result<(), bool> {
        let name = &self.name;
        if let Some((_, happens)) = s.batches.unclear.take_if(|(of, _)| of == name) {
            return Err(happens);
        }
        if s.chaos && s.batches.rng.chance(500) {
            return Err(s.batches.rng.chance(5_000));
        }
        Ok(())
    }

    /// A branch's row is visible as it was hoped to be.
    fn committed(&mut self, number: ProcessNumber, part: &Part<'_>, s: &mut Surroundings) {
        let id = part.message.id;
        let (name, after): (&ParticipantName, &State) = (&part.row.name, &part.row.state);
        if s.trace.is_some()
            && let Some(event) = part.message.event()
        {
            trace!(
                s,
                "{}: {id} {} in {}; {}",
                self.name,
                words::branch_event(&event),
                words::branch(&part.before),
                words::branch(after)
            );
        }
        if matches!(after, State::Prepared { .. }) && s.checker.said_read_only(id, name) {
            s.counters.add("read-only votes that changed");
        }
        let before = Some(&part.before).filter(|before| **before != State::Absent);
        let applied = self.applied(id);
        s.checker
            .row_changed(id, name, before, after, applied, &part.row.pieces);
        if let Some(process) = self.processes.get_mut(&number) {
            process.sessions.remove(&id);
        }
    }

    fn remember(&mut self, number: ProcessNumber, part: &Part<'_>) {
        let Some(process) = self.processes.get_mut(&number) else {
            return;
        };
        let promises = &mut process.lane.promises;
        match &part.row.state {
            State::Prepared { digest } => promises.remember(
                part.message.id,
                Promise {
                    digest: *digest,
                    operations: part.row.operations.clone(),
                },
            ),
            State::Absent
            | State::Active { .. }
            | State::Working { .. }
            | State::Applying { .. }
            | State::Undoing
            | State::Committed { .. }
            | State::Refused { .. }
            | State::Aborted
            | State::Tombstone
            | State::Pruned { .. } => promises.forget(part.message.id),
        }
    }
}

fn write_rows(parts: &[Part<'_>], local: &mut Local<'_>) {
    for part in parts {
        let row = Value::Row(part.row.clone());
        local.writes.insert(Cell::Row(part.message.id), Some(row));
    }
}

/// The service's code of all of them, side by side: in any order. What they say; or at which places it was not as hoped.
fn run_all(
    parts: &mut [Part<'_>],
    local: &mut Local<'_>,
    s: &mut Surroundings,
) -> Result<Result<Vec<End>, BTreeSet<usize>>, Crashed> {
    let mut order: Vec<usize> = (0..parts.len()).collect();
    for at in (1..order.len()).rev() {
        order.swap(at, s.batches.rng.below(at as u64 + 1) as usize);
    }
    let mut out = BTreeSet::new();
    let mut ends = BTreeMap::new();
    for at in order {
        s.crash_point()?;
        if s.chaos && s.rng.chance(s.temper.service_failure) {
            // After a failed statement the others get no further either.
            s.counters.add("service failures");
            out.insert(at);
            break;
        }
        let part = &mut parts[at];
        let event = part.run(local);
        match part.hope.clone().ends(event) {
            Some(end) => {
                ends.insert(at, end);
            }
            None => {
                out.insert(at);
            }
        }
    }
    Ok(if out.is_empty() {
        Ok(ends.into_values().collect())
    } else {
        Err(out)
    })
}

impl Part<'_> {
    /// What is said once the commit at `position` is durable.
    fn answer(&self, end: End, position: u64) -> Option<WaitingAnswer> {
        let Some(Answer::Reply(reply)) = end.answer else {
            return None;
        };
        let to = self.message.reply_to();
        Some(WaitingAnswer {
            position,
            id: self.message.id,
            reply,
            to: to.map(|to| (to, self.row.name.clone())),
        })
    }

    /// The service's code.
    fn run(&mut self, local: &mut Local<'_>) -> Event {
        match self.hope.asks() {
            Asks::Work => {
                let vote: Vote = local.prepare(&mut self.row.operations);
                Event::Worked(vote)
            }
            Asks::Apply => {
                local.commit(self.message.id, &self.row.operations);
                Event::Applied
            }
            Asks::Undo => {
                local.abort(&self.row.operations);
                Event::Undone
            }
        }
    }
}

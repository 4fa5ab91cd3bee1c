//! What must hold once a healed world is quiet.

use unanimous_protocol::{
    branch::State,
    id::TransactionId,
    record::{AbortCode, Part, Verdict},
};

use super::World;
use crate::{
    client::Client,
    coordinator::Coordinator,
    participant::{ACCOUNTS, BALANCE},
};

impl World {
    /// Storage is bounded: once all is quiet no row is below the mark but those whose outcome may never be known. In a
    /// script rows stay as they are.
    pub(super) fn all_can_be_pruned(&mut self) -> Result<(), String> {
        if self.s.director.is_some() {
            return Ok(());
        }
        let marks = self
            .coordinators
            .values()
            .filter_map(Coordinator::low_water);
        let marks: Vec<_> = marks.collect();
        for participant in self.participants.values_mut() {
            for mark in participant.marks().iter().chain(&marks) {
                // Nothing crashes any more.
                participant.prune(*mark, &mut self.s).ok();
            }
        }
        for (name, participant) in &self.participants {
            for id in participant.rows_below_the_mark() {
                if !self.may_never_be_known(id) {
                    return Err(format!("{name} keeps its row of {id} for ever"));
                }
            }
        }
        Ok(())
    }

    /// AC5, and what else must hold once all is quiet; AC4 for a calm world.
    pub(crate) fn all_has_ended(&mut self) -> Result<(), String> {
        self.all_can_be_pruned()?;
        let went_back = self.log.ever_went_back();
        for (name, participant) in &self.participants {
            if !participant.is_running() {
                return Err(format!("{name} does not run"));
            }
            for (id, state) in participant.rows() {
                if matches!(state, State::Prepared { .. }) && !self.may_never_be_known(id) {
                    return Err(format!("AC5: {id} is still in doubt at {name}"));
                }
            }
            let (_, held) = participant.money();
            if held != 0 && !went_back {
                return Err(format!("AC5: {name} still holds {held}"));
            }
            for (key, id) in participant.keys() {
                if !self.may_never_be_known(id) {
                    return Err(format!("AC5: {name} still holds key {key} for {id}"));
                }
            }
            if let Some(left) = participant.leftovers() {
                return Err(format!("{name} still holds {left}"));
            }
        }
        let money: u64 = self.participants.values().map(|p| p.money().0).sum();
        let expected = self.participants.len() as u64 * ACCOUNTS * BALANCE;
        // A script's transfers need not add up.
        let adds_up = self.s.director.is_none() && !went_back;
        if money != expected && adds_up && !self.s.checker.anybody_betrayed() {
            return Err(format!("there was {expected} of money, and now {money}"));
        }
        self.nothing_finished_is_kept()?;
        for record in self.log.records() {
            let open = record.decision.verdict == Verdict::Commit
                && !record.decision.is_finished_at_once()
                && record.finished_at.is_none();
            if open && !self.s.checker.waits_for_an_operator(record.header.id) {
                return Err(format!("AC5: {} is unfinished", record.header.id));
            }
        }
        for coordinator in self.coordinators.values() {
            let mut unfinished = coordinator.unfinished();
            unfinished.retain(|id| !self.s.checker.waits_for_an_operator(*id));
            if !unfinished.is_empty() {
                return Err(format!("AC5: a coordinator still holds {unfinished:?}"));
            }
        }
        let waits_in_vain = |client: &Client| {
            let for_ever = |id| self.may_never_be_known(id);
            client.is_asking() && !client.id().is_some_and(for_ever)
        };
        if let Some(client) = self.clients.values().find(|client| waits_in_vain(client)) {
            return Err(format!("AC5: a client never got an answer: {client:?}"));
        }
        let owes_ac4 = self.s.temper.calm && self.s.director.is_none();
        let (mut commits, mut aborts, mut without_record) = (0, 0, 0);
        for (id, decision) in self.s.checker.decisions() {
            match decision.map(|decision| &decision.verdict) {
                Some(Verdict::Commit) => commits += 1,
                Some(Verdict::Abort(reason)) => {
                    aborts += 1;
                    let agreed_to_abort = matches!(
                        reason.code,
                        AbortCode::Refused
                            | AbortCode::Requested
                            | AbortCode::Duplicate
                            | AbortCode::Conflict
                    );
                    if owes_ac4 && !agreed_to_abort {
                        return Err(format!("AC4: {id} aborted without a fault: {reason:?}"));
                    }
                }
                None => without_record += 1,
            }
            for (name, participant) in &self.participants {
                let updates = decision.is_some_and(|decision| {
                    decision.verdict == Verdict::Commit
                        && decision.branches.get(name) == Some(&Part::Updates)
                });
                let applied = participant.applied(id);
                let excused = self.s.checker.is_betrayed(id) || self.s.checker.is_lost(id);
                if applied != u32::from(updates) && !excused {
                    return Err(format!("{name} applied {id} {applied} times: {decision:?}"));
                }
            }
        }
        if owes_ac4 && without_record > 0 {
            return Err(format!(
                "AC4: {without_record} transactions without a record"
            ));
        }
        self.s.counters.raise("commits", commits);
        self.s.counters.raise("aborts", aborts);
        self.s
            .counters
            .raise("aborts without a record", without_record);
        if self.s.temper.calm {
            self.s.counters.add("calm worlds");
        }
        Ok(())
    }

    /// Without a record of it, an id of a former identity may have committed in the part that was lost: whoever asks
    /// is told "pending", until an operator settles it.
    pub(super) fn may_never_be_known(&self, id: TransactionId) -> bool {
        id.identity() != self.log.identity() && self.log.record(id).is_none()
    }

    /// Storage at the coordinator's end: what is finished is forgotten after the retention. And its memory.
    pub(super) fn nothing_finished_is_kept(&self) -> Result<(), String> {
        if let Some(record) = self.log.overdue(&self.s) {
            let id = record.header.id;
            return Err(format!("the record of {id} is kept for ever: {record:?}"));
        }
        for (number, coordinator) in &self.coordinators {
            if let Some(left) = coordinator.leftovers() {
                return Err(format!("{number} still holds {left}"));
            }
        }
        Ok(())
    }
}

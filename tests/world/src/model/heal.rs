//! "Can still be finished": one fixed schedule without faults, played from every state. Whoever was fenced looks and ends, a
//! coordinator is there, writes and calls are answered, who is in doubt inquires, and only where nothing moves any more
//! does a deadline pass. What is still on its way from before is lost.

use unanimous_protocol::{
    branch::State as RowState,
    coordinator::{Event, State as MachineState},
    life::Standing,
    message::RequestKind,
    record::Outcome,
};

use super::{
    Search,
    check::Known,
    participant::WELL,
    state::{Asked, INFORMS, NODES_MAX, State, TRANSACTIONS_MAX, call_bit, node_of, slot},
};

/// More than a healthy world needs by far.
const ROUNDS: usize = 12;

impl Search {
    /// Plays the schedule.
    pub(super) fn heal(&self, from: &State) -> Result<(), String> {
        let must_commit = self.must_commit(from);
        let mut s = from.clone();
        s.faults = super::state::Faults {
            coordinator_crashes: 0,
            participant_crashes: 0,
            log_crashes: 0,
            betrayals: 0,
        };
        for life in 0..s.lives.len() {
            self.look(&mut s, life);
        }
        for number in 0..NODES_MAX {
            if s.log.visible.epochs[number] > 0 && s.serving(number).is_none() {
                self.start_life(&mut s, number);
            }
        }
        for participant in 0..s.participants.len() {
            self.flush(&mut s, participant);
        }
        for round in 0..ROUNDS {
            self.round(&mut s);
            if let Some(wrong) = &s.wrong {
                return Err(format!("while it heals: {}", wrong.what));
            }
            if self.is_over(&s) {
                break;
            }
            // Calls that are answered have been: nothing moves any more.
            if round >= ROUNDS / 2 {
                self.deadlines(&mut s);
            }
        }
        if from.participants.iter().any(|p| !p.betrayed.is_empty()) {
            // It waits for an operator.
            return Ok(());
        }
        self.is_finished(&mut s)?;
        if let Some(wrong) = &s.wrong {
            return Err(format!("healed: {}", wrong.what));
        }
        if must_commit && !s.is_committed(0) && !self.is_called_committed(&s) {
            return Err("AC4: all agree, nothing fails, and it does not commit".to_owned());
        }
        Ok(())
    }

    /// Whether nothing stands in the way of the only transaction's commit (AC4).
    fn must_commit(&self, s: &State) -> bool {
        if s.lives.len() != 1 || s.transactions.len() != 1 || s.log.is_keyed {
            return false;
        }
        let undecided = s.machine(0, 0).is_some_and(|machine| {
            machine.is_undecided() && *machine.state() != MachineState::Active
        });
        let lost = s.transactions[0].refused || s.is_betrayed(0);
        let refused = s.participants.iter().any(|p| {
            let row = &p.visible.rows[0].state;
            row.as_ref()
                .is_some_and(|row| !matches!(row, RowState::Prepared { .. }))
        });
        // Interactive work that is there must be all that there ever was.
        let work_is_there = s.participants.iter().all(|p| {
            let in_session = |held: super::state::Held| held.session == 1 && held.enlisted;
            p.sessions_begun == 0
                || (p.sessions_begun == 1
                    && (p.visible.rows[0].state.is_some() || p.held.is_some_and(in_session)))
        });
        undecided && !refused && !lost && work_is_there
    }

    fn is_called_committed(&self, s: &State) -> bool {
        (0..s.lives.len()).any(|life| {
            matches!(
                s.known_at(life, 0),
                Some(Known::Decision(Outcome::Committed, ..))
            )
        })
    }

    fn round(&self, s: &mut State) {
        // The log.
        let at = 0;
        while at < s.log.requests.len() {
            if s.lives[s.log.requests[at].life].is_none() {
                s.log_mut().requests.remove(at);
                continue;
            }
            if s.log.requests[at].written.is_none() {
                let length = s.log.requests.len();
                self.log_takes(s, at);
                if s.log.requests.len() < length {
                    continue;
                }
            }
            if s.log.is_dirty {
                s.force_log();
            }
            // It may write again; that comes behind, or in the next round.
            self.log_answers(s, at);
        }
        for life in 0..s.lives.len() {
            self.key_is_looked_up(s, life);
            for transaction in 0..s.transactions.len() {
                self.calls(s, life, transaction);
            }
        }
        self.inquiries(s);
    }

    fn key_is_looked_up(&self, s: &mut State, life: usize) {
        while s
            .running(life)
            .is_some_and(|running| running.looking_up > 0)
        {
            if s.transactions.len() < TRANSACTIONS_MAX || s.log.visible.holder.is_some() {
                self.key_found(s, life);
            } else if let Some(running) = s.running_mut(life) {
                // The client has gone.
                running.looking_up = 0;
                running.keyring.release(&super::coordinator::KEY);
            }
        }
    }

    /// Every call that is under way arrives and is answered.
    fn calls(&self, s: &mut State, life: usize, transaction: usize) {
        let slot = slot(life, transaction);
        for participant in 0..s.participants.len() {
            for kind in [
                RequestKind::Prepare,
                RequestKind::Commit,
                RequestKind::Abort,
            ] {
                let p = &s.participants[participant];
                if !p.calls.has(call_bit(slot, kind)) {
                    continue;
                }
                // The newest of its kind.
                let sent = (0..Asked::COUNT)
                    .rev()
                    .map(Asked::from_code)
                    .filter(|asked| asked.kind() == kind)
                    .find(|asked| p.requests.has(slot * Asked::COUNT + asked.code()));
                let Some(asked) = sent else {
                    continue;
                };
                let lucks = self.configuration.branches[participant].lucks();
                let luck = lucks.first().copied().unwrap_or(WELL);
                let p = s.participant_mut(participant);
                p.replies = super::state::Bits::default();
                self.called(s, participant, (life, transaction), asked, luck);
                let replies = std::mem::take(&mut s.participant_mut(participant).replies);
                let count = super::state::Said::ALL.len();
                for bit in replies.iter().filter(|bit| bit / count == slot) {
                    let said = super::state::Said::ALL[bit % count];
                    self.answered(s, life, transaction, participant, said);
                }
            }
        }
    }

    /// Whoever is in doubt asks everybody.
    fn inquiries(&self, s: &mut State) {
        for participant in 0..s.participants.len() {
            for transaction in 0..s.transactions.len() {
                for life in 0..s.lives.len() {
                    let row = &s.participants[participant].visible.rows[transaction].state;
                    if !matches!(row, Some(RowState::Prepared { .. })) {
                        continue;
                    }
                    s.participant_mut(participant).informs = super::state::Bits::default();
                    self.inquired(s, life, transaction, participant);
                    let told = std::mem::take(&mut s.participant_mut(participant).informs);
                    for bit in told.iter() {
                        // What is remembered of it stays: see `was_told_aborted`.
                        s.participant_mut(participant).informs.add(bit);
                        let inform = INFORMS[bit % INFORMS.len()];
                        self.informed(s, participant, transaction, inform);
                    }
                }
            }
        }
    }

    /// Nothing moves: what is undecided ends by its deadline, and so does work that nobody asked for.
    fn deadlines(&self, s: &mut State) {
        for life in 0..s.lives.len() {
            for transaction in 0..s.transactions.len() {
                let waits = s.machine(life, transaction).is_some_and(|machine| {
                    matches!(
                        machine.state(),
                        MachineState::Active | MachineState::Preparing
                    )
                });
                if waits {
                    self.step(s, life, transaction, Event::DeadlinePassed);
                }
            }
        }
        for participant in 0..s.participants.len() {
            if s.participants[participant].held.is_some() {
                self.session_deadline(s, participant);
            }
        }
    }

    /// Whether nothing is left to do for anybody.
    fn is_over(&self, s: &State) -> bool {
        let in_memory =
            s.lives.iter().flatten().any(|running| {
                running.machines.iter().any(Option::is_some) || running.looking_up > 0
            });
        let open = s.participants.iter().any(|p| {
            let in_doubt = |row: &super::state::Row| {
                matches!(row.state, Some(RowState::Prepared { .. })) || row.reserved || row.key
            };
            p.held.is_some() || p.visible.rows.iter().any(in_doubt)
        });
        !in_memory && !open && s.log.requests.is_empty()
    }

    /// Decided, told and released.
    fn is_finished(&self, s: &mut State) -> Result<(), String> {
        if !self.is_over(s) {
            return Err(format!("it does not end: {}", self.describe(s)));
        }
        s.tells_the_truth()?;
        for transaction in 0..s.transactions.len() {
            let serving = s.serving(node_of(s.id_of(transaction)));
            let serving = serving.ok_or("nobody serves")?;
            let Some(Known::Decision(outcome, _, _)) = s.known_at(serving, transaction) else {
                return Err(format!("nobody can be told what became of {transaction}"));
            };
            if s.is_unfinished(transaction) {
                return Err(format!("the commit of {transaction} is never finished"));
            }
            for participant in 0..s.participants.len() {
                let row = &s.participants[participant].durable.rows[transaction];
                let has_committed = matches!(row.state, Some(RowState::Committed { .. }));
                let pruned = s.participants[participant].pruned.has(transaction);
                let as_decided = match outcome {
                    Outcome::Committed => {
                        has_committed == s.updates(transaction, participant)
                            || (row.state.is_none() && pruned)
                    }
                    Outcome::Aborted => !has_committed,
                };
                if !as_decided {
                    return Err(format!("{transaction}: {participant} has {row:?}"));
                }
            }
        }
        for number in 0..NODES_MAX {
            if let Some(serving) = s.serving(number) {
                self.is_released(s, serving, number)?;
            }
        }
        Ok(())
    }

    /// Nothing holds the low-water mark, and below it participants keep nothing.
    fn is_released(&self, s: &mut State, serving: usize, number: usize) -> Result<(), String> {
        let mark = s.running(serving).and_then(|r| r.life.low_water());
        let Some(mark) = mark else {
            return Ok(());
        };
        let mut mine = s.transactions.iter();
        if let Some(begun) = mine.find(|begun| node_of(begun.id) == number && begun.id >= mark) {
            return Err(format!("{} holds the low-water mark {mark}", begun.id));
        }
        for participant in 0..s.participants.len() {
            self.prune(s, participant, mark);
            let p = &s.participants[participant];
            let keeps = s.transactions.iter().zip(&p.visible.rows);
            let mut keeps = keeps.filter(|(begun, _)| node_of(begun.id) == number);
            if keeps.any(|(_, row)| row.state.is_some()) {
                return Err(format!("{participant} keeps a row below the mark"));
            }
        }
        Ok(())
    }

    fn describe(&self, s: &State) -> String {
        let machines = s.lives.iter().flatten().flat_map(|l| &l.machines).flatten();
        let machines: Vec<String> = machines
            .map(|machine| format!("{:?}", machine.state()))
            .collect();
        let rows: Vec<String> = s
            .participants
            .iter()
            .map(|p| format!("{:?}", p.visible.rows[0].state))
            .collect();
        format!("{machines:?} {rows:?}")
    }
}

impl State {
    /// The life of a node that may decide.
    fn serving(&self, number: usize) -> Option<usize> {
        self.lives.iter().position(|running| {
            running.as_ref().is_some_and(|running| {
                *running.life.standing() == Standing::Serving
                    && running.life.writer().node == super::state::node(number)
            })
        })
    }
}

//! The shell around [`Transaction`], [`Life`] and [`Keyring`](unanimous_protocol::keyring::Keyring): carries effects out,
//! reports their completions, and decides nothing. A crash between two effects of a step needs no action of its own: it is
//! a crash after the step whose later messages never arrive.

use std::sync::{Arc, LazyLock};

use unanimous_protocol::{
    coordinator::{
        Alarm, BranchPhase, Effect, EnlistRefused, Event, State as MachineState, Transaction,
    },
    id::TransactionId,
    keyring::{Claim, Holder, Keyring},
    life::{Life, Standing as LifeStanding},
    message::{Delivery, Inform, RefusalCode, Reply, RequestKind, Session, Vote},
    operations::{BodyDigest, Operations},
    record::{IdempotencyKey, Standing, Verdict},
};

use super::{
    Search,
    check::Rule,
    configuration::Client,
    state::{
        Asked, Begun, INFORMS, LogRequest, NAMES, Running, SESSIONS, Said, State, Write, call_bit,
        node_of, number_of, reply, slot,
    },
};

/// What every branch is to do: what it is means nothing to the machines.
pub(super) static OPERATIONS: LazyLock<Operations> = LazyLock::new(Operations::none);

pub(super) static KEY: LazyLock<IdempotencyKey> =
    LazyLock::new(|| "order-1".parse().expect("a key"));

/// Of the request under the key.
pub(super) const REQUEST: BodyDigest = BodyDigest([1; 32]);

impl Search {
    /// A new life begins: its epoch is opened, which fences all before it, and what is unfinished is recovered.
    pub(super) fn start_life(&self, s: &mut State, number: usize) {
        let writer = s.open_epoch(number);
        let life = s.lives.len();
        let mut begun = Life::begin(writer, 100 << 21);
        let unfinished: Vec<usize> = (0..s.transactions.len())
            .filter(|&transaction| node_of(s.id_of(transaction)) == number)
            .filter(|&transaction| s.is_unfinished(transaction))
            .collect();
        begun.recovered(unfinished.iter().map(|&at| s.transactions[at].id));
        s.lives.push(Some(Arc::new(Running {
            life: begun,
            keyring: Keyring::default(),
            looking_up: 0,
            machines: [None, None],
            early: None,
        })));
        for transaction in unfinished {
            let Some(record) = s.log.visible.records[transaction].clone() else {
                continue;
            };
            let id = s.transactions[transaction].id;
            let mut effects = Vec::new();
            let machine = Transaction::recover(id, (*record.decision).clone(), &mut effects);
            s.transactions[transaction].undecided = machine.is_undecided();
            if let Some(running) = s.running_mut(life) {
                running.machines[transaction] = Some(Arc::new(machine));
            }
            self.carry_out(s, life, transaction, effects);
            self.after_step(s, life, transaction);
        }
    }

    /// A life ends; whatever is on its way to it means nothing any more.
    pub(super) fn end_life(&self, s: &mut State, life: usize) {
        s.lives[life] = None;
        for transaction in 0..super::state::TRANSACTIONS_MAX {
            s.forget_answers(life, transaction);
        }
        s.log_mut()
            .requests
            .retain(|request| request.life != life || request.written.is_none());
    }

    /// It looks at the log's head, as every second (rule 11).
    pub(super) fn look(&self, s: &mut State, life: usize) {
        let Some(node) = s.running(life).map(|running| running.life.writer().node) else {
            return;
        };
        let head = s.head(node);
        let Some(running) = s.running_mut(life) else {
            return;
        };
        let known = running.life.known();
        running.life.observe(&known, &head);
        if let LifeStanding::Fenced(_) = running.life.standing() {
            self.end_life(s, life);
        }
    }

    /// A transaction begins at a life. `None` where the life begins none.
    pub(super) fn begin(&self, s: &mut State, life: usize, commits: bool) -> Option<usize> {
        let is_keyed = s.log.is_keyed;
        let undecided_under_key = is_keyed
            && (0..s.transactions.len()).any(|other| {
                s.machine(life, other)
                    .is_some_and(Transaction::is_undecided)
            });
        s.require(!undecided_under_key, Rule::Key, || {
            "a repeat began a second transaction at the same life".to_owned()
        });
        let running = s.running_mut(life)?;
        let id = running.life.issue()?;
        let transaction = s.transactions.len();
        let repeated = s.begun(id).is_some();
        s.require(!repeated, Rule::Ac2, || "an id was issued twice".to_owned());
        s.transactions.push(Begun {
            id,
            undecided: true,
            refused: false,
        });
        let mut effects = Vec::new();
        let machine = Transaction::begin(id, is_keyed, &mut effects);
        let running = s.running_mut(life)?;
        running.machines[transaction] = Some(Arc::new(machine));
        if is_keyed {
            let holder = Holder {
                transaction: id,
                request: REQUEST,
            };
            running.keyring.hold(&KEY, holder);
        }
        self.carry_out(s, life, transaction, effects);
        if commits {
            for name in &NAMES[..self.branches()] {
                let event = Event::Enlist {
                    participant: name.clone(),
                    operations: OPERATIONS.clone(),
                    session: None,
                };
                self.step(s, life, transaction, event);
            }
            self.step(s, life, transaction, Event::CommitRequested);
        }
        Some(transaction)
    }

    /// A request with the key arrives.
    pub(super) fn key_asked(&self, s: &mut State, life: usize) {
        let Some(running) = s.running_mut(life) else {
            return;
        };
        match running.keyring.claim(&KEY, REQUEST) {
            Claim::LookUp => running.looking_up += 1,
            // Its answer is a property of the state; a request that waits is sent again.
            Claim::Wait | Claim::Same(_) => {}
            Claim::Reused => s.require(false, Rule::Key, || "the same request is another".into()),
        }
        // A request with the key and other members finds the key used, or waits.
        if let Some(running) = s.running_mut(life) {
            let other = BodyDigest([2; 32]);
            let mut peek = running.keyring.clone();
            if let Claim::Same(id) = peek.claim(&KEY, other) {
                s.require(false, Rule::Key, || format!("another request gets {id}"));
            }
        }
    }

    /// The log answers whether it has the key.
    pub(super) fn key_found(&self, s: &mut State, life: usize) {
        let is_held = s.log.visible.holder.is_some();
        let Some(running) = s.running_mut(life) else {
            return;
        };
        running.looking_up -= 1;
        if !is_held {
            self.begin(s, life, true);
        }
        if let Some(running) = s.running_mut(life) {
            running.keyring.release(&KEY);
        }
    }

    /// One event for one transaction.
    pub(super) fn step(&self, s: &mut State, life: usize, transaction: usize, event: Event) {
        let may_abort = is_a_cause(&event);
        let contradicts = contradicts(&event);
        let id = s.transactions[transaction].id;
        let Some(running) = s.running_mut(life) else {
            return;
        };
        let owns = running.life.writer().owns(id);
        let Some(machine) = &mut running.machines[transaction] else {
            return;
        };
        let machine = Arc::make_mut(machine);
        let was_undecided = machine.is_undecided();
        let mut effects = Vec::new();
        let was_owed = contradicts.is_some_and(|name| owes(machine, name));
        machine.step(event, &mut effects);
        let is_undecided = machine.is_undecided();
        let aborts = matches!(
            machine.state(),
            MachineState::Completing { decision, .. } | MachineState::Ended { decision }
                if decision.verdict != Verdict::Commit
        );
        let alarmed = effects
            .iter()
            .any(|effect| matches!(effect, Effect::Alarm(_)));
        if owns {
            s.transactions[transaction].undecided = is_undecided;
        }
        s.require(!(was_undecided && aborts) || may_abort, Rule::Ac4, || {
            format!("{transaction} aborts, and nobody refused, asked for it or was late")
        });
        s.require(!was_owed || alarmed, Rule::Alarm, || {
            format!("a branch of {transaction} contradicts, and nobody is told")
        });
        self.carry_out(s, life, transaction, effects);
        if was_undecided && aborts {
            self.told_to_all(s, life, transaction);
        }
        self.after_step(s, life, transaction);
    }

    /// An abort is sent to every branch that may hold something: also to one that did not answer (rule 9).
    fn told_to_all(&self, s: &mut State, life: usize, transaction: usize) {
        let slot = slot(life, transaction);
        for participant in 0..s.participants.len() {
            let asked = |asked: Asked| {
                let bit = slot * Asked::COUNT + asked.code();
                s.participants[participant].requests.has(bit)
            };
            let prepared = (0..SESSIONS).any(|session| asked(Asked::Prepare { session }));
            let read_only = s.participants[participant].said_read_only.has(transaction);
            let holds = !prepared || asked(Asked::Abort) || read_only;
            s.require(holds, Rule::Told, || {
                format!("{transaction} aborts, and {participant} is not told")
            });
        }
    }

    fn carry_out(&self, s: &mut State, life: usize, transaction: usize, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Send {
                    participant,
                    request,
                    ..
                } => {
                    let participant = number_of(&participant);
                    let asked = Asked::of(&request);
                    match asked {
                        Asked::Prepare { .. } => {}
                        Asked::Commit => s.check_told(transaction, participant, Inform::Committed),
                        Asked::Abort => s.check_told(transaction, participant, Inform::Aborted),
                    }
                    let mark = self
                        .configuration
                        .prunes
                        .then(|| s.running(life).and_then(|running| running.life.low_water()))
                        .flatten();
                    let slot = slot(life, transaction);
                    let p = s.participant_mut(participant);
                    p.requests.add(slot * Asked::COUNT + asked.code());
                    p.calls.add(call_bit(slot, asked.kind()));
                    if let Some(mark) = mark {
                        let sent = &mut p.marks[node_of(mark)];
                        *sent = (*sent).max(Some(mark));
                    }
                }
                Effect::Force(decision) => {
                    s.write(life, transaction, Write::Force(Arc::new(decision)));
                }
                Effect::Append(decision) => {
                    s.write(life, transaction, Write::Append(Arc::new(decision)));
                }
                Effect::Finish => s.write(life, transaction, Write::Finish),
                // It may pass at any moment.
                Effect::StartDeadline => {}
                Effect::Answer(answer) => {
                    // Those of a client that names its branches are not refused.
                    let holds = self.interacts() || answer.is_ok();
                    s.require(holds, Rule::Alarm, || format!("enlisting: {answer:?}"));
                }
                Effect::Alarm(alarm) => self.alarmed(s, life, transaction, &alarm),
            }
        }
    }

    fn alarmed(&self, s: &mut State, life: usize, transaction: usize, alarm: &Alarm) {
        let registered = self.branches();
        if let Some(running) = s.running_mut(life) {
            running.life.alarmed(alarm, registered);
            if running.life.is_accused() {
                self.look(s, life);
            }
        }
        // A fenced life may see a branch change its mind: the branch asked the successor in between. And a refusal is not
        // forced, a read-only vote not even stored: such a participant may say yes to the same prepare, and an answer to a call
        // that had ended before may arrive behind the newer one.
        let is_true = match alarm {
            Alarm::VoteChanged(name) => {
                let p = &s.participants[number_of(name)];
                let other = p.said_no.has(transaction) || p.said_read_only.has(transaction);
                p.said_yes.has(transaction) && other
            }
            Alarm::VoteLost(_)
            | Alarm::OutcomeDiffers(_)
            | Alarm::BelowLowWater(_)
            | Alarm::DecisionContradicted => false,
        };
        let excused = is_true || s.is_fenced(transaction) || s.is_betrayed(transaction);
        s.require(excused, Rule::Alarm, || format!("{transaction}: {alarm:?}"));
    }

    /// What every step may have changed: what is over leaves.
    fn after_step(&self, s: &mut State, life: usize, transaction: usize) {
        let id = s.transactions[transaction].id;
        let Some(running) = s.running_mut(life) else {
            return;
        };
        let Some(machine) = &running.machines[transaction] else {
            return;
        };
        if !machine.holds_low_water() {
            running.life.finished(id);
        }
        if machine.lost_its_key() {
            running.keyring.forget(&KEY, id);
        }
        if machine.is_over() {
            running.keyring.forget(&KEY, id);
            running.machines[transaction] = None;
            s.forget_answers(life, transaction);
        }
    }

    /// The end of a call arrives.
    pub(super) fn call_ends(
        &self,
        s: &mut State,
        life: usize,
        transaction: usize,
        participant: usize,
        kind: RequestKind,
        delivery: Delivery<Reply>,
    ) {
        let p = s.participant_mut(participant);
        p.calls.remove(call_bit(slot(life, transaction), kind));
        let event = Event::Delivered {
            participant: NAMES[participant].clone(),
            kind,
            delivery,
        };
        self.step(s, life, transaction, event);
    }

    pub(super) fn answered(
        &self,
        s: &mut State,
        life: usize,
        transaction: usize,
        participant: usize,
        said: Said,
    ) {
        let delivery = Delivery::Answered(reply(said));
        self.call_ends(s, life, transaction, participant, said.kind(), delivery);
    }

    /// A participant asks a life what became of its branch, and the answer is on its way.
    pub(super) fn inquired(
        &self,
        s: &mut State,
        life: usize,
        transaction: usize,
        participant: usize,
    ) {
        let name = &NAMES[participant];
        let Some(running) = s.running(life) else {
            return;
        };
        let inform = match s.machine(life, transaction) {
            Some(machine) => Some(machine.inform(name)),
            None => {
                let question = running.life.ask(s.transactions[transaction].id);
                // What is told from a record is durable first (rule 2).
                self.judged(s, life, transaction, participant, question)
            }
        };
        self.inform(s, transaction, participant, inform);
    }

    /// Memory does not hold it: the log, in one snapshot (rule 3).
    fn judged(
        &self,
        s: &mut State,
        life: usize,
        transaction: usize,
        participant: usize,
        question: unanimous_protocol::life::Question,
    ) -> Option<Inform> {
        if s.log.visible.records[transaction].is_some() {
            s.force_log();
        }
        let snapshot = s.snapshot(transaction);
        let judgement = s.running(life)?.life.judge(question, &snapshot);
        let record = s.log.visible.records[transaction].as_ref();
        match record {
            Some(record) if judgement == unanimous_protocol::life::Judgement::Recorded => {
                Some(record.decision.inform(&NAMES[participant]))
            }
            Some(_) | None => judgement.inform(),
        }
    }

    fn inform(
        &self,
        s: &mut State,
        transaction: usize,
        participant: usize,
        inform: Option<Inform>,
    ) {
        let Some(inform) = inform else {
            return;
        };
        s.check_told(transaction, participant, inform);
        let code = INFORMS.iter().position(|known| *known == inform);
        if let Some(code) = code {
            let p = s.participant_mut(participant);
            p.informs.add(transaction * INFORMS.len() + code);
        }
    }

    /// Somebody makes up an inquiry about the id that comes next.
    pub(super) fn asked_early(&self, s: &mut State, life: usize) {
        let Some(running) = s.running_mut(life) else {
            return;
        };
        let mut peek = running.life.clone();
        if let Some(id) = peek.issue() {
            running.early = Some((id, running.life.ask(id)));
        }
    }

    /// The log was read for it, and it is judged.
    pub(super) fn judged_early(&self, s: &mut State, life: usize, participant: usize) {
        let Some((id, question)) = s.running(life).and_then(|running| running.early) else {
            return;
        };
        let Some(transaction) = s.begun(id) else {
            return;
        };
        let inform = self.judged(s, life, transaction, participant, question);
        self.inform(s, transaction, participant, inform);
    }

    /// A service's enlisting arrives.
    pub(super) fn enlisted(&self, s: &mut State, life: usize, participant: usize, session: usize) {
        let transaction = 0;
        let Ok(name) = session.to_string().parse::<Session>() else {
            return;
        };
        let event = Event::Enlist {
            participant: NAMES[participant].clone(),
            operations: OPERATIONS.clone(),
            session: Some(name),
        };
        let id = s.transactions[transaction].id;
        let Some(running) = s.running_mut(life) else {
            return;
        };
        if !running.life.writer().owns(id) {
            return;
        }
        // The machine's own answer, before what follows from it is carried out.
        let answer = match &running.machines[transaction] {
            None => Err(EnlistRefused::NotActive),
            Some(machine) => {
                let mut effects = Vec::new();
                (**machine).clone().step(event.clone(), &mut effects);
                let answer = effects.into_iter().find_map(|effect| match effect {
                    Effect::Answer(answer) => Some(answer),
                    Effect::Send { .. }
                    | Effect::Force(_)
                    | Effect::Append(_)
                    | Effect::Finish
                    | Effect::StartDeadline
                    | Effect::Alarm(_) => None,
                });
                answer.unwrap_or(Err(EnlistRefused::NotActive))
            }
        };
        self.step(s, life, transaction, event);
        let code = session * 2 + usize::from(answer.is_err());
        s.participant_mut(participant).enlisted.add(code);
    }
}

impl State {
    /// A write leaves for the log.
    fn write(&mut self, life: usize, transaction: usize, write: Write) {
        let Some(running) = self.running(life) else {
            return;
        };
        let request = LogRequest {
            life,
            transaction,
            writer: running.life.writer(),
            write,
            written: None,
        };
        let order = |request: &LogRequest| {
            let kind = match request.write {
                Write::Force(_) => 0,
                Write::Append(_) => 1,
                Write::Finish => 2,
            };
            (request.life, request.transaction, kind)
        };
        let log = self.log_mut();
        let at = log
            .requests
            .partition_point(|other| order(other) <= order(&request));
        log.requests.insert(at, request);
    }

    /// Nothing more comes of what was answered to a transaction that has left memory.
    fn forget_answers(&mut self, life: usize, transaction: usize) {
        let slot = slot(life, transaction);
        for participant in 0..self.participants.len() {
            let p = &self.participants[participant];
            let said = Said::ALL.len();
            let replies = ((1 << said) - 1) << (slot * said);
            let calls = 0b111 << (slot * 3);
            if p.replies.0 & replies != 0 || p.waiting.0 & replies != 0 || p.calls.0 & calls != 0 {
                let p = self.participant_mut(participant);
                p.replies.0 &= !replies;
                p.waiting.0 &= !replies;
                p.calls.0 &= !calls;
            }
        }
    }

    /// Whether a life still listens for answers about a transaction.
    pub(super) fn listens(&self, life: usize, transaction: usize) -> bool {
        self.machine(life, transaction).is_some()
    }

    /// The id that a life would issue next is the one that was asked about early.
    pub(super) fn id_of(&self, transaction: usize) -> TransactionId {
        self.transactions[transaction].id
    }
}

/// The branch whose answer says that it ended otherwise.
pub(super) fn contradicts(event: &Event) -> Option<usize> {
    match event {
        Event::Delivered {
            participant,
            delivery: Delivery::Answered(Reply::VoteLost | Reply::OutcomeDiffers),
            ..
        } => Some(number_of(participant)),
        Event::Delivered { .. }
        | Event::Enlist { .. }
        | Event::CommitRequested
        | Event::AbortRequested { .. }
        | Event::DeadlinePassed
        | Event::Forced(_)
        | Event::Appended
        | Event::LogWentBack
        | Event::AbortsDropped => None,
    }
}

/// Whether the branch has yet to acknowledge a commit.
pub(super) fn owes(machine: &Transaction, participant: usize) -> bool {
    machine.branches().any(|branch| {
        *branch.participant == NAMES[participant] && branch.phase == BranchPhase::Committing
    })
}

/// What may end a transaction that nobody has decided: textbook's AC4 read backwards.
fn is_a_cause(event: &Event) -> bool {
    match event {
        Event::DeadlinePassed | Event::AbortRequested { .. } => true,
        Event::Enlist {
            session: Some(_), ..
        } => true,
        Event::Forced(Standing::KeyHeldBy(_) | Standing::Refused(_) | Standing::Earlier(_)) => true,
        Event::Delivered {
            delivery: Delivery::Answered(Reply::Vote(Vote::No(refusal))),
            ..
        } => refusal.code != RefusalCode::Conflict,
        Event::Delivered { .. }
        | Event::Enlist { session: None, .. }
        | Event::CommitRequested
        | Event::Forced(Standing::Proposed)
        | Event::Appended
        | Event::LogWentBack
        | Event::AbortsDropped => false,
    }
}

impl Search {
    pub(super) fn branches(&self) -> usize {
        self.configuration.branches.len()
    }

    pub(super) fn interacts(&self) -> bool {
        self.configuration.client == Client::Interacts
    }
}

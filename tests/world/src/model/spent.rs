//! What a step leaves behind that nobody can act on any more, and what comes to the same: it is dropped, so that states which
//! differ in nothing else are one.
//!
//! Each rule takes two states for one because either can become what the other can, by steps that touch nothing but what is
//! dropped. None knows what the machines ought to do: where a rule depends on them, it asks them.
//!
//! - **Answers and calls that a machine ignores** go ([`State::deaf_machines`]): a branch's phases only go forward, so
//!   what a machine ignores once it ignores for ever. An answer of some kind is given only to a call of that kind, so its phase
//!   has begun.
//! - **Answers that can be had again at once** go ([`Search::drop_repeatable`]): a durable row with an outcome does not
//!   change any more, so the request, which stays, brings the same answer whenever it arrives, and then it is heard in the same
//!   step (not heard it is the state before). So do answers that wait for such a row to become durable. Where another
//!   transaction's row could hold a forced answer back, it is on its way instead, as it can always be. What a branch can say
//!   again at once it has said.
//! - **What inquiries were told** goes where it is "pending", where a durable row has its outcome, and where a request does
//!   the same to the row and its answer is one of the former.
//! - **Requests that nobody listens for**: whose they are is forgotten, and that they are there once the row has its durable
//!   outcome. What they would still be answered is checked then.
//! - **Votes that were given**, which only the checks of a decision ask for, go when nothing is left to decide; so does
//!   whether a fenced owner had decided.
//! - **Writes of a fenced life** do nothing and go (but where the log refuses records). An unforced write is
//!   counted as soon as the log has it: the machine only leaves memory by that, and then the record says the same (but where
//!   marks are sent or the log crashes).
//! - **Look-ups of a key** that can begin nothing within the bounds are answered.
//!
//! Where participants drop rows or lose them rows do not stay, and the rules that rest on that are not applied.
//!
//! That nothing else is lost is not only argued: [`compare`](super::compare) searches with and without, and demands that
//! what is left of the states which the one finds is just what the other finds.

use std::sync::{Arc, LazyLock};

use unanimous_protocol::{
    branch::{Answer, Branch, Effect, Event, State as RowState},
    coordinator::{Event as MachineEvent, Transaction},
    message::{Delivery, Inform, Refusal, RefusalCode, Reply, RequestKind},
};

use super::{
    Search,
    coordinator::{KEY, OPERATIONS, contradicts, owes},
    state::{
        Asked, Bits, INFORMS, LogRequest, NAMES, NOBODY, Participant, Said, State, Write, Written,
        call_bit, reply, said, slot,
    },
};

const KINDS: [RequestKind; 3] = [
    RequestKind::Prepare,
    RequestKind::Commit,
    RequestKind::Abort,
];

impl Search {
    /// After every step; `before` is where it began.
    pub(super) fn drop_spent(&self, before: Option<&State>, s: &mut State) {
        if !self.configuration.keeps_all && s.wrong.is_none() {
            self.without_spent(before, s);
        }
    }

    /// What is left of a state without what is spent. What a step from a state without it has not touched is passed over.
    pub(super) fn without_spent(&self, before: Option<&State>, s: &mut State) {
        self.drop_writes(s);
        self.drop_look_ups(s);
        for transaction in 0..s.transactions.len() {
            if s.transactions[transaction].undecided && s.is_fenced(transaction) {
                // Nobody asks for it any more.
                s.transactions[transaction].undecided = false;
            }
            s.deaf_machines(before, transaction);
            let is_settled = s.is_settled(transaction);
            let others_stay = before.is_some_and(|before| {
                let mut lives = 0..s.lives.len();
                s.faults == before.faults
                    && lives.all(|life| {
                        s.listens(life, transaction) == before.listens(life, transaction)
                    })
            });
            for participant in 0..s.participants.len() {
                if !(others_stay && s.has_same_participant(before, participant)) {
                    self.drop_of_branch(s, participant, transaction);
                }
                if is_settled {
                    s.drop_votes(participant, transaction);
                }
            }
        }
    }

    /// Whether rows with an outcome stay.
    fn rows_stay(&self) -> bool {
        !self.configuration.prunes && self.configuration.betrayals == 0
    }

    /// Whether the row has its outcome, and it is durable: then it never changes again.
    fn has_ended(&self, p: &Participant, transaction: usize) -> bool {
        let row = &p.visible.rows[transaction];
        self.rows_stay() && *row == p.durable.rows[transaction] && has_outcome(row.state.as_ref())
    }

    /// Whether the answers of a row that has its outcome can be had again at any time from when it is durable on. Another
    /// transaction's row could hold back a forced one.
    fn answers_stay(&self, s: &State) -> bool {
        self.configuration.transactions == 1 || s.faults.participant_crashes == 0
    }

    /// Whether a request finds a row whose answers need not be kept.
    pub(super) fn is_repeatable(&self, s: &State, participant: usize, transaction: usize) -> bool {
        let p = &s.participants[participant];
        !self.configuration.keeps_all
            && self.answers_stay(s)
            && self.has_ended(p, transaction)
            && p.visible == p.durable
    }

    fn drop_of_branch(&self, s: &mut State, participant: usize, transaction: usize) {
        let p = &s.participants[participant];
        let has_ended = self.has_ended(p, transaction);
        let informs = self.spent_informs(s, participant, transaction);
        if informs != 0 {
            s.participant_mut(participant).informs.0 &= !informs;
        }
        if !self.rows_stay() {
            return;
        }
        let ended = has_outcome(
            s.participants[participant].visible.rows[transaction]
                .state
                .as_ref(),
        );
        if ended {
            self.drop_repeatable(s, participant, transaction);
        }
        drop_unheard(s, participant, transaction, has_ended);
    }

    /// Answers that a row with an outcome gives again, as often as it is asked.
    fn drop_repeatable(&self, s: &mut State, participant: usize, transaction: usize) {
        let p = &s.participants[participant];
        let row = &p.visible.rows[transaction];
        let is_durable = *row == p.durable.rows[transaction];
        let is_flushed = p.visible == p.durable;
        let stays = self.answers_stay(s);
        let (mut waiting, mut replies, mut given) = (p.waiting, p.replies, Bits::default());
        for life in (0..s.lives.len()).chain([NOBODY]) {
            let slot = slot(life, transaction);
            for asked in requested(p, slot) {
                let Some((said, forced)) = answer(row.state.as_ref(), asked) else {
                    continue;
                };
                let bit = slot * Said::ALL.len() + said as usize;
                if forced {
                    waiting.remove(bit);
                }
                if !(is_flushed || is_durable && !forced) {
                    continue;
                }
                given.add(said as usize);
                if stays {
                    replies.remove(bit);
                } else if !replies.has(bit) && s.hears(life, transaction, participant, said) {
                    replies.add(bit);
                }
            }
        }
        let given = || given.iter().map(|code| Said::ALL[code]);
        let is_news = given().any(|said| !p.remembers(transaction, said));
        if is_news || (waiting, replies) != (p.waiting, p.replies) {
            let p = s.participant_mut(participant);
            (p.waiting, p.replies) = (waiting, replies);
            given().for_each(|said| p.has_said(transaction, said));
        }
    }

    /// What inquiries of a branch were told that means nothing any more.
    fn spent_informs(&self, s: &State, participant: usize, transaction: usize) -> u128 {
        let p = &s.participants[participant];
        let has_ended = self.has_ended(p, transaction);
        let mut spent = 0;
        for (code, told) in TOLD.iter().enumerate() {
            let bit = transaction * INFORMS.len() + code;
            let is_spent = match told {
                Told::Itself => false,
                Told::Nothing => true,
                Told::As(asked) => {
                    has_ended || self.brings_the_same(s, participant, transaction, *asked)
                }
            };
            if p.informs.has(bit) && is_spent {
                spent |= 1 << bit;
            }
        }
        spent
    }

    /// Whether a request is on its way, and all that comes of it is what becomes of the row: its answer, too, is one that
    /// need not be kept. One that leaves before the row is durable may outlive it.
    fn brings_the_same(
        &self,
        s: &State,
        participant: usize,
        transaction: usize,
        asked: Asked,
    ) -> bool {
        let requests = s.participants[participant].requests;
        let bit = |life| slot(life, transaction) * Asked::COUNT + asked.code();
        let mut lives = (0..s.lives.len()).chain([NOBODY]);
        let is_on_its_way = lives.any(|life| requests.has(bit(life)));
        let is_forced = asked == Asked::Commit || s.faults.participant_crashes == 0;
        is_on_its_way && is_forced && self.rows_stay()
    }

    fn drop_writes(&self, s: &mut State) {
        let c = &self.configuration;
        if !c.log_refuses {
            let is_void = |s: &State, at: usize| {
                let request = &s.log.requests[at];
                let head = s.head(request.writer.node);
                request.written.is_none() && head.check(&request.writer).is_err()
            };
            let mut at = 0;
            while at < s.log.requests.len() {
                if is_void(s, at) {
                    s.log_mut().requests.remove(at);
                } else {
                    at += 1;
                }
            }
        }
        if c.log_crashes == 0 && !c.prunes {
            let is_counted = |s: &State| {
                let mut requests = s.log.requests.iter();
                requests.position(|request| matches!(request.written, Some(Written::Appended)))
            };
            while let Some(at) = is_counted(s) {
                self.log_answers(s, at);
            }
        }
    }

    fn drop_look_ups(&self, s: &mut State) {
        if s.transactions.len() < self.configuration.transactions {
            return;
        }
        for life in 0..s.lives.len() {
            if s.running(life)
                .is_some_and(|running| running.looking_up > 0)
                && let Some(running) = s.running_mut(life)
            {
                running.looking_up = 0;
                running.keyring.release(&KEY);
            }
        }
    }
}

impl State {
    /// Answers to a transaction's machines that those ignore, and calls whose end they do not wait for.
    fn deaf_machines(&mut self, before: Option<&Self>, transaction: usize) {
        let machine = |s: &Self, life| s.running(life)?.machines[transaction].clone();
        for life in 0..self.lives.len() {
            let Some(machine_now) = machine(self, life) else {
                continue;
            };
            let was = before.and_then(|before| machine(before, life));
            let is_same = was.is_some_and(|was| Arc::ptr_eq(&was, &machine_now));
            let slot = slot(life, transaction);
            for participant in 0..self.participants.len() {
                if is_same && self.has_same_participant(before, participant) {
                    continue;
                }
                let p = &self.participants[participant];
                let (mut replies, mut calls) = (p.replies, p.calls);
                for said in Said::ALL {
                    let bit = slot * Said::ALL.len() + said as usize;
                    let delivery = || Delivery::Answered(reply(said));
                    if replies.has(bit)
                        && ignores(&machine_now, participant, said.kind(), delivery())
                    {
                        replies.remove(bit);
                    }
                }
                for kind in KINDS {
                    let bit = call_bit(slot, kind);
                    let silence = || Delivery::Unknown(String::new());
                    if calls.has(bit) && ignores(&machine_now, participant, kind, silence()) {
                        calls.remove(bit);
                    }
                }
                if (replies, calls) != (p.replies, p.calls) {
                    let p = self.participant_mut(participant);
                    (p.replies, p.calls) = (replies, calls);
                }
            }
        }
    }

    fn has_same_participant(&self, before: Option<&Self>, participant: usize) -> bool {
        before.is_some_and(|before| {
            let (now, then) = (
                &self.participants[participant],
                &before.participants[participant],
            );
            Arc::ptr_eq(now, then)
        })
    }

    /// Whether a life's machine does anything with an answer.
    fn hears(&self, life: usize, transaction: usize, participant: usize, said: Said) -> bool {
        let answered = Delivery::Answered(reply(said));
        let machine = self
            .running(life)
            .and_then(|running| running.machines[transaction].as_ref());
        machine.is_some_and(|machine| !ignores(machine, participant, said.kind(), answered))
    }

    /// Whether nothing is left to decide of a transaction: then nobody asks any more how its branches voted.
    fn is_settled(&self, transaction: usize) -> bool {
        let lives = self.lives.iter().flatten();
        let mut machines = lives.filter_map(|running| running.machines[transaction].as_deref());
        if self.decided(transaction).is_some() {
            return !machines.any(Transaction::is_undecided);
        }
        let mut requests = self.log.requests.iter();
        let is_written = |request: &LogRequest| {
            request.transaction == transaction && !matches!(request.write, Write::Finish)
        };
        machines.next().is_none() && !requests.any(is_written)
    }

    fn drop_votes(&mut self, participant: usize, transaction: usize) {
        let p = &self.participants[participant];
        let votes = p.said_yes.0 | p.said_no.0 | p.said_read_only.0;
        if Bits(votes).has(transaction) {
            let p = self.participant_mut(participant);
            for votes in [&mut p.said_yes, &mut p.said_no, &mut p.said_read_only] {
                votes.remove(transaction);
            }
        }
    }
}

/// Requests, and answers that wait, of lives that do not listen: whose they are makes no difference.
fn drop_unheard(s: &mut State, participant: usize, transaction: usize, has_ended: bool) {
    let p = &s.participants[participant];
    let (mut requests, mut waiting) = (p.requests, p.waiting);
    let (mut heard, mut unheard) = (Bits::default(), Bits::default());
    for life in (0..s.lives.len()).chain([NOBODY]) {
        let listens = s.listens(life, transaction);
        let slot_of = |life| slot(life, transaction);
        for code in 0..Asked::COUNT {
            let bit = slot_of(life) * Asked::COUNT + code;
            if p.requests.has(bit) && listens {
                heard.add(code);
            } else if p.requests.has(bit) {
                unheard.add(code);
                requests.remove(bit);
            }
        }
        for code in 0..Said::ALL.len() {
            let bit = |life| slot_of(life) * Said::ALL.len() + code;
            if p.waiting.has(bit(life)) && !listens {
                waiting.remove(bit(life));
                waiting.add(bit(NOBODY));
            }
        }
    }
    let row = p.visible.rows[transaction].clone();
    for code in unheard.iter() {
        let said = answer(row.state.as_ref(), Asked::from_code(code)).filter(|_| has_ended);
        if let Some((said, _)) = said {
            // It would still be given, and must be true.
            s.check_said(participant, transaction, said);
        } else if !heard.has(code) {
            requests.add(slot(NOBODY, transaction) * Asked::COUNT + code);
        }
    }
    let p = &s.participants[participant];
    if (requests, waiting) != (p.requests, p.waiting) {
        let p = s.participant_mut(participant);
        (p.requests, p.waiting) = (requests, waiting);
    }
}

/// Whether a machine neither changes nor does anything when a call ends so, nor has to.
fn ignores(
    machine: &Arc<Transaction>,
    participant: usize,
    kind: RequestKind,
    delivery: Delivery<Reply>,
) -> bool {
    let mut peek = Transaction::clone(machine);
    let mut effects = Vec::new();
    let event = MachineEvent::Delivered {
        participant: NAMES[participant].clone(),
        kind,
        delivery,
    };
    let is_owed = contradicts(&event).is_some_and(|name| owes(machine, name));
    peek.step(event, &mut effects);
    !is_owed && effects.is_empty() && peek == **machine
}

fn has_outcome(row: Option<&RowState>) -> bool {
    matches!(
        row,
        Some(
            RowState::Committed { .. }
                | RowState::Refused { .. }
                | RowState::Aborted
                | RowState::Tombstone
        )
    )
}

/// What was asked of a branch by one life.
fn requested(p: &Participant, slot: usize) -> impl Iterator<Item = Asked> + use<> {
    let requests = p.requests;
    (0..Asked::COUNT)
        .filter(move |code| requests.has(slot * Asked::COUNT + code))
        .map(Asked::from_code)
}

/// What a row with an outcome answers, and whether that is forced. `None` where the answer is not all that happens.
fn answer(row: Option<&RowState>, asked: Asked) -> Option<(Said, bool)> {
    let event = match asked {
        Asked::Prepare { .. } => Event::PrepareReceived {
            digest: OPERATIONS.digest(),
            session: None,
            in_time: true,
        },
        Asked::Commit => Event::CommitReceived,
        Asked::Abort => Event::AbortReceived,
    };
    let mut effects = Vec::new();
    Branch::from_row(row?.clone()).step(event, &mut effects);
    match effects.as_slice() {
        [
            Effect::Answer {
                reply: Answer::Reply(reply),
                forced,
            },
        ] => Some((said(reply, asked.kind()), *forced)),
        _ => None,
    }
}

/// What an inquiry's answer comes to, asked of the machine.
enum Told {
    /// Something of its own.
    Itself,
    /// Nothing to anybody.
    Nothing,
    /// What a request does to a branch in doubt, and nothing to others.
    As(Asked),
}

static TOLD: LazyLock<[Told; INFORMS.len()]> = LazyLock::new(|| INFORMS.map(told));

fn told(inform: Inform) -> Told {
    let digest = OPERATIONS.digest();
    let refusal = Refusal {
        code: RefusalCode::Refused,
        reason: String::new(),
    };
    let after = |row: &RowState, event| {
        let mut branch = Branch::from_row(row.clone());
        let mut effects = Vec::new();
        branch.step(event, &mut effects);
        (branch, effects)
    };
    let ignores = |row: &RowState| {
        let (branch, effects) = after(row, Event::Informed(inform));
        effects.is_empty() && branch == Branch::from_row(row.clone())
    };
    let others = [
        RowState::Absent,
        RowState::Committed { digest },
        RowState::Refused { digest, refusal },
        RowState::Aborted,
        RowState::Tombstone,
    ];
    if !others.iter().all(ignores) {
        return Told::Itself;
    }
    let in_doubt = RowState::Prepared { digest };
    if ignores(&in_doubt) {
        return Told::Nothing;
    }
    let does = after(&in_doubt, Event::Informed(inform));
    if after(&in_doubt, Event::CommitReceived) == does {
        Told::As(Asked::Commit)
    } else if after(&in_doubt, Event::AbortReceived) == does {
        Told::As(Asked::Abort)
    } else {
        Told::Itself
    }
}

//! What a bystander sees of one step: what stood before, what happened, and what the coordinator does then. It is held
//! against the rules that no single answer shows broken.

use std::collections::BTreeSet;

use unanimous_protocol::{
    coordinator::{BranchPhase, Effect, Event, State, Transaction},
    id::ParticipantName,
    message::{Delivery, RefusalCode, Reply, Request, RequestKind, Vote},
    record::{AbortCode, Decision, Verdict},
};

/// What is seen before a step.
#[derive(Debug)]
pub(super) struct Before {
    undecided: bool,
    /// A branch that is told to commit says that it can not: somebody has to be told (rule 6).
    alarming: Option<ParticipantName>,
    /// The event may end the transaction because of time: the deadline, or a participant that can not make it.
    late: bool,
    /// A write that was under way has ended.
    forced: bool,
}

impl Before {
    pub(super) fn of(machine: &Transaction, event: &Event) -> Self {
        let alarming = match event {
            Event::Delivered {
                participant,
                kind: RequestKind::Commit,
                delivery: Delivery::Answered(Reply::VoteLost | Reply::OutcomeDiffers),
            } => Some(participant.clone()).filter(|name| is_committing(machine, name)),
            Event::Delivered { .. }
            | Event::Enlist { .. }
            | Event::CommitRequested
            | Event::AbortRequested { .. }
            | Event::DeadlinePassed
            | Event::Forced(_)
            | Event::Appended
            | Event::LogWentBack
            | Event::AbortsDropped => None,
        };
        let refused_as_late = |reply: &Reply| matches!(reply, Reply::Vote(Vote::No(why)) if why.code == RefusalCode::Deadline);
        let late = match event {
            Event::DeadlinePassed => true,
            Event::Delivered {
                delivery: Delivery::Answered(reply),
                ..
            } => refused_as_late(reply),
            Event::Delivered { .. }
            | Event::Enlist { .. }
            | Event::CommitRequested
            | Event::AbortRequested { .. }
            | Event::Forced(_)
            | Event::Appended
            | Event::LogWentBack
            | Event::AbortsDropped => false,
        };
        Self {
            undecided: machine.is_undecided(),
            alarming,
            late,
            forced: matches!(event, Event::Forced(_)),
        }
    }

    /// The rule that the step has broken. `asked` says which branches were called to prepare; `frozen` that the life had
    /// found that its log went back.
    pub(super) fn broken(
        &self,
        machine: &Transaction,
        effects: &[Effect],
        asked: impl Fn(&ParticipantName) -> bool,
        frozen: bool,
    ) -> Option<String> {
        let id = machine.id();
        let alarmed = effects.iter().any(|e| matches!(e, Effect::Alarm(_)));
        if let Some(name) = &self.alarming
            && !alarmed
        {
            return Some(format!(
                "{name} has lost its part of {id}, and nobody is told"
            ));
        }
        if !self.undecided || machine.is_undecided() {
            return None;
        }
        if frozen && !self.forced {
            return Some(format!("{id} is decided over a log that went back"));
        }
        let Verdict::Abort(reason) = &decision(machine)?.verdict else {
            return None;
        };
        let by_time = matches!(reason.code, AbortCode::Timeout | AbortCode::Unreachable);
        if by_time && !self.late {
            return Some(format!("{id} aborts for a silence, before its deadline"));
        }
        let told: BTreeSet<&ParticipantName> = effects.iter().filter_map(told_to_abort).collect();
        let may_hold = machine
            .branches()
            .filter(|branch| branch.phase != BranchPhase::ReadOnly && asked(branch.participant));
        let silent: Vec<_> = may_hold
            .map(|branch| branch.participant)
            .filter(|name| !told.contains(name))
            .collect();
        (!silent.is_empty())
            .then(|| format!("{id} aborts, and {silent:?} may hold something and are not told"))
    }
}

fn is_committing(machine: &Transaction, name: &ParticipantName) -> bool {
    let mut branches = machine.branches();
    branches.any(|branch| branch.participant == name && branch.phase == BranchPhase::Committing)
}

fn decision(machine: &Transaction) -> Option<&Decision> {
    match machine.state() {
        State::Completing { decision, .. } | State::Ended { decision } => Some(decision),
        State::Active | State::Preparing | State::Deciding { .. } => None,
    }
}

fn told_to_abort(effect: &Effect) -> Option<&ParticipantName> {
    match effect {
        Effect::Send {
            participant,
            request: Request::Abort,
            ..
        } => Some(participant),
        Effect::Send { .. }
        | Effect::Force(_)
        | Effect::Append(_)
        | Effect::Finish
        | Effect::StartDeadline
        | Effect::Answer(_)
        | Effect::Alarm(_) => None,
    }
}

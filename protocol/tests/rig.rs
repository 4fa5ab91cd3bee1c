//! A transaction on the bench: real events in, effects out.

use unanimous_protocol::{
    coordinator::{Alarm, BranchPhase, Effect, Event, Transaction},
    id::{ParticipantName, TransactionId},
    message::{Delivery, Refusal, RefusalCode, Reply, Request, RequestKind, Session, Vote},
    operations::Operations,
    record::{AbortCode, AbortReason, Decision, Part, Standing, Verdict},
};

pub(crate) fn id(number: u32) -> TransactionId {
    format!("5eed0001-0001-8000-8000-1000{number:08x}")
        .parse()
        .unwrap()
}

pub(crate) fn name(text: &str) -> ParticipantName {
    text.parse().unwrap()
}

pub(crate) fn session(text: &str) -> Session {
    text.parse().unwrap()
}

pub(crate) fn operations(text: &str) -> Operations {
    Operations::parse(text).unwrap()
}

pub(crate) fn no(code: RefusalCode) -> Vote {
    Vote::No(Refusal {
        code,
        reason: "because".to_owned(),
    })
}

pub(crate) fn voted(vote: Vote) -> Delivery<Reply> {
    Delivery::Answered(Reply::Vote(vote))
}

pub(crate) fn answered(reply: Reply) -> Delivery<Reply> {
    Delivery::Answered(reply)
}

pub(crate) fn unknown() -> Delivery<Reply> {
    Delivery::Unknown("timed out".to_owned())
}

pub(crate) fn refused() -> Delivery<Reply> {
    Delivery::Refused("connection refused".to_owned())
}

pub(crate) fn enlist(participant: &str, text: &str, of_session: Option<&str>) -> Event {
    Event::Enlist {
        participant: name(participant),
        operations: operations(text),
        session: of_session.map(session),
    }
}

pub(crate) fn delivered(participant: &str, kind: RequestKind, delivery: Delivery<Reply>) -> Event {
    Event::Delivered {
        participant: name(participant),
        kind,
        delivery,
    }
}

/// Without the client giving a reason.
pub(crate) const ABORT_REQUESTED: Event = Event::AbortRequested { detail: None };

/// A decision about branches that ended so.
pub(crate) fn decision(verdict: Verdict, parts: &[(&str, Part)]) -> Decision {
    Decision {
        verdict,
        branches: parts.iter().map(|&(it, part)| (name(it), part)).collect(),
    }
}

pub(crate) fn aborted(code: AbortCode) -> Verdict {
    Verdict::Abort(AbortReason::new(code))
}

/// A transaction, and what its steps have asked for.
#[derive(Clone)]
pub(crate) struct Rig {
    pub(crate) machine: Transaction,
}

impl Rig {
    /// Transaction 1, still empty.
    pub(crate) fn empty(keyed: bool) -> Self {
        let mut effects = Vec::new();
        let machine = Transaction::begin(id(1), keyed, &mut effects);
        assert_eq!(effects, [Effect::StartDeadline]);
        Self { machine }
    }

    /// With these branches named by a client.
    pub(crate) fn active(keyed: bool, participants: &[&str]) -> Self {
        let mut rig = Self::empty(keyed);
        for participant in participants {
            rig.step(enlist(participant, "[1]", None));
        }
        rig
    }

    /// And asked to prepare.
    pub(crate) fn preparing(keyed: bool, participants: &[&str]) -> Self {
        let mut rig = Self::active(keyed, participants);
        rig.step(Event::CommitRequested);
        rig
    }

    /// Of east and west, both of which said yes.
    pub(crate) fn deciding(keyed: bool) -> Self {
        let mut rig = Self::preparing(keyed, &["east", "west"]);
        rig.vote("east", Vote::Yes);
        rig.vote("west", Vote::Yes);
        rig
    }

    /// And whose commit is durable.
    pub(crate) fn committing(keyed: bool) -> Self {
        let mut rig = Self::deciding(keyed);
        rig.step(Event::Forced(Standing::Proposed));
        rig
    }

    pub(crate) fn step(&mut self, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.machine.step(event, &mut effects);
        effects
    }

    pub(crate) fn vote(&mut self, participant: &str, vote: Vote) -> Vec<Effect> {
        self.step(delivered(participant, RequestKind::Prepare, voted(vote)))
    }

    pub(crate) fn deliver(
        &mut self,
        participant: &str,
        kind: RequestKind,
        delivery: Delivery<Reply>,
    ) -> Vec<Effect> {
        self.step(delivered(participant, kind, delivery))
    }

    pub(crate) fn phase(&self, participant: &str) -> BranchPhase {
        let found = self
            .machine
            .branches()
            .find(|branch| branch.participant.as_str() == participant);
        found.unwrap().phase
    }
}

/// Whom these effects call, and for what.
pub(crate) fn sent(effects: &[Effect]) -> Vec<(&str, RequestKind)> {
    let calls = effects.iter().filter_map(|effect| {
        if let Effect::Send {
            participant,
            request,
            ..
        } = effect
        {
            Some((participant.as_str(), request.kind()))
        } else {
            None
        }
    });
    calls.collect()
}

/// The operations and session of the prepare that goes to `participant`.
pub(crate) fn prepare_of<'a>(
    effects: &'a [Effect],
    participant: &str,
) -> (&'a str, Option<&'a str>) {
    let mut prepares = effects.iter().filter_map(|effect| {
        if let Effect::Send {
            participant: to,
            request: Request::Prepare(prepare),
            ..
        } = effect
        {
            (to.as_str() == participant).then_some(prepare)
        } else {
            None
        }
    });
    let prepare = prepares.next_back().unwrap();
    (
        prepare.operations.text(),
        prepare.session.as_ref().map(Session::as_str),
    )
}

pub(crate) fn forced(effects: &[Effect]) -> Option<&Decision> {
    effects.iter().find_map(|effect| {
        if let Effect::Force(decision) = effect {
            Some(decision)
        } else {
            None
        }
    })
}

pub(crate) fn appended(effects: &[Effect]) -> Option<&Decision> {
    effects.iter().find_map(|effect| {
        if let Effect::Append(decision) = effect {
            Some(decision)
        } else {
            None
        }
    })
}

pub(crate) fn alarms(effects: &[Effect]) -> Vec<Alarm> {
    let alarms = effects.iter().filter_map(|effect| {
        if let Effect::Alarm(alarm) = effect {
            Some(alarm.clone())
        } else {
            None
        }
    });
    alarms.collect()
}

/// Why these effects decide to abort.
pub(crate) fn reason(effects: &[Effect]) -> AbortReason {
    let decision = appended(effects).or(forced(effects)).unwrap();
    let Verdict::Abort(reason) = &decision.verdict else {
        panic!("{decision:?}");
    };
    reason.clone()
}

//! Everything that happens: what travels, from where to where, and the timers; and by which words a script finds it.

use std::collections::BTreeSet;

use unanimous_protocol::{
    coordinator::{EnlistRefused, Enlisted},
    id::{Node, ParticipantName, TransactionId},
    message::{Delivery, Inform, Reply, Request, Session},
    operations::{BodyDigest, Operations},
    record::{AbortCode, IdempotencyKey},
};

use super::{LifeNumber, Lines, Millis, ReplyTo};
use crate::{log, words};

/// Where a message comes from or goes to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    Coordinator(LifeNumber),
    Participant(ParticipantName),
    Log,
    Clients,
}

/// One run of a participant's process. Several may run over one database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ProcessNumber(pub(crate) u32);

/// A process that is gone: it crashed in the middle of what it did.
#[derive(Debug)]
pub(crate) struct Crashed;

/// Who asked a coordinator or a participant something, and which of its questions it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asker {
    pub(crate) who: Who,
    pub(crate) question: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    Client(usize),
    /// Somebody who makes up ids, and hears nothing of what is answered.
    Stranger,
    /// An inquiry.
    Participant(ParticipantName),
    /// A participant that enlists its branch.
    Enlisting(ParticipantName, ProcessNumber, TransactionId, Session),
}

/// Whether a client waits for the outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    Decided,
    None,
}

/// What a coordinator is asked.
#[derive(Clone, Debug)]
pub(crate) enum Question {
    Begin {
        key: Option<IdempotencyKey>,
        request: BodyDigest,
        branches: Vec<(ParticipantName, Operations)>,
        commit: bool,
        timeout: Millis,
    },
    Enlist {
        id: TransactionId,
        participant: ParticipantName,
        session: Session,
    },
    Commit(TransactionId, Wait),
    Abort(TransactionId, Wait),
    Get(TransactionId),
    /// A participant's inquiry.
    Outcome {
        id: TransactionId,
        participant: ParticipantName,
    },
}

/// What it answers.
#[derive(Clone, Debug)]
pub(crate) enum Said {
    /// Begun, and not asked to commit.
    Open(TransactionId),
    Enlisted {
        answer: Result<Enlisted, EnlistRefused>,
        remaining: Millis,
    },
    Committed(TransactionId),
    Aborted(TransactionId, AbortCode),
    /// 202
    Pending(TransactionId),
    KeyReused,
    Forgotten,
    Inform(TransactionId, ParticipantName, Inform),
    /// 404 or 409: nothing that an asker can do more about.
    NotThere,
    OtherNode(Node),
    /// 503: ask again.
    Unavailable,
}

/// A call of a courier to a branch.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) life: LifeNumber,
    pub(crate) number: u64,
    pub(crate) id: TransactionId,
    pub(crate) participant: ParticipantName,
    pub(crate) request: Request,
    /// Until the deadline, by the caller's clock.
    pub(crate) remaining: Millis,
    /// When the transaction began, by the wall clock of the coordinator that began it.
    pub(crate) begun_at_ms: i64,
    pub(crate) low_water: Option<TransactionId>,
    /// Once it has arrived, with others.
    pub(crate) lines: Option<Lines>,
}

impl Call {
    pub(crate) fn reply_to(&self) -> ReplyTo {
        ReplyTo {
            life: self.life,
            number: self.number,
            lines: self.lines.clone(),
        }
    }
}

/// Interactive work that a client asks a participant for.
#[derive(Clone, Debug)]
pub(crate) struct Work {
    pub(crate) id: TransactionId,
    pub(crate) participant: ParticipantName,
    pub(crate) node: Node,
    /// Tells repeats of one piece of work apart from another piece.
    pub(crate) ordinal: u32,
    pub(crate) operations: String,
    pub(crate) asker: Asker,
}

#[derive(Clone, Debug)]
pub(crate) enum Happening {
    CallArrives(Call),
    /// Calls of one life to one participant that left at the same time.
    CallsArrive(Vec<Call>),
    /// What waits at a life for a participant leaves.
    CallsLeave {
        life: LifeNumber,
        participant: ParticipantName,
    },
    CallEnds {
        life: LifeNumber,
        number: u64,
        id: TransactionId,
        participant: ParticipantName,
        delivery: Delivery<Reply>,
    },
    /// A coordinator asks a participant whether it holds a prepared branch.
    Peek {
        life: LifeNumber,
        participant: ParticipantName,
        id: TransactionId,
    },
    Peeked {
        life: LifeNumber,
        participant: ParticipantName,
        id: TransactionId,
        prepared: bool,
    },
    CallLater {
        life: LifeNumber,
        id: TransactionId,
        participant: ParticipantName,
        request: Request,
    },
    Asked {
        life: LifeNumber,
        asker: Asker,
        question: Question,
    },
    Answered {
        life: LifeNumber,
        asker: Asker,
        said: Said,
    },
    LogAsked {
        life: LifeNumber,
        node: Node,
        number: u64,
        request: log::Request,
        fault: Option<log::Fault>,
    },
    LogAnswered {
        life: LifeNumber,
        number: u64,
        answer: log::Answer,
    },
    LogFlush {
        incarnation: u64,
        position: u64,
    },
    LogForgets,
    Deadline {
        life: LifeNumber,
        id: TransactionId,
    },
    LonelyAppend(LifeNumber),
    WriteAgain(LifeNumber),
    Poll(LifeNumber),
    OpenAgain(LifeNumber),
    Flush {
        participant: ParticipantName,
        incarnation: u64,
        position: u64,
    },
    WorkArrives(Work),
    WorkDone {
        asker: Asker,
        done: bool,
    },
    EnlistSilence {
        participant: ParticipantName,
        process: ProcessNumber,
        id: TransactionId,
    },
    SessionDeadline {
        participant: ParticipantName,
        process: ProcessNumber,
        id: TransactionId,
        session: Session,
    },
    InquiryTick {
        participant: ParticipantName,
        process: ProcessNumber,
    },
    /// Somebody waits for a key, and looks again.
    KeyWait {
        participant: ParticipantName,
        process: ProcessNumber,
        waiter: u64,
    },
    /// What waits at a process shares a local transaction.
    TogetherRun {
        participant: ParticipantName,
        process: ProcessNumber,
    },
    /// What was to share one runs alone.
    AloneRun {
        participant: ParticipantName,
        process: ProcessNumber,
        message: u64,
    },
    CutHeals(Place, Place),
    ClientActs {
        client: usize,
        question: u64,
    },
    RestartCoordinator(Node),
    /// Every coordinator that adopts looks for nodes that nobody runs.
    LookForNodes,
    /// Somebody asks about an id that may be made up.
    Guess,
    /// The next client of a world that goes on and on.
    ClientComes,
    /// What is stored and in memory is counted.
    Measure,
    /// Whether anything of a transaction is left, long after it was begun.
    IsItOver {
        id: TransactionId,
        begun_at: Millis,
    },
    ForgetThatItWas(TransactionId),
    /// The database comes back, and with it the processes.
    RestartParticipant(ParticipantName),
    RestartProcess(ParticipantName),
    /// An operator gives a log that went back a new identity.
    NewIdentity,
    Fault,
    Heal,
}

impl Happening {
    /// From where to where it goes, if it goes anywhere.
    pub(super) fn link(&self) -> Option<(Place, Place)> {
        let coordinator = |life: &LifeNumber| Place::Coordinator(*life);
        let asker = |asker: &Asker| match &asker.who {
            Who::Client(_) | Who::Stranger => Place::Clients,
            Who::Participant(name) | Who::Enlisting(name, ..) => Place::Participant(name.clone()),
        };
        let participant = |name: &ParticipantName| Place::Participant(name.clone());
        Some(match self {
            Self::CallArrives(call) => (coordinator(&call.life), participant(&call.participant)),
            Self::CallsArrive(calls) => {
                let call = calls.first()?;
                (coordinator(&call.life), participant(&call.participant))
            }
            Self::CallEnds {
                life,
                participant: from,
                ..
            } => (participant(from), coordinator(life)),
            Self::Asked {
                life, asker: from, ..
            } => (asker(from), coordinator(life)),
            Self::Answered {
                life, asker: to, ..
            } => (coordinator(life), asker(to)),
            Self::Peek {
                life,
                participant: to,
                ..
            } => (coordinator(life), participant(to)),
            Self::Peeked {
                life,
                participant: from,
                ..
            } => (participant(from), coordinator(life)),
            Self::LogAsked { life, .. } => (coordinator(life), Place::Log),
            Self::LogAnswered { life, .. } => (Place::Log, coordinator(life)),
            Self::WorkArrives(work) => (Place::Clients, participant(&work.participant)),
            Self::CallLater { .. }
            | Self::LogFlush { .. }
            | Self::LogForgets
            | Self::Deadline { .. }
            | Self::LonelyAppend(_)
            | Self::WriteAgain(_)
            | Self::Poll(_)
            | Self::OpenAgain(_)
            | Self::Flush { .. }
            | Self::WorkDone { .. }
            | Self::EnlistSilence { .. }
            | Self::SessionDeadline { .. }
            | Self::InquiryTick { .. }
            | Self::KeyWait { .. }
            | Self::CallsLeave { .. }
            | Self::TogetherRun { .. }
            | Self::AloneRun { .. }
            | Self::CutHeals(..)
            | Self::ClientActs { .. }
            | Self::RestartCoordinator(_)
            | Self::LookForNodes
            | Self::Guess
            | Self::ClientComes
            | Self::Measure
            | Self::IsItOver { .. }
            | Self::ForgetThatItWas(_)
            | Self::RestartParticipant(_)
            | Self::RestartProcess(_)
            | Self::NewIdentity
            | Self::Fault
            | Self::Heal => return None,
        })
    }

    /// The words by which a script finds it; none for timers.
    pub(super) fn label(&self, name: impl Fn(TransactionId) -> String) -> Vec<String> {
        let words: Vec<String> = match self {
            Self::CallArrives(call) => vec![
                "call".into(),
                call.request.kind().as_str().into(),
                call.participant.to_string(),
                name(call.id),
                call.life.to_string(),
            ],
            Self::CallsArrive(calls) => {
                let mut words = vec!["calls".into()];
                for call in calls {
                    words.push(call.request.kind().as_str().into());
                    words.push(call.participant.to_string());
                    words.push(name(call.id));
                    words.push(call.life.to_string());
                }
                let mut seen = BTreeSet::new();
                words.retain(|word: &String| seen.insert(word.clone()));
                words
            }
            Self::CallEnds {
                life,
                id,
                participant,
                delivery,
                ..
            } => {
                let kind = match delivery {
                    Delivery::Answered(Reply::Vote(_)) => "vote",
                    Delivery::Answered(Reply::Committed | Reply::Aborted) => "ack",
                    Delivery::Answered(Reply::VoteLost | Reply::OutcomeDiffers) => "protest",
                    Delivery::Refused(_) | Delivery::Unknown(_) => "failure",
                };
                vec![
                    "reply".into(),
                    kind.into(),
                    participant.to_string(),
                    name(*id),
                    life.to_string(),
                ]
            }
            Self::Asked {
                life,
                asker,
                question,
            } => vec![
                "ask".into(),
                words::question(question).into(),
                words::who(asker),
                life.to_string(),
            ],
            Self::Answered { life, asker, .. } => {
                vec!["answer".into(), words::who(asker), life.to_string()]
            }
            Self::LogAsked { life, request, .. } => {
                let mut label = vec!["log".into(), life.to_string()];
                label.extend(request.words(name));
                label
            }
            Self::LogAnswered { life, answer, .. } => {
                let mut label = vec!["log".into(), life.to_string()];
                label.extend(answer.words(name));
                label
            }
            Self::Flush { participant, .. } => vec!["flush".into(), participant.to_string()],
            Self::LogFlush { .. } => vec!["flush".into(), "log".into()],
            Self::WorkArrives(work) => {
                vec!["work".into(), work.participant.to_string(), name(work.id)]
            }
            Self::WorkDone { asker, .. } => vec!["worked".into(), words::who(asker)],
            Self::Peek {
                life,
                participant,
                id,
            }
            | Self::Peeked {
                life,
                participant,
                id,
                ..
            } => {
                vec![
                    "peek".into(),
                    participant.to_string(),
                    name(*id),
                    life.to_string(),
                ]
            }
            Self::CallLater { .. }
            | Self::LogForgets
            | Self::Deadline { .. }
            | Self::LonelyAppend(_)
            | Self::WriteAgain(_)
            | Self::Poll(_)
            | Self::OpenAgain(_)
            | Self::EnlistSilence { .. }
            | Self::SessionDeadline { .. }
            | Self::InquiryTick { .. }
            | Self::KeyWait { .. }
            | Self::CallsLeave { .. }
            | Self::TogetherRun { .. }
            | Self::AloneRun { .. }
            | Self::CutHeals(..)
            | Self::ClientActs { .. }
            | Self::RestartCoordinator(_)
            | Self::LookForNodes
            | Self::Guess
            | Self::ClientComes
            | Self::Measure
            | Self::IsItOver { .. }
            | Self::ForgetThatItWas(_)
            | Self::RestartParticipant(_)
            | Self::RestartProcess(_)
            | Self::NewIdentity
            | Self::Fault
            | Self::Heal => Vec::new(),
        };
        words
    }
}

//! The event log in words: what the machines' events, states and answers are called in it. Scripts record these lines,
//! so they are written to be read.

use unanimous_protocol::{
    branch, coordinator,
    message::{Delivery, Inform, Refusal, Reply, Request, Vote},
    operations::Operations,
    record::{AbortCode, AbortReason, Decision, Part, Standing, Verdict},
};

use crate::{
    participant::Operation,
    surroundings::{Asker, Question, Said, Who},
};

pub(crate) fn request(request: &Request) -> String {
    match request {
        Request::Prepare(prepare) => match &prepare.session {
            Some(session) => format!("prepare of session {}", session.as_str()),
            None => "prepare".to_owned(),
        },
        Request::Commit => "commit".to_owned(),
        Request::Abort => "abort".to_owned(),
    }
}

fn refusal(refusal: &Refusal) -> String {
    format!("no, {} ({})", refusal.code.as_str(), refusal.reason)
}

pub(crate) fn vote(vote: &Vote) -> String {
    match vote {
        Vote::Yes => "yes".to_owned(),
        Vote::ReadOnly => "read-only".to_owned(),
        Vote::No(why) => refusal(why),
    }
}

pub(crate) fn reply(reply: &Reply) -> String {
    match reply {
        Reply::Vote(voted) => vote(voted),
        Reply::Committed => "committed".to_owned(),
        Reply::Aborted => "aborted".to_owned(),
        Reply::VoteLost => "vote-lost".to_owned(),
        Reply::OutcomeDiffers => "outcome-differs".to_owned(),
    }
}

pub(crate) fn delivery(delivery: &Delivery<Reply>) -> String {
    match delivery {
        Delivery::Answered(answer) => reply(answer),
        Delivery::Refused(why) => format!("not reached ({why})"),
        Delivery::Unknown(why) => format!("unknown ({why})"),
    }
}

pub(crate) fn inform(inform: Inform) -> &'static str {
    match inform {
        Inform::Committed => "committed",
        Inform::Aborted => "aborted",
        Inform::Pending => "pending",
    }
}

fn reason(reason: &AbortReason) -> String {
    let mut text = format!("abort, {}", code(reason.code));
    if let Some(participant) = &reason.participant {
        text += &format!(" by {participant}");
    }
    if let Some(winner) = reason.winner {
        text += &format!(" of {winner}");
    }
    text
}

pub(crate) fn code(code: AbortCode) -> String {
    // `WorkLost` reads `work-lost`, as on the wire.
    let mut text = String::new();
    for c in format!("{code:?}").chars() {
        if c.is_ascii_uppercase() && !text.is_empty() {
            text.push('-');
        }
        text.push(c.to_ascii_lowercase());
    }
    text
}

pub(crate) fn decision(decision: &Decision) -> String {
    match &decision.verdict {
        Verdict::Abort(why) => reason(why),
        Verdict::Commit => {
            let parts: Vec<String> = decision
                .branches
                .iter()
                .map(|(name, part)| match part {
                    Part::Updates => name.to_string(),
                    Part::ReadOnly => format!("{name} read-only"),
                    Part::Refused => format!("{name} refused"),
                    Part::Unanswered => format!("{name} unanswered"),
                    Part::Untouched => format!("{name} untouched"),
                })
                .collect();
            format!("commit of [{}]", parts.join(", "))
        }
    }
}

pub(crate) fn standing(standing: &Standing) -> String {
    match standing {
        Standing::Proposed => "as proposed".to_owned(),
        Standing::Earlier(earlier) => format!("earlier {}", decision(earlier)),
        Standing::KeyHeldBy(winner) => format!("key held by {winner}"),
        Standing::Refused(why) => format!("refused ({why})"),
    }
}

/// A transaction's event at its coordinator.
pub(crate) fn event(event: &coordinator::Event) -> String {
    use coordinator::Event;
    match event {
        Event::Enlist {
            participant,
            operations,
            session,
        } => match session {
            Some(session) => format!(
                "{participant} enlists itself with session {}",
                session.as_str()
            ),
            None => format!("enlists {participant} {}", self::operations(operations)),
        },
        Event::CommitRequested => "commit requested".to_owned(),
        Event::AbortRequested { .. } => "abort requested".to_owned(),
        Event::DeadlinePassed => "deadline passed".to_owned(),
        Event::Delivered {
            participant,
            kind,
            delivery,
        } => format!(
            "{} of {participant}: {}",
            kind.as_str(),
            self::delivery(delivery)
        ),
        Event::Forced(stands) => format!("decision durable, {}", standing(stands)),
        Event::Appended => "unforced record durable".to_owned(),
        Event::LogWentBack => "log went back, frozen".to_owned(),
        Event::AbortsDropped => "undelivered aborts dropped".to_owned(),
    }
}

/// Where a transaction stands.
pub(crate) fn transaction(state: &coordinator::State) -> String {
    use coordinator::State;
    match state {
        State::Active => "active".to_owned(),
        State::Preparing => "preparing".to_owned(),
        State::Deciding { decision } => format!("deciding {}", self::decision(decision)),
        State::Completing { decision, told } => format!(
            "completing {}{}",
            self::decision(decision),
            if *told { "" } else { ", not to be told yet" }
        ),
        State::Ended { decision } => format!("ended by {}", self::decision(decision)),
    }
}

/// A branch's event at its participant.
pub(crate) fn branch_event(event: &branch::Event) -> String {
    use branch::Event;
    match event {
        Event::PrepareReceived {
            session, in_time, ..
        } => format!(
            "prepare{}{}",
            session.as_ref().map_or(String::new(), |session| format!(
                " of session {}",
                session.as_str()
            )),
            if *in_time { "" } else { ", too late" }
        ),
        Event::Worked(voted) => format!("worked: {}", vote(voted)),
        Event::CommitReceived => "commit".to_owned(),
        Event::Applied => "applied".to_owned(),
        Event::AbortReceived => "abort".to_owned(),
        Event::Undone => "undone".to_owned(),
        Event::Informed(informed) => format!("informed: {}", inform(*informed)),
        Event::DeadlinePassed => "deadline of the work passed".to_owned(),
    }
}

/// What a branch's row says.
pub(crate) fn branch(state: &branch::State) -> String {
    use branch::State;
    match state {
        State::Absent => "absent".to_owned(),
        State::Pruned { .. } => "pruned".to_owned(),
        State::Active { session } => format!("active in session {}", session.as_str()),
        State::Working { .. } => "working".to_owned(),
        State::Prepared { .. } => "prepared".to_owned(),
        State::Applying { .. } => "applying".to_owned(),
        State::Undoing => "undoing".to_owned(),
        State::Committed { .. } => "committed".to_owned(),
        State::Refused { refusal, .. } => format!("refused ({})", refusal.code.as_str()),
        State::Aborted => "aborted".to_owned(),
        State::Tombstone => "tombstone".to_owned(),
    }
}

pub(crate) fn who(asker: &Asker) -> String {
    match &asker.who {
        Who::Client(index) => format!("client {index}"),
        Who::Stranger => "a stranger".to_owned(),
        Who::Participant(name) | Who::Enlisting(name, ..) => name.to_string(),
    }
}

pub(crate) fn said(said: &Said) -> String {
    match said {
        Said::Open(id) => format!("{id} is open"),
        Said::Enlisted { answer, remaining } => match answer {
            Ok(_) => format!("enlisted, {remaining} ms remain"),
            Err(refused) => format!("not enlisted: {refused}"),
        },
        Said::Committed(id) => format!("{id} is committed"),
        Said::Aborted(id, why) => format!("{id} is aborted, {}", code(*why)),
        Said::Pending(id) => format!("{id} is not known yet"),
        Said::KeyReused => "key reused with another request".to_owned(),
        Said::Forgotten => "forgotten".to_owned(),
        Said::Inform(id, participant, informed) => {
            format!("{id} of {participant}: {}", inform(*informed))
        }
        Said::NotThere => "nothing there".to_owned(),
        Said::OtherNode(node) => format!("ask node {node}"),
        Said::Unavailable => "unavailable, ask again".to_owned(),
    }
}

/// What is asked of a coordinator, in one word.
pub(crate) fn question(question: &Question) -> &'static str {
    match question {
        Question::Begin { .. } => "begin",
        Question::Enlist { .. } => "enlist",
        Question::Commit(..) => "commit",
        Question::Abort(..) => "abort",
        Question::Get(_) => "get",
        Question::Outcome { .. } => "inquire",
    }
}

/// `[{"debit":[0,10]}]` as `[debit 0 10]`.
pub(crate) fn operations(operations: &Operations) -> String {
    let all: Vec<String> = Operation::parse(operations.text())
        .iter()
        .map(Operation::to_string)
        .collect();
    format!("[{}]", all.join(", "))
}

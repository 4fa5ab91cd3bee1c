//! What the micro-benchmarks measure, as functions that the tests below see to their end: a machine that stops half-way
//! would be fast.

use unanimous_protocol::branch::{self, Branch};
use unanimous_protocol::coordinator::{Effect, Event, Transaction};
use unanimous_protocol::id::{ParticipantName, TransactionId};
use unanimous_protocol::message::{Delivery, Reply, Request, Vote};
use unanimous_protocol::operations::{BodyDigest, Operations};
use unanimous_protocol::record::Standing;

/// A transaction from begin to its end: every branch votes yes, the decision is durable, every branch acknowledges, and
/// the finish is durable.
#[must_use]
pub fn commit(
    id: TransactionId,
    participants: &[ParticipantName],
    operations: &Operations,
) -> Transaction {
    let mut effects = Vec::new();
    let mut transaction = Transaction::begin(id, true, &mut effects);
    for participant in participants {
        let enlist = Event::Enlist {
            participant: participant.clone(),
            operations: operations.clone(),
            session: None,
        };
        transaction.step(enlist, &mut effects);
    }
    transaction.step(Event::CommitRequested, &mut effects);
    // What effects bring back, until nothing is left to be done.
    let mut next = 0;
    while next < effects.len() {
        let back = answer_to(&effects[next]);
        next += 1;
        if let Some(event) = back {
            transaction.step(event, &mut effects);
        }
    }
    transaction
}

/// What a shell reports where all goes well.
fn answer_to(effect: &Effect) -> Option<Event> {
    match effect {
        Effect::Send {
            participant,
            request,
            ..
        } => Some(Event::Delivered {
            participant: participant.clone(),
            kind: request.kind(),
            delivery: Delivery::Answered(match request {
                Request::Prepare(_) => Reply::Vote(Vote::Yes),
                Request::Commit => Reply::Committed,
                Request::Abort => Reply::Aborted,
            }),
        }),
        Effect::Force(_) => Some(Event::Forced(Standing::Proposed)),
        Effect::Append(_) | Effect::Finish => Some(Event::Appended),
        Effect::StartDeadline | Effect::Answer(_) | Effect::Alarm(_) => None,
    }
}

/// A branch from its prepare to its commit: two messages, and each time the row that was stored.
#[must_use]
pub fn prepare_and_commit(digest: BodyDigest) -> branch::State {
    let mut effects = Vec::new();
    let prepare = branch::Event::PrepareReceived {
        digest,
        session: None,
        in_time: true,
    };
    let mut branch = Branch::from_row(branch::State::Absent);
    branch.step(prepare, &mut effects);
    branch.step(branch::Event::Worked(Vote::Yes), &mut effects);
    let mut branch = Branch::from_row(branch.state().clone());
    branch.step(branch::Event::CommitReceived, &mut effects);
    branch.step(branch::Event::Applied, &mut effects);
    branch.state().clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_measured_ends_committed() {
        let id = "08f66b21-0001-8000-8000-104eae94fab2".parse().unwrap();
        let participants = ["east".parse().unwrap(), "west".parse().unwrap()];
        let operations = Operations::none();
        let transaction = commit(id, &participants, &operations);
        assert!(
            transaction.is_applied() && transaction.is_over(),
            "{transaction:?}"
        );
        let digest = operations.digest();
        assert_eq!(
            prepare_and_commit(digest),
            branch::State::Committed { digest }
        );
    }
}

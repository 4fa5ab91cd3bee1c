//! A transaction as clients see it: from the live machine, from its record, or from the certainty that it has none.

use std::collections::BTreeMap;

use super::{BranchView, Timestamp, TransactionView};
use crate::{
    coordinator::{BranchPhase, Transaction, TransactionState},
    id::TransactionId,
    record::{
        AbortCode, AbortReason, Decision, Header, Outcome, Part, Record, Verdict, WallMillis,
    },
};

/// When a live transaction was decided and finished, by its shell's wall clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Milestones {
    /// When the decision was handed to the log.
    pub decided_at: Option<WallMillis>,
    /// When nothing was owed any more.
    pub finished_at: Option<WallMillis>,
}

impl TransactionView {
    /// A transaction in its coordinator's memory. Outcome, reason and times of a decision appear once it may be told.
    #[must_use]
    pub fn of_live(header: &Header, transaction: &Transaction, milestones: Milestones) -> Self {
        let told = transaction.told();
        let branches = transaction.branches().map(|branch| BranchView {
            participant: branch.participant.clone(),
            state: branch.phase,
            attempts: branch.attempts,
            last_error: branch.last_error.map(str::to_owned),
        });
        Self {
            decided_at: told.and(milestones.decided_at).map(Timestamp),
            finished_at: told.and(milestones.finished_at).map(Timestamp),
            branches: branches.collect(),
            ..Self::of_header(header, transaction.transaction_state(), told)
        }
    }

    /// A transaction in the log.
    #[must_use]
    pub fn of_record(record: &Record) -> Self {
        let Record {
            header,
            decision,
            decided_at,
            finished_at,
        } = record;
        let outcome = decision.verdict.outcome();
        let state = match (outcome, finished_at) {
            (Outcome::Committed, Some(_)) => TransactionState::Committed,
            (Outcome::Committed, None) => TransactionState::Committing,
            (Outcome::Aborted, _) => TransactionState::Aborted,
        };
        let branches = decision
            .branches
            .iter()
            .map(|(participant, part)| BranchView {
                participant: participant.clone(),
                state: match (part, outcome, finished_at) {
                    (Part::ReadOnly, ..) => BranchPhase::ReadOnly,
                    (Part::Refused, ..) => BranchPhase::Refused,
                    (Part::Updates, Outcome::Committed, Some(_)) => BranchPhase::Committed,
                    (Part::Updates, Outcome::Committed, None) => BranchPhase::Committing,
                    (Part::Updates | Part::Unanswered | Part::Untouched, ..) => {
                        BranchPhase::Aborted
                    }
                },
                attempts: 0,
                last_error: None,
            });
        Self {
            decided_at: Some(Timestamp(*decided_at)),
            finished_at: finished_at.map(Timestamp),
            branches: branches.collect(),
            ..Self::of_header(header, state, Some(decision))
        }
    }

    /// A transaction without a record that is aborted for certain (rule 3).
    #[must_use]
    pub fn of_presumed_abort(id: TransactionId, code: AbortCode) -> Self {
        Self {
            id,
            state: TransactionState::Aborted,
            outcome: Some(Outcome::Aborted),
            reason: Some(AbortReason::new(code)),
            idempotency_key: None,
            labels: BTreeMap::new(),
            created_at: None,
            deadline: None,
            decided_at: None,
            finished_at: None,
            branches: Vec::new(),
        }
    }

    fn of_header(header: &Header, state: TransactionState, told: Option<&Decision>) -> Self {
        let reason = told.and_then(|decision| match &decision.verdict {
            Verdict::Commit => None,
            Verdict::Abort(reason) => Some(reason.clone()),
        });
        Self {
            id: header.id,
            state,
            outcome: told.map(|decision| decision.verdict.outcome()),
            reason,
            idempotency_key: header.key.as_ref().map(|claim| claim.key.to_string()),
            labels: header.labels.clone(),
            created_at: Some(Timestamp(header.created_at)),
            deadline: Some(Timestamp(header.deadline)),
            decided_at: None,
            finished_at: None,
            branches: Vec::new(),
        }
    }
}

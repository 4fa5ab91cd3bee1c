//! Counting votes.

use crate::coordinator::BranchPhase;

/// Where a vote stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tally {
    /// Somebody has not answered. Unknown is not no (design rule 9): only the deadline turns silence into an abort.
    Pending,
    /// All said yes or read-only (AC3).
    Unanimous,
    /// Somebody said no.
    Vetoed,
}

/// Counts. One no outweighs whatever is still missing; no branches at all are unanimous.
#[must_use]
pub fn tally(phases: impl IntoIterator<Item = BranchPhase>) -> Tally {
    let mut standing = Tally::Unanimous;
    for phase in phases {
        match phase {
            BranchPhase::Refused => return Tally::Vetoed,
            BranchPhase::Prepared | BranchPhase::ReadOnly => {}
            BranchPhase::Enlisted
            | BranchPhase::Preparing
            | BranchPhase::Committing
            | BranchPhase::Committed
            | BranchPhase::Aborting
            | BranchPhase::Aborted => standing = Tally::Pending,
        }
    }
    standing
}

#[cfg(test)]
mod tests {
    use super::*;
    use BranchPhase::{Enlisted, Prepared, Preparing, ReadOnly, Refused};

    #[test]
    fn a_commit_needs_every_vote_and_one_no_is_enough_for_an_abort() {
        for (phases, expected) in [
            (&[][..], Tally::Unanimous),
            (&[Prepared][..], Tally::Unanimous),
            (&[Prepared, ReadOnly][..], Tally::Unanimous),
            (&[ReadOnly, ReadOnly][..], Tally::Unanimous),
            (&[Preparing][..], Tally::Pending),
            (&[Prepared, Preparing][..], Tally::Pending),
            (&[Prepared, Enlisted][..], Tally::Pending),
            (&[Refused, Preparing][..], Tally::Vetoed),
            (&[Prepared, Preparing, Refused][..], Tally::Vetoed),
            (&[Prepared, ReadOnly, Refused][..], Tally::Vetoed),
        ] {
            assert_eq!(tally(phases.iter().copied()), expected, "{phases:?}");
        }
    }
}

//! From a batch's proposals to rows of a store, and from what the store says of each row back to the batch's order.

use std::collections::BTreeMap;

use unanimous_protocol::{
    id::TransactionId,
    life::Writer,
    record::{Record, Standing},
};

use super::{Cause, Found, LogError, Refused, admit, damaged, standing};

/// A proposal as a store takes it.
pub(super) trait Proposal {
    /// Whose decision it is.
    fn transaction(&self) -> TransactionId;
}

/// What became of one row of an insert.
pub(super) enum Inserted {
    Yes,
    /// Its id or its key is there already.
    No,
    Refused(Cause),
}

/// For each row in order: `None` where it was inserted, else what is in its way.
pub(super) type Answers = Vec<Result<Option<Found>, Refused>>;

/// The proposals that the store is asked about, and those that are refused without asking.
pub(super) struct Admitted {
    /// By their place in the batch.
    refusals: BTreeMap<usize, Refused>,
}

impl Admitted {
    /// Takes what is this writer's to decide and can be `encoded`.
    pub(super) fn of<R>(
        writer: &Writer,
        proposals: &[Record],
        encoded: impl Fn(&Record) -> Result<R, Refused>,
    ) -> (Self, Vec<R>) {
        let mut refusals = BTreeMap::new();
        let mut rows = Vec::with_capacity(proposals.len());
        for (at, proposal) in proposals.iter().enumerate() {
            match admit(writer, proposal).and_then(|()| encoded(proposal)) {
                Ok(row) => rows.push(row),
                Err(refused) => drop(refusals.insert(at, refused)),
            }
        }
        (Self { refusals }, rows)
    }

    /// The standing of each proposal, in the batch's order.
    pub(super) fn standings(
        mut self,
        proposals: &[Record],
        answers: Answers,
    ) -> Result<Vec<Result<Standing, Refused>>, LogError> {
        let mut answers = answers.into_iter();
        let mut standings = Vec::with_capacity(proposals.len());
        for (at, proposal) in proposals.iter().enumerate() {
            standings.push(match self.refusals.remove(&at) {
                Some(refused) => Err(refused),
                None => answers
                    .next()
                    .ok_or_else(|| damaged("a proposal has no answer"))?
                    .map(|found| standing(proposal, found)),
            });
        }
        Ok(standings)
    }
}

/// The rows that were neither inserted nor refused: what is in their way has to be looked up.
pub(super) fn in_the_way<'a, R>(rows: &'a [R], inserted: &[Inserted]) -> Vec<&'a R> {
    let rows = rows.iter().zip(inserted);
    rows.filter(|(_, inserted)| matches!(inserted, Inserted::No))
        .map(|(row, _)| row)
        .collect()
}

/// Joins what the insert said with what was `found` in the way, in the order of [`in_the_way`].
pub(super) fn joined<R: Proposal>(
    rows: &[R],
    inserted: Vec<Inserted>,
    found: impl IntoIterator<Item = Found>,
) -> Result<Answers, LogError> {
    let mut found = found.into_iter();
    let answers = rows.iter().zip(inserted);
    answers
        .map(|(row, inserted)| {
            Ok(match inserted {
                Inserted::Yes => Ok(None),
                // Without one it would read as inserted, and be told as committed.
                Inserted::No => {
                    let in_the_way = found.next();
                    Ok(Some(in_the_way.ok_or_else(|| {
                        damaged(format!(
                            "nothing is in the way of transaction {}",
                            row.transaction()
                        ))
                    })?))
                }
                Inserted::Refused(cause) => Err(Refused {
                    transaction: row.transaction(),
                    cause,
                }),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use unanimous_protocol::id::{Epoch, LogIdentity, Node, Prefix, Sequence};

    use super::*;

    struct Row(TransactionId);

    impl Proposal for Row {
        fn transaction(&self) -> TransactionId {
            self.0
        }
    }

    fn row(number: u64) -> Row {
        let prefix = Prefix {
            identity: LogIdentity(7),
            node: Node(1),
        };
        let sequence = Sequence::new(number).unwrap();
        Row(TransactionId::new(prefix, Epoch::new(1).unwrap(), sequence))
    }

    #[test]
    fn what_was_neither_inserted_nor_found_in_the_way_is_no_answer() {
        let rows = [row(1), row(2), row(3)];
        let inserted = || vec![Inserted::No, Inserted::Yes, Inserted::No];
        let holder = |row: &Row| Found::Holder(row.0);
        let both = joined(&rows, inserted(), [holder(&rows[1]), holder(&rows[1])]).unwrap();
        let is_held = |answer: &Result<_, _>| matches!(answer, Ok(Some(Found::Holder(_))));
        let held: Vec<_> = both.iter().map(is_held).collect();
        assert_eq!(held, [true, false, true]);
        let one = joined(&rows, inserted(), [holder(&rows[1])]);
        assert!(matches!(one, Err(LogError::Broken(_))));
    }
}

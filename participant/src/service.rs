//! A [`Resource`] without its type: what the rest of the crate runs. Operations are typed here, to run the service's code,
//! and nowhere else.

use std::{future::Future, pin::Pin, sync::Arc};

use serde_json::value::RawValue;
use unanimous_protocol::message::{Refusal, RefusalCode, Vote as BranchVote, bounded_reason};

use crate::{
    resource::{Failure, Resource, Vote},
    tx::Tx,
};

pub(crate) type Run<'a, T> = Pin<Box<dyn Future<Output = Result<T, Failed>> + Send + 'a>>;

/// The service's code could not find out.
#[derive(Debug)]
pub(crate) struct Failed {
    /// The operation's place in the branch.
    pub(crate) index: usize,
    /// What it said.
    pub(crate) failure: Failure,
}

/// An operation that is none of the service's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("operations[{index}]: {reason}")]
pub(crate) struct InvalidOperation {
    /// Its place in the branch.
    pub(crate) index: usize,
    /// Why.
    pub(crate) reason: String,
}

/// The vote of a whole branch, and the places of the operations that voted yes.
#[derive(Debug)]
pub(crate) struct Voted {
    pub(crate) vote: BranchVote,
    pub(crate) yes: Vec<i32>,
}

pub(crate) trait Service: Send + Sync {
    /// Reads the operations of one branch; `texts` are JSON arrays, taken as one list.
    fn read(&self, texts: &[&str]) -> Result<Box<dyn Work>, InvalidOperation>;
}

/// The operations of one branch, ready to run.
pub(crate) trait Work: Send + Sync {
    /// How many operations there are.
    fn count(&self) -> usize;
    /// Sorted, each once.
    fn keys(&self) -> Vec<String>;
    fn prepare<'a>(&'a self, tx: &'a mut Tx<'_>) -> Run<'a, Voted>;
    /// Runs those that voted yes.
    fn commit<'a>(&'a self, yes: &'a [i32], tx: &'a mut Tx<'_>) -> Run<'a, ()>;
    /// Runs those that voted yes.
    fn abort<'a>(&'a self, yes: &'a [i32], tx: &'a mut Tx<'_>) -> Run<'a, ()>;
}

pub(crate) struct Typed<R>(pub(crate) Arc<R>);

struct Operations<R: Resource> {
    resource: Arc<R>,
    operations: Vec<R::Operation>,
}

impl<R: Resource> Service for Typed<R> {
    fn read(&self, texts: &[&str]) -> Result<Box<dyn Work>, InvalidOperation> {
        let mut operations = Vec::new();
        for text in texts {
            let read = |error: serde_json::Error, index| InvalidOperation {
                index,
                // It may repeat all that was sent.
                reason: bounded_reason(&error.to_string()),
            };
            let list: Vec<&RawValue> =
                serde_json::from_str(text).map_err(|error| read(error, operations.len()))?;
            for raw in list {
                let operation = serde_json::from_str(raw.get());
                operations.push(operation.map_err(|error| read(error, operations.len()))?);
            }
        }
        Ok(Box::new(Operations {
            resource: Arc::clone(&self.0),
            operations,
        }))
    }
}

impl<R: Resource> Operations<R> {
    /// The operations that voted yes. A place that does not exist names none: the row is written by us alone.
    fn voted_yes<'a>(
        &'a self,
        yes: &'a [i32],
    ) -> impl Iterator<Item = (usize, &'a R::Operation)> + 'a {
        let said_yes = |index: &usize| yes.iter().any(|&at| usize::try_from(at) == Ok(*index));
        self.operations
            .iter()
            .enumerate()
            .filter(move |(index, _)| said_yes(index))
    }
}

impl<R: Resource> Work for Operations<R> {
    fn count(&self) -> usize {
        self.operations.len()
    }

    fn keys(&self) -> Vec<String> {
        let mut keys: Vec<String> = self
            .operations
            .iter()
            .flat_map(|operation| self.resource.keys(operation))
            .map(|key| key.as_str().to_owned())
            .collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    fn prepare<'a>(&'a self, tx: &'a mut Tx<'_>) -> Run<'a, Voted> {
        Box::pin(async move {
            let mut yes = Vec::new();
            for (index, operation) in self.operations.iter().enumerate() {
                let vote = self.resource.prepare(operation, tx).await;
                match vote.map_err(|failure| Failed { index, failure })? {
                    Vote::Yes => yes.push(index as i32),
                    Vote::ReadOnly => {}
                    // The first no is the branch's: what follows would only be taken back.
                    Vote::No(reason) => {
                        return Ok(Voted {
                            vote: BranchVote::No(Refusal {
                                code: RefusalCode::Refused,
                                reason: bounded_reason(&reason),
                            }),
                            yes: Vec::new(),
                        });
                    }
                }
            }
            let vote = if yes.is_empty() {
                BranchVote::ReadOnly
            } else {
                BranchVote::Yes
            };
            Ok(Voted { vote, yes })
        })
    }

    fn commit<'a>(&'a self, yes: &'a [i32], tx: &'a mut Tx<'_>) -> Run<'a, ()> {
        Box::pin(async move {
            for (index, operation) in self.voted_yes(yes) {
                let committed = self.resource.commit(operation, tx).await;
                committed.map_err(|failure| Failed { index, failure })?;
            }
            Ok(())
        })
    }

    fn abort<'a>(&'a self, yes: &'a [i32], tx: &'a mut Tx<'_>) -> Run<'a, ()> {
        Box::pin(async move {
            for (index, operation) in self.voted_yes(yes) {
                let aborted = self.resource.abort(operation, tx).await;
                aborted.map_err(|failure| Failed { index, failure })?;
            }
            Ok(())
        })
    }
}

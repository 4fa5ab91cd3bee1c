//! What the list of transactions is made of: what is in memory, and what is in the log.

use std::sync::Arc;

use actix::{Addr, Context, Handler, Message, ResponseFuture};
use tracing::warn;
use unanimous_protocol::{life::Standing, record::Record};

use super::{READ_MAX, Registry, within};
use crate::{
    actors::transaction::TransactionActor,
    log::{Filter, Position},
};

/// The transactions in memory after this place, newest first; `None` when nothing may be said, for this life does not
/// decide any more. Asked before [`History`]: what leaves memory has a durable record by then.
#[derive(Message)]
#[rtype(result = "Option<Vec<(Position, Addr<TransactionActor>)>>")]
pub struct InMemory {
    /// Where to go on.
    pub after: Option<Position>,
}

impl Handler<InMemory> for Registry {
    type Result = Option<Vec<(Position, Addr<TransactionActor>)>>;

    fn handle(&mut self, InMemory { after }: InMemory, _: &mut Context<Self>) -> Self::Result {
        if *self.life.standing() != Standing::Serving {
            return None;
        }
        let mut live = Vec::new();
        for (&id, transaction) in &self.transactions {
            let created_at = transaction.created_at;
            let position = Position { created_at, id };
            if after.is_none_or(|after| position < after) {
                live.push((position, transaction.actor.clone()));
            }
        }
        live.sort_unstable_by_key(|(position, _)| std::cmp::Reverse(*position));
        Some(live)
    }
}

/// A page of the log: [`crate::log::DecisionLog::history`]. `None` when it does not answer.
#[derive(Message)]
#[rtype(result = "Option<Vec<Record>>")]
pub struct History {
    /// Which records.
    pub filter: Filter,
    /// Where to go on.
    pub after: Option<Position>,
    /// How many, at most.
    pub limit: u32,
}

impl Handler<History> for Registry {
    type Result = ResponseFuture<Option<Vec<Record>>>;

    fn handle(&mut self, history: History, _: &mut Context<Self>) -> Self::Result {
        let log = Arc::clone(&self.log);
        Box::pin(async move {
            let History {
                filter,
                after,
                limit,
            } = history;
            let read = within(READ_MAX, log.history(&filter, after, limit)).await;
            read.inspect_err(|error| {
                warn!(
                    error = %crate::telemetry::chain(error),
                    "the history could not be read"
                );
            })
            .ok()
        })
    }
}

//! What a scrape of the metrics asks of the registry: what is held against the bounds, and whom to ask for the rest.

use std::collections::BTreeMap;

use actix::{Addr, Context, Handler, Message};
use unanimous_protocol::id::ParticipantName;

use super::Registry;
use crate::{actors::transaction::TransactionActor, courier::Stats, metrics::present::Held};

/// What is held now.
#[derive(Message)]
#[rtype(result = "Measured")]
pub struct Measure;

/// The answer to [`Measure`].
pub struct Measured {
    /// Against the bounds.
    pub held: Held,
    /// Every courier.
    pub couriers: BTreeMap<ParticipantName, Stats>,
    /// Every transaction in memory.
    pub transactions: Vec<Addr<TransactionActor>>,
}

impl Handler<Measure> for Registry {
    type Result = actix::MessageResult<Measure>;

    fn handle(&mut self, _: Measure, _: &mut Context<Self>) -> Self::Result {
        let live = self.transactions.values();
        actix::MessageResult(Measured {
            held: Held {
                undecided: self.undecided,
                live: self.transactions.len(),
                delivering_aborts: self.delivering_aborts.len(),
                bounds: self.bounds,
            },
            couriers: self.couriers.stats(),
            transactions: live.map(|live| live.actor.clone()).collect(),
        })
    }
}

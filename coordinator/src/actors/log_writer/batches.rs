//! What waits for the log: which of it goes into the next write, and who is told once that is durable.
//!
//! A plain structure, without a log, a clock or an actor. What it promises:
//! - one write at a time: nothing is taken before the last one was [`Batches::durable`];
//! - first come, first written, decisions and unforced records each among themselves;
//! - whoever proposed or appended is told once, after the write that holds it, and nobody else is;
//! - nothing unforced waits for ever: what was there when its time came goes at once, and so does what a bound left over.

use std::collections::VecDeque;

use tokio::sync::oneshot;
use unanimous_protocol::{
    id::TransactionId,
    record::{Record, Standing, WallMillis},
};

use crate::log::{Appends, Batch};

/// Decisions in one write, at most, and as many unforced records and finishes beside them: past it they share the one
/// after. Bounds the size of a statement, which has to end within the server's patience, or it would be repeated for ever.
pub const BATCH_MAX: usize = 1024;

/// Told once a decision is durable: which one stands.
pub(super) type OnDecided = Box<dyn FnOnce(Standing) + Send>;
/// Told once something unforced is durable.
pub(super) type OnDurable = Box<dyn FnOnce() + Send>;

/// See the module's head.
pub(super) struct Batches {
    /// Of proposals in one write, and of what rides along.
    max: usize,
    proposals: VecDeque<(Record, OnDecided)>,
    appends: VecDeque<(Unforced, OnDurable)>,
    append_due: bool,
    /// Who waits for the write under way.
    in_flight: Option<InFlight>,
    /// Told once nothing waits any more.
    flushing: Vec<oneshot::Sender<()>>,
}

/// Something that is not forced.
pub(super) enum Unforced {
    Record(Record),
    Finish(TransactionId, WallMillis),
}

struct InFlight {
    proposers: Vec<OnDecided>,
    appenders: Vec<OnDurable>,
}

impl Batches {
    /// Nothing waits. `max` is [`BATCH_MAX`] but in a test.
    pub(super) fn new(max: usize) -> Self {
        Self {
            max,
            proposals: VecDeque::new(),
            appends: VecDeque::new(),
            append_due: false,
            in_flight: None,
            flushing: Vec::new(),
        }
    }

    /// A decision, for the next write.
    pub(super) fn propose(&mut self, record: Record, on_durable: OnDecided) {
        self.proposals.push_back((record, on_durable));
    }

    /// Something that rides with the next decision, or goes once it is [due](Self::append_due).
    pub(super) fn append(&mut self, what: Unforced, on_durable: OnDurable) {
        self.appends.push_back((what, on_durable));
    }

    /// What is unforced has waited long enough for a decision to ride with. Whether there is any.
    pub(super) fn append_due(&mut self) -> bool {
        let waits = !self.appends.is_empty();
        self.append_due |= waits;
        waits
    }

    /// Nothing more is coming: all that waits is written, and then this is told.
    pub(super) fn flush(&mut self, flushed: oneshot::Sender<()>) {
        self.flushing.push(flushed);
        self.append_due = true;
    }

    /// How many decisions wait.
    pub(super) fn waiting(&self) -> usize {
        self.proposals.len()
    }

    /// Whether a write is under way.
    pub(super) fn is_writing(&self) -> bool {
        self.in_flight.is_some()
    }

    /// The next write, if there is something to write and none is under way.
    pub(super) fn next(&mut self) -> Option<Batch> {
        if self.is_writing() {
            return None;
        }
        if self.proposals.is_empty() && self.appends.is_empty() {
            self.append_due = false;
            for flushed in self.flushing.drain(..) {
                // Who asked may have gone.
                flushed.send(()).ok();
            }
        }
        if self.proposals.is_empty() && !self.append_due {
            return None;
        }
        let taken = self.proposals.len().min(self.max);
        let (proposals, proposers) = self.proposals.drain(..taken).unzip();
        let (appends, appenders) = self.take_appends();
        // What is left goes at once behind this one.
        self.append_due = !self.appends.is_empty() || !self.flushing.is_empty();
        self.in_flight = Some(InFlight {
            proposers,
            appenders,
        });
        Some(Batch { proposals, appends })
    }

    fn take_appends(&mut self) -> (Appends, Vec<OnDurable>) {
        let taken = self.appends.len().min(self.max);
        let mut appends = Appends::default();
        let mut appenders = Vec::with_capacity(taken);
        for (what, on_durable) in self.appends.drain(..taken) {
            match what {
                Unforced::Record(record) => appends.records.push(record),
                Unforced::Finish(id, finished_at) => appends.finishes.push((id, finished_at)),
            }
            appenders.push(on_durable);
        }
        (appends, appenders)
    }

    /// The write under way is durable; the standings are those of its proposals, in their order.
    pub(super) fn durable(&mut self, standings: Vec<Standing>) {
        let Some(InFlight {
            proposers,
            appenders,
        }) = self.in_flight.take()
        else {
            return;
        };
        for (on_durable, standing) in proposers.into_iter().zip(standings) {
            on_durable(standing);
        }
        for on_durable in appenders {
            on_durable();
        }
    }
}

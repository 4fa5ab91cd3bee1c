//! Messages that go together: who lets them, a chance of their own, and answers that come in lines.
//!
//! The chance is a stream of its own, so that a world in which nobody batches is what its seed made of it before there were
//! batches.

use std::{cell::RefCell, collections::BTreeSet, rc::Rc};

use unanimous_protocol::{
    id::{ParticipantName, TransactionId},
    message::{Delivery, Reply},
};

use super::{Call, Happening, LifeNumber, Millis, Surroundings, trace};
use crate::rng::Rng;

/// Whether the participants of a world batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Batching {
    /// As the seed says: nobody in half of all worlds.
    Drawn,
    /// Nobody: what a seed meant before there were batches.
    Off,
    /// Everybody, in every way.
    On,
}

#[derive(Debug)]
pub(crate) struct Batches {
    pub(crate) rng: Rng,
    /// Whose messages that wait share local transactions.
    pub(crate) shared: BTreeSet<ParticipantName>,
    /// Calls to these that leave at the same time travel together.
    pub(crate) bundled: BTreeSet<ParticipantName>,
    /// In a script: whose next shared commit is unclear, and whether it happens.
    pub(crate) unclear: Option<(ParticipantName, bool)>,
    /// In a script: whose next answer in lines breaks off, and after how many.
    pub(crate) breaks_off: Option<(ParticipantName, usize)>,
}

impl Batches {
    pub(super) fn new(rng: &Rng) -> Self {
        Self {
            rng: rng.another(),
            shared: BTreeSet::new(),
            bundled: BTreeSet::new(),
            unclear: None,
            breaks_off: None,
        }
    }

    /// Who batches in a world.
    pub(crate) fn draw(&mut self, names: &[ParticipantName], batching: Batching) {
        let world = self.rng.chance(5_000);
        for name in names {
            let drawn = [self.rng.chance(7_500), self.rng.chance(7_500)];
            let [shares, bundles] = match batching {
                Batching::Drawn => drawn.map(|drawn| drawn && world),
                Batching::Off => [false, false],
                Batching::On => [true, true],
            };
            if shares {
                self.shared.insert(name.clone());
            }
            if bundles {
                self.bundled.insert(name.clone());
            }
        }
    }
}

/// Whom an answer goes to: the life and the number of its call, and the connection that the call came by, where that
/// brings many answers.
#[derive(Clone, Debug)]
pub(crate) struct ReplyTo {
    pub(crate) life: LifeNumber,
    pub(crate) number: u64,
    pub(crate) lines: Option<Lines>,
}

/// The answer to calls that arrived together: a line for each, in the order in which they get ready, until it ends or
/// breaks off.
#[derive(Clone, Debug)]
pub(crate) struct Lines(Rc<RefCell<Open>>);

#[derive(Debug)]
struct Open {
    /// How many lines come through, where not all do.
    left: Option<usize>,
    /// Calls without a line.
    calls: Vec<(LifeNumber, u64, TransactionId, ParticipantName)>,
}

impl Lines {
    pub(crate) fn of(calls: &[Call], s: &mut Surroundings) -> Self {
        let drawn = s.chaos && s.batches.rng.chance(1_500);
        let written = s
            .batches
            .breaks_off
            .take_if(|(name, _)| calls.first().is_some_and(|call| call.participant == *name));
        let left = match written {
            Some((_, lines)) => Some(lines),
            None => drawn.then(|| s.batches.rng.below(calls.len() as u64) as usize),
        };
        let calls = calls
            .iter()
            .map(|call| (call.life, call.number, call.id, call.participant.clone()))
            .collect();
        Self(Rc::new(RefCell::new(Open { left, calls })))
    }
}

impl Surroundings {
    /// How long messages wait for company: until those are here that arrive at the same moment, or as long as somebody else's
    /// local transaction takes; now and then for longer than the coordinator waits.
    pub(crate) fn company(&mut self) -> Millis {
        let longest = match self.batches.rng.below(10) {
            _ if self.temper.calm => 50,
            // Once the world is healed nothing may be left, not even for a moment.
            _ if !self.chaos => 0,
            0..=2 => 5,
            3..=7 => 250,
            _ => 1_500,
        };
        self.batches.rng.between(0, longest)
    }

    /// A participant's answer leaves; without an answer, what the caller finds instead.
    pub(crate) fn reply(
        &mut self,
        to: &ReplyTo,
        id: TransactionId,
        participant: &ParticipantName,
        delivery: Delivery<Reply>,
    ) {
        let happening = Happening::CallEnds {
            life: to.life,
            number: to.number,
            id,
            participant: participant.clone(),
            delivery,
        };
        let Some(lines) = &to.lines else {
            return self.transmit_once(happening);
        };
        let mut open = lines.0.borrow_mut();
        let Some(at) = open.calls.iter().position(|call| call.1 == to.number) else {
            trace!(self, "  (behind the end of the answer)");
            return;
        };
        match &mut open.left {
            None => {}
            Some(0) => {
                let rest = std::mem::take(&mut open.calls);
                drop(open);
                return self.break_off(rest);
            }
            Some(left) => *left -= 1,
        }
        open.calls.remove(at);
        drop(open);
        self.transmit_once(happening);
    }

    /// Of what has no line nothing is known.
    fn break_off(&mut self, rest: Vec<(LifeNumber, u64, TransactionId, ParticipantName)>) {
        self.counters.add("answers that broke off");
        trace!(self, "  (the answer breaks off)");
        for (life, number, id, participant) in rest {
            self.transmit_once(Happening::CallEnds {
                life,
                number,
                id,
                participant,
                delivery: Delivery::Unknown("the answer broke off".to_owned()),
            });
        }
    }
}

//! What goes wrong in a world, by chance; and the healing.

use unanimous_protocol::id::{
    Epoch, LogIdentity, Node, ParticipantName, Prefix, Sequence, TransactionId,
};

use super::World;
use crate::{
    coordinator::Coordinator,
    surroundings::{Asker, Happening, LifeNumber, Millis, Place, Question, Who, trace},
};

impl World {
    /// Anybody can ask about any id, as a client or in a participant's name; no answer may say more than is known.
    pub(super) fn guess(&mut self) {
        if !self.s.chaos {
            return;
        }
        let recent = self.s.recent.make_contiguous().to_vec();
        if let Some(&id) = self.s.rng.pick(&recent) {
            let s = &mut self.s;
            s.counters.add("guesses");
            let prefix = id.prefix();
            let some_id = |prefix, epoch: u64, sequence: u64| {
                let epoch = u32::try_from(epoch).ok().and_then(Epoch::new)?;
                Some(TransactionId::new(prefix, epoch, Sequence::new(sequence)?))
            };
            let (epoch, sequence) = (u64::from(id.epoch().number()), id.sequence().number());
            let guessed = match s.rng.below(8) {
                // The next ones to be issued, perhaps.
                0 | 1 => some_id(prefix, epoch, sequence + s.rng.between(1, 3)),
                2 => some_id(prefix, epoch + s.rng.between(1, 3), s.rng.below(1 << 20)),
                3 => {
                    let (identity, node) = (prefix.identity, Node(9));
                    some_id(Prefix { identity, node }, 1, sequence)
                }
                4 => {
                    let identity = LogIdentity(0xf0e1);
                    some_id(Prefix { identity, ..prefix }, epoch, sequence)
                }
                _ => Some(id),
            };
            let names: Vec<ParticipantName> = self.participants.keys().cloned().collect();
            let nobody: Option<ParticipantName> = "south".parse().ok();
            let name = self.s.rng.pick(&names).cloned();
            let name = nobody.filter(|_| self.s.rng.chance(2_000)).or(name);
            if let (Some(id), Some(participant)) = (guessed, name) {
                let (who, question) = if self.s.rng.chance(5_000) {
                    let who = Who::Participant(participant.clone());
                    (who, Question::Outcome { id, participant })
                } else {
                    (Who::Stranger, Question::Get(id))
                };
                let asker = Asker { who, question: 0 };
                self.s.ask(None, asker, question);
            }
        }
        let delay = self.s.rng.between(50, 1_000);
        self.s.after(delay, Happening::Guess);
    }

    pub(super) fn fault(&mut self) {
        if !self.s.chaos {
            return;
        }
        let lives: Vec<LifeNumber> = self.coordinators.keys().copied().collect();
        let names: Vec<ParticipantName> = self.participants.keys().cloned().collect();
        let life = self.s.rng.pick(&lives).copied();
        let name = self.s.rng.pick(&names).cloned();
        if self.s.temper.betrays
            && self.s.rng.chance(2_000)
            && let Some(name) = &name
            && let Some(participant) = self.participants.get_mut(name)
            && participant.is_running()
        {
            self.s.temper.betrays = false;
            let count = self.s.rng.between(1, 4) as usize;
            participant.crash_and_lose_durable_rows(count, &mut self.s);
        }
        if self.s.temper.log_goes_back && self.s.rng.chance(2_000) {
            self.log_goes_back();
        }
        if self.nodes.len() > 1
            && self.s.temper.adopts
            && self.s.rng.chance(1_500)
            && let Some(node) = self.s.rng.pick(&self.nodes).copied()
        {
            self.node_is_given_up(node);
        }
        match (self.s.rng.below(10), life, name) {
            (0, Some(life), _) => self.crash_coordinator(life),
            (1 | 2, Some(life), _) => {
                // A successor starts beside it: it is a zombie until it notices. Often it is frozen meanwhile, and
                // wakes up in the middle of what it did.
                if let Some(coordinator) = self.coordinators.get_mut(&life) {
                    self.s.counters.add("zombies");
                    trace!(self.s, "{life}: gets a successor beside it");
                    if self.s.rng.chance(6_000) {
                        let delay = self.s.rng.between(100, 5_000);
                        coordinator.frozen_until = self.s.now + delay;
                    }
                    let node = coordinator.node();
                    self.start_coordinator(node);
                }
            }
            (3, Some(life), _) => {
                if let Some(coordinator) = self.coordinators.get_mut(&life) {
                    self.s.counters.add("frozen coordinators");
                    let delay = self.s.rng.between(100, 5_000);
                    coordinator.frozen_until = self.s.now + delay;
                }
            }
            (4, _, Some(name)) => {
                if let Some(participant) = self.participants.get_mut(&name) {
                    let unforced = participant.unforced() as u64;
                    let keeping = self.s.rng.between(0, unforced) as usize;
                    participant.crash(keeping, &mut self.s);
                }
            }
            (5, _, Some(name)) => {
                if let Some(participant) = self.participants.get_mut(&name) {
                    participant.lose_a_session(&mut self.s);
                }
            }
            (6, ..) => self.log.crash(&mut self.s),
            (7, ..) => {
                let duration = self.s.rng.between(100, 6_000);
                self.log.outage(duration, &mut self.s);
            }
            (8, _, Some(name)) => {
                if let Some(participant) = self.participants.get_mut(&name) {
                    participant.crash_any_process(&mut self.s);
                }
            }
            (9, Some(life), Some(name)) => {
                let (coordinator, participant) =
                    (Place::Coordinator(life), Place::Participant(name));
                let (from, to) = match self.s.rng.below(6) {
                    0 | 1 => (coordinator, participant),
                    2 | 3 => (participant, coordinator),
                    4 => (coordinator, Place::Log),
                    _ => (Place::Log, coordinator),
                };
                self.s.counters.add("links cut in one direction");
                trace!(self.s, "the link {from:?} → {to:?} is cut");
                let delay = self.s.rng.between(500, 15_000);
                self.s
                    .after(delay, Happening::CutHeals(from.clone(), to.clone()));
                self.s.cut(from, to);
            }
            _ => {}
        }
        let most = self.s.temper.fault_every;
        let delay = self.s.rng.between(most / 10, most);
        self.s.after(delay, Happening::Fault);
    }

    pub(super) fn is_run(&self, node: Node) -> bool {
        self.s.listening.iter().any(|(of, _)| *of == node)
    }

    /// What an adopter goes by: a node that was not seen for a while. It may be wrong, and does no harm then.
    pub(super) fn look_for_nodes(&mut self) {
        let lives: Vec<LifeNumber> = self.coordinators.keys().copied().collect();
        for node in self.nodes.clone() {
            let seen = self.seen.get(&node).copied().unwrap_or_default();
            // Its owner marks it, and so does whoever has adopted it.
            if self.is_run(node) || self.coordinators.values().any(|life| life.runs(node)) {
                self.seen.insert(node, self.s.now);
            } else if self.s.now - seen >= self.s.temper.unseen_for
                && let Some(&life) = self.s.rng.pick(&lives)
            {
                self.adopt(life, node);
            }
        }
    }

    pub(crate) fn adopt(&mut self, life: LifeNumber, node: Node) {
        if let Some(coordinator) = self.coordinators.get_mut(&life)
            && coordinator.frozen_until <= self.s.now
        {
            coordinator.adopt(node, &mut self.s);
        }
    }

    /// Its coordinators die and stay away for long, or run on (somebody adopts by force); and somebody adopts it.
    pub(super) fn node_is_given_up(&mut self, node: Node) {
        let lives = self.coordinators.keys().copied();
        let is_theirs = |life: &LifeNumber| self.coordinators[life].node() == node;
        let (theirs, others): (Vec<_>, Vec<_>) = lives.partition(is_theirs);
        let is_away = self
            .away_until
            .get(&node)
            .is_some_and(|at| *at > self.s.now);
        if !is_away && self.s.rng.chance(6_000) {
            let away = self.s.rng.between(2_000, 25_000);
            trace!(self.s, "node {node} is away for {away} ms");
            self.away_until.insert(node, self.s.now + away);
            for life in theirs {
                self.crash_coordinator(life);
            }
        }
        if self.s.rng.chance(5_000)
            && let Some(&life) = self.s.rng.pick(&others)
        {
            self.s.counters.add("nodes adopted by force");
            self.adopt(life, node);
        }
    }

    /// The log loses what it promised to keep, where that can be found out at all: one life must remember more than
    /// the log does, and be the only one of its node (docs/PROOF.md).
    pub(super) fn log_goes_back(&mut self) {
        let only = match self.coordinators.len() {
            1 => self.coordinators.values().next(),
            _ => None,
        };
        // A zombie that is left alone serves as well, by what it knows; the log knows better.
        let is_newest = |life: &Coordinator| life.is_serving() && self.log.is_newest(life.writer());
        if self.nodes.len() == 1 && self.log.may_go_back() && only.is_some_and(is_newest) {
            self.s.temper.log_goes_back = false;
            // A restore ends the connections of everybody who wrote before: nothing of a former life is on its way.
            let lives: Vec<LifeNumber> = self.coordinators.keys().copied().collect();
            self.s.cut_off_from_the_log(&lives);
            let writes = self.s.rng.between(1, 8) as usize;
            self.log.go_back(writes, &mut self.s);
            let delay = self.s.rng.between(100, 20_000);
            self.s.after(delay, Happening::NewIdentity);
        }
    }

    pub(crate) fn heal(&mut self) {
        trace!(self.s, "the world is healed");
        self.s.chaos = false;
        self.s.mend_all();
        self.log.heal();
        self.log.new_identity(&mut self.s);
        for coordinator in self.coordinators.values_mut() {
            coordinator.frozen_until = 0;
        }
        // One node may stay away for good, where another one adopts it.
        let away = |node: &Node| self.away_until.get(node).is_some_and(|at| *at > self.s.now);
        let adopted = self.nodes.len() > 1 && self.s.temper.adopts;
        let for_good = self
            .nodes
            .iter()
            .copied()
            .find(|node| adopted && away(node));
        if let Some(node) = for_good {
            self.s.counters.add("nodes that stay away for good");
            self.away_until.insert(node, Millis::MAX);
        }
        for node in self.nodes.clone() {
            if for_good != Some(node) && !self.is_run(node) {
                self.start_coordinator(node);
            }
        }
        for participant in self.participants.values_mut() {
            participant.start(&mut self.s);
        }
    }
}

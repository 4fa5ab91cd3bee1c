//! Adopting a node that nobody runs: opening an epoch of it, delivering what it left unfinished, and letting go of that
//! once somebody else runs it.

use unanimous_protocol::{
    id::{Node, TransactionId},
    life::{Head, Life, Writer},
    record::Record,
};

use super::{Coordinator, Pending};
use crate::{
    log,
    surroundings::{Crashed, Surroundings, trace},
};

impl Coordinator {
    /// Whether it runs `node`, for all it knows.
    pub(crate) fn runs(&self, node: Node) -> bool {
        let mut runs = self.life.iter().flat_map(Life::runs);
        runs.any(|writer| writer.node == node)
    }

    /// Tries to. Whether somebody runs the node says only when to try; the epoch is what makes it safe.
    pub(crate) fn adopt(&mut self, node: Node, s: &mut Surroundings) {
        if self.life.as_ref().is_some_and(|life| life.may_adopt(node)) {
            trace!(s, "{}: adopts node {node}", self.number);
            self.ask_log(Pending::Adopt(node), log::Request::Adopt(node), s);
        }
    }

    pub(super) fn adopted(
        &mut self,
        node: Node,
        writer: Writer,
        unfinished: Vec<Record>,
        s: &mut Surroundings,
    ) -> Result<(), Crashed> {
        let taken = self.life.as_mut().is_some_and(|life| life.adopt(writer));
        trace!(
            s,
            "{}: {} node {node} with {writer}, {} unfinished",
            self.number,
            if taken {
                "has adopted"
            } else {
                "is too late to adopt"
            },
            unfinished.len()
        );
        if !taken {
            return Ok(());
        }
        s.counters.add("nodes adopted");
        for record in unfinished {
            // Of a node that was adopted before: it is driven already.
            if !self.transactions.contains_key(&record.header.id) {
                self.recover(record, s)?;
            }
        }
        Ok(())
    }

    /// What the log says of an adopted node, against what was known before that was read.
    pub(super) fn look_at_adopted(
        &mut self,
        known: &Writer,
        head: &Head,
        s: &mut Surroundings,
    ) -> Result<(), Crashed> {
        let fence = self
            .life
            .as_mut()
            .and_then(|life| life.observe_adopted(known, head));
        if let Some(fence) = fence {
            s.counters.add("adopters fenced at the node");
            trace!(
                s,
                "{}: lets go of node {}: {fence}", self.number, known.node
            );
            self.let_go_of(known.node);
        }
        self.stands(s)
    }

    /// Somebody else drives it, from the same records.
    fn let_go_of(&mut self, node: Node) {
        let theirs = |id: &TransactionId| id.node() == node;
        self.transactions.retain(|id, _| !theirs(id));
        self.calls.retain(|_, (id, ..)| !theirs(id));
    }
}

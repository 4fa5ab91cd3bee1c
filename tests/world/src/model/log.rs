//! The decision log: epochs, the conditional decide, the unique key, unforced writes. A forced write is one step: before it
//! nothing is there, after it all is durable; that its answer is on its way, lost with its life, or that the write itself
//! comes after the next epoch was opened, are steps of their own. Unclear answers are repeated by the log's writer, below
//! the machines: the simulation has them.

use std::sync::Arc;

use unanimous_protocol::{
    coordinator::Event,
    id::{Epoch, Node},
    life::{Head, Writer},
    record::{Decision, Standing, Verdict},
};

use super::{
    Search,
    check::Rule,
    state::{FORMER, IDENTITY, LogRequest, Record, State, Write, Written, node},
};

impl Search {
    /// A write that was sent arrives. One whose writer was fenced does nothing: its life finds out when it looks.
    pub(super) fn log_takes(&self, s: &mut State, at: usize) {
        let request = s.log.requests[at].clone();
        let LogRequest {
            life, transaction, ..
        } = request;
        let head = s.head(request.writer.node);
        if head.check(&request.writer).is_err() {
            s.log_mut().requests.remove(at);
            return;
        }
        let written = match &request.write {
            Write::Force(decision) => {
                let decisions = s.log.visible.decisions + 1;
                s.log_mut().visible.decisions = decisions;
                let standing = self.propose(s, transaction, decision);
                s.force_log();
                Written::Decided(standing, decisions)
            }
            Write::Append(decision) => {
                if s.log.visible.records[transaction].is_none() {
                    s.insert(transaction, decision);
                    self.unforced(s);
                }
                Written::Appended
            }
            Write::Finish => {
                s.check_finish(transaction);
                if let Some(record) = &mut s.log_mut().visible.records[transaction] {
                    record.is_finished = true;
                }
                self.unforced(s);
                Written::Appended
            }
        };
        let waits = s.lives[life].is_some();
        let log = s.log_mut();
        if waits {
            log.requests[at].written = Some(written);
        } else {
            log.requests.remove(at);
        }
    }

    /// Where the log can not crash any more, when it becomes durable tells nothing.
    fn unforced(&self, s: &mut State) {
        s.log_mut().is_dirty = true;
        if s.faults.log_crashes == 0 {
            s.force_log();
        }
    }

    /// Something about a record is such that the log will never take it (rule 23).
    pub(super) fn log_refuses(&self, s: &mut State, at: usize) {
        let transaction = s.log.requests[at].transaction;
        s.transactions[transaction].refused = true;
        let decisions = s.log.visible.decisions + 1;
        let log = s.log_mut();
        log.visible.decisions = decisions;
        let standing = Standing::Refused(String::new());
        log.requests[at].written = Some(Written::Decided(standing, decisions));
        s.force_log();
    }

    fn propose(&self, s: &mut State, transaction: usize, decision: &Arc<Decision>) -> Standing {
        if let Some(earlier) = &s.log.visible.records[transaction] {
            return if earlier.decision == *decision {
                Standing::Proposed
            } else {
                Standing::Earlier((*earlier.decision).clone())
            };
        }
        if s.log.is_keyed {
            if let Some(holder) = s.log.visible.holder {
                return Standing::KeyHeldBy(s.id_of(holder));
            }
            s.log_mut().visible.holder = Some(transaction);
        }
        s.insert(transaction, decision);
        Standing::Proposed
    }

    /// The answer to a write arrives.
    pub(super) fn log_answers(&self, s: &mut State, at: usize) {
        let LogRequest {
            life,
            transaction,
            written,
            ..
        } = s.log_mut().requests.remove(at);
        match written {
            None => {}
            Some(Written::Appended) => self.step(s, life, transaction, Event::Appended),
            Some(Written::Decided(standing, decisions)) => {
                if let Some(running) = s.running_mut(life) {
                    running.life.decided(decisions);
                }
                self.step(s, life, transaction, Event::Forced(standing));
            }
        }
    }

    /// The log's server crashes: what was not forced is lost, and its writers ask again.
    pub(super) fn log_crashes(&self, s: &mut State) {
        s.faults.log_crashes -= 1;
        let log = s.log_mut();
        log.visible = log.durable.clone();
        log.is_dirty = false;
        for request in &mut log.requests {
            if matches!(request.written, Some(Written::Appended)) {
                request.written = None;
            }
        }
    }
}

impl State {
    fn insert(&mut self, transaction: usize, decision: &Arc<Decision>) {
        self.log_mut().visible.records[transaction] = Some(Record {
            decision: decision.clone(),
            is_finished: decision.is_finished_at_once(),
        });
    }

    /// Whether the answer to a write may leave: unforced ones are told once they are durable.
    pub(super) fn may_answer(&self, request: &LogRequest) -> bool {
        match request.written {
            None => false,
            Some(Written::Decided(..)) => true,
            Some(Written::Appended) => !self.log.is_dirty,
        }
    }

    /// All that is visible becomes durable.
    pub(super) fn force_log(&mut self) {
        for transaction in 0..self.transactions.len() {
            if self.log.durable.records[transaction].is_none()
                && let Some(record) = self.log.visible.records[transaction].clone()
            {
                let keyed = self.log.is_keyed && record.decision.verdict == Verdict::Commit;
                let holds = !keyed || self.log.visible.holder == Some(transaction);
                self.require(holds, Rule::Key, || {
                    format!("{transaction} commits, and another one holds the key")
                });
                self.check_decision(transaction, &record.decision);
            }
        }
        let log = self.log_mut();
        log.durable = log.visible.clone();
        log.is_dirty = false;
    }

    /// A forced increment, which fences all before it.
    pub(super) fn open_epoch(&mut self, number: usize) -> Writer {
        self.log_mut().visible.epochs[number] += 1;
        self.force_log();
        let content = &self.log.visible;
        Writer {
            node: node(number),
            epoch: Epoch::new(content.epochs[number]).unwrap_or(Epoch::MAX),
            identity: IDENTITY,
            decisions_at_least: content.decisions,
        }
    }

    /// What the log says of a node.
    pub(super) fn head(&self, node: Node) -> Head {
        let content = &self.log.visible;
        let epoch = content.epochs[usize::from(node.0) - 1];
        Head {
            identity: IDENTITY,
            former: vec![FORMER],
            epoch: Some(epoch).filter(|epoch| *epoch > 0).and_then(Epoch::new),
            decisions: content.decisions,
        }
    }

    pub(super) fn is_unfinished(&self, transaction: usize) -> bool {
        let record = self.log.visible.records[transaction].as_ref();
        record
            .is_some_and(|record| record.decision.verdict == Verdict::Commit && !record.is_finished)
    }
}

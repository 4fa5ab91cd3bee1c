//! One life of a coordinator: which ids it issues, whether it may still decide, and what it may say of an id that its
//! memory does not hold.
//!
//! Under presumed abort the absence of a record is an answer, so the whole danger is in who gives it, and when (design
//! rule 3). [`Life::judge`] is that rule; it is asked only after memory, with a [`Snapshot`] that was read at once.
//!
//! | the id | without a record |
//! |---|---|
//! | of an epoch that has been fenced | aborted, for ever: every decision write is conditional on the newest epoch |
//! | of this life, issued | aborted: memory would hold it, were it undecided or its record not durable yet |
//! | of this life, not issued | nothing is known of it; a participant is told "pending" |
//! | of another node's live epoch | its owner knows; "pending" |
//! | of an epoch that this life opened to adopt its node | this life issued none, so nobody did; "pending" |
//! | of an epoch the log has not seen, of a node without one | the log went back, or somebody made it up; "pending" |
//! | of a former identity of this log | the lost part of the log may have committed it; "pending" |
//! | of another log | nothing to do with us: 404 |
//!
//! Where that says aborted, and the id is at or below the `forgotten_through` mark of its prefix, it may have committed
//! and been forgotten: clients are told so, and participants "aborted", for every branch had acknowledged.
//!
//! A life may *adopt* nodes that nobody runs any more: it opens an epoch of each, which fences their former owners, and
//! finishes what they left unfinished. It issues no ids there and decides nothing there; what was undecided is aborted
//! by the first row of the table, and that is all that adopting decides. Fenced at an adopted node (its owner is back, or
//! somebody else has adopted it) a life goes on with its own. See [`Life::adopt`].
//!
//! A life ends in one of two ways (rule 11). [`Standing::Fenced`]: somebody else may decide now; the process ends and
//! says nothing more. [`Standing::WentBack`]: the log has lost what it had promised to keep; the process stays, for a
//! restart would open the same epoch again, decides nothing, and waits for an operator's `log new-identity`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    hash::{Hash, Hasher},
    mem,
};

use crate::{
    coordinator::Alarm,
    id::{Epoch, LogIdentity, Node, ParticipantName, Prefix, Sequence, TransactionId},
    low_water::LowWater,
    message::Inform,
    record::AbortCode,
};

/// In whose name a write is made, and what the writer knows of the log. The write happens only if all of it still holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Writer {
    /// The writer's node.
    pub node: Node,
    /// The life it writes in.
    pub epoch: Epoch,
    /// The log it believes to write to.
    pub identity: LogIdentity,
    /// The highest decision counter that opening the epoch, or a *clear* decision write, has returned to this life. A log that has a lower one has lost a decision that was told.
    pub decisions_at_least: u64,
}

impl Writer {
    /// Whether `id` is of this writer's own life, and so its to decide.
    #[must_use]
    pub fn owns(&self, id: TransactionId) -> bool {
        id.node() == self.node && id.epoch() == self.epoch && id.identity() == self.identity
    }
}

impl fmt::Display for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "epoch {} of node {} under identity {}",
            self.epoch, self.node, self.identity
        )
    }
}

/// What the log says of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The log's identity.
    pub identity: LogIdentity,
    /// Identities that this log had before, oldest first.
    pub former: Vec<LogIdentity>,
    /// The node's newest epoch; `None` when it has no row.
    pub epoch: Option<Epoch>,
    /// The decision counter of the node's row; 0 without one.
    pub decisions: u64,
}

impl Head {
    /// Whether `writer` may still write, by design rule 11. Backends ask it why their conditional write took nothing,
    /// and coordinators every second, so that both always agree.
    ///
    /// # Errors
    /// When it may not.
    pub fn check(&self, writer: &Writer) -> Result<(), Shut> {
        let Writer {
            node,
            epoch,
            identity,
            decisions_at_least,
        } = *writer;
        // Somebody newer rules: this comes first, for it is the one case in which ending the process helps.
        if let Some(newest) = self.epoch.filter(|newest| *newest > epoch) {
            return Err(Fence::Epoch {
                node,
                epoch,
                newest,
            }
            .into());
        }
        if self.former.contains(&identity) {
            return Err(Fence::Identity {
                identity,
                newest: self.identity,
            }
            .into());
        }
        if self.identity != identity {
            return Err(Regression::Identity {
                identity,
                found: self.identity,
            }
            .into());
        }
        match self.epoch {
            None => Err(Regression::NoEpoch { node, epoch }.into()),
            Some(found) if found < epoch => Err(Regression::Epoch { node, epoch, found }.into()),
            Some(_) if self.decisions < decisions_at_least => Err(Regression::Decisions {
                node,
                decisions_at_least,
                found: self.decisions,
            }
            .into()),
            Some(_) => Ok(()),
        }
    }
}

/// Why a writer may not write any more (rule 11).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Shut {
    /// The process ends.
    #[error("fenced")]
    Fenced(#[from] Fence),
    /// The process stays, and decides nothing more.
    #[error("the decision log went back")]
    WentBack(#[from] Regression),
}

/// How somebody newer rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fence {
    /// Another life of the node has begun.
    #[error("node {node} has begun epoch {newest}, and this process is its epoch {epoch}")]
    Epoch {
        /// The writer's node.
        node: Node,
        /// The writer's epoch.
        epoch: Epoch,
        /// The log's.
        newest: Epoch,
    },
    /// An operator gave the log a new identity.
    #[error("the log has the identity {newest} now, and this process began under {identity}")]
    Identity {
        /// The writer's identity, a former one of this log.
        identity: LogIdentity,
        /// The log's.
        newest: LogIdentity,
    },
}

/// How a log shows that it went back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Regression {
    /// The identity is one that does not follow the writer's.
    #[error("its identity is {found}, which does not know {identity}")]
    Identity {
        /// The writer's identity.
        identity: LogIdentity,
        /// The log's.
        found: LogIdentity,
    },
    /// The node has no epoch at all.
    #[error("it does not know node {node}, which had begun epoch {epoch} in it")]
    NoEpoch {
        /// The writer's node.
        node: Node,
        /// The writer's epoch.
        epoch: Epoch,
    },
    /// The node's epoch is lower than the writer's.
    #[error("it has epoch {found} of node {node}, which had begun epoch {epoch} in it")]
    Epoch {
        /// The writer's node.
        node: Node,
        /// The writer's epoch.
        epoch: Epoch,
        /// The log's.
        found: Epoch,
    },
    /// Decisions are missing.
    #[error(
        "it counts {found} decision writes of node {node}, of which {decisions_at_least} were durable"
    )]
    Decisions {
        /// The writer's node.
        node: Node,
        /// What the writer has seen.
        decisions_at_least: u64,
        /// The log's.
        found: u64,
    },
}

/// What a life knew when it began to read the log's head: see [`Life::observe`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    writer: Writer,
    accused: bool,
}

/// A question about an id that memory does not hold: see [`Life::ask`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    id: TransactionId,
    issued: bool,
    /// The epoch of the id's node that this life held.
    held: Option<Epoch>,
}

/// What a log says of an id, read in one snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Whether it holds a record of the id.
    pub recorded: bool,
    /// The newest epoch of the id's node.
    pub epoch: Option<Epoch>,
    /// The log's identity.
    pub identity: LogIdentity,
    /// The identities it had before.
    pub former: Vec<LogIdentity>,
    /// Every id of this id's prefix up to here, without a record, was forgotten (rule 14).
    pub forgotten_through: Option<TransactionId>,
}

/// Whether a life may still decide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It may.
    Serving,
    /// A newer life of this node, or a new identity, has taken over: the process ends and says nothing.
    Fenced(String),
    /// The log went back: nothing is decided until an operator gives the log a new identity.
    WentBack(String),
}

/// What may be said of an id that memory does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// The record answers, at any age.
    Recorded,
    /// Aborted for certain.
    Aborted(AbortCode),
    /// It had a record, and the retention is over. A commit is forgotten only after every branch acknowledged it.
    Forgotten,
    /// An id of this very life that it has not issued.
    NeverIssued,
    /// It lives at another coordinator of this log.
    OtherNode(Node),
    /// Another log's.
    Foreign,
    /// It may have committed; nobody here can know.
    Unknown(Unknown),
    /// The log went back, and what it does not hold it may have lost.
    LogWentBack,
    /// This life is fenced, or about to find out: it may not say anything.
    Silent,
}

/// Why the outcome of an id is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// Its epoch is newer than the log's: perhaps the log went back (rule 11).
    NewerEpoch,
    /// The log knows of no epoch of its node.
    NodeWithoutEpoch,
    /// It belongs to an identity that the log had before it was restored.
    FormerIdentity,
}

impl Judgement {
    /// What a participant that inquires is told; a [`Judgement::Recorded`] is answered from the record instead. `None`
    /// where it is told nothing: 404 for another log's id, 503 from a fenced life.
    #[must_use]
    pub fn inform(self) -> Option<Inform> {
        match self {
            Self::Aborted(_) | Self::Forgotten => Some(Inform::Aborted),
            Self::Recorded
            | Self::NeverIssued
            | Self::OtherNode(_)
            | Self::Unknown(_)
            | Self::LogWentBack => Some(Inform::Pending),
            Self::Foreign | Self::Silent => None,
        }
    }
}

/// One life of a coordinator's node.
#[derive(Clone, Debug)]
pub struct Life {
    writer: Writer,
    first: Sequence,
    /// `None` when the epoch's numbers are used up.
    next: Option<Sequence>,
    standing: Standing,
    /// Nodes that nobody else runs, with the epoch that was opened of each. Never the own node.
    adopted: BTreeMap<Node, Writer>,
    refused_below_low_water: BTreeSet<ParticipantName>,
    /// Enough of them: see [`Self::observe`].
    accused: bool,
    low_water: LowWater,
}

impl Life {
    /// A life that begins with an epoch just opened; `random` gives its first sequence number.
    #[must_use]
    pub fn begin(writer: Writer, random: u64) -> Self {
        let first = Sequence::start(random);
        Self {
            writer,
            first,
            next: Some(first),
            standing: Standing::Serving,
            adopted: BTreeMap::new(),
            refused_below_low_water: BTreeSet::new(),
            accused: false,
            low_water: LowWater::default(),
        }
    }

    /// Feeds a hasher with what decides how this life goes on. The decision counter is left out: it tells only a log that
    /// went back, and rises with every repeat of a write.
    pub fn hash_whole(&self, hasher: &mut impl Hasher) {
        (self.writer.identity, self.writer.node, self.writer.epoch).hash(hasher);
        (self.first, self.next, self.accused, &self.low_water).hash(hasher);
        mem::discriminant(&self.standing).hash(hasher);
        let adopted = self.adopted.values();
        adopted.for_each(|writer| (writer.node, writer.epoch).hash(hasher));
        self.refused_below_low_water.hash(hasher);
    }

    /// Log identity and node of the ids it issues.
    #[must_use]
    pub fn prefix(&self) -> Prefix {
        Prefix {
            identity: self.writer.identity,
            node: self.writer.node,
        }
    }

    /// In whose name it writes, with the decision counter that the last clear decision write returned.
    #[must_use]
    pub fn writer(&self) -> Writer {
        self.writer
    }

    /// Whether it may still decide.
    #[must_use]
    pub fn standing(&self) -> &Standing {
        &self.standing
    }

    /// The next id. `None` where it may not begin anything: it has ended, or used up its epoch's 2^43 numbers.
    pub fn issue(&mut self) -> Option<TransactionId> {
        if self.standing != Standing::Serving {
            return None;
        }
        let id = self.next_id()?;
        self.next = id.sequence().next();
        self.low_water.issued(id);
        Some(id)
    }

    fn next_id(&self) -> Option<TransactionId> {
        let sequence = self.next?;
        Some(TransactionId::new(
            self.prefix(),
            self.writer.epoch,
            sequence,
        ))
    }

    /// What the log held unfinished when it was read, after this life's epoch was opened; of whichever prefix.
    pub fn recovered(&mut self, unfinished: impl IntoIterator<Item = TransactionId>) {
        let prefix = self.prefix();
        let mine = unfinished.into_iter().filter(|id| id.prefix() == prefix);
        self.low_water.recovered(mine);
    }

    /// The transaction needs its branches no more: see [`crate::coordinator::Transaction::holds_low_water`].
    pub fn finished(&mut self, id: TransactionId) {
        self.low_water.finished(id);
    }

    /// The mark that calls about ids of [`Self::prefix`] carry (design rule 15); `None` while nothing may be promised. A
    /// log that went back may have lost finishes that were durable once, so a life that found out promises nothing more.
    #[must_use]
    pub fn low_water(&self) -> Option<TransactionId> {
        if self.standing != Standing::Serving {
            return None;
        }
        self.low_water.mark(self.next_id())
    }

    /// A question about `id`, to be taken in the moment in which memory was found not to hold it. Whether this life had
    /// issued the id counts as of then: while the log is read, the very id may be issued, and even be decided.
    #[must_use]
    pub fn ask(&self, id: TransactionId) -> Question {
        Question {
            id,
            issued: self.has_issued(id),
            held: self.held(id.node()),
        }
    }

    /// The epoch of `node` that this life opened.
    fn held(&self, node: Node) -> Option<Epoch> {
        if node == self.writer.node {
            return Some(self.writer.epoch);
        }
        self.adopted.get(&node).map(|writer| writer.epoch)
    }

    /// Whether this life may adopt `node` now: it may decide, runs another node, and has not adopted that one.
    #[must_use]
    pub fn may_adopt(&self, node: Node) -> bool {
        self.standing == Standing::Serving && self.held(node).is_none()
    }

    /// An epoch of another node was opened for this life. `false` where it is not taken: this life has ended since, or
    /// the log has another identity by now, which [`Self::observe`] will find.
    pub fn adopt(&mut self, writer: Writer) -> bool {
        let taken = self.may_adopt(writer.node) && writer.identity == self.writer.identity;
        if taken {
            self.adopted.insert(writer.node, writer);
        }
        taken
    }

    /// The epochs of adopted nodes. Nothing is decided in their names: they only tell whether a node is still held.
    pub fn adopted(&self) -> impl Iterator<Item = Writer> {
        self.adopted.values().copied()
    }

    /// In whose names this life marks that a node is run. None where it can not work: then nobody runs them.
    #[must_use]
    pub fn runs(&self) -> Vec<Writer> {
        if self.standing == Standing::Serving {
            std::iter::once(self.writer).chain(self.adopted()).collect()
        } else {
            Vec::new()
        }
    }

    /// Holds what the log says of an adopted node against what was known before that was read. Somebody newer there ends
    /// the adoption and nothing else; a log that went back there went back as a whole. Says how it was fenced.
    pub fn observe_adopted(&mut self, known: &Writer, head: &Head) -> Option<Fence> {
        match head.check(known) {
            Ok(()) => None,
            Err(Shut::Fenced(fence @ Fence::Epoch { .. })) => {
                // Not if it was adopted anew since.
                let lost = self
                    .adopted
                    .get(&known.node)
                    .is_some_and(|held| held.epoch == known.epoch);
                lost.then(|| {
                    self.adopted.remove(&known.node);
                    fence
                })
            }
            // Of the own node, too.
            Err(Shut::Fenced(fence @ Fence::Identity { .. })) => {
                self.end(Standing::Fenced(fence.to_string()));
                None
            }
            Err(Shut::WentBack(regression)) => {
                self.end(Standing::WentBack(regression.to_string()));
                None
            }
        }
    }

    /// Whether a life that was fenced at an adopted node, and only there, has no more to do with `id`.
    ///
    /// What it drove there is driven by the node's owner, from the same records. Two who drive it would not agree on what
    /// is finished: the owner's low-water mark passes an id, its branches forget it, and the other one is told `vote-lost`
    /// (rule 15).
    #[must_use]
    pub fn leaves(fenced: Node, id: TransactionId) -> bool {
        id.node() == fenced
    }

    fn has_issued(&self, id: TransactionId) -> bool {
        self.writer.owns(id)
            && id.sequence() >= self.first
            && self.next.is_none_or(|next| id.sequence() < next)
    }

    /// A decision write returned clearly: the log's counter may not fall below this any more. It is a forced write, so
    /// all that was read before it began is durable.
    pub fn decided(&mut self, decisions: u64) {
        self.low_water.forced();
        self.writer.decisions_at_least = self.writer.decisions_at_least.max(decisions);
    }

    /// What this life knows now, to be taken before the log's head is read.
    #[must_use]
    pub fn known(&self) -> Known {
        Known {
            writer: self.writer,
            accused: self.is_accused(),
        }
    }

    /// Whether participants say that the log went back. The log's head is to be read, to see whether it is so.
    #[must_use]
    pub fn is_accused(&self) -> bool {
        self.accused
    }

    /// Holds what the log says of itself against what this life knew *before that was read*: a write that returned
    /// during the read may have raised the counter.
    ///
    /// A life that is accused of a log that went back, and finds that it has not been fenced since, believes it. A fenced
    /// one that does not know it yet sees the same refusals, for its successor's low-water mark is above all its ids; that
    /// log is well.
    pub fn observe(&mut self, known: &Known, head: &Head) {
        match head.check(&known.writer) {
            Ok(()) if known.accused => self.end(Standing::WentBack(
                "participants have low-water marks above ids that this life issues".to_owned(),
            )),
            Ok(()) => {}
            Err(Shut::Fenced(fence)) => self.end(Standing::Fenced(fence.to_string())),
            Err(Shut::WentBack(regression)) => self.end(Standing::WentBack(regression.to_string())),
        }
    }

    /// Takes note of a machine's alarm; `registered` participants there are.
    pub fn alarmed(&mut self, alarm: &Alarm, registered: usize) {
        match alarm {
            Alarm::BelowLowWater(participant) => {
                self.refused_below_low_water(participant.clone(), registered);
            }
            Alarm::VoteLost(_)
            | Alarm::OutcomeDiffers(_)
            | Alarm::VoteChanged(_)
            | Alarm::DecisionContradicted => {}
        }
    }

    /// Whether an inquiry that was judged so is worth asking the participant itself about: an id of an epoch that the log
    /// has not seen, or of this life's that this life has not issued. An inquiry alone says nothing, for anybody can make
    /// up an id.
    #[must_use]
    pub fn is_suspicious(judgement: Judgement) -> bool {
        matches!(
            judgement,
            Judgement::Unknown(Unknown::NewerEpoch) | Judgement::NeverIssued
        )
    }

    /// A registered participant says that it holds a prepared branch of a suspicious id: the log opened that epoch once,
    /// and has lost it. Not if the id has been issued since it was asked about.
    pub fn prepared_without_a_trace(&mut self, id: TransactionId, participant: &ParticipantName) {
        if self.has_issued(id) {
            return;
        }
        self.end(Standing::WentBack(format!(
            "participant {participant} holds a prepared branch of transaction {id}, of which the log knows nothing"
        )));
    }

    /// A participant refused a live prepare as below its low-water mark, which came from this log once. Two different
    /// ones (or the only one) saying so mean that the log went back; a single one may be wrong itself.
    fn refused_below_low_water(&mut self, participant: ParticipantName, registered: usize) {
        self.refused_below_low_water.insert(participant);
        self.accused |= self.refused_below_low_water.len() >= registered.clamp(1, 2);
    }

    fn end(&mut self, standing: Standing) {
        // Fenced wins: an operator has acted, or somebody else serves. From there nothing leads back.
        if !matches!(self.standing, Standing::Fenced(_)) {
            self.standing = standing;
        }
    }

    /// What may be said of the id asked about, which was not in memory then; the snapshot was read after that.
    #[must_use]
    pub fn judge(&self, question: Question, snapshot: &Snapshot) -> Judgement {
        let id = question.id;
        if matches!(self.standing, Standing::Fenced(_)) {
            return Judgement::Silent;
        }
        let of_this_log =
            id.identity() == snapshot.identity || snapshot.former.contains(&id.identity());
        if snapshot.recorded {
            return Judgement::Recorded;
        }
        if !of_this_log {
            return if id.identity() == self.writer.identity {
                // The log does not know the identity this life began with.
                Judgement::LogWentBack
            } else {
                Judgement::Foreign
            };
        }
        if matches!(self.standing, Standing::WentBack(_)) {
            return Judgement::LogWentBack;
        }
        if snapshot.identity != self.writer.identity {
            // Given a new identity, or gone back to an older one: `observe` will say which.
            return Judgement::Silent;
        }
        let forgotten = snapshot
            .forgotten_through
            .is_some_and(|mark| id <= mark && id.prefix() == mark.prefix());
        if id.identity() != snapshot.identity {
            // Also below the mark, which may be of the lost part: what was undecided when the backup was made may have
            // committed after it (rule 11 outweighs rule 14).
            return Judgement::Unknown(Unknown::FormerIdentity);
        }
        let judgement = self.judge_by_epoch(&question, snapshot.epoch);
        // The mark says that records up to it may have been there and are gone. That means something only where the
        // absence of a record says that the transaction has ended: the mark rises with later ids, and an earlier one
        // may still be undecided at the coordinator that owns it. No retention, and no clock that jumps, changes that.
        if forgotten && matches!(judgement, Judgement::Aborted(_)) {
            Judgement::Forgotten
        } else {
            judgement
        }
    }

    fn judge_by_epoch(&self, question: &Question, newest: Option<Epoch>) -> Judgement {
        let Question { id, issued, held } = *question;
        let Some(newest) = newest else {
            return if held.is_some() {
                Judgement::LogWentBack
            } else {
                Judgement::Unknown(Unknown::NodeWithoutEpoch)
            };
        };
        if held.is_some_and(|held| newest < held) {
            return Judgement::LogWentBack;
        }
        // At an adopted node a newer epoch is somebody else's, and fences all older ones as any other does.
        if id.node() == self.writer.node && newest > self.writer.epoch {
            return Judgement::Silent;
        }
        if id.epoch() < newest {
            Judgement::Aborted(AbortCode::CoordinatorRestarted)
        } else if id.epoch() > newest {
            Judgement::Unknown(Unknown::NewerEpoch)
        } else if held != Some(newest) {
            Judgement::OtherNode(id.node())
        } else if issued {
            Judgement::Aborted(AbortCode::Unrecorded)
        } else {
            Judgement::NeverIssued
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: LogIdentity = LogIdentity(7);
    const BEFORE: LogIdentity = LogIdentity(6);
    const ELSEWHERE: LogIdentity = LogIdentity(5);

    fn epoch(number: u32) -> Epoch {
        Epoch::new(number).unwrap()
    }

    fn prefix(identity: LogIdentity, node: u16) -> Prefix {
        Prefix {
            identity,
            node: Node(node),
        }
    }

    /// Node 1, epoch 3, sequences from 100 on.
    fn life() -> Life {
        let writer = Writer {
            node: Node(1),
            epoch: epoch(3),
            identity: HERE,
            decisions_at_least: 10,
        };
        Life::begin(writer, 100 << 21)
    }

    fn id(identity: LogIdentity, node: u16, of_epoch: u32, sequence: u64) -> TransactionId {
        TransactionId::new(
            prefix(identity, node),
            epoch(of_epoch),
            Sequence::new(sequence).unwrap(),
        )
    }

    fn judge(life: &Life, id: TransactionId, snapshot: &Snapshot) -> Judgement {
        life.judge(life.ask(id), snapshot)
    }

    fn absent(newest: Option<u32>) -> Snapshot {
        Snapshot {
            recorded: false,
            epoch: newest.map(epoch),
            identity: HERE,
            former: vec![BEFORE],
            forgotten_through: None,
        }
    }

    fn head(newest: Option<u32>, decisions: u64) -> Head {
        Head {
            identity: HERE,
            former: vec![BEFORE],
            epoch: newest.map(epoch),
            decisions,
        }
    }

    #[test]
    fn only_who_can_know_says_aborted_of_an_id_without_a_record() {
        let mut life = life();
        let issued = life.issue().unwrap();
        assert_eq!(issued, id(HERE, 1, 3, 100));
        let cases = [
            (
                issued,
                Some(3),
                Judgement::Aborted(AbortCode::Unrecorded),
                Some(Inform::Aborted),
            ),
            (
                id(HERE, 1, 3, 101),
                Some(3),
                Judgement::NeverIssued,
                Some(Inform::Pending),
            ),
            (
                id(HERE, 1, 3, 99),
                Some(3),
                Judgement::NeverIssued,
                Some(Inform::Pending),
            ),
            (
                id(HERE, 1, 2, 101),
                Some(3),
                Judgement::Aborted(AbortCode::CoordinatorRestarted),
                Some(Inform::Aborted),
            ),
            (
                id(HERE, 1, 4, 1),
                Some(3),
                Judgement::Unknown(Unknown::NewerEpoch),
                Some(Inform::Pending),
            ),
            (id(HERE, 1, 3, 100), Some(4), Judgement::Silent, None),
            (
                id(HERE, 1, 2, 100),
                Some(2),
                Judgement::LogWentBack,
                Some(Inform::Pending),
            ),
            (
                id(HERE, 1, 2, 100),
                None,
                Judgement::LogWentBack,
                Some(Inform::Pending),
            ),
            (
                id(HERE, 2, 3, 100),
                Some(3),
                Judgement::OtherNode(Node(2)),
                Some(Inform::Pending),
            ),
            (
                id(HERE, 2, 3, 100),
                Some(4),
                Judgement::Aborted(AbortCode::CoordinatorRestarted),
                Some(Inform::Aborted),
            ),
            (
                id(HERE, 2, 3, 100),
                None,
                Judgement::Unknown(Unknown::NodeWithoutEpoch),
                Some(Inform::Pending),
            ),
            (
                id(BEFORE, 1, 1, 1),
                Some(3),
                Judgement::Unknown(Unknown::FormerIdentity),
                Some(Inform::Pending),
            ),
            (id(ELSEWHERE, 1, 1, 1), Some(3), Judgement::Foreign, None),
        ];
        for (id, newest, judgement, inform) in cases {
            assert_eq!(
                judge(&life, id, &absent(newest)),
                judgement,
                "{id} {newest:?}"
            );
            assert_eq!(judgement.inform(), inform, "{judgement:?}");
        }
    }

    #[test]
    fn an_id_issued_while_the_log_was_read_is_not_called_aborted() {
        let mut life = life();
        let next = id(HERE, 1, 3, 100);
        let question = life.ask(next);
        assert_eq!(life.issue(), Some(next));
        assert_eq!(
            life.judge(question, &absent(Some(3))),
            Judgement::NeverIssued
        );
    }

    #[test]
    fn a_record_answers_whatever_its_id() {
        let life = life();
        for id in [
            id(HERE, 1, 2, 1),
            id(HERE, 1, 9, 1),
            id(BEFORE, 1, 1, 1),
            id(HERE, 8, 1, 1),
        ] {
            let snapshot = Snapshot {
                recorded: true,
                ..absent(Some(3))
            };
            assert_eq!(judge(&life, id, &snapshot), Judgement::Recorded);
        }
    }

    #[test]
    fn an_id_up_to_the_forgotten_mark_of_its_prefix_is_forgotten() {
        let life = life();
        let mark = id(HERE, 1, 2, 50);
        let snapshot = Snapshot {
            forgotten_through: Some(mark),
            ..absent(Some(3))
        };
        assert_eq!(judge(&life, mark, &snapshot), Judgement::Forgotten);
        assert_eq!(Judgement::Forgotten.inform(), Some(Inform::Aborted));
        let later = judge(&life, id(HERE, 1, 2, 51), &snapshot);
        assert_eq!(later, Judgement::Aborted(AbortCode::CoordinatorRestarted));
    }

    #[test]
    fn an_id_below_the_forgotten_mark_that_may_be_undecided_is_not_forgotten() {
        let mut life = life();
        let issued = life.issue().unwrap();
        let snapshot = |node, of_epoch| Snapshot {
            forgotten_through: Some(id(HERE, node, of_epoch, 200)),
            ..absent(Some(3))
        };
        // Node 2 lives, and has forgotten a later transaction of its own than this one.
        let of_another = judge(&life, id(HERE, 2, 3, 100), &snapshot(2, 3));
        assert_eq!(of_another, Judgement::OtherNode(Node(2)));
        assert_eq!(of_another.inform(), Some(Inform::Pending));
        let made_up = judge(&life, id(HERE, 1, 3, 150), &snapshot(1, 3));
        assert_eq!(made_up, Judgement::NeverIssued);
        // Ours, and not in memory any more: it has ended.
        assert_eq!(judge(&life, issued, &snapshot(1, 3)), Judgement::Forgotten);
        assert_eq!(
            judge(&life, id(HERE, 2, 2, 100), &snapshot(2, 3)),
            Judgement::Forgotten
        );
    }

    #[test]
    fn a_higher_epoch_or_a_new_identity_fences() {
        let newer = head(Some(4), 10);
        let renamed = Head {
            identity: LogIdentity(8),
            former: vec![HERE],
            ..head(Some(3), 10)
        };
        for head in [newer, renamed] {
            let mut life = life();
            life.observe(&life.known(), &head);
            assert!(matches!(life.standing(), Standing::Fenced(_)), "{head:?}");
            assert_eq!(life.issue(), None);
            let recorded = Snapshot {
                recorded: true,
                ..absent(Some(4))
            };
            assert_eq!(
                judge(&life, id(HERE, 1, 2, 1), &recorded),
                Judgement::Silent
            );
        }
    }

    #[test]
    fn a_log_that_lost_what_this_life_saw_went_back() {
        let stranger = Head {
            identity: ELSEWHERE,
            former: vec![],
            ..head(Some(3), 10)
        };
        for head in [
            head(Some(2), 10),
            head(None, 10),
            head(Some(3), 9),
            stranger,
        ] {
            let mut life = life();
            life.observe(&life.known(), &head);
            assert!(matches!(life.standing(), Standing::WentBack(_)), "{head:?}");
            assert_eq!(life.issue(), None, "nothing new begins");
            let fenced = id(HERE, 1, 2, 1);
            assert_eq!(
                judge(&life, fenced, &absent(Some(3))),
                Judgement::LogWentBack
            );
            let recorded = Snapshot {
                recorded: true,
                ..absent(Some(3))
            };
            assert_eq!(judge(&life, fenced, &recorded), Judgement::Recorded);
        }
        let mut life = life();
        life.observe(&life.known(), &head(Some(3), 11));
        assert_eq!(*life.standing(), Standing::Serving);
        life.decided(12);
        life.observe(&life.known(), &head(Some(3), 11));
        assert!(
            matches!(life.standing(), Standing::WentBack(_)),
            "a clear write returned 12"
        );
    }

    #[test]
    fn two_participants_below_low_water_mean_that_the_log_went_back_and_one_does_not() {
        let east: ParticipantName = "east".parse().unwrap();
        let west: ParticipantName = "west".parse().unwrap();
        let look = |life: &mut Life| life.observe(&life.known(), &head(Some(3), 10));
        let mut life = life();
        life.refused_below_low_water(east.clone(), 2);
        life.refused_below_low_water(east.clone(), 2);
        look(&mut life);
        assert_eq!(*life.standing(), Standing::Serving);
        life.refused_below_low_water(west, 2);
        look(&mut life);
        assert!(matches!(life.standing(), Standing::WentBack(_)));
        let mut life = self::life();
        life.refused_below_low_water(east, 1);
        look(&mut life);
        assert!(
            matches!(life.standing(), Standing::WentBack(_)),
            "it is the only one there is"
        );
    }

    #[test]
    fn a_fenced_life_that_is_refused_below_its_successors_mark_is_fenced_and_its_log_is_well() {
        let mut life = life();
        let before = life.known();
        life.refused_below_low_water("east".parse().unwrap(), 1);
        assert!(life.is_accused());
        // A look that began before the refusal says nothing of it.
        life.observe(&before, &head(Some(3), 10));
        assert_eq!(*life.standing(), Standing::Serving);
        life.observe(&life.known(), &head(Some(4), 10));
        assert!(matches!(life.standing(), Standing::Fenced(_)));
    }

    /// Of node 2.
    fn adopted_at(of_epoch: u32) -> Writer {
        Writer {
            node: Node(2),
            epoch: epoch(of_epoch),
            identity: HERE,
            decisions_at_least: 4,
        }
    }

    #[test]
    fn of_an_adopted_node_what_was_undecided_is_aborted_and_only_from_then_on() {
        let mut life = life();
        let left = id(HERE, 2, 5, 100);
        let before = judge(&life, left, &absent(Some(5)));
        assert_eq!(before, Judgement::OtherNode(Node(2)));
        assert_eq!(before.inform(), Some(Inform::Pending));
        assert!(life.adopt(adopted_at(6)));
        let after = judge(&life, left, &absent(Some(6)));
        assert_eq!(after, Judgement::Aborted(AbortCode::CoordinatorRestarted));
        assert_eq!(life.issue().unwrap().node(), Node(1), "its own ids only");
    }

    #[test]
    fn nobody_issues_ids_in_the_epoch_of_an_adoption() {
        let mut life = life();
        assert!(life.adopt(adopted_at(6)));
        let made_up = judge(&life, id(HERE, 2, 6, 100), &absent(Some(6)));
        assert_eq!(made_up, Judgement::NeverIssued);
        assert_eq!(made_up.inform(), Some(Inform::Pending));
        assert!(Life::is_suspicious(made_up));
    }

    #[test]
    fn a_question_asked_before_an_adoption_is_judged_by_what_was_read_before_it() {
        let mut life = life();
        let question = life.ask(id(HERE, 2, 5, 100));
        assert!(life.adopt(adopted_at(6)));
        // The log was read while node 2 still had its owner.
        let judgement = life.judge(question, &absent(Some(5)));
        assert_eq!(judgement, Judgement::OtherNode(Node(2)));
        // Read after it, the same says that the log has lost the adoption.
        let judgement = judge(&life, id(HERE, 2, 5, 100), &absent(Some(5)));
        assert_eq!(judgement, Judgement::LogWentBack);
        let judgement = judge(&life, id(HERE, 2, 5, 100), &absent(None));
        assert_eq!(judgement, Judgement::LogWentBack);
    }

    #[test]
    fn fenced_at_an_adopted_node_a_life_goes_on_with_its_own() {
        let mut life = life();
        assert!(life.adopt(adopted_at(6)));
        assert_eq!(life.runs().len(), 2);
        let fence = life.observe_adopted(&adopted_at(6), &head(Some(7), 4));
        assert!(matches!(fence, Some(Fence::Epoch { .. })), "{fence:?}");
        assert_eq!(*life.standing(), Standing::Serving);
        assert_eq!(life.runs(), [life.writer()]);
        assert!(life.issue().is_some());
        // What the new owner has is his to say; what was fenced before is aborted for ever.
        let of_the_owner = judge(&life, id(HERE, 2, 7, 100), &absent(Some(7)));
        assert_eq!(of_the_owner, Judgement::OtherNode(Node(2)));
        let left = judge(&life, id(HERE, 2, 5, 100), &absent(Some(7)));
        assert_eq!(left, Judgement::Aborted(AbortCode::CoordinatorRestarted));
        // Adopted again, a late look at the first adoption ends nothing.
        assert!(life.adopt(adopted_at(8)));
        let late = life.observe_adopted(&adopted_at(6), &head(Some(7), 4));
        assert_eq!(late, None);
        assert_eq!(life.runs().len(), 2);
    }

    #[test]
    fn a_log_that_went_back_at_an_adopted_node_went_back_as_a_whole() {
        for head in [head(Some(5), 4), head(None, 0), head(Some(6), 3)] {
            let mut life = life();
            assert!(life.adopt(adopted_at(6)));
            assert_eq!(life.observe_adopted(&adopted_at(6), &head), None);
            assert!(matches!(life.standing(), Standing::WentBack(_)), "{head:?}");
            assert_eq!(life.runs(), [], "nobody who can work runs it");
            assert!(!life.may_adopt(Node(3)));
        }
    }

    #[test]
    fn a_life_adopts_no_node_of_its_own_nor_one_of_another_identity() {
        let mut life = life();
        assert!(!life.may_adopt(Node(1)));
        let renamed = Writer {
            identity: LogIdentity(8),
            ..adopted_at(6)
        };
        assert!(!life.adopt(renamed));
        assert!(life.adopt(adopted_at(6)));
        assert!(!life.may_adopt(Node(2)), "once is enough");
        let renamed = Head {
            identity: LogIdentity(8),
            former: vec![HERE],
            ..head(Some(7), 4)
        };
        // A new identity raises every epoch: which of the two is found first does not matter.
        life.observe(&life.known(), &renamed);
        assert!(matches!(life.standing(), Standing::Fenced(_)));
        assert!(!life.may_adopt(Node(3)));
    }

    #[test]
    fn nothing_leads_back_from_fenced() {
        let mut life = life();
        life.observe(&life.known(), &head(Some(4), 10));
        life.observe(&life.known(), &head(Some(2), 10));
        life.observe(&life.known(), &head(Some(3), 10));
        assert!(matches!(life.standing(), Standing::Fenced(_)));
    }
}

//! The decision log: what a coordinator may not forget, and what stops it when it may not decide any more.
//!
//! [`DecisionLog`] is the durability contract; the backends keep it, and the suite in `contract.rs` asks every one of
//! them the same questions. All SQL on decisions is in the backends. What is *not* here: when to write (the log writer
//! groups what waits), what to tell whom (the protocol's machines), and how long a record is kept.

use std::time::Duration;

use async_trait::async_trait;
use unanimous_protocol::{
    id::{Epoch, LogIdentity, Node, ParticipantName, TransactionId},
    life::{Fence, Head, Regression, Shut, Snapshot, Writer},
    record::{Decision, IdempotencyKey, Record, Standing, WallMillis},
};

mod answers;
mod batch;
#[cfg(test)]
mod contract;
mod history;
#[cfg(test)]
pub mod memory;
pub mod postgres;
pub mod sqlite;
mod trust;

pub use batch::{Appends, Batch};
pub use history::{Filter, Position};

/// A durable log of decisions, shared by all nodes that have a row in it.
///
/// # What is promised
///
/// **One commit point** (design rule 1). A decision exists from the moment its record is durable, and by nothing else.
/// A record is inserted once, conditionally, and never replaced: *the first writer wins*, over the transaction's id and
/// over its idempotency key (rule 21). Writing presumed abort's decision record before telling anybody is what Mohan,
/// Lindsay and Obermarck (1986) rest on; everything here serves that one write.
///
/// **`Ok` means durable** (rule 2). When [`Self::decide`], [`Self::append`], [`Self::open_epoch`] or
/// [`Self::new_identity`] return `Ok`, the write survives the process and the machine, as far as the backend can promise
/// it. A *read* promises less: what it returns may be visible and not yet durable, if an unclear write of it is not
/// repeated. That is why an unclear write is repeated and never read back (rule 10).
///
/// **Unclear is not failed** (rule 10). After [`WriteError::Unavailable`] the write may or may not have happened, and
/// may still happen. The caller repeats the *same* write until it is clear. The repeat takes what the first one took
/// (the epoch's lock), so its own commit makes everything before it durable too; what the first one managed to write it
/// finds standing as [`Standing::Proposed`]. No backend and no driver repeats anything by itself.
///
/// **The fence** (rule 11 and section 4). Every write is conditional, *in its own atomic step*, on the writer's epoch
/// being its node's newest, on the log's identity being the writer's, and on the decision counter not being below what
/// the writer has seen. Otherwise it takes nothing, not one record of the batch, and says which:
/// [`WriteError::Fenced`] when somebody newer rules, [`WriteError::WentBack`] when the log is not what it was. The step
/// conflicts with [`Self::open_epoch`], so that a decision is either before a new epoch and seen by its owner, or
/// refused; there is no third way through a write skew. So an id of a fenced epoch that has no record is aborted, for
/// ever, and anybody on this log may say so (rule 3).
///
/// **A batch is many, not one** (rule 23). A proposal that the store clearly refuses, or that loses its key, does not
/// fail, delay or undo its neighbours: the answer has an entry for each.
///
/// **One snapshot** (rule 3). [`Self::look_up`] and [`Self::head`] read everything they return at one moment. A record
/// read before an epoch would allow "no record" of a time before the decision, with "fenced" of a time after it.
///
/// # Cancellation
/// A write whose future is dropped is unclear: it may happen, wholly or not at all, and leaves nothing half done.
#[async_trait]
pub trait DecisionLog: Send + Sync + 'static {
    /// Whether one process owns this log for its life. Then a start fences and recovers every node in it, for nobody
    /// else can be running one; on a shared log it may only do so for its own.
    fn is_exclusive(&self) -> bool;

    /// The nodes that ever opened an epoch here, in ascending order.
    async fn nodes(&self) -> Result<Vec<Node>, LogError>;

    /// Begins a new life of `node`: forces a higher epoch into the log, which fences all earlier ones. Returns only
    /// after every decision that was running under them has ended, so that what is read afterwards
    /// ([`Self::unfinished`]) misses none of theirs.
    ///
    /// An unclear attempt may have raised the epoch; simply open again.
    async fn open_epoch(&self, node: Node) -> Result<Opened, LogError>;

    /// Marks that the writer's node is run, by the log's own clock; [`Self::open_epoch`] does too. A writer that is fenced
    /// marks nothing. On an exclusive log it does nothing, for there nobody else can be running a node.
    ///
    /// A mark decides nothing (design rule 13): it only says when an adoption may be tried.
    async fn mark(&self, writer: &Writer) -> Result<(), LogError>;

    /// Opens an epoch of a node that others have run, as [`Self::open_epoch`] does, unless it was marked within
    /// `unseen_for`; `None` asks for no mark. In one atomic step with that check, so that an owner who is just coming
    /// back is not fenced. On a log of which somebody said that it went back, nothing is adopted: an epoch that is
    /// raised comes nearer to those that were lost.
    ///
    /// An unclear attempt may have raised the epoch, and marked it; ask again.
    async fn adopt(
        &self,
        node: Node,
        unseen_for: Option<Duration>,
    ) -> Result<Result<Opened, NotAdopted>, LogError>;

    /// The nodes that have unfinished records and were not marked within `unseen_for`, in ascending order. None on an
    /// exclusive log, for a start takes over every node in it.
    async fn abandoned(&self, unseen_for: Duration) -> Result<Vec<Abandoned>, LogError>;

    /// What the log says of `node` now, in one snapshot. A coordinator reads it every second and asks
    /// [`Head::check`] whether it may go on (rule 11).
    async fn head(&self, node: Node) -> Result<Head, LogError>;

    /// Decides: one durable write for the whole batch, however large. Answers for each proposal, in the same order,
    /// which decision stands. A losing proposal stores nothing. The `appends` ride along: they are durable with it, and
    /// nothing about them ever fails a proposal.
    ///
    /// Proposals are of transactions of the writer's own life; any other is refused, for its absence may already have
    /// been told as "aborted".
    async fn decide(&self, writer: &Writer, batch: &Batch) -> Result<Decided, WriteError>;

    /// Writes what is not forced: records of what ended without a decision write, and finishes. `Ok` once it is
    /// durable, all of it, which may be late; a crash before that loses it, and safety never needs it (presumed abort). But
    /// it rests on what was called durable: the low-water mark passes a transaction once its finish is (rule 15).
    ///
    /// A record whose id or key is already there changes nothing; nor does a finish of what has no record or is already
    /// finished. A record that the store refuses is logged and left out, for it is history and no decision; a finish never
    /// is.
    async fn append(&self, writer: &Writer, appends: &Appends) -> Result<(), WriteError>;

    /// Everything that an answer about `id` rests on, in one snapshot (rule 3).
    async fn look_up(&self, id: TransactionId) -> Result<View, LogError>;

    /// Who holds these keys, in the same order, in one read for all (rule 21).
    async fn by_key(&self, keys: &[IdempotencyKey]) -> Result<Vec<Option<Record>>, LogError>;

    /// Every commit of `node` that some branch has still to be told, in id order: of the present identity and of the
    /// former ones. Read it after [`Self::open_epoch`], which is what makes it complete.
    async fn unfinished(&self, node: Node) -> Result<Vec<Record>, LogError>;

    /// Why a life found that this log went back (rule 11), if nobody has given it a new identity since. No life may begin
    /// on such a log: each start raises the epoch, and once it passes the lost ones, what they committed would read as
    /// aborted.
    async fn went_back(&self) -> Result<Option<String>, LogError>;

    /// Remembers that it went back, durably, and out of reach of whoever puts the log back once more, as far as the
    /// backend can. Ended by [`Self::new_identity`].
    async fn remember_that_it_went_back(&self, why: &str) -> Result<(), LogError>;

    /// Forgets, oldest finish first, at most `at_most` records whose transaction finished before `before`; returns how
    /// many. Fewer than `at_most` means that nothing more is due. The caller asks again for the rest, so that decisions
    /// come in between: a write takes what `at_most` costs and no more.
    ///
    /// In one atomic step with the delete the `forgotten_through` mark of each prefix concerned rises to the highest id
    /// that went; it never falls ([`View::forgotten_through`], rule 14). A key goes with its record and is free again.
    ///
    /// Kept, whatever their age: unfinished records, and *all records of a former identity*, of any node. Without its
    /// record nobody could ever say again how such a transaction ended (rule 3 allows only "pending"), and a branch of
    /// an abort may still be in doubt. See `docs/adr/0004`.
    ///
    /// Conditional on the writer as every write is, but it does not count as a decision write. After
    /// [`WriteError::Unavailable`] some may be gone; simply ask again.
    async fn forget(
        &self,
        writer: &Writer,
        before: WallMillis,
        at_most: u32,
    ) -> Result<u64, WriteError>;

    /// At most `limit` records of any node and identity that `filter` takes ([`Filter::takes_record`]), newest first by
    /// their [`Position`], and only those *after* `after` in that order, which are the older ones. Fewer than `limit`
    /// means that there are no more.
    ///
    /// A read as any other: a record in it may not be durable yet. A page costs about what the page holds, however
    /// long the history is: no offset is scanned, and each single member of the filter has an index.
    async fn history(
        &self,
        filter: &Filter,
        after: Option<Position>,
        limit: u32,
    ) -> Result<Vec<Record>, LogError>;

    /// The participants registered here at run time, by name. An address in text form, as it was put: the log does not
    /// know what can be called, and whoever reads it checks it (rule 19).
    async fn participants(&self) -> Result<Vec<(ParticipantName, String)>, LogError>;

    /// Registers a participant, or replaces its address; durable when it returns. `true` where the name is new.
    ///
    /// Conditional on the writer as every write is, and no decision write. After [`WriteError::Unavailable`] it may have
    /// happened; putting it again is harmless, and says "replaced" then.
    async fn put_participant(
        &self,
        writer: &Writer,
        name: &ParticipantName,
        url: &str,
    ) -> Result<bool, WriteError>;

    /// Removes a participant, unless an unfinished record, of any node, names it: that is checked in the same atomic
    /// step, with all branches counting, whatever their part. Durable when it returns. What is undecided is in no log,
    /// so the caller checks his memory first.
    ///
    /// Conditional on the writer as every write is, and no decision write.
    async fn remove_participant(
        &self,
        writer: &Writer,
        name: &ParticipantName,
    ) -> Result<Removal, WriteError>;

    /// For an operator, after the log was restored from a backup: draws a new identity, keeps the former ones, and
    /// raises every node's epoch, so that whoever ran on the lost state ends. Records stay answerable by their ids.
    ///
    /// An unclear attempt may have drawn one; drawing again costs nothing but a number.
    async fn new_identity(&self) -> Result<IdentityChange, LogError>;
}

/// Why a node can not be adopted now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAdopted {
    /// Somebody runs it, or has ended a moment ago.
    #[error("it was seen running a moment ago")]
    SeenLately,
    /// It never opened an epoch in this log.
    #[error("this log knows of no such node")]
    UnknownNode,
    /// Somebody found that the log went back.
    #[error("the decision log went back")]
    LogWentBack,
}

/// A node that nobody seems to run, and that has left something unfinished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abandoned {
    /// The node.
    pub node: Node,
    /// Commits that some branch has still to be told.
    pub unfinished: u64,
    /// Since its last mark.
    pub unseen_for: Duration,
}

/// What became of [`DecisionLog::remove_participant`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// It is gone.
    Removed,
    /// It was not there.
    Absent,
    /// An unfinished record names it, so it stays.
    InUse,
}

/// What a decision write came to.
#[derive(Debug)]
pub struct Decided {
    /// For each proposal, in the batch's order, the decision that stands; or why the store would not have it, which is
    /// clear: it has no record from this write.
    pub standings: Vec<Result<Standing, Refused>>,
    /// The decision counter after this write: the next [`Writer::decisions_at_least`].
    pub decisions: u64,
}

/// A new epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// What to write with from now on.
    pub writer: Writer,
    /// Identities that this log had before its present one, oldest first.
    pub former: Vec<LogIdentity>,
}

/// What an answer about one transaction rests on, of one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// The transaction's record.
    pub record: Option<Record>,
    /// The newest epoch of the *id's* node; `None` when it has no row.
    pub epoch: Option<Epoch>,
    /// The log's identity.
    pub identity: LogIdentity,
    /// Identities that this log had before, oldest first.
    pub former: Vec<LogIdentity>,
    /// Records of the id's prefix may be gone up to this id (rule 14).
    pub forgotten_through: Option<TransactionId>,
}

impl View {
    /// The record, and what the protocol judges by where there is none.
    #[must_use]
    pub fn split(self) -> (Option<Record>, Snapshot) {
        let Self {
            record,
            epoch,
            identity,
            former,
            forgotten_through,
        } = self;
        let recorded = record.is_some();
        (
            record,
            Snapshot {
                recorded,
                epoch,
                identity,
                former,
                forgotten_through,
            },
        )
    }
}

/// What [`DecisionLog::new_identity`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdentityChange {
    /// The identity until now.
    pub former: LogIdentity,
    /// The identity from now on.
    pub present: LogIdentity,
}

/// A cause from below, kept for our own log.
pub type Cause = Box<dyn std::error::Error + Send + Sync + 'static>;

/// Why the log could not be read, or an epoch not be opened.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// It does not answer now. Try again; say nothing of what was asked (rule 3: 503, never "aborted").
    #[error("the decision log does not answer")]
    Unavailable(#[source] Cause),
    /// It can not be trusted any more: a flush to disk failed, or its content is damaged. The process must end, for
    /// after a failed fsync the pages may look written and never be (rule 10).
    #[error("the decision log can not be trusted any more")]
    Broken(#[source] Cause),
}

/// Why a write was not made, or may not have been.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// Somebody newer rules. Nothing was written. The process ends and says nothing of what is undecided.
    #[error("fenced")]
    Fenced(#[source] Fence),
    /// The log is not what it was. Nothing was written. The process stays, and decides nothing more.
    #[error("the decision log went back")]
    WentBack(#[source] Regression),
    /// Unclear: repeat the same write until it is clear.
    #[error("the decision log does not answer, so the write is unclear")]
    Unavailable(#[source] Cause),
    /// As [`LogError::Broken`]: the process must end.
    #[error("the decision log can not be trusted any more")]
    Broken(#[source] Cause),
}

impl From<LogError> for WriteError {
    fn from(error: LogError) -> Self {
        match error {
            LogError::Unavailable(cause) => Self::Unavailable(cause),
            LogError::Broken(cause) => Self::Broken(cause),
        }
    }
}

impl From<Shut> for WriteError {
    fn from(shut: Shut) -> Self {
        match shut {
            Shut::Fenced(fence) => Self::Fenced(fence),
            Shut::WentBack(regression) => Self::WentBack(regression),
        }
    }
}

/// Why the store would not have a proposal. Clear: this write left no record of the transaction.
#[derive(Debug, thiserror::Error)]
#[error("the decision log refused the record of transaction {transaction}")]
pub struct Refused {
    /// The transaction.
    pub transaction: TransactionId,
    /// What the store said.
    #[source]
    pub cause: Cause,
}

/// A proposal of a life that is not the writer's. Storing it would make a transaction committed of which somebody may
/// have said "aborted": the fence speaks of the writer's epoch, so it must be the epoch of what is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is of another life than epoch {epoch} of node {node} under identity {identity}")]
struct NotOfThisLife {
    node: Node,
    epoch: Epoch,
    identity: LogIdentity,
}

/// Whether a proposal is this writer's to decide.
fn admit(writer: &Writer, proposal: &Record) -> Result<(), Refused> {
    let Writer {
        node,
        epoch,
        identity,
        ..
    } = *writer;
    let transaction = proposal.header.id;
    if writer.owns(transaction) {
        Ok(())
    } else {
        let cause = NotOfThisLife {
            node,
            epoch,
            identity,
        }
        .into();
        Err(Refused { transaction, cause })
    }
}

/// An identity that this log never had.
fn draw_identity(present: LogIdentity, former: &[LogIdentity]) -> LogIdentity {
    loop {
        let drawn = LogIdentity(rand::random());
        if drawn != present && !former.contains(&drawn) {
            return drawn;
        }
    }
}

impl From<sqlx::Error> for LogError {
    fn from(error: sqlx::Error) -> Self {
        let broken = match (postgres::sqlstate(&error), sqlite::sqlite_code(&error)) {
            (Some(sqlstate), _) => postgres::is_broken(&sqlstate),
            (None, Some(extended)) => sqlite::is_broken(extended),
            (None, None) => is_broken_without_a_code(&error),
        };
        if broken {
            Self::Broken(error.into())
        } else {
            Self::Unavailable(error.into())
        }
    }
}

/// Errors of the driver: a row that is not what we wrote is damage; the rest is about connections.
fn is_broken_without_a_code(error: &sqlx::Error) -> bool {
    use sqlx::Error::{ColumnDecode, Decode, RowNotFound, WorkerCrashed};
    matches!(
        error,
        ColumnDecode { .. } | Decode(_) | RowNotFound | WorkerCrashed
    )
}

/// Which decision stands for a proposal that is in the log already, or can not be.
enum Found {
    /// Of the same transaction.
    Own(Decision),
    /// Of the one that has its key.
    Holder(TransactionId),
}

/// An equal decision of the same transaction is the proposed one: it comes from an unclear first attempt, and the
/// commit of this repeat has made it durable (rule 23).
fn standing(proposal: &Record, found: Option<Found>) -> Standing {
    match found {
        None => Standing::Proposed,
        Some(Found::Own(decision)) if decision == proposal.decision => Standing::Proposed,
        Some(Found::Own(decision)) => Standing::Earlier(decision),
        Some(Found::Holder(holder)) => Standing::KeyHeldBy(holder),
    }
}

/// The errors of a write that no fence stands before.
fn unfenced(error: WriteError) -> LogError {
    match error {
        WriteError::Unavailable(cause) => LogError::Unavailable(cause),
        WriteError::Broken(cause) => LogError::Broken(cause),
        WriteError::Fenced(fence) => LogError::Broken(fence.into()),
        WriteError::WentBack(regression) => LogError::Broken(regression.into()),
    }
}

fn damaged(what: impl Into<Cause>) -> LogError {
    LogError::Broken(what.into())
}

/// What the row holds in `column`, which must be readable: we wrote it.
fn parsed<T, E: Into<Cause>>(column: &str, result: Result<T, E>) -> Result<T, LogError> {
    result.map_err(|error| damaged(format!("column {column}: {}", error.into())))
}

//! For the tests of a service: drives a [`Resource`] as a coordinator does, on a real database.
//!
//! A [`Trial`] is the whole participant without a network: a prepare, a commit, an abort go through the same routes and
//! the same local transactions as in production, and [`Trial::restart`] leaves nothing of its memory. What is told is
//! under the test's control: there is no coordinator, so a branch in doubt stays so until the test ends it.
//!
//! ```no_run
//! # use unanimous_participant::{
//! #     Failure, Resource, Tx, Vote, deadpool_postgres::{Manager, Pool}, testing::Trial, tokio_postgres::NoTls,
//! # };
//! # struct Stock;
//! # #[derive(serde::Serialize, serde::Deserialize)]
//! # enum Operation { Reserve { item: String, count: i64 } }
//! # impl Resource for Stock {
//! #     type Operation = Operation;
//! #     async fn prepare(&self, _: &Operation, _: &mut Tx<'_>) -> Result<Vote, Failure> { Ok(Vote::Yes) }
//! #     async fn commit(&self, _: &Operation, _: &mut Tx<'_>) -> Result<(), Failure> { Ok(()) }
//! # }
//! # fn a_pool_on_a_database_of_its_own() -> Pool {
//! #     let manager = Manager::new("postgres://localhost/stock".parse().expect("an address"), NoTls);
//! #     Pool::builder(manager).build().expect("a pool")
//! # }
//! #[tokio::test]
//! async fn the_stock_keeps_its_promises() -> Result<(), Box<dyn std::error::Error>> {
//!     // The program chooses its TLS provider; so does a test program.
//!     let _ = rustls::crypto::ring::default_provider().install_default();
//!     let pool = a_pool_on_a_database_of_its_own();
//!     let mut stock = Trial::start(pool.clone(), || Stock).await?;
//!
//!     // Step by step:
//!     let branch = stock.branch(&[Operation::Reserve { item: "tea".into(), count: 2 }])?;
//!     assert_eq!(stock.prepare(&branch).await?, Vote::Yes);
//!     stock.restart().await?;
//!     stock.commit(&branch).await?;
//!     stock.commit(&branch).await?; // Said twice, done once.
//!
//!     // Or the whole routine: what breaks is reported by name.
//!     stock
//!         .routine(&[Operation::Reserve { item: "tea".into(), count: 2 }], async || {
//!             let rows = pool.get().await?.query("SELECT item, there, held FROM stock ORDER BY item", &[]).await?;
//!             Ok(rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect::<Vec<(String, i64, i64)>>())
//!         })
//!         .await?;
//!     Ok(())
//! }
//! ```
//!
//! That the participant as a whole keeps the contract, over HTTP and through kills, is the conformance kit's to show:
//! `unanimous-lab check`.

use std::{fmt, sync::Arc};

use deadpool_postgres::{Object, Pool};
use unanimous_protocol::{
    id::{BranchId, Epoch, LogIdentity, Node, Prefix, Sequence, TransactionId},
    message::{Delivery, Reply, RequestKind, Vote as BranchVote},
    operations::{InvalidOperations, Operations},
    wire::{BranchRequest, HttpAnswer, PrepareRequest, read_reply},
};

use crate::{
    calls::chain,
    participant::{Participant, StartError},
    resource::{Failure, Resource, Vote},
    tx::Tx,
};

/// The participant's name in a trial.
const NAME: &str = "trial";
/// Nobody listens there.
const NOWHERE: &str = "http://127.0.0.1:9";
const REMAINING_MS: u64 = 30_000;
/// Branches that hold a promise at the same time.
const TOGETHER: usize = 8;

/// Why a trial could not go on. That a branch was refused is a [`Vote`], and no error.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// The participant does not start.
    #[error("the participant does not start")]
    Start(#[from] StartError),
    /// The operations can not be written as JSON.
    #[error("the operations can not be written as JSON")]
    Json(#[from] serde_json::Error),
    /// What was written is no list of operations.
    #[error("what was written is no list of operations")]
    Operations(#[from] InvalidOperations),
    /// Anything but the answer that acknowledges the call: a failure of the service's code, an outcome that differs.
    #[error("{call} of {transaction}: {answer}")]
    Unanswered {
        /// `prepare`, `commit` or `abort`.
        call: &'static str,
        /// Of which transaction.
        transaction: TransactionId,
        /// The status and the body.
        answer: String,
    },
}

/// A branch of a transaction of its own.
#[derive(Clone, Debug)]
pub struct Branch {
    transaction: TransactionId,
    operations: Operations,
}

impl Branch {
    /// Its transaction's id: what `tx.transaction()` is in the service's code.
    #[must_use]
    pub fn transaction(&self) -> TransactionId {
        self.transaction
    }
}

/// A participant under test. See the module's head.
pub struct Trial<R: Resource> {
    pool: Pool,
    resource: Arc<dyn Fn() -> R + Send + Sync>,
    participant: Participant,
    prefix: Prefix,
    next: std::sync::Mutex<Sequence>,
}

impl<R: Resource> fmt::Debug for Trial<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trial")
            .field("participant", &self.participant)
            .finish_non_exhaustive()
    }
}

/// What [`Trial::routine`] looks at, each with the name by which a failure is reported.
pub const PROPERTIES: [(&str, &str); 6] = [
    (
        "votes-yes",
        "the operations are read back as they were written, and vote yes",
    ),
    (
        "effects-only-through-tx",
        "prepare changes nothing that a rollback does not undo",
    ),
    (
        "abort-gives-back",
        "behind an abort all is as it was before the prepare, also when it is said twice",
    ),
    (
        "commit-applies-once",
        "a commit changes something, and said again, or behind a late prepare, nothing more",
    ),
    (
        "survives-a-restart",
        "a branch that voted yes before a restart commits, or is given back, behind it",
    ),
    (
        "keeps-every-promise",
        "of several branches that voted yes at the same time each commits, and each can be aborted",
    ),
];

/// The properties that a [`Resource`] does not have.
#[derive(Clone, PartialEq, Eq)]
pub struct Broken(Vec<(&'static str, String)>);

impl Broken {
    /// The names, of [`PROPERTIES`].
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.0.iter().map(|(name, _)| *name)
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (name, seen)) in self.0.iter().enumerate() {
            let meant = PROPERTIES.iter().find(|(property, _)| property == name);
            let meant = meant.map_or("", |(_, meant)| meant);
            let between = if at == 0 { "" } else { "\n" };
            write!(f, "{between}{name} ({meant}): {seen}")?;
        }
        Ok(())
    }
}

/// As it is displayed: `unwrap` shows it by this.
impl fmt::Debug for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Broken {}

impl<R: Resource> Trial<R> {
    /// Starts a participant on a database of the test's own; `resource` makes the service's code, anew for each life.
    ///
    /// # Errors
    /// As [`crate::Builder::start`]: the test's database, a pool of fewer than 3, no TLS provider.
    pub async fn start(
        pool: Pool,
        resource: impl Fn() -> R + Send + Sync + 'static,
    ) -> Result<Self, TrialError> {
        let resource: Arc<dyn Fn() -> R + Send + Sync> = Arc::new(resource);
        Ok(Self {
            participant: life(&pool, resource()).await?,
            pool,
            resource,
            // Drawn as a coordinator draws it: a database that is used again has no branch of this trial.
            prefix: Prefix {
                identity: LogIdentity(rand::random()),
                node: Node(1),
            },
            next: std::sync::Mutex::new(Sequence::start(rand::random())),
        })
    }

    /// The process dies and is started again: nothing of its memory is left, and all of its database is.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn restart(&mut self) -> Result<(), TrialError> {
        self.participant = life(&self.pool, (self.resource)()).await?;
        Ok(())
    }

    /// A branch with these operations, of a new transaction. Nobody has been asked anything yet.
    ///
    /// # Errors
    /// When the operations can not be written as JSON.
    pub fn branch(&self, operations: &[R::Operation]) -> Result<Branch, TrialError> {
        let text = serde_json::to_string(operations)?;
        Ok(self.branch_of(Operations::parse(&text)?))
    }

    fn branch_of(&self, operations: Operations) -> Branch {
        let mut next = self
            .next
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let sequence = *next;
        // It begins below 2^43 and has 2^43 to go.
        *next = sequence.next().unwrap_or(sequence);
        Branch {
            transaction: TransactionId::new(
                self.prefix,
                Epoch::new(1).unwrap_or(Epoch::MAX),
                sequence,
            ),
            operations,
        }
    }

    /// Tells the branch to prepare, and returns its vote. May be repeated, also late.
    ///
    /// # Errors
    /// When the service's code could not find out, or the branch was prepared with other operations before.
    pub async fn prepare(&self, branch: &Branch) -> Result<Vote, TrialError> {
        let request = PrepareRequest {
            transaction: branch.transaction,
            participant: self.participant.name().clone(),
            operations: branch.operations.clone(),
            remaining_ms: REMAINING_MS,
            begun_at_ms: 0,
            session: None,
            low_water: None,
        };
        match self.call(RequestKind::Prepare, branch, &request).await? {
            Reply::Vote(BranchVote::Yes) => Ok(Vote::Yes),
            Reply::Vote(BranchVote::ReadOnly) => Ok(Vote::ReadOnly),
            Reply::Vote(BranchVote::No(refusal)) => Ok(Vote::refuse(refusal.reason)),
            other @ (Reply::Committed
            | Reply::Aborted
            | Reply::VoteLost
            | Reply::OutcomeDiffers) => Err(unanswered(RequestKind::Prepare, branch, &other)),
        }
    }

    /// Tells the branch that its transaction is committed.
    ///
    /// # Errors
    /// When it does not acknowledge that.
    pub async fn commit(&self, branch: &Branch) -> Result<(), TrialError> {
        self.outcome(RequestKind::Commit, branch, &Reply::Committed)
            .await
    }

    /// Tells the branch that its transaction is aborted.
    ///
    /// # Errors
    /// When it does not acknowledge that.
    pub async fn abort(&self, branch: &Branch) -> Result<(), TrialError> {
        self.outcome(RequestKind::Abort, branch, &Reply::Aborted)
            .await
    }

    async fn outcome(
        &self,
        kind: RequestKind,
        branch: &Branch,
        acknowledged: &Reply,
    ) -> Result<(), TrialError> {
        let request = BranchRequest {
            transaction: branch.transaction,
            participant: self.participant.name().clone(),
            low_water: None,
        };
        let reply = self.call(kind, branch, &request).await?;
        if reply == *acknowledged {
            Ok(())
        } else {
            Err(unanswered(kind, branch, &reply))
        }
    }

    /// By the route that a coordinator calls, read as a coordinator reads it.
    async fn call(
        &self,
        kind: RequestKind,
        branch: &Branch,
        body: &impl serde::Serialize,
    ) -> Result<Reply, TrialError> {
        let mut request = http::Request::new(serde_json::to_vec(body)?);
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = http::Uri::from_static(match kind {
            RequestKind::Prepare => "/v1/prepare",
            RequestKind::Commit => "/v1/commit",
            RequestKind::Abort => "/v1/abort",
        });
        request.headers_mut().insert(
            http::header::CONTENT_TYPE,
            http::HeaderValue::from_static("application/json"),
        );
        let (head, body) = self.participant.answer(request).await.into_parts();
        let content_type = head.headers.get(http::header::CONTENT_TYPE);
        let answer = HttpAnswer {
            status: head.status.as_u16(),
            content_type: content_type.and_then(|value| value.to_str().ok()),
            body: &body.whole().await,
        };
        let branch_id = BranchId {
            transaction: branch.transaction,
            participant: self.participant.name().clone(),
        };
        match read_reply(kind, &branch_id, &answer) {
            // A *no* that is no vote of the branch: the request itself was refused.
            Delivery::Answered(reply)
                if answer.status == 200 || !matches!(reply, Reply::Vote(_)) =>
            {
                Ok(reply)
            }
            Delivery::Answered(_) | Delivery::Refused(_) | Delivery::Unknown(_) => {
                Err(TrialError::Unanswered {
                    call: kind.as_str(),
                    transaction: branch.transaction,
                    answer: format!("{} {}", answer.status, String::from_utf8_lossy(answer.body)),
                })
            }
        }
    }

    /// Drives branches with these operations through all of [`PROPERTIES`]. They have to vote yes, several of them at
    /// once unless that is refused, and `look` has to show all that they change, what is held included.
    ///
    /// # Errors
    /// What broke, by name.
    pub async fn routine<T: PartialEq + fmt::Debug>(
        &mut self,
        operations: &[R::Operation],
        look: impl AsyncFn() -> Result<T, Failure>,
    ) -> Result<(), Broken> {
        let mut broken = Vec::new();
        let look = async || {
            let seen = look().await;
            seen.map_err(|failure| Unlike(format!("the look of the test failed: {failure}")))
        };
        for (name, _) in PROPERTIES {
            let seen = match name {
                "votes-yes" => self.votes_yes(operations).await,
                "effects-only-through-tx" => self.effects_only_through_tx(operations, &look).await,
                "abort-gives-back" => self.abort_gives_back(operations, &look).await,
                "commit-applies-once" => self.commit_applies_once(operations, &look).await,
                "survives-a-restart" => self.survives_a_restart(operations, &look).await,
                _ => self.keeps_every_promise(operations, &look).await,
            };
            if let Err(Unlike(seen)) = seen {
                broken.push((name, seen));
                // What does not vote yes shows nothing else.
                if name == "votes-yes" {
                    break;
                }
            }
        }
        if broken.is_empty() {
            Ok(())
        } else {
            Err(Broken(broken))
        }
    }

    /// A new branch that has voted yes.
    async fn prepared(&self, operations: &[R::Operation]) -> Result<Branch, Unlike> {
        let branch = self.branch(operations)?;
        match self.prepare(&branch).await? {
            Vote::Yes => Ok(branch),
            vote @ (Vote::No(_) | Vote::ReadOnly) => unlike(format!("the vote is {vote:?}")),
        }
    }

    async fn votes_yes(&self, operations: &[R::Operation]) -> Result<(), Unlike> {
        let branch = self.prepared(operations).await?;
        Ok(self.abort(&branch).await?)
    }

    async fn effects_only_through_tx<T: PartialEq + fmt::Debug>(
        &self,
        operations: &[R::Operation],
        look: &impl AsyncFn() -> Result<T, Unlike>,
    ) -> Result<(), Unlike> {
        let before = look().await?;
        let said = |error: &dyn fmt::Display| Unlike(error.to_string());
        // Taken out of the pool: however this ends, nothing of it is left.
        let connection = Object::take(self.pool.get().await.map_err(|error| said(&error))?);
        let begun = connection.batch_execute("BEGIN").await;
        begun.map_err(|error| said(&error))?;
        let branch = BranchId {
            transaction: self.branch_of(Operations::none()).transaction,
            participant: self.participant.name().clone(),
        };
        let resource = (self.resource)();
        for operation in operations {
            let voted = resource
                .prepare(operation, &mut Tx::new(&connection, &branch))
                .await;
            voted.map_err(|failure| said(&failure))?;
        }
        let rolled_back = connection.batch_execute("ROLLBACK").await;
        rolled_back.map_err(|error| said(&error))?;
        same(&before, &look().await?, "a prepare that was rolled back")
    }

    async fn abort_gives_back<T: PartialEq + fmt::Debug>(
        &self,
        operations: &[R::Operation],
        look: &impl AsyncFn() -> Result<T, Unlike>,
    ) -> Result<(), Unlike> {
        let before = look().await?;
        let branch = self.prepared(operations).await?;
        for what in ["the abort", "the repeated abort"] {
            self.abort(&branch).await?;
            same(&before, &look().await?, what)?;
        }
        Ok(())
    }

    async fn commit_applies_once<T: PartialEq + fmt::Debug>(
        &self,
        operations: &[R::Operation],
        look: &impl AsyncFn() -> Result<T, Unlike>,
    ) -> Result<(), Unlike> {
        let before = look().await?;
        let branch = self.prepared(operations).await?;
        self.commit(&branch).await?;
        let after = look().await?;
        if after == before {
            return unlike(format!("behind the commit there still is {before:?}"));
        }
        self.commit(&branch).await?;
        same(&after, &look().await?, "the repeated commit")?;
        let late = self.prepare(&branch).await?;
        if late != Vote::Yes {
            return unlike(format!("the late prepare is answered {late:?}"));
        }
        same(&after, &look().await?, "the late prepare")
    }

    async fn survives_a_restart<T: PartialEq + fmt::Debug>(
        &mut self,
        operations: &[R::Operation],
        look: &impl AsyncFn() -> Result<T, Unlike>,
    ) -> Result<(), Unlike> {
        let before = look().await?;
        let branch = self.prepared(operations).await?;
        self.restart().await?;
        self.abort(&branch).await?;
        same(&before, &look().await?, "the abort behind a restart")?;
        let branch = self.prepared(operations).await?;
        self.restart().await?;
        self.commit(&branch).await?;
        let after = look().await?;
        if after == before {
            return unlike(format!(
                "behind the restart and the commit there still is {before:?}"
            ));
        }
        self.restart().await?;
        self.commit(&branch).await?;
        same(
            &after,
            &look().await?,
            "the repeated commit behind a restart",
        )
    }

    async fn keeps_every_promise<T: PartialEq + fmt::Debug>(
        &self,
        operations: &[R::Operation],
        look: &impl AsyncFn() -> Result<T, Unlike>,
    ) -> Result<(), Unlike> {
        let before = look().await?;
        for branch in self.promised(operations).await? {
            self.abort(&branch).await?;
        }
        same(&before, &look().await?, "the aborts of several branches")?;
        let promised = self.promised(operations).await?;
        let count = promised.len();
        for (at, branch) in promised.iter().enumerate() {
            // After its yes it can commit, whatever the others have done meanwhile.
            if let Err(error) = self.commit(branch).await {
                let (number, why) = (at + 1, chain(&error));
                return unlike(format!(
                    "{count} branches voted yes, and commit {number} of them fails: {why}"
                ));
            }
        }
        Ok(())
    }

    /// Branches that hold their promise at the same time: so many as vote yes.
    async fn promised(&self, operations: &[R::Operation]) -> Result<Vec<Branch>, Unlike> {
        let mut promised = vec![self.prepared(operations).await?];
        while promised.len() < TOGETHER {
            let branch = self.branch(operations)?;
            match self.prepare(&branch).await {
                Ok(Vote::Yes) => promised.push(branch),
                // Refused, or waiting for a key that one of these holds.
                Ok(Vote::No(_) | Vote::ReadOnly) | Err(_) => break,
            }
        }
        Ok(promised)
    }
}

/// One life of the participant.
async fn life<R: Resource>(pool: &Pool, resource: R) -> Result<Participant, StartError> {
    Participant::builder(NAME, resource)
        .pool(pool.clone())
        .coordinator(NOWHERE)
        .start()
        .await
}

fn same<T: PartialEq + fmt::Debug>(before: &T, now: &T, what: &str) -> Result<(), Unlike> {
    if before == now {
        Ok(())
    } else {
        unlike(format!(
            "there was {before:?}, and behind {what} there is {now:?}"
        ))
    }
}

fn unanswered(kind: RequestKind, branch: &Branch, reply: &Reply) -> TrialError {
    TrialError::Unanswered {
        call: kind.as_str(),
        transaction: branch.transaction,
        answer: match reply {
            Reply::VoteLost => "409 vote-lost".to_owned(),
            Reply::OutcomeDiffers => "409 outcome-differs".to_owned(),
            Reply::Vote(_) | Reply::Committed | Reply::Aborted => format!("{reply:?}"),
        },
    }
}

/// What was seen in place of a property.
struct Unlike(String);

impl From<TrialError> for Unlike {
    fn from(error: TrialError) -> Self {
        Self(chain(&error))
    }
}

fn unlike<T>(seen: String) -> Result<T, Unlike> {
    Err(Unlike(seen))
}

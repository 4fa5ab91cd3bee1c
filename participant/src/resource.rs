//! What a service author writes: one trait, with the service's operations as one enum.

use std::{borrow::Cow, fmt, future::Future};

use serde::{Serialize, de::DeserializeOwned};

use crate::tx::{Database, TokioPostgres, Tx};

/// A service's part in global transactions: what its operations check, reserve, apply and give back.
///
/// Each call runs inside a local transaction that the crate begins and ends, together with the branch's row: what is
/// written through [`Tx`] and what was promised are durable together or gone together. The operations of one branch run
/// in order in one local transaction and see what the earlier ones wrote.
///
/// `prepare` may run more than once for one operation (its transaction rolled back in between), but what it wrote
/// stays once. So keep every effect inside `tx`: a mail sent from here can not be taken back.
pub trait Resource<D: Database = TokioPostgres>: Send + Sync + 'static {
    /// What a branch may ask of this service; usually an enum with `#[serde(tag = "kind")]`.
    ///
    /// The branch keeps the text it received and reads this type from it wherever it is needed, so a new version of the
    /// service must still read what the version before it promised. Amounts of money belong in integers or strings:
    /// a floating-point number rounds.
    type Operation: Serialize + DeserializeOwned + Send + Sync;

    /// Checks and reserves. [`Vote::No`] is a refusal: the whole transaction aborts, and the reason reaches the client.
    /// [`Failure`] (from any error, by `?`) means that it could not find out: the local transaction is rolled back,
    /// the answer is 503, and the coordinator asks again until the deadline.
    ///
    /// After a yes this operation must be able to commit, whatever comes: reserve what it needs.
    fn prepare(
        &self,
        operation: &Self::Operation,
        tx: &mut Tx<'_, D>,
    ) -> impl Future<Output = Result<Vote, Failure>> + Send;

    /// Applies an operation that voted yes. It can not refuse any more; a [`Failure`] is asked again for ever.
    fn commit(
        &self,
        operation: &Self::Operation,
        tx: &mut Tx<'_, D>,
    ) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Gives back what an operation that voted yes had reserved. Nothing, where nothing was.
    fn abort(
        &self,
        operation: &Self::Operation,
        tx: &mut Tx<'_, D>,
    ) -> impl Future<Output = Result<(), Failure>> + Send {
        let _ = (operation, tx);
        async { Ok(()) }
    }

    /// The keys that the branch holds, exclusively, from its prepare until its outcome. None by default: reserving (a
    /// `held` column beside the balance) lets transactions on one account run side by side, and is the better habit.
    fn keys(&self, operation: &Self::Operation) -> Vec<Key> {
        let _ = operation;
        Vec::new()
    }
}

/// One operation's answer to prepare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Vote {
    /// Checked and reserved: it will commit, or be aborted, as told.
    Yes,
    /// Refused, and why, in words for whoever began the transaction. What this branch wrote is rolled back.
    No(Cow<'static, str>),
    /// It changed nothing and needs no second phase. Where all of a branch's operations say so, whatever they wrote is
    /// rolled back.
    ReadOnly,
}

impl Vote {
    /// `Vote::No` with this reason.
    pub fn refuse(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::No(reason.into())
    }

    /// Yes if `condition` holds, else a refusal with this reason.
    pub fn yes_if(condition: bool, otherwise: impl Into<Cow<'static, str>>) -> Self {
        if condition {
            Self::Yes
        } else {
            Self::No(otherwise.into())
        }
    }
}

/// The service could not find out: neither yes nor no. Made from any error by `?`.
///
/// Like `anyhow::Error` it is no `std::error::Error` itself, so that `?` can take every one of them.
pub struct Failure(Box<dyn std::error::Error + Send + Sync>);

impl Failure {
    /// A failure that has no error of its own.
    pub fn msg(text: impl Into<String>) -> Self {
        Self(text.into().into())
    }

    pub(crate) fn into_source(self) -> Box<dyn std::error::Error + Send + Sync> {
        self.0
    }
}

impl<E: std::error::Error + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(Box::new(error))
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Something that one branch at a time may hold, named by the service: `account/7`. At most 255 bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(String);

impl Key {
    /// Names a key.
    pub fn new(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    /// The key's name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

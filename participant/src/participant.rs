//! [`Participant`]: one service's part, started. Joins the parts and knows none of the rules.

use std::{fmt, sync::Arc, time::Duration};

use deadpool_postgres::Pool;
use tokio::{
    runtime::Handle,
    sync::Semaphore,
    task::{AbortHandle, JoinError},
    time::Instant,
};
use tracing::Instrument as _;
use unanimous_protocol::{
    branch::{Answer, Event},
    id::{BranchId, ParticipantName},
    wire::PrepareRequest,
};

use crate::{
    calls::Unanswered,
    connections::{Connections, POOL_MIN},
    inquiry::{self, Coordinator},
    intent_log::LogError,
    interactive::{self, Sessions},
    keys::KeyWaiters,
    lane::{self, Lane},
    pruning::{self, Marks},
    resource::Resource,
    running::Running,
    schema::{self, SchemaError},
    service::{Service, Typed},
    traces::Traces,
};

/// A service that takes part in global transactions. Cheap to clone; once the last clone is gone, it no longer inquires.
#[derive(Clone)]
pub struct Participant {
    pub(crate) shared: Arc<Shared>,
    _background: Arc<Background>,
}

/// What all requests of one participant share.
pub(crate) struct Shared {
    pub(crate) name: ParticipantName,
    /// The present name, then former ones: whose branches are ours.
    pub(crate) names: Vec<String>,
    pub(crate) service: Box<dyn Service>,
    pub(crate) connections: Connections,
    pub(crate) running: Running,
    pub(crate) lane: Lane,
    pub(crate) keys: KeyWaiters,
    pub(crate) sessions: Sessions,
    pub(crate) marks: Marks,
    pub(crate) traces: Traces,
    pub(crate) coordinators: Vec<Coordinator>,
    pub(crate) http: reqwest::Client,
    /// Outcomes found by inquiries are applied so many at a time: one fewer than the pool has connections, for the
    /// outcomes that are told.
    pub(crate) settling: Semaphore,
    pub(crate) inquire_after: Duration,
    pub(crate) inquire_every_max: Duration,
    pub(crate) prune_every: Duration,
    pub(crate) runtime: Handle,
}

struct Background([AbortHandle; 4]);

impl Drop for Background {
    fn drop(&mut self) {
        self.0.iter().for_each(AbortHandle::abort);
    }
}

/// Why a participant did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The name is none.
    #[error("{name:?} can not name a participant: {reason}")]
    Name {
        /// As given.
        name: String,
        /// What a name must be.
        reason: String,
    },
    /// `.pool(…)` was not called.
    #[error("participant {0} has no pool: call .pool(…) with a deadpool_postgres::Pool")]
    NoPool(ParticipantName),
    /// The pool is too small to keep two connections for commits and aborts.
    #[error(
        "the pool of participant {participant} has {size} connections and needs at least {POOL_MIN}: two are kept for \
         commits and aborts, which must never wait behind prepares"
    )]
    PoolTooSmall {
        /// Which one.
        participant: ParticipantName,
        /// The pool's `max_size`.
        size: usize,
    },
    /// `.coordinator(…)` was not called: nobody could be asked about a branch in doubt.
    #[error("participant {0} has no coordinator: call .coordinator(\"http://…\")")]
    NoCoordinator(ParticipantName),
    /// An address is none.
    #[error("coordinator address {address:?}: {reason}")]
    CoordinatorAddress {
        /// As given.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The program installed no crypto provider for TLS.
    #[error(
        "no TLS provider is installed: call rustls::crypto::ring::default_provider().install_default() first thing in \
         main. A library does not choose one, and the HTTP client wants one even for plain http"
    )]
    NoTlsProvider,
    /// The HTTP client that inquires.
    #[error("the HTTP client for inquiries")]
    HttpClient(#[source] reqwest::Error),
    /// No connection. Retrying may help.
    #[error("participant {participant} can not connect to its database: {reason}")]
    Database {
        /// Which one.
        participant: ParticipantName,
        /// What the pool said.
        reason: String,
    },
    /// The database can not hold the intent log.
    #[error("participant {participant} can not use its database")]
    Schema {
        /// Which one.
        participant: ParticipantName,
        /// Why.
        #[source]
        source: SchemaError,
    },
}

impl StartError {
    /// Whether the same start may succeed later, unchanged: the database was not there, or broke off.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Database { .. } => true,
            Self::Schema { source, .. } => match source {
                // A closed connection, or a server that is starting or stopping; a refusal of a statement is final.
                SchemaError::Database(error) => {
                    error.is_closed()
                        || error.code().is_none_or(|code| {
                            code.code().starts_with("57P") || code.code().starts_with("08")
                        })
                }
                SchemaError::Newer { .. } | SchemaError::Server(_) => false,
            },
            // What was written must be written differently.
            Self::Name { .. }
            | Self::NoPool(_)
            | Self::PoolTooSmall { .. }
            | Self::NoCoordinator(_)
            | Self::CoordinatorAddress { .. }
            | Self::NoTlsProvider
            | Self::HttpClient(_) => false,
        }
    }
}

/// What a participant is made of. See [`Participant::builder`].
pub struct Builder {
    name: String,
    former: Vec<String>,
    service: Box<dyn Service>,
    pool: Option<Pool>,
    coordinators: Vec<String>,
    inquire_after: Duration,
    inquire_every_max: Duration,
    prune_every: Duration,
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("name", &self.name)
            .field("coordinators", &self.coordinators)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Participant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Participant")
            .field("name", &self.shared.name)
            .finish_non_exhaustive()
    }
}

impl Participant {
    /// Begins to describe a participant: its name, as the coordinators have it registered, and its code.
    pub fn builder<R: Resource>(name: impl Into<String>, resource: R) -> Builder {
        Builder {
            name: name.into(),
            former: Vec::new(),
            service: Box::new(Typed(Arc::new(resource))),
            pool: None,
            coordinators: Vec::new(),
            inquire_after: Duration::from_secs(1),
            inquire_every_max: Duration::from_secs(10),
            prune_every: Duration::from_secs(1),
        }
    }

    /// The name it was started with.
    #[must_use]
    pub fn name(&self) -> &ParticipantName {
        &self.shared.name
    }
}

impl Builder {
    /// The service's own pool, of at least 3 connections. Prepares use all but two of them; what the service takes from
    /// it for requests of its own is not counted, so a busy service gives those another pool.
    #[must_use]
    pub fn pool(mut self, pool: Pool) -> Self {
        self.pool = Some(pool);
        self
    }

    /// A coordinator to ask about branches in doubt: `http://127.0.0.1:7070`. May be called several times, for several
    /// coordinators on one log; they are asked in turn.
    #[must_use]
    pub fn coordinator(mut self, address: impl Into<String>) -> Self {
        self.coordinators.push(address.into());
        self
    }

    /// A name that this service had before. Its branches are finished by this service, and asked for by that name; new
    /// work under it is turned away. Without this, branches of another name are another service's and left alone.
    #[must_use]
    pub fn formerly(mut self, name: impl Into<String>) -> Self {
        self.former.push(name.into());
        self
    }

    /// How long a branch is left in doubt before the coordinator is asked (1 s). At start all are asked for at once.
    #[must_use]
    pub fn inquire_after(mut self, in_doubt: Duration) -> Self {
        self.inquire_after = in_doubt;
        self
    }

    /// The longest pause between two inquiries about one branch (10 s); the first one is a tenth of a second.
    #[must_use]
    pub fn inquire_every_max(mut self, pause: Duration) -> Self {
        self.inquire_every_max = pause;
        self
    }

    /// The pause between two rounds that drop rows of finished transactions (1 s). What may be dropped is told by the
    /// coordinator with its calls; nothing else ever drops a row.
    #[must_use]
    pub fn prune_every(mut self, pause: Duration) -> Self {
        self.prune_every = pause;
        self
    }

    /// Migrates the intent log, checks the server, and begins to inquire about what is in doubt. Requests run on the
    /// runtime that this is called on, whichever thread serves them.
    ///
    /// # Errors
    /// See [`StartError`]; [`StartError::is_retryable`] says whether it is worth trying again.
    pub async fn start(self) -> Result<Participant, StartError> {
        let name = participant_name(&self.name)?;
        let mut names = vec![name.to_string()];
        for former in &self.former {
            let former = participant_name(former)?.to_string();
            // Once each: a key is taken once under each of them.
            if !names.contains(&former) {
                names.push(former);
            }
        }
        let Some(pool) = self.pool else {
            return Err(StartError::NoPool(name));
        };
        let connections = Connections::of(pool);
        let size = connections.pool_size();
        if size < POOL_MIN {
            return Err(StartError::PoolTooSmall {
                participant: name,
                size,
            });
        }
        if self.coordinators.is_empty() {
            return Err(StartError::NoCoordinator(name));
        }
        let coordinators: Result<Vec<_>, _> = self
            .coordinators
            .iter()
            .map(|address| Coordinator::at(address))
            .collect();
        let coordinators = coordinators?;
        // Its builder panics without one, rather than to return an error.
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            return Err(StartError::NoTlsProvider);
        }
        let http = inquiry::http_client().map_err(StartError::HttpClient)?;

        let database = |error: LogError| StartError::Database {
            participant: name.clone(),
            reason: error.to_string(),
        };
        let schema = |source| StartError::Schema {
            participant: name.clone(),
            source,
        };
        let mut connection = connections.get().await.map_err(database)?;
        schema::check_server(&connection).await.map_err(schema)?;
        schema::migrate(&mut connection, name.as_str())
            .await
            .map_err(schema)?;
        drop(connection);

        let runtime = Handle::current();
        let shared = Arc::new(Shared {
            name,
            names,
            service: self.service,
            connections,
            running: Running::default(),
            lane: Lane::default(),
            keys: KeyWaiters::default(),
            sessions: Sessions::default(),
            marks: Marks::default(),
            traces: Traces::default(),
            coordinators,
            http,
            settling: Semaphore::new(size - 1),
            inquire_after: self.inquire_after,
            inquire_every_max: self.inquire_every_max,
            prune_every: self.prune_every,
            runtime: runtime.clone(),
        });
        let background = [
            runtime
                .spawn(inquiry::run(Arc::clone(&shared)))
                .abort_handle(),
            runtime.spawn(lane::run(Arc::clone(&shared))).abort_handle(),
            runtime
                .spawn(interactive::run(Arc::clone(&shared)))
                .abort_handle(),
            runtime
                .spawn(pruning::run(Arc::clone(&shared)))
                .abort_handle(),
        ];
        Ok(Participant {
            shared,
            _background: Arc::new(Background(background)),
        })
    }
}

fn participant_name(name: &str) -> Result<ParticipantName, StartError> {
    name.parse().map_err(
        |error: unanimous_protocol::id::InvalidParticipantName| StartError::Name {
            name: name.to_owned(),
            reason: error.to_string(),
        },
    )
}

impl Shared {
    /// Whether branches of this name are this service's.
    pub(crate) fn is_ours(&self, name: &ParticipantName) -> bool {
        self.names.iter().any(|ours| ours == name.as_str())
    }

    /// A prepare in a task of its own: it goes on when its caller hangs up, and a repeat finds what came of it.
    pub(crate) async fn run_prepare(
        self: &Arc<Self>,
        request: PrepareRequest,
    ) -> Result<Answer, Unanswered> {
        let arrived = Instant::now();
        let shared = Arc::clone(self);
        let task = async move { shared.prepare(request, arrived).await };
        let task = self.runtime.spawn(task.in_current_span());
        task.await.unwrap_or_else(died)
    }

    /// As [`Self::run_prepare`], for all that is not a prepare.
    pub(crate) async fn run_event(
        self: &Arc<Self>,
        branch: BranchId,
        event: Event,
    ) -> Result<Option<Answer>, Unanswered> {
        let shared = Arc::clone(self);
        let task = async move { shared.event(&branch, event).await };
        let task = self.runtime.spawn(task.in_current_span());
        task.await.unwrap_or_else(died)
    }
}

/// Only a panic of the service's code, or the end of the program, leaves a task without a result. It answers nothing,
/// and its connection was closed.
fn died<T>(error: JoinError) -> Result<T, Unanswered> {
    tracing::error!(%error, "the task of a message died");
    Err(Unanswered::Busy)
}

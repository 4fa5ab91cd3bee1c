//! Participants registered at run time: kept in the log, called by the couriers.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use actix::{
    ActorFutureExt as _, Addr, Context, Handler, Message, ResponseActFuture, WrapFuture as _,
};
use futures_util::future::join_all;
use tracing::{error, info, warn};
use unanimous_protocol::{id::ParticipantName, life::Standing};

use super::Registry;
use crate::{
    actors::transaction::{IsInUse, TransactionActor},
    courier::{Couriers, Endpoint, Http},
    crash,
    log::{Removal, WriteError},
    telemetry::chain,
};

/// Between two attempts to learn who answers at an address; participants may start after their coordinator.
const DESCRIBE_AGAIN: Duration = Duration::from_secs(5);
/// Attempts. Whoever is silent for longer shows it by not voting.
const DESCRIBE_MAX: u32 = 12;

/// Registers those that the log knows, but for those that were given at start: these win.
pub fn register_stored(
    couriers: &Couriers,
    configured: &BTreeSet<ParticipantName>,
    stored: Vec<(ParticipantName, String)>,
) {
    for (participant, url) in stored {
        if configured.contains(&participant) {
            continue;
        }
        match url.parse() {
            Ok(endpoint) => couriers.register(&participant, endpoint),
            Err(error) => error!(
                %participant, url, error = %chain(&error),
                "the log holds an address that can not be called: this participant's branches wait"
            ),
        }
    }
}

/// Who is registered, by name.
#[derive(Message)]
#[rtype(result = "Vec<(ParticipantName, Endpoint)>")]
pub struct Participants;

impl Handler<Participants> for Registry {
    type Result = Vec<(ParticipantName, Endpoint)>;

    fn handle(&mut self, _: Participants, _: &mut Context<Self>) -> Self::Result {
        let all = self.couriers.stats().into_iter();
        all.filter_map(|(name, stats)| Some((name, stats.endpoint?)))
            .collect()
    }
}

/// Register a participant, or give it another address.
#[derive(Message)]
#[rtype(result = "PutOutcome")]
pub struct Put {
    /// Its name.
    pub name: ParticipantName,
    /// Its address.
    pub endpoint: Endpoint,
}

/// What became of a [`Put`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutOutcome {
    /// It is new.
    Created,
    /// It was there.
    Replaced,
    /// It was given at start.
    Configured,
    /// The log takes no write now.
    LogUnavailable,
}

/// Remove a participant.
#[derive(Message)]
#[rtype(result = "RemoveOutcome")]
pub struct Remove(pub ParticipantName);

/// What became of a [`Remove`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoveOutcome {
    /// It is gone.
    Removed,
    /// It was not there.
    Unknown,
    /// An unfinished transaction names it.
    InUse,
    /// It was given at start.
    Configured,
    /// The log takes no write now.
    LogUnavailable,
}

impl Handler<Put> for Registry {
    type Result = ResponseActFuture<Self, PutOutcome>;

    fn handle(&mut self, Put { name, endpoint }: Put, _: &mut Context<Self>) -> Self::Result {
        if let Some(outcome) = self.unchangeable(&name) {
            let outcome = match outcome {
                Unchangeable::Configured => PutOutcome::Configured,
                Unchangeable::NotNow => PutOutcome::LogUnavailable,
            };
            return Box::pin(async move { outcome }.into_actor(self));
        }
        let (log, writer) = (Arc::clone(&self.log), self.life.writer());
        let turn = Arc::clone(&self.participants_turn);
        let put = async move {
            // One change at a time, or the couriers could end up with the address that lost.
            let turn = turn.lock_owned().await;
            crash::point("put-participant-before");
            let put = log.put_participant(&writer, &name, endpoint.as_str()).await;
            crash::point("put-participant-after");
            (put, name, endpoint, turn)
        };
        let put = put.into_actor(self);
        Box::pin(put.map(|(put, name, endpoint, turn), registry, ctx| {
            let outcome = match put {
                Ok(is_new) => {
                    info!(participant = %name, url = %endpoint, "a participant is registered");
                    registry.couriers.register(&name, endpoint.clone());
                    registry.describe(name, endpoint);
                    if is_new {
                        PutOutcome::Created
                    } else {
                        PutOutcome::Replaced
                    }
                }
                Err(error) => {
                    registry.not_written(error, ctx);
                    PutOutcome::LogUnavailable
                }
            };
            drop(turn);
            outcome
        }))
    }
}

impl Handler<Remove> for Registry {
    type Result = ResponseActFuture<Self, RemoveOutcome>;

    fn handle(&mut self, Remove(name): Remove, _: &mut Context<Self>) -> Self::Result {
        if let Some(outcome) = self.unchangeable(&name) {
            let outcome = match outcome {
                Unchangeable::Configured => RemoveOutcome::Configured,
                Unchangeable::NotNow => RemoveOutcome::LogUnavailable,
            };
            return Box::pin(async move { outcome }.into_actor(self));
        }
        let live: Vec<_> = self
            .transactions
            .values()
            .map(|live| live.actor.clone())
            .collect();
        let (log, writer) = (Arc::clone(&self.log), self.life.writer());
        let turn = Arc::clone(&self.participants_turn);
        let remove = async move {
            let turn = turn.lock_owned().await;
            // A transaction that names it from now on waits, visibly (rule 19).
            let removal = if any_names(live, &name).await {
                Ok(Removal::InUse)
            } else {
                crash::point("remove-participant-before");
                let removed = log.remove_participant(&writer, &name).await;
                crash::point("remove-participant-after");
                removed
            };
            (removal, name, turn)
        };
        let remove = remove.into_actor(self);
        Box::pin(remove.map(|(removal, name, turn), registry, ctx| {
            let outcome = match removal {
                Ok(Removal::Removed) => {
                    info!(participant = %name, "a participant is no longer registered");
                    registry.couriers.unregister(&name);
                    RemoveOutcome::Removed
                }
                Ok(Removal::Absent) => RemoveOutcome::Unknown,
                Ok(Removal::InUse) if registry.couriers.is_registered(&name) => {
                    RemoveOutcome::InUse
                }
                Ok(Removal::InUse) => RemoveOutcome::Unknown,
                Err(error) => {
                    registry.not_written(error, ctx);
                    RemoveOutcome::LogUnavailable
                }
            };
            drop(turn);
            outcome
        }))
    }
}

/// Whether an unfinished transaction in memory has a branch of this name.
async fn any_names(live: Vec<Addr<TransactionActor>>, name: &ParticipantName) -> bool {
    let asked = live.iter().map(|actor| actor.send(IsInUse(name.clone())));
    // Who has ended names nobody: its record is in the log.
    let answers = join_all(asked).await;
    answers.into_iter().any(|answer| answer.unwrap_or(false))
}

enum Unchangeable {
    Configured,
    NotNow,
}

impl Registry {
    fn unchangeable(&self, name: &ParticipantName) -> Option<Unchangeable> {
        if self.configured.contains(name) {
            Some(Unchangeable::Configured)
        } else if *self.life.standing() != Standing::Serving || !self.log_answers() {
            Some(Unchangeable::NotNow)
        } else {
            None
        }
    }

    fn not_written(&mut self, error: WriteError, ctx: &mut Context<Self>) {
        match error {
            WriteError::Unavailable(cause) => {
                warn!(error = %chain(&*cause), "a change of a participant may not have been written");
            }
            WriteError::Fenced(_) | WriteError::WentBack(_) => self.observe(ctx),
            WriteError::Broken(cause) => {
                error!(error = %chain(&*cause), "the decision log can not be trusted any more: the process ends");
                std::process::abort();
            }
        }
    }

    /// Asks at every address who answers there.
    pub(super) fn describe_all(&self) {
        for (name, stats) in self.couriers.stats() {
            if let Some(endpoint) = stats.endpoint {
                self.describe(name, endpoint);
            }
        }
    }

    fn describe(&self, name: ParticipantName, endpoint: Endpoint) {
        let (http, couriers) = (Arc::clone(&self.http), self.couriers.clone());
        actix::spawn(describe(http, couriers, name, endpoint));
    }
}

/// A wrong address is found before money is: a participant answers only for its own name, so every prepare to another
/// one would be unknown until the deadline.
async fn describe(
    http: Arc<Http>,
    couriers: Couriers,
    participant: ParticipantName,
    url: Endpoint,
) {
    let mut last_error = String::new();
    for _ in 0..DESCRIBE_MAX {
        // The couriers' own, which remembers for them what is announced.
        let Some(registered) = couriers.endpoint(&participant).filter(|at| *at == url) else {
            return;
        };
        match http.describe(&registered).await {
            Ok(described) if described.participant == participant => {
                info!(%participant, %url, "the participant answers");
                return;
            }
            Ok(described) => {
                error!(
                    %participant, %url, answers = %described.participant,
                    "ANOTHER PARTICIPANT ANSWERS at this address: its votes will not count; correct the URL or the name"
                );
                return;
            }
            Err(error) => last_error = error,
        }
        tokio::time::sleep(DESCRIBE_AGAIN).await;
    }
    warn!(%participant, %url, error = last_error, "nobody says who answers at this address");
}

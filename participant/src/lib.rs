//! Under construction.
#[cfg(feature = "actix-web")]
mod actix;
mod branch;
mod calls;
mod connections;
mod http;
mod inquiry;
mod intent_log;
mod interactive;
mod keys;
mod participant;
mod resource;
mod running;
mod schema;
mod service;
mod tx;

pub use crate::{
    http::BODY_MAX,
    interactive::{InteractiveBranch, InteractiveError, TRANSACTION_HEADER},
    participant::{Builder, Participant, StartError},
    resource::{Failure, Key, Resource, Vote},
    schema::SchemaError,
    tx::{Database, TokioPostgres, Tx, TxError},
};
pub use deadpool_postgres;
pub use tokio_postgres;
pub use unanimous_protocol::id::{InvalidId, ParticipantName, TransactionId};
